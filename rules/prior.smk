rule train_vae:
    input:
        prepared="data/prepared/{dataset}.safetensors",
    output:
        config="data/prior/{dataset}/vae/config.json",
        weights="data/prior/{dataset}/vae/diffusion_pytorch_model.safetensors",
        curve="data/prior/{dataset}/vae_loss.csv",
        facts="data/prior/{dataset}/vae_facts.json",
    log:
        "data/logs/{dataset}-vae.log",
    benchmark:
        "data/benchmarks/{dataset}-vae.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 16
    params:
        settings=STUDY.prior.vae.model_dump(mode="json"),
        seed=STUDY.prior.seed,
        checkpoint="data/prior/checkpoints/{dataset}/vae.ckpt",
        code=code("train_vae"),
    message:
        "prior: {wildcards.dataset}: train the autoencoder (resumes from its checkpoint)"
    script:
        "../src/steps/train_vae.py"


rule train_dit:
    input:
        prepared="data/prepared/{dataset}.safetensors",
        vae=rules.train_vae.output.weights,
        vae_config=rules.train_vae.output.config,
    output:
        index="data/prior/{dataset}/model_index.json",
        config="data/prior/{dataset}/transformer/config.json",
        weights="data/prior/{dataset}/transformer/diffusion_pytorch_model.safetensors",
        scheduler="data/prior/{dataset}/scheduler/scheduler_config.json",
        curve="data/prior/{dataset}/dit_loss.csv",
        facts="data/prior/{dataset}/dit_facts.json",
    log:
        "data/logs/{dataset}-dit.log",
    benchmark:
        "data/benchmarks/{dataset}-dit.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 16
    params:
        settings=STUDY.prior.dit.model_dump(mode="json"),
        seed=STUDY.prior.seed,
        checkpoint="data/prior/checkpoints/{dataset}/dit.ckpt",
        snapshots="data/prior/snapshots/{dataset}",
        code=code("train_dit"),
    message:
        "prior: {wildcards.dataset}: train the diffusion transformer (resumes from its checkpoint)"
    script:
        "../src/steps/train_dit.py"


rule judge_prior:
    input:
        prepared="data/prepared/{dataset}.safetensors",
        index=rules.train_dit.output.index,
        transformer=rules.train_dit.output.weights,
        vae_facts=rules.train_vae.output.facts,
        vae_curve=rules.train_vae.output.curve,
        dit_facts=rules.train_dit.output.facts,
        dit_curve=rules.train_dit.output.curve,
        classifier=one_here(STUDY.prior.classifier),
    output:
        card="data/prior/{dataset}/README.md",
        facts="data/prior/{dataset}/quality.json",
        curve="data/prior/{dataset}/loss.png",
        samples="data/prior/{dataset}/samples.png",
    log:
        "data/logs/{dataset}-judge.log",
    benchmark:
        "data/benchmarks/{dataset}-judge.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 16
    resources:
        gpu=STUDY.gpus,
    params:
        code=code("judge_prior"),
    message:
        "prior: {wildcards.dataset}: reconstruction, class agreement, sample grid, card"
    script:
        "../src/steps/judge_prior.py"


rule prior:
    input:
        expand("data/prior/{dataset}/README.md", dataset=STUDY.datasets) if MADE_BY_RULE else [],
