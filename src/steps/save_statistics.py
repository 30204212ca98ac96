"""Invert the latents of each class and save their statistics, which D3HR samples from."""

import shutil
from pathlib import Path

from diver.config.native import SETTINGS
from diver.data.prepared import Prepared
from diver.prior.load import load_placed
from diver.progress import step_log
from diver.recover.d3hr import class_statistics
from diver.recover.latents import Latents

wildcards, params = snakemake.wildcards, snakemake.params
with step_log(
    snakemake.log[0], snakemake.threads, f"statistics of {wildcards.stage1}", snakemake.resources.gpu
) as progress:
    data, prior = Prepared.read(snakemake.input.prepared), load_placed(params.prior, params.options, snakemake.input)
    folder = Path(params.folder)
    statistics = class_statistics(
        Latents.open(snakemake.input.latents, data, prior),
        data,
        prior,
        SETTINGS[params.method](**params.settings),
        progress=progress,
        folder=folder,
        code=params.code,
    )
    statistics.write(snakemake.output.statistics)
    # What a killed run goes on from is of no more use.
    shutil.rmtree(folder, ignore_errors=True)
