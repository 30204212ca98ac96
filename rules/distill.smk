rule distill_set:
    input:
        prepared="data/prepared/{dataset}.safetensors",
        encoder=encoder_file,
        released=released_file,
    output:
        set=f"{RESULTS}/distilled/{{dataset}}/ipc{{ipc}}/{{stage1}}.safetensors",
    log:
        f"{LOGS}/distill/{{dataset}}-ipc{{ipc}}-{{stage1}}.log",
    benchmark:
        f"{BENCHMARKS}/distill/{{dataset}}-ipc{{ipc}}-{{stage1}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    params:
        method=lambda wildcards: STUDY.distill[wildcards.stage1].method,
        settings=distill_settings,
        code=code("distill_set"),
    message:
        "stage 1: {wildcards.stage1} on {wildcards.dataset}, IPC {wildcards.ipc}"
    script:
        "../src/steps/distill_set.py"


rule distill:
    input:
        set_paths(recovered=False),
