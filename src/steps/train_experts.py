"""Train networks on all images and keep their weights after each epoch."""

from pathlib import Path

from diver.config.distill import ExpertsConfig
from diver.data.prepared import Prepared
from diver.distill.experts import train_experts
from diver.progress import step_log

wildcards, params = snakemake.wildcards, snakemake.params
with step_log(
    snakemake.log[0], snakemake.threads, f"experts of {wildcards.dataset}", snakemake.resources.gpu
) as progress:
    train_experts(
        Prepared.read(snakemake.input.prepared),
        ExpertsConfig(**params.settings),
        Path(snakemake.output.manifest).parent,
        code=params.code,
        progress=progress,
        workers=snakemake.threads,
    )
