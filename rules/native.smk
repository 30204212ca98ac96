# Diffusion-native systems: what they prepare, their sets, and their own table and figure.
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
        resources:
            gpu=STUDY.gpus,
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
        resources:
            gpu=STUDY.gpus,
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
                statistics=[str(path) for _, path in INVERTED],
            output:
                png=report(
                    f"{RESULTS}/figures/normality.png",
                    caption="../src/diver/report/captions/normality.rst",
                    category="Figures",
                ),
                print=expand(f"{RESULTS}/figures/normality.{{form}}", form=PRINT),
            log:
                f"{LOGS}/draw_normality.log",
            benchmark:
                f"{BENCHMARKS}/draw_normality.tsv"
            conda:
                "../envs/report.yaml"
            params:
                labels=lambda wildcards: [title for title, _ in INVERTED],
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
        resources:
            gpu=STUDY.gpus,
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
        resources:
            gpu=STUDY.gpus if STUDY.preparations.captions.source == MODEL else 0,
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
        resources:
            gpu=STUDY.gpus if STUDY.preparations.features.source == "clip" else 0,
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
        resources:
            gpu=STUDY.gpus,
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
            stage1="|".join(map(re.escape, NATIVE)),
        conda:
            "../envs/torch.yaml"
        threads: 1
        resources:
            gpu=STUDY.gpus,
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
            published=one_here(PUBLISHED_NUMBERS),
        output:
            table=expand(f"{RESULTS}/tables/systems.{{form}}", form=["csv", "tex", "md"]),
            html=report(
                f"{RESULTS}/tables/systems.html",
                caption="../src/diver/report/captions/systems_table.rst",
                category="Tables",
                labels={"table": "Diffusion-native systems"},
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
            classes=class_counts(),
            datasets=PUBLISHED_NAMES,
            names=display_names(),
            code=code("compare_systems"),
        message:
            "report: diffusion-native systems side by side"
        script:
            "../src/steps/compare_systems.py"

    rule draw_systems:
        input:
            sets=[str(path) for _, path in PICTURED],
        output:
            png=report(
                f"{RESULTS}/figures/systems.png",
                caption="../src/diver/report/captions/systems.rst",
                category="Galleries",
                labels={"figure": "All systems"},
            ),
            print=expand(f"{RESULTS}/figures/systems.{{form}}", form=PRINT),
        log:
            f"{LOGS}/draw_systems.log",
        benchmark:
            f"{BENCHMARKS}/draw_systems.tsv"
        conda:
            "../envs/report.yaml"
        params:
            labels=lambda wildcards: [title for title, _ in PICTURED],
            code=code("draw_gallery"),
        message:
            "report: pictures of all systems' sets"
        script:
            "../src/steps/draw_gallery.py"
