"""Cluster the latents of each class."""

from diver.config.native import SETTINGS
from diver.data.prepared import Prepared
from diver.progress import step_log
from diver.recover.latents import Latents
from diver.recover.prototypes import find_prototypes, write_prototypes

wildcards, params = snakemake.wildcards, snakemake.params
with step_log(snakemake.log[0], snakemake.threads, f"prototypes of {wildcards.stage1}") as progress:
    latents = Latents.open(snakemake.input.latents, Prepared.read(snakemake.input.prepared))
    config = SETTINGS[params.method](**params.settings)
    write_prototypes(snakemake.output.prototypes, *find_prototypes(latents, int(wildcards.ipc), config, progress))
