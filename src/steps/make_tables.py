"""Write the tables in four forms, and the headline numbers for `dvc metrics show`."""

import json
from pathlib import Path

import pandas as pd

from diver.progress import step_log
from diver.report.labels import Labels
from diver.report.tables import ablation, cross_architecture, write_table

output, params = snakemake.output, snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "tables"):
    results, labels = pd.read_csv(snakemake.input.results, keep_default_na=False), Labels(**params.names)
    cross = cross_architecture(results, labels)
    write_table(cross, *output.cross, output.cross_html)
    write_table(ablation(results, labels, params.ladder_of, params.ladder), *output.ablation, output.ablation_html)
    keys = ["dataset", "ipc", "stage1", "stage2", "scale"]
    unseen = cross.data.set_index(keys)["unseen_last_mean"].round(2)
    metrics = {"/".join(map(str, row)): value for row, value in unseen.items()}
    Path(output.metrics).write_text(json.dumps({"unseen_accuracy": metrics}, indent=1) + "\n")
