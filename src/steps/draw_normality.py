"""Draw how normal inverted classes are at each noise level."""

from diver.progress import step_log
from diver.report.normality import Normality, draw_normality

with step_log(snakemake.log[0], snakemake.threads, "normality"):
    files = zip(snakemake.params.labels, snakemake.input.statistics, strict=True)
    draw_normality([(label, Normality.read(path)) for label, path in files], snakemake.output.png)
