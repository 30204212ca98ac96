"""Draw the same images under each treatment."""

from diver.progress import step_log
from diver.report.pictures import draw_sets

with step_log(snakemake.log[0], snakemake.threads, "gallery"):
    draw_sets(snakemake.params.labels, snakemake.input.sets, snakemake.output.png)
