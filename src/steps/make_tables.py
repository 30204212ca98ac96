"""Write the tables in four forms, and the headline numbers for `dvc metrics show`."""

import json
from pathlib import Path

import pandas as pd

from diver.config.study import NONE
from diver.progress import step_log
from diver.report.labels import Labels
from diver.report.tables import ablation, cross_architecture, write_table
from diver.study import MATCHED

output, params = snakemake.output, snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "tables"):
    results, labels = pd.read_csv(snakemake.input.results, keep_default_na=False), Labels(**params.names)
    cross = cross_architecture(results, labels)
    write_table(cross, *output.cross, output.cross_html)
    write_table(ablation(results, labels, params.ladder_of, params.ladder), *output.ablation, output.ablation_html)
    # Few, so that they are read: the ladder's two ends, or every stage-1 set where there is no ladder.
    ends = {params.ladder[0], params.ladder[-1]} if params.ladder else {NONE}
    shown = cross.data[(cross.data["scale"] == MATCHED) & cross.data["stage2"].isin(ends)]
    if params.ladder:
        shown = shown[shown["stage1"] == params.ladder_of]
    unseen = {
        f"{row.dataset}/ipc{row.ipc}/{row.stage1}" + (f"+{row.stage2}" if row.stage2 != NONE else ""): round(mean, 2)
        for row, mean in zip(shown.itertuples(), shown["unseen_last_mean"], strict=True)
    }
    counts = {"students": len(results), "diverged": int(results["diverged"].sum())}
    Path(output.metrics).write_text(json.dumps({"unseen": unseen, **counts}, indent=1) + "\n")
