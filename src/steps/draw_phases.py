"""Draw the predicted clean images along the chains of the first image of a few classes."""

import numpy as np

from diver.progress import step_log
from diver.report.figures import phases

SHOWN = 4

with step_log(snakemake.log[0], snakemake.threads, "phases"):
    trace = np.load(snakemake.input.trace)
    phases(
        (trace["images"][:, :SHOWN] + 1) / 2,
        trace["indices"].tolist(),
        trace["timesteps"].tolist(),
        tuple(trace["window"].tolist()),
        snakemake.output.png,
        rows=trace["classes"][:SHOWN].tolist(),
    )
