"""Put the diffusion-native systems side by side."""

import pandas as pd

from diver.progress import step_log
from diver.report.forms import write_table
from diver.report.labels import Labels
from diver.report.published import read_published
from diver.report.systems import Cost, systems, time_of
from diver.study import SetCell

params = snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "systems"):
    costs = {
        SetCell(**cell): Cost(*(time_of(paths[part]) for part in ("making", "own", "shared")))
        for cell, paths in params.benchmarks
    }
    table = systems(
        pd.read_csv(snakemake.input.results, keep_default_na=False),
        Labels(**params.names),
        params.methods,
        params.natives,
        costs,
        params.classes,
        read_published(snakemake.input.published),
        params.datasets,
    )
    write_table(table, *snakemake.output.table, snakemake.output.html)
