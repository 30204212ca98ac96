# Diffusion-native systems: what they prepare, their sets, and their own table and figure.
from diver.config.native.d3hr import D3HRConfig
from diver.config.native.edits import CLUSTERED_BY
from diver.config.native.minimax import MinimaxConfig

NATIVE = cells.native_entries(STUDY)
INVERTED = [
    (dataset, stage1) for dataset in STUDY.datasets for stage1 in NATIVE if STUDY.distill[stage1].method == "d3hr"
]


def native_cell(wildcards):
    """A set of the entry; where there is no IPC, the study's first."""
    ipc = int(wildcards.get("ipc", STUDY.ipc[0]))
    return cells.SetCell(wildcards.dataset, ipc, wildcards.stage1)


def artefact(name):
    """Path of a preparation of the entry, by its name in `diver.config.native`, as an input function."""
    return lambda wildcards: cells.artefact_paths(STUDY, native_cell(wildcards))[name]


def native_settings(*names):
    """Settings of the entry, those of these names if any: a preparation does not depend on the others."""

    def settings(wildcards):
        cell = native_cell(wildcards)
        found = STUDY.distill[cell.stage1].at(cell.dataset, cell.ipc)
        return {name: found[name] for name in names or found if name in found}

    return settings


def inversion_settings(wildcards):
    """Settings that D3HR's statistics depend on."""
    return D3HRConfig(**native_settings()(wildcards)).inversion()


def tuning_settings(wildcards):
    """Settings that Minimax's fine-tuned prior depends on."""
    return MinimaxConfig(**native_settings()(wildcards)).tuning()


def inverted_labels():
    """Labels of the entries whose classes are inverted, with their dataset where there are several."""
    names, several = display_names(), len(STUDY.datasets) > 1
    labels = [(names["dataset"][dataset], names["stage1"][stage1]) for dataset, stage1 in INVERTED]
    return [f"{dataset}: {label}" if several else label for dataset, label in labels]


def native_method(wildcards):
    return STUDY.distill[wildcards.stage1].method


def artefacts_of_set(wildcards):
    """All preparations of a set, by name."""
    return {name: str(path) for name, path in cells.artefact_paths(STUDY, native_cell(wildcards)).items()}


def set_benchmarks():
    """Where the times of each set stand: of making it, and of its own and the shared preparations."""
    found = []
    for cell in SETS:
        name = f"{cell.dataset}-ipc{cell.ipc}-{cell.stage1}"
        prepared = native_preparations(cell) if cell.stage2 == NONE and cell.stage1 in NATIVE else []
        if cell.stage2 == NONE:
            making = [f"{BENCHMARKS}/distill/{name}.tsv"]
        elif STUDY.shards == 1:
            making = [f"{BENCHMARKS}/recover/{name}/{cell.stage2}.tsv"]
        else:
            shards = cells.shard_paths(STUDY, cell, len(DATASETS[cell.dataset].classes))
            making = [f"{BENCHMARKS}/recover/{name}/{cell.stage2}/{path.stem}.tsv" for path in shards]
        parts = {
            "making": making,
            "own": [str(path) for one, path in prepared if one.per != "dataset"],
            "shared": [str(path) for one, path in prepared if one.per == "dataset"],
        }
        found.append((asdict(cell), parts))
    return found


def native_preparations(cell):
    """What a set's system prepares, each with its benchmark."""
    found = PREPARATIONS[STUDY.distill[cell.stage1].method]
    return [(one, cells.benchmark_path(STUDY, one, cell)) for one in found]


def pictured():
    """Sets that are pictured together: all at the largest IPC of the first dataset, under the gallery's treatments."""
    treatments = [name for name in STUDY.report.gallery if name != NONE]
    return [
        cell
        for cell in SETS
        if (cell.dataset, cell.ipc) == (SHOWN.dataset, SHOWN.ipc) and cell.stage2 in (NONE, *treatments)
    ]


def pictured_labels():
    stage2 = display_names()["stage2"]
    names = [(STUDY.distill[cell.stage1].label, cell.stage2) for cell in pictured()]
    return [label if name == NONE else f"{label} + {stage2[name]}" for label, name in names]


if NATIVE:

    rule encode_latents:
        input:
            prepared="data/prepared/{dataset}.safetensors",
            prior=prior_files,
        output:
            latents=f"{RESULTS}/native/{{dataset}}/latents-{{posterior}}.npy",
        log:
            f"{LOGS}/native/{{dataset}}/latents-{{posterior}}.log",
        benchmark:
            f"{BENCHMARKS}/native/{{dataset}}/latents-{{posterior}}.tsv"
        wildcard_constraints:
            posterior="sample|mean",
        conda:
            "../envs/torch.yaml"
        threads: 1
        params:
            settings=STUDY.preparations.latents.model_dump(mode="json"),
            prior=prior_source,
            options=prior_options(),
            code=code("encode_latents"),
        message:
            "native: latents of {wildcards.dataset} ({wildcards.posterior})"
        script:
            "../src/steps/encode_latents.py"

    # D4M and MGD3.
    rule find_prototypes:
        input:
            prepared="data/prepared/{dataset}.safetensors",
            latents=artefact("latents"),
        output:
            prototypes=f"{RESULTS}/native/{{dataset}}/ipc{{ipc}}/{{stage1}}/prototypes.safetensors",
        log:
            f"{LOGS}/native/{{dataset}}/ipc{{ipc}}/{{stage1}}/prototypes.log",
        benchmark:
            f"{BENCHMARKS}/native/{{dataset}}/ipc{{ipc}}/{{stage1}}/prototypes.tsv"
        conda:
            "../envs/torch.yaml"
        threads: 1
        params:
            method=native_method,
            settings=native_settings(*CLUSTERING),
            prior=prior_source,
            options=prior_options(),
            code=code("find_prototypes"),
        message:
            "native: prototypes of {wildcards.stage1} on {wildcards.dataset}, IPC {wildcards.ipc}"
        script:
            "../src/steps/find_prototypes.py"

    rule save_statistics:
        input:
            prepared="data/prepared/{dataset}.safetensors",
            prior=prior_files,
            latents=artefact("latents"),
        output:
            statistics=f"{RESULTS}/native/{{dataset}}/{{stage1}}/statistics.safetensors",
        log:
            f"{LOGS}/native/{{dataset}}/{{stage1}}/statistics.log",
        benchmark:
            f"{BENCHMARKS}/native/{{dataset}}/{{stage1}}/statistics.tsv"
        conda:
            "../envs/torch.yaml"
        threads: 1
        params:
            method=native_method,
            settings=inversion_settings,
            prior=prior_source,
            options=prior_options(),
            folder=f"{RESULTS}/runs/{{dataset}}/{{stage1}}/statistics",
            code=code("save_statistics"),
        message:
            "native: {wildcards.stage1} on {wildcards.dataset}: invert the classes, save their statistics"
        script:
            "../src/steps/save_statistics.py"

    if INVERTED:

        rule draw_normality:
            input:
                statistics=[
                    f"{RESULTS}/native/{dataset}/{stage1}/statistics.safetensors" for dataset, stage1 in INVERTED
                ],
            output:
                png=report(
                    f"{RESULTS}/figures/normality.png",
                    caption="../src/diver/report/captions/normality.rst",
                    category="Figures",
                ),
                svg=f"{RESULTS}/figures/normality.svg",
                pdf=f"{RESULTS}/figures/normality.pdf",
            log:
                f"{LOGS}/draw_normality.log",
            benchmark:
                f"{BENCHMARKS}/draw_normality.tsv"
            conda:
                "../envs/report.yaml"
            params:
                labels=inverted_labels(),
                code=code("draw_normality"),
            message:
                "native: normality of the inverted classes by timestep"
            script:
                "../src/steps/draw_normality.py"

    rule finetune_prior:
        input:
            prepared="data/prepared/{dataset}.safetensors",
            prior=prior_files,
            latents=artefact("latents"),
        output:
            index=f"{RESULTS}/native/{{dataset}}/{{stage1}}/tuned/model_index.json",
            facts=f"{RESULTS}/native/{{dataset}}/{{stage1}}/tuned/minimax.json",
            transformer=f"{RESULTS}/native/{{dataset}}/{{stage1}}/tuned/transformer/config.json",
            weights=f"{RESULTS}/native/{{dataset}}/{{stage1}}/tuned/transformer/diffusion_pytorch_model.safetensors",
            vae=f"{RESULTS}/native/{{dataset}}/{{stage1}}/tuned/vae/config.json",
            vae_weights=f"{RESULTS}/native/{{dataset}}/{{stage1}}/tuned/vae/diffusion_pytorch_model.safetensors",
            scheduler=f"{RESULTS}/native/{{dataset}}/{{stage1}}/tuned/scheduler/scheduler_config.json",
            curve=f"{RESULTS}/native/{{dataset}}/{{stage1}}/tuned/loss.csv",
        log:
            f"{LOGS}/native/{{dataset}}/{{stage1}}/tuned/model_index.log",
        benchmark:
            f"{BENCHMARKS}/native/{{dataset}}/{{stage1}}/tuned/model_index.tsv"
        conda:
            "../envs/torch.yaml"
        threads: 16
        params:
            method=native_method,
            settings=tuning_settings,
            prior=prior_source,
            options=prior_options(),
            checkpoint=f"{RESULTS}/runs/{{dataset}}/{{stage1}}/tuning.safetensors",
            code=code("finetune_prior"),
        message:
            "native: {wildcards.stage1} on {wildcards.dataset}: fine-tune the prior (resumes from its checkpoint)"
        script:
            "../src/steps/finetune_prior.py"

    # EDITS and VLCP.
    rule caption_images:
        input:
            prepared="data/prepared/{dataset}.safetensors",
            given=caption_files,
        output:
            captions=f"{RESULTS}/native/{{dataset}}/captions.jsonl",
        log:
            f"{LOGS}/native/{{dataset}}/captions.log",
        benchmark:
            f"{BENCHMARKS}/native/{{dataset}}/captions.tsv"
        conda:
            "../envs/text.yaml"
        threads: 1
        params:
            settings=STUDY.preparations.captions.model_dump(mode="json"),
            seed=STUDY.preparations.latents.seed,
            code=code("caption_images"),
        message:
            "native: captions of {wildcards.dataset}"
        script:
            "../src/steps/caption_images.py"

    rule embed_captions:
        input:
            prepared="data/prepared/{dataset}.safetensors",
            captions=f"{RESULTS}/native/{{dataset}}/captions.jsonl",
            given=caption_files,
        output:
            features=f"{RESULTS}/native/{{dataset}}/features.safetensors",
        log:
            f"{LOGS}/native/{{dataset}}/features.log",
        benchmark:
            f"{BENCHMARKS}/native/{{dataset}}/features.tsv"
        conda:
            "../envs/text.yaml"
        threads: 1
        params:
            settings=STUDY.preparations.features.model_dump(mode="json"),
            captions=STUDY.preparations.captions.model_dump(mode="json"),
            code=code("embed_captions"),
        message:
            "native: features of {wildcards.dataset}'s captioned images"
        script:
            "../src/steps/embed_captions.py"

    # The clusters of EDITS and VLCP, with what each says and shows.
    rule write_texts:
        input:
            prepared="data/prepared/{dataset}.safetensors",
            prior=prior_files,
            given=caption_files,
            artefacts=artefacts_before_texts,
        output:
            texts=f"{RESULTS}/native/{{dataset}}/ipc{{ipc}}/{{stage1}}/texts.jsonl",
        log:
            f"{LOGS}/native/{{dataset}}/ipc{{ipc}}/{{stage1}}/texts.log",
        benchmark:
            f"{BENCHMARKS}/native/{{dataset}}/ipc{{ipc}}/{{stage1}}/texts.tsv"
        conda:
            "../envs/text.yaml"
        threads: 1
        params:
            method=native_method,
            settings=native_settings(*CLUSTERED_BY),
            captions=STUDY.preparations.captions.model_dump(mode="json"),
            artefacts=artefacts_of_set,
            answers=f"{RESULTS}/native/{{dataset}}/answers",
            prior=prior_source,
            options=prior_options(),
            code=code("write_texts"),
        message:
            "native: texts of {wildcards.stage1} on {wildcards.dataset}, IPC {wildcards.ipc}"
        script:
            "../src/steps/write_texts.py"

    rule synthesize_set:
        input:
            prepared="data/prepared/{dataset}.safetensors",
            prior=prior_files,
            artefacts=lambda wildcards: list(artefacts_of_set(wildcards).values()),
        output:
            set=f"{RESULTS}/distilled/{{dataset}}/ipc{{ipc}}/{{stage1}}.safetensors",
        log:
            f"{LOGS}/distill/{{dataset}}-ipc{{ipc}}-{{stage1}}.log",
        benchmark:
            f"{BENCHMARKS}/distill/{{dataset}}-ipc{{ipc}}-{{stage1}}.tsv"
        wildcard_constraints:
            stage1="|".join(NATIVE),
        conda:
            "../envs/torch.yaml"
        threads: 1
        params:
            method=native_method,
            settings=native_settings(),
            artefacts=artefacts_of_set,
            prior=prior_source,
            options=prior_options(),
            folder=f"{RESULTS}/runs/{{dataset}}/ipc{{ipc}}/{{stage1}}",
            code=code("synthesize_set"),
        message:
            "native: {wildcards.stage1} on {wildcards.dataset}, IPC {wildcards.ipc}"
        script:
            "../src/steps/synthesize_set.py"

    rule compare_systems:
        input:
            results=f"{RESULTS}/tables/results.csv",
            published=STUDY.report.systems or [],
        output:
            table=expand(f"{RESULTS}/tables/systems.{{form}}", form=["csv", "tex", "md"]),
            html=report(
                f"{RESULTS}/tables/systems.html",
                caption="../src/diver/report/captions/systems_table.rst",
                category="Tables",
            ),
        log:
            f"{LOGS}/compare_systems.log",
        benchmark:
            f"{BENCHMARKS}/compare_systems.tsv"
        conda:
            "../envs/report.yaml"
        params:
            benchmarks=set_benchmarks(),
            natives=NATIVE,
            methods={name: entry.method for name, entry in STUDY.distill.items()},
            classes={name: len(spec.classes) for name, spec in DATASETS.items()},
            names=display_names(),
            code=code("compare_systems"),
        message:
            "report: diffusion-native systems side by side"
        script:
            "../src/steps/compare_systems.py"

    rule draw_systems:
        input:
            sets=[cells.set_path(STUDY, cell) for cell in pictured()],
        output:
            png=report(
                f"{RESULTS}/figures/systems.png",
                caption="../src/diver/report/captions/systems.rst",
                category="Figures",
            ),
            svg=f"{RESULTS}/figures/systems.svg",
        log:
            f"{LOGS}/draw_systems.log",
        benchmark:
            f"{BENCHMARKS}/draw_systems.tsv"
        conda:
            "../envs/report.yaml"
        params:
            labels=pictured_labels(),
            code=code("draw_gallery"),
        message:
            "report: pictures of all systems' sets"
        script:
            "../src/steps/draw_gallery.py"
