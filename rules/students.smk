rule train_students:
    input:
        set=source_set,
        prepared="data/prepared/{dataset}.safetensors",
    output:
        results=f"{RESULTS}/students/{{dataset}}/ipc{{ipc}}/{{stage1}}/{{set}}/{{scale}}/{{group}}.csv",
    log:
        f"{LOGS}/students/{{dataset}}-ipc{{ipc}}-{{stage1}}-{{set}}-{{scale}}-{{group}}.log",
    benchmark:
        f"{BENCHMARKS}/students/{{dataset}}-ipc{{ipc}}-{{stage1}}-{{set}}-{{scale}}-{{group}}.tsv"
    wildcard_constraints:
        set="|".join([NONE, *STUDY.recover]),
    conda:
        "../envs/torch.yaml"
    threads: 1
    params:
        study=STUDY.name,
        protocol=STUDY.students.protocol.model_dump(mode="json"),
        architectures=student_architectures,
        seeds=STUDY.students.seeds,
        prior=lambda wildcards: "" if wildcards.set == NONE else prior_source(wildcards),
        code=code("train_students"),
    message:
        "students: {wildcards.group} on {wildcards.stage1} + {wildcards.set} ({wildcards.scale}), IPC {wildcards.ipc}"
    script:
        "../src/steps/train_students.py"


rule collect_results:
    input:
        results=student_paths(),
    output:
        csv=report(
            f"{RESULTS}/tables/results.csv",
            caption="../src/diver/report/captions/results.rst",
            category="Tables",
        ),
        parquet=f"{RESULTS}/tables/results.parquet",
    log:
        f"{LOGS}/collect_results.log",
    benchmark:
        f"{BENCHMARKS}/collect_results.tsv"
    conda:
        "../envs/report.yaml"
    params:
        code=code("collect_results"),
    message:
        "students: one tidy table"
    script:
        "../src/steps/collect_results.py"


rule students:
    input:
        rules.collect_results.output,
