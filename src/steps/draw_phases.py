"""Draw the predicted clean images along the chains of the first image of a few classes."""

from diver.progress import step_log
from diver.report.pictures import draw_trace

with step_log(snakemake.log[0], snakemake.threads, "phases"):
    draw_trace(snakemake.input.trace, snakemake.output.png)
