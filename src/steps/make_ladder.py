"""Write the table of the ladder in four forms and draw it."""

import pandas as pd

from diver.progress import step_log
from diver.report.figures import ladder
from diver.report.forms import write_table
from diver.report.labels import Labels
from diver.report.tables import ablation

output, params = snakemake.output, snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "ladder"):
    results, labels = pd.read_csv(snakemake.input.results, keep_default_na=False), Labels(**params.names)
    write_table(ablation(results, labels, params.ladder_of, params.ladder), *output.table, output.html)
    ladder(results, labels, output.png, params.ladder_of, params.ladder)
