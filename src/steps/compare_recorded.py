"""Put what released files record beside what our students reach on the same images."""

import pandas as pd

from diver.progress import step_log
from diver.report.forms import write_table
from diver.report.labels import Labels
from diver.report.recorded import compare_recorded, recorded_accuracies
from diver.study import SetCell

params = snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "recorded accuracies"):
    cells = [SetCell(**cell) for cell in params.cells]
    recorded = list(zip(cells, map(recorded_accuracies, snakemake.input.sets), strict=True))
    results = pd.read_csv(snakemake.input.results, keep_default_na=False)
    table = compare_recorded(results, recorded, params.networks, Labels(**params.names))
    write_table(table, *snakemake.output.table, snakemake.output.html)
