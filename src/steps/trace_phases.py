"""Record the predicted clean images along the chains of the first image of each class."""

import numpy as np

from diver.config.recover import DIVERConfig
from diver.prior.load import load_placed
from diver.progress import step_log
from diver.recover.trace import trace_diver
from diver.sets import DistilledSet

params, files = snakemake.params, snakemake.input
with step_log(snakemake.log[0], snakemake.threads, "trajectory", snakemake.resources.gpu):
    config = DIVERConfig(**params.settings)
    prior = load_placed(params.prior, params.options, files)
    source = DistilledSet.read(snakemake.input.set)
    trace = trace_diver(source, prior, config)
    np.savez(
        snakemake.output.trace,
        indices=trace.indices.numpy(),
        timesteps=trace.timesteps.numpy(),
        images=trace.images.numpy(),
        window=np.array(trace.window),
        classes=np.array(source.classes),
    )
