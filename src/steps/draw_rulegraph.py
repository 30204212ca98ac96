"""Draw the rules of the study and what each needs."""

from diver.progress import step_log
from diver.report.rulegraph import draw_rulegraph

params = snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "rule graph"):
    draw_rulegraph([tuple(edge) for edge in params.edges], params.phases, snakemake.output.png)
