# The record of the study, for its HTML report: what it is, what made each file, versions, run times, the rules.
ENVIRONMENTS = sorted(str(path) for path in Path("envs").glob("*.yaml"))


rule summarise_study:
    input:
        results=rules.collect_results.output.csv,
    output:
        html=report(
            f"{RESULTS}/record/summary.html",
            caption="../src/diver/report/captions/summary.rst",
            category="Study",
            labels={"page": "1 Summary and configuration"},
        ),
    log:
        f"{LOGS}/summarise_study.log",
    benchmark:
        f"{BENCHMARKS}/summarise_study.tsv"
    conda:
        "../envs/report.yaml"
    params:
        study=STUDY.name,
        title="Stage-1 sets, what the second stage makes of them, and students that are trained on each.",
        facts=record.facts(STUDY, DISPLAYED),
        yaml=study_text,
        code=code("summarise_study"),
    message:
        "record: summary and configuration"
    script:
        "../src/steps/summarise_study.py"


rule draw_rulegraph:
    output:
        png=report(
            f"{RESULTS}/record/rulegraph.png",
            caption="../src/diver/report/captions/rulegraph.rst",
            category="Study",
            labels={"page": "2 Rules"},
        ),
        print=expand(f"{RESULTS}/record/rulegraph.{{form}}", form=PRINT),
    log:
        f"{LOGS}/draw_rulegraph.log",
    benchmark:
        f"{BENCHMARKS}/draw_rulegraph.tsv"
    conda:
        "../envs/report.yaml"
    params:
        edges=rule_edges,
        phases=rule_phases,
        code=code("draw_rulegraph"),
    message:
        "record: rule graph"
    script:
        "../src/steps/draw_rulegraph.py"


rule list_provenance:
    input:
        files=recorded_files(),
        shown=rules.tables_and_figures.input,
    output:
        html=report(
            f"{RESULTS}/record/provenance.html",
            caption="../src/diver/report/captions/provenance.rst",
            category="Study",
            labels={"page": "3 Provenance of every file"},
        ),
        files=f"{RESULTS}/record/files.csv",
        chains=f"{RESULTS}/record/chains.csv",
    log:
        f"{LOGS}/list_provenance.log",
    benchmark:
        f"{BENCHMARKS}/list_provenance.tsv"
    conda:
        "../envs/report.yaml"
    params:
        artifacts=artifacts,
        code=code("list_provenance"),
    message:
        "record: provenance of every file"
    script:
        "../src/steps/list_provenance.py"


rule list_versions:
    input:
        environments=ENVIRONMENTS,
    output:
        html=report(
            f"{RESULTS}/record/versions.html",
            caption="../src/diver/report/captions/versions.rst",
            category="Study",
            labels={"page": "4 Environment"},
        ),
        csv=f"{RESULTS}/record/versions.csv",
    log:
        f"{LOGS}/list_versions.log",
    benchmark:
        f"{BENCHMARKS}/list_versions.tsv"
    conda:
        "../envs/report.yaml"
    params:
        code=code("list_versions"),
    message:
        "record: versions"
    script:
        "../src/steps/list_versions.py"


# Last of all: it reads the benchmarks of the others, which are no files of the workflow.
rule list_run_times:
    input:
        rules.summarise_study.output,
        rules.draw_rulegraph.output,
        rules.list_provenance.output,
        rules.list_versions.output,
    output:
        html=report(
            f"{RESULTS}/record/run_times.html",
            caption="../src/diver/report/captions/run_times.rst",
            category="Study",
            labels={"page": "5 Run times"},
        ),
        csv=f"{RESULTS}/record/run_times.csv",
    log:
        f"{LOGS}/list_run_times.log",
    benchmark:
        f"{BENCHMARKS}/list_run_times.tsv"
    conda:
        "../envs/report.yaml"
    params:
        folder=BENCHMARKS,
        code=code("list_run_times"),
    message:
        "record: run times"
    script:
        "../src/steps/list_run_times.py"


rule report:
    input:
        rules.tables_and_figures.input,
        rules.summarise_study.output,
        rules.draw_rulegraph.output,
        rules.list_provenance.output,
        rules.list_versions.output,
        rules.list_run_times.output,
