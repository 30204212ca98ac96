"""Write the table of all sets in four forms, and the headline numbers for `dvc metrics show`."""

from pathlib import Path

import pandas as pd

from diver.progress import step_log
from diver.report.forms import write_table
from diver.report.labels import Labels
from diver.report.tables import cross_architecture, metrics_text

output, params = snakemake.output, snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "tables"):
    results = pd.read_csv(snakemake.input.results, keep_default_na=False)
    cross = cross_architecture(results, Labels(**params.names))
    write_table(cross, *output.cross, output.cross_html)
    Path(output.metrics).write_text(metrics_text(results, cross, params.ladder_of, params.ladder))
