"""Write the table of the sets' measures in four forms and draw it."""

import pandas as pd

from diver.progress import step_log
from diver.report import figures, forms, tables
from diver.report.labels import Labels

output, params = snakemake.output, snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "measures"):
    rows = [pd.read_csv(path, keep_default_na=False) for path in snakemake.input.rows]
    measured, labels = pd.concat(rows, ignore_index=True), Labels(**params.names)
    forms.write_table(tables.quality(measured, labels), *output.table, output.html)
    figures.quality(measured, labels, output.png)
