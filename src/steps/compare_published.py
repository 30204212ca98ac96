"""Put published accuracies of stage-1 methods beside ours."""

import pandas as pd

from diver.progress import step_log
from diver.report.forms import write_table
from diver.report.labels import Labels
from diver.report.published import read_published
from diver.report.reproduced import compare_published
from diver.study import SetCell

params = snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "published accuracies"):
    departures = {SetCell(**cell): text for cell, text in params.departures}
    results = pd.read_csv(snakemake.input.results, keep_default_na=False)
    published = read_published(snakemake.input.published)
    names, given = Labels(**params.names), (params.datasets, params.networks)
    table = compare_published(results, published, params.methods, departures, names, *given)
    write_table(table, *snakemake.output.table, snakemake.output.html)
