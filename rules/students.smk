# In MB. A resource and no parameter, since a change of it changes no student.
STUDENT_MEMORY = round(STUDY.students.memory_gb * 1024)


rule train_teacher:
    input:
        prepared="data/prepared/{dataset}.safetensors",
    output:
        teacher=f"{RESULTS}/teachers/{{dataset}}.safetensors",
    log:
        f"{LOGS}/teachers/{{dataset}}.log",
    benchmark:
        f"{BENCHMARKS}/teachers/{{dataset}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        gpu=STUDY.gpus,
    params:
        teacher=teacher_settings,
        checkpoints=f"{RESULTS}/checkpoints/teachers/{{dataset}}",
        code=code("train_teacher"),
    message:
        "students: teacher on all training images of {wildcards.dataset}"
    script:
        "../src/steps/train_teacher.py"


rule record_answers:
    input:
        set=source_set,
        prepared="data/prepared/{dataset}.safetensors",
        teacher=teacher_file,
    output:
        answers=f"{RESULTS}/answers/{{dataset}}/ipc{{ipc}}/{{stage1}}/{{set}}/{{scale}}.safetensors",
    log:
        f"{LOGS}/answers/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{set}}-{{scale}}.log",
    benchmark:
        f"{BENCHMARKS}/answers/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{set}}-{{scale}}.tsv"
    wildcard_constraints:
        set="|".join(map(re.escape, [NONE, *STUDY.recover])),
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        gpu=STUDY.gpus,
    params:
        protocol=protocol_settings,
        teacher=teacher_settings,
        source=teacher_source,
        seed=STUDY.students.replay_seed,
        code=code("record_answers"),
    message:
        "students: a teacher answers {wildcards.stage1} + {wildcards.set} ({wildcards.scale}), IPC {wildcards.ipc}"
    script:
        "../src/steps/record_answers.py"


rule train_students:
    input:
        set=source_set,
        prepared="data/prepared/{dataset}.safetensors",
        labels=labels_file,
    output:
        results=f"{RESULTS}/students/{{dataset}}/ipc{{ipc}}/{{stage1}}/{{set}}/{{scale}}/{{group}}.csv",
    log:
        f"{LOGS}/students/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{set}}/{{scale}}-{{group}}.log",
    benchmark:
        f"{BENCHMARKS}/students/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{set}}/{{scale}}-{{group}}.tsv"
    wildcard_constraints:
        set="|".join(map(re.escape, [NONE, *STUDY.recover])),
    conda:
        "../envs/torch.yaml"
    threads: STUDY.students.threads
    resources:
        gpu=STUDY.gpus,
        student_memory=STUDENT_MEMORY,
    params:
        study=STUDY.name,
        protocol=protocol_settings,
        teacher=answering(teacher_settings),
        source=answering(teacher_source),
        architectures=student_architectures,
        seeds=student_seeds,
        checkpoints=f"{RESULTS}/checkpoints/students/{{dataset}}/ipc{{ipc}}/{{stage1}}/{{set}}/{{scale}}/{{group}}",
        prior=lambda wildcards: "" if wildcards.set == NONE else prior_source(wildcards),
        code=code("train_students"),
    message:
        "students: {wildcards.group} on {wildcards.stage1} + {wildcards.set} ({wildcards.scale}), IPC {wildcards.ipc}"
    script:
        "../src/steps/train_students.py"


rule train_on_all_images:
    input:
        prepared="data/prepared/{dataset}.safetensors",
    output:
        results=f"{RESULTS}/students/{{dataset}}/{cells.FULL}/{{group}}.csv",
    log:
        f"{LOGS}/students/{{dataset}}-{cells.FULL}-{{group}}.log",
    benchmark:
        f"{BENCHMARKS}/students/{{dataset}}-{cells.FULL}-{{group}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: STUDY.students.threads
    resources:
        gpu=STUDY.gpus,
        student_memory=STUDENT_MEMORY,
    params:
        study=STUDY.name,
        full=STUDY.students.full_data.model_dump(mode="json") if STUDY.students.full_data else None,
        architectures=student_architectures,
        seeds=student_seeds,
        checkpoints=f"{RESULTS}/checkpoints/students/{{dataset}}/{cells.FULL}/{{group}}",
        code=code("train_on_all_images"),
    message:
        "students: {wildcards.group} on all training images of {wildcards.dataset}"
    script:
        "../src/steps/train_on_all_images.py"


rule collect_results:
    input:
        results=student_paths(),
    output:
        csv=report(
            f"{RESULTS}/tables/results.csv",
            caption="../src/diver/report/captions/results.rst",
            category="Tables",
            labels={"table": "Every trained student"},
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
