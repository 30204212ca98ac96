GALLERY, VAE_GALLERY = choices.gallery_rows(STUDY), choices.vae_rows(STUDY)
RECORDED = choices.recorded_networks(STUDY)
RELEASED = choices.released_cells(STUDY)


rule make_tables:
    input:
        results=rules.collect_results.output.csv,
    output:
        cross=expand(f"{RESULTS}/tables/cross_architecture.{{form}}", form=["csv", "tex", "md"]),
        cross_html=report(
            f"{RESULTS}/tables/cross_architecture.html",
            caption="../src/diver/report/captions/cross_architecture_table.rst",
            category="Tables",
            labels={"table": "All sets and architectures"},
        ),
        metrics=f"{RESULTS}/metrics.json",
    log:
        f"{LOGS}/make_tables.log",
    benchmark:
        f"{BENCHMARKS}/make_tables.tsv"
    conda:
        "../envs/report.yaml"
    params:
        names=display_names(),
        ladder=STUDY.report.ladder,
        ladder_of=STUDY.report.ladder_of,
        code=code("make_tables"),
    message:
        "report: all sets and architectures"
    script:
        "../src/steps/make_tables.py"


if STUDY.report.ladder and STUDY.report.ladder_of:

    rule make_ladder:
        input:
            results=rules.collect_results.output.csv,
        output:
            table=expand(f"{RESULTS}/tables/ablation.{{form}}", form=["csv", "tex", "md"]),
            html=report(
                f"{RESULTS}/tables/ablation.html",
                caption="../src/diver/report/captions/ablation_table.rst",
                category="Tables",
                labels={"table": "Ladder"},
            ),
            png=report(
                f"{RESULTS}/figures/ladder.png",
                caption="../src/diver/report/captions/ladder.rst",
                category="Figures",
                labels={"figure": "Ladder"},
            ),
            print=expand(f"{RESULTS}/figures/ladder.{{form}}", form=PRINT),
        log:
            f"{LOGS}/make_ladder.log",
        benchmark:
            f"{BENCHMARKS}/make_ladder.tsv"
        conda:
            "../envs/report.yaml"
        params:
            names=display_names(),
            ladder=STUDY.report.ladder,
            ladder_of=STUDY.report.ladder_of,
            code=code("make_ladder"),
        message:
            "report: table and figure of the ladder"
        script:
            "../src/steps/make_ladder.py"


rule draw_results:
    input:
        results=rules.collect_results.output.csv,
    output:
        cross=report(
            f"{RESULTS}/figures/cross_architecture.png",
            caption="../src/diver/report/captions/cross_architecture_figure.rst",
            category="Figures",
            labels={"figure": "Accuracy by architecture"},
        ),
        cross_print=expand(f"{RESULTS}/figures/cross_architecture.{{form}}", form=PRINT),
        references=report(
            f"{RESULTS}/figures/references.png",
            caption="../src/diver/report/captions/references.rst",
            category="Figures",
            labels={"figure": "Floor and ceiling"},
        ),
        references_print=expand(f"{RESULTS}/figures/references.{{form}}", form=PRINT),
    log:
        f"{LOGS}/draw_results.log",
    benchmark:
        f"{BENCHMARKS}/draw_results.tsv"
    conda:
        "../envs/report.yaml"
    params:
        names=display_names(),
        code=code("draw_results"),
    message:
        "report: accuracy and reference figures"
    script:
        "../src/steps/draw_results.py"


if GALLERY:

    rule draw_gallery:
        input:
            sets=[str(path) for _, path in GALLERY],
        output:
            png=report(
                f"{RESULTS}/figures/gallery.png",
                caption="../src/diver/report/captions/gallery.rst",
                category="Galleries",
                labels={"figure": "The same images under each treatment"},
            ),
            print=expand(f"{RESULTS}/figures/gallery.{{form}}", form=PRINT),
        log:
            f"{LOGS}/draw_gallery.log",
        benchmark:
            f"{BENCHMARKS}/draw_gallery.tsv"
        conda:
            "../envs/report.yaml"
        params:
            labels=lambda wildcards: [title for title, _ in GALLERY],
            code=code("draw_gallery"),
        message:
            "report: gallery"
        script:
            "../src/steps/draw_gallery.py"


if VAE_GALLERY:

    rule draw_vae_gallery:
        input:
            sets=[str(path) for _, path in VAE_GALLERY],
        output:
            png=report(
                f"{RESULTS}/figures/vae_gallery.png",
                caption="../src/diver/report/captions/vae_gallery.rst",
                category="Galleries",
                labels={"figure": "The autoencoder alone"},
            ),
            print=expand(f"{RESULTS}/figures/vae_gallery.{{form}}", form=PRINT),
        log:
            f"{LOGS}/draw_vae_gallery.log",
        benchmark:
            f"{BENCHMARKS}/draw_vae_gallery.tsv"
        conda:
            "../envs/report.yaml"
        params:
            labels=lambda wildcards: [title for title, _ in VAE_GALLERY],
            code=code("draw_gallery"),
        message:
            "report: gallery of the autoencoder alone"
        script:
            "../src/steps/draw_gallery.py"


if STUDY.report.phases_of:

    rule draw_phases:
        input:
            trace=trace_path(),
        output:
            png=report(
                f"{RESULTS}/figures/phases.png",
                caption="../src/diver/report/captions/phases.rst",
                category="Galleries",
                labels={"figure": "Three phases of a chain"},
            ),
            print=expand(f"{RESULTS}/figures/phases.{{form}}", form=PRINT),
        log:
            f"{LOGS}/draw_phases.log",
        benchmark:
            f"{BENCHMARKS}/draw_phases.tsv"
        conda:
            "../envs/report.yaml"
        params:
            code=code("draw_phases"),
        message:
            "report: the three phases of one trajectory"
        script:
            "../src/steps/draw_phases.py"


rule measure_sets:
    input:
        sets=sets_of_dataset,
        prepared="data/prepared/{dataset}.safetensors",
        teacher=teacher_file,
    output:
        rows=f"{RESULTS}/quality/{{dataset}}.csv",
    log:
        f"{LOGS}/quality/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/quality/{{dataset}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    params:
        cells=lambda wildcards: [asdict(cell) for cell in cells_of_dataset(wildcards)],
        teacher=teacher_settings,
        source=teacher_source,
        per_class=STUDY.report.reference_per_class,
        code=code("measure_sets"),
    message:
        "report: all sets of {wildcards.dataset} beside real images"
    script:
        "../src/steps/measure_sets.py"


rule report_quality:
    input:
        rows=expand(f"{RESULTS}/quality/{{dataset}}.csv", dataset=STUDY.datasets),
    output:
        table=expand(f"{RESULTS}/tables/quality.{{form}}", form=["csv", "tex", "md"]),
        html=report(
            f"{RESULTS}/tables/quality.html",
            caption="../src/diver/report/captions/quality_table.rst",
            category="Tables",
            labels={"table": "Images of the sets"},
        ),
        png=report(
            f"{RESULTS}/figures/quality.png",
            caption="../src/diver/report/captions/quality.rst",
            category="Figures",
            labels={"figure": "Images of the sets"},
        ),
        print=expand(f"{RESULTS}/figures/quality.{{form}}", form=PRINT),
    log:
        f"{LOGS}/report_quality.log",
    benchmark:
        f"{BENCHMARKS}/report_quality.tsv"
    conda:
        "../envs/report.yaml"
    params:
        names=display_names(),
        code=code("report_quality"),
    message:
        "report: table and figure of the sets' images"
    script:
        "../src/steps/report_quality.py"


if RECORDED:

    rule compare_recorded:
        input:
            results=rules.collect_results.output.csv,
            sets=[cells.set_path(STUDY, cell) for cell in RELEASED],
        output:
            table=expand(f"{RESULTS}/tables/recorded.{{form}}", form=["csv", "tex", "md"]),
            html=report(
                f"{RESULTS}/tables/recorded.html",
                caption="../src/diver/report/captions/recorded.rst",
                category="Tables",
                labels={"table": "Released sets: recorded accuracies and ours"},
            ),
        log:
            f"{LOGS}/compare_recorded.log",
        benchmark:
            f"{BENCHMARKS}/compare_recorded.tsv"
        conda:
            "../envs/report.yaml"
        params:
            cells=[asdict(cell) for cell in RELEASED],
            networks=RECORDED,
            names=display_names(),
            code=code("compare_recorded"),
        message:
            "report: recorded accuracies of released sets beside ours"
        script:
            "../src/steps/compare_recorded.py"


if STUDY.report.published:

    rule compare_published:
        input:
            results=rules.collect_results.output.csv,
            published=one_here(STUDY.report.published),
        output:
            table=expand(f"{RESULTS}/tables/reproduced.{{form}}", form=["csv", "tex", "md"]),
            html=report(
                f"{RESULTS}/tables/reproduced.html",
                caption="../src/diver/report/captions/reproduced.rst",
                category="Tables",
                labels={"table": "Stage 1: published accuracies and ours"},
            ),
        log:
            f"{LOGS}/compare_published.log",
        benchmark:
            f"{BENCHMARKS}/compare_published.tsv"
        conda:
            "../envs/report.yaml"
        params:
            methods=choices.published_names(STUDY),
            departures=departures(),
            datasets=PUBLISHED_NAMES,
            networks=choices.published_networks(STUDY),
            names=display_names(),
            code=code("compare_published"),
        message:
            "report: published accuracies of stage-1 methods beside ours"
        script:
            "../src/steps/compare_published.py"


if STUDY.sweeps():

    rule draw_sweeps:
        input:
            results=rules.collect_results.output.csv,
        output:
            png=report(
                f"{RESULTS}/figures/sweeps.png",
                caption="../src/diver/report/captions/sweeps.rst",
                category="Figures",
                labels={"figure": "Sweeps of settings"},
            ),
            print=expand(f"{RESULTS}/figures/sweeps.{{form}}", form=PRINT),
        log:
            f"{LOGS}/draw_sweeps.log",
        benchmark:
            f"{BENCHMARKS}/draw_sweeps.tsv"
        conda:
            "../envs/report.yaml"
        params:
            families=STUDY.sweeps(),
            names=display_names(),
            code=code("draw_sweeps"),
        message:
            "report: accuracy along swept settings"
        script:
            "../src/steps/draw_sweeps.py"


if STUDY.report.tables:

    rule make_paper_tables:
        input:
            results=rules.collect_results.output.csv,
            published=one_here(PUBLISHED_NUMBERS),
        output:
            *[
                report(
                    f"{RESULTS}/tables/{name}.html",
                    caption="../src/diver/report/captions/paper_table.rst",
                    category="Tables",
                    labels={"table": f"{name.replace('_', ' ').capitalize()}: {no_wildcards(table['title'])}"},
                )
                for name, table in PAPER_TABLES.items()
            ],
            tables=expand(f"{RESULTS}/tables/{{table}}.{{form}}", table=PAPER_TABLES, form=["csv", "tex", "md"]),
        log:
            f"{LOGS}/make_paper_tables.log",
        benchmark:
            f"{BENCHMARKS}/make_paper_tables.tsv"
        conda:
            "../envs/report.yaml"
        params:
            names=display_names(),
            tables=PAPER_TABLES,
            code=code("make_paper_tables"),
        message:
            "report: published numbers beside ours"
        script:
            "../src/steps/make_paper_tables.py"


# A table by itself, from the students that there are: with no output, no benchmark and no student as input, asking for
# it always makes it again and never trains anything. Its files are not those of the study's own table, which nothing
# would make again after it.
for TABLE in PAPER_TABLES:

    rule:
        name:
            TABLE
        input:
            published=one_here(PUBLISHED_NUMBERS),
        log:
            f"{LOGS}/{TABLE}.log",
        conda:
            "../envs/report.yaml"
        params:
            names=display_names(),
            tables={TABLE: PAPER_TABLES[TABLE]},
            folder=f"{RESULTS}/so_far",
            students=students_so_far,
            code=code("make_paper_tables"),
        message:
            f"report: {TABLE} from the students so far, into {RESULTS}/so_far"
        script:
            "../src/steps/make_paper_tables.py"


rule tables_and_figures:
    input:
        rules.make_tables.output,
        rules.draw_results.output,
        rules.make_ladder.output if STUDY.report.ladder and STUDY.report.ladder_of else [],
        rules.draw_gallery.output if GALLERY else [],
        rules.draw_vae_gallery.output if VAE_GALLERY else [],
        rules.draw_phases.output if STUDY.report.phases_of else [],
        rules.report_quality.output,
        rules.compare_recorded.output if RECORDED else [],
        rules.compare_published.output if STUDY.report.published else [],
        rules.draw_sweeps.output if STUDY.sweeps() else [],
        [rules.compare_systems.output, rules.draw_systems.output] if NATIVE else [],
        rules.draw_normality.output if INVERTED else [],
        rules.make_paper_tables.output if STUDY.report.tables else [],


# Figures of the publication by their numbers there; a study has those that it has the entries for.
FIGURE_TARGETS = {
    "figure_4": rules.draw_sweeps.output if STUDY.sweeps() else [],
    "figure_5": rules.draw_phases.output if STUDY.report.phases_of else [],
    "figure_7": rules.draw_vae_gallery.output if VAE_GALLERY else [],
}
FIGURE_TARGETS = {name: files for name, files in FIGURE_TARGETS.items() if files}

for FIGURE, FILES in FIGURE_TARGETS.items():

    rule:
        name:
            FIGURE
        input:
            FILES,


# Any other number is refused with those that there are.
rule unknown_table_or_figure:
    input:
        no_such_target,
    output:
        "{kind}_{name}",
    log:
        f"{LOGS}/unknown-{{kind}}-{{name}}.log",
    wildcard_constraints:
        kind="table|figure",
        name=r"\w+",
    conda:
        "../envs/report.yaml"
    message:
        "report: no such {wildcards.kind}"
    shell:
        "exit 1 2> {log}"
