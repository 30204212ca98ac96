"""Draw the accuracy of all sets and architectures, the ladder, and floor and ceiling."""

import pandas as pd

from diver.progress import step_log
from diver.report.figures import cross_architecture, ladder, references
from diver.report.labels import Labels

output, params = snakemake.output, snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "figures"):
    results, labels = pd.read_csv(snakemake.input.results, keep_default_na=False), Labels(**params.names)
    cross_architecture(results, labels, output.cross)
    ladder(results, labels, output.ladder, params.ladder_of, params.ladder)
    references(results, labels, output.references)
