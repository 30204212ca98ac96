# One job recovers a set, or one each range of its classes, whose shards are then put together.
rule recover_set:
    input:
        set=stage1_set,
        prior=prior_files,
    output:
        set=f"{RESULTS}/recovered/{{dataset}}/ipc{{ipc}}/{{stage1}}/{{stage2}}.safetensors",
    log:
        f"{LOGS}/recover/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{stage2}}.log",
    benchmark:
        f"{BENCHMARKS}/recover/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{stage2}}.tsv"
    wildcard_constraints:
        dataset=sharded(False),
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        gpu=STUDY.gpus,
    params:
        method=lambda wildcards: STUDY.recover[wildcards.stage2].method,
        settings=recover_settings,
        prior=prior_source,
        options=prior_options(),
        classes=shard_classes,
        code=code("recover_set"),
    message:
        "stage 2: {wildcards.stage2} on {wildcards.stage1}, {wildcards.dataset}, IPC {wildcards.ipc}"
    script:
        "../src/steps/recover_set.py"


SHARD = "{stage2}/shard-{shard}-of-{shards}"


use rule recover_set as recover_shard with:
    output:
        set=f"{RESULTS}/recovered/{{dataset}}/ipc{{ipc}}/{{stage1}}/{SHARD}.safetensors",
    log:
        f"{LOGS}/recover/{{dataset}}-ipc{{ipc}}-{{stage1}}/{SHARD}.log",
    benchmark:
        f"{BENCHMARKS}/recover/{{dataset}}-ipc{{ipc}}-{{stage1}}/{SHARD}.tsv"
    wildcard_constraints:
        dataset=sharded(True),


rule merge_shards:
    input:
        set=stage1_set,
        shards=shard_files,
    output:
        set=f"{RESULTS}/recovered/{{dataset}}/ipc{{ipc}}/{{stage1}}/{{stage2}}.safetensors",
    log:
        f"{LOGS}/recover/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{stage2}}/merge.log",
    benchmark:
        f"{BENCHMARKS}/recover/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{stage2}}/merge.tsv"
    wildcard_constraints:
        dataset=sharded(True),
    conda:
        "../envs/torch.yaml"
    threads: 1
    params:
        code=code("merge_shards"),
    message:
        "stage 2: {wildcards.stage2} on {wildcards.stage1}, {wildcards.dataset}, IPC {wildcards.ipc}: put together"
    script:
        "../src/steps/merge_shards.py"


rule trace_phases:
    input:
        set=stage1_set,
        prior=prior_files,
    output:
        trace=f"{RESULTS}/traces/{{dataset}}/ipc{{ipc}}/{{stage1}}/{{stage2}}.npz",
    log:
        f"{LOGS}/recover/trace/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{stage2}}.log",
    benchmark:
        f"{BENCHMARKS}/recover/trace/{{dataset}}-ipc{{ipc}}-{{stage1}}/{{stage2}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        gpu=STUDY.gpus,
    params:
        settings=recover_settings,
        prior=prior_source,
        options=prior_options(),
        code=code("trace_phases"),
    message:
        "stage 2: trajectory of {wildcards.stage2} on {wildcards.stage1}, IPC {wildcards.ipc}"
    script:
        "../src/steps/trace_phases.py"


rule recover:
    input:
        set_paths(recovered=True),
        trace_path() if STUDY.report.phases_of else [],
