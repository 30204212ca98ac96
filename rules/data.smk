rule prepare_data:
    output:
        prepared="data/prepared/{dataset}.safetensors",
    log:
        "data/logs/{dataset}.log",
    benchmark:
        "data/benchmarks/{dataset}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 16
    params:
        spec=lambda wildcards: DATASETS[wildcards.dataset].model_dump(mode="json", exclude={"label", "published"}),
        raw=lambda wildcards: f"data/raw/{DATASETS[wildcards.dataset].raw or wildcards.dataset}",
        code=code("prepare_data"),
    message:
        "data: {wildcards.dataset}: fetch, verify and prepare"
    script:
        "../src/steps/prepare_data.py"


rule data:
    input:
        expand("data/prepared/{dataset}.safetensors", dataset=STUDY.datasets),
