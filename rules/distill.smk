rule distill_set:
    input:
        prepared="data/prepared/{dataset}.safetensors",
        network=network_file,
        experts=experts_file,
        released=released_file,
    output:
        set=f"{RESULTS}/distilled/{{dataset}}/ipc{{ipc}}/{{stage1}}.safetensors",
    log:
        f"{LOGS}/distill/{{dataset}}-ipc{{ipc}}-{{stage1}}.log",
    benchmark:
        f"{BENCHMARKS}/distill/{{dataset}}-ipc{{ipc}}-{{stage1}}.tsv"
    wildcard_constraints:
        # Diffusion-native systems make theirs by synthesize_set.
        stage1="|".join(re.escape(name) for name, entry in STUDY.distill.items() if not entry.is_native()) or "(?!)",
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        gpu=STUDY.gpus,
    params:
        method=lambda wildcards: STUDY.distill[wildcards.stage1].method,
        settings=distill_settings,
        folder=f"{RESULTS}/runs/{{dataset}}/ipc{{ipc}}/{{stage1}}",
        code=code("distill_set"),
    message:
        "stage 1: {wildcards.stage1} on {wildcards.dataset}, IPC {wildcards.ipc}"
    script:
        "../src/steps/distill_set.py"


rule train_experts:
    input:
        prepared="data/prepared/{dataset}.safetensors",
    output:
        manifest=f"{RESULTS}/experts/{{dataset}}/{{experts}}/experts.json",
    log:
        f"{LOGS}/experts/{{dataset}}-{{experts}}.log",
    benchmark:
        f"{BENCHMARKS}/experts/{{dataset}}-{{experts}}.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 2
    resources:
        gpu=STUDY.gpus,
    params:
        settings=lambda wildcards: STUDY.all_experts()[wildcards.experts].at(wildcards.dataset),
        code=code("train_experts"),
    message:
        "experts {wildcards.experts} of {wildcards.dataset}"
    script:
        "../src/steps/train_experts.py"


rule distill:
    input:
        set_paths(recovered=False),
        teacher_paths(),
