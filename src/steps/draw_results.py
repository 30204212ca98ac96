"""Draw the accuracy of all sets and architectures, and floor and ceiling."""

import pandas as pd

from diver.progress import step_log
from diver.report.figures import cross_architecture, references
from diver.report.labels import Labels

output = snakemake.output
with step_log(snakemake.log[0], snakemake.threads, "figures"):
    results, labels = pd.read_csv(snakemake.input.results, keep_default_na=False), Labels(**snakemake.params.names)
    cross_architecture(results, labels, output.cross)
    references(results, labels, output.references)
