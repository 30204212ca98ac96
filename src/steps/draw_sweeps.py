"""Draw accuracy along the values of the swept settings."""

import pandas as pd

from diver.progress import step_log
from diver.report.labels import Labels
from diver.report.sweeps import sweeps

params = snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "sweeps"):
    results = pd.read_csv(snakemake.input.results, keep_default_na=False)
    sweeps(results, Labels(**params.names), params.families, snakemake.output.png)
