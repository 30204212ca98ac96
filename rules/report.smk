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


rule report:
    input:
        rules.make_tables.output,
        rules.draw_results.output,
        rules.draw_gallery.output,
        rules.draw_phases.output,
