rule make_tables:
    input:
        results=rules.collect_results.output.csv,
    output:
        cross=expand(f"{RESULTS}/tables/cross_architecture.{{form}}", form=["csv", "tex", "md"]),
        cross_html=report(
            f"{RESULTS}/tables/cross_architecture.html",
            caption="../src/diver/report/captions/cross_architecture_table.rst",
            category="Tables",
        ),
        ablation=expand(f"{RESULTS}/tables/ablation.{{form}}", form=["csv", "tex", "md"]),
        ablation_html=report(
            f"{RESULTS}/tables/ablation.html",
            caption="../src/diver/report/captions/ablation_table.rst",
            category="Tables",
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
        "report: tables"
    script:
        "../src/steps/make_tables.py"


rule draw_results:
    input:
        results=rules.collect_results.output.csv,
    output:
        cross=report(
            f"{RESULTS}/figures/cross_architecture.png",
            caption="../src/diver/report/captions/cross_architecture_figure.rst",
            category="Figures",
        ),
        cross_svg=f"{RESULTS}/figures/cross_architecture.svg",
        ladder=report(
            f"{RESULTS}/figures/ladder.png",
            caption="../src/diver/report/captions/ladder.rst",
            category="Figures",
        ),
        ladder_svg=f"{RESULTS}/figures/ladder.svg",
        references=report(
            f"{RESULTS}/figures/references.png",
            caption="../src/diver/report/captions/references.rst",
            category="Figures",
        ),
        references_svg=f"{RESULTS}/figures/references.svg",
    log:
        f"{LOGS}/draw_results.log",
    benchmark:
        f"{BENCHMARKS}/draw_results.tsv"
    conda:
        "../envs/report.yaml"
    params:
        names=display_names(),
        ladder=STUDY.report.ladder,
        ladder_of=STUDY.report.ladder_of,
        code=code("draw_results"),
    message:
        "report: accuracy, ladder and reference figures"
    script:
        "../src/steps/draw_results.py"


rule draw_gallery:
    input:
        sets=gallery_sets(),
    output:
        png=report(
            f"{RESULTS}/figures/gallery.png",
            caption="../src/diver/report/captions/gallery.rst",
            category="Figures",
        ),
        svg=f"{RESULTS}/figures/gallery.svg",
    log:
        f"{LOGS}/draw_gallery.log",
    benchmark:
        f"{BENCHMARKS}/draw_gallery.tsv"
    conda:
        "../envs/report.yaml"
    params:
        labels=gallery_labels(),
        code=code("draw_gallery"),
    message:
        "report: gallery"
    script:
        "../src/steps/draw_gallery.py"


rule draw_phases:
    input:
        trace=trace_path(),
    output:
        png=report(
            f"{RESULTS}/figures/phases.png",
            caption="../src/diver/report/captions/phases.rst",
            category="Figures",
        ),
        svg=f"{RESULTS}/figures/phases.svg",
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
        teacher=STUDY.teacher.model_dump(mode="json") if STUDY.teacher else None,
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
        ),
        png=report(
            f"{RESULTS}/figures/quality.png",
            caption="../src/diver/report/captions/quality.rst",
            category="Figures",
        ),
        svg=f"{RESULTS}/figures/quality.svg",
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


if recorded_networks():

    rule compare_recorded:
        input:
            results=rules.collect_results.output.csv,
            sets=[cells.set_path(STUDY, cell) for cell in released_cells()],
        output:
            table=expand(f"{RESULTS}/tables/recorded.{{form}}", form=["csv", "tex", "md"]),
            html=report(
                f"{RESULTS}/tables/recorded.html",
                caption="../src/diver/report/captions/recorded.rst",
                category="Tables",
            ),
        log:
            f"{LOGS}/compare_recorded.log",
        benchmark:
            f"{BENCHMARKS}/compare_recorded.tsv"
        conda:
            "../envs/report.yaml"
        params:
            cells=[asdict(cell) for cell in released_cells()],
            networks=recorded_networks(),
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
            published=STUDY.report.published,
        output:
            table=expand(f"{RESULTS}/tables/reproduced.{{form}}", form=["csv", "tex", "md"]),
            html=report(
                f"{RESULTS}/tables/reproduced.html",
                caption="../src/diver/report/captions/reproduced.rst",
                category="Tables",
            ),
        log:
            f"{LOGS}/compare_published.log",
        benchmark:
            f"{BENCHMARKS}/compare_published.tsv"
        conda:
            "../envs/report.yaml"
        params:
            methods={name: entry.method for name, entry in STUDY.distill.items()},
            departures=departures(),
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
            ),
            svg=f"{RESULTS}/figures/sweeps.svg",
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


rule report:
    input:
        rules.make_tables.output,
        rules.draw_results.output,
        rules.draw_gallery.output if STUDY.report.gallery else [],
        rules.draw_phases.output if STUDY.report.phases_of else [],
        rules.report_quality.output,
        rules.compare_recorded.output if recorded_networks() else [],
        rules.compare_published.output if STUDY.report.published else [],
        rules.draw_sweeps.output if STUDY.sweeps() else [],
