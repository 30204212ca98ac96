"""Encode training images to latents, which all diffusion-native systems share."""

from diver.config.native import LatentsConfig
from diver.data.prepared import Prepared
from diver.prior.load import load_placed
from diver.progress import step_log
from diver.recover.latents import encode_latents

wildcards, params = snakemake.wildcards, snakemake.params
with step_log(
    snakemake.log[0], snakemake.threads, f"latents of {wildcards.dataset}", snakemake.resources.gpu
) as progress:
    encode_latents(
        Prepared.read(snakemake.input.prepared),
        load_placed(params.prior, params.options, snakemake.input),
        LatentsConfig(**params.settings),
        wildcards.posterior,
        snakemake.output.latents,
        progress,
    )
