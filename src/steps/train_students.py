"""Train the students of one architecture on one set, all seeds; a row each."""

import csv
from pathlib import Path

from diver.config.students import Architecture, Protocol
from diver.data.prepared import Prepared
from diver.progress import step_log
from diver.sets import DistilledSet
from diver.students import evaluate_set

wildcards, params = snakemake.wildcards, snakemake.params
label = f"{wildcards.architecture} on {wildcards.stage1} + {wildcards.set}, IPC {wildcards.ipc}"
with step_log(snakemake.log[0], snakemake.threads, label) as progress:
    distilled = DistilledSet.read(snakemake.input.set)
    architecture = Architecture(**params.architecture)
    common = {
        "study": params.study,
        "dataset": wildcards.dataset,
        "ipc": int(wildcards.ipc),
        "stage1": wildcards.stage1,
        "stage2": wildcards.set,
        "scale": wildcards.scale,
        "architecture": wildcards.architecture,
        "role": architecture.role,
        "prior": params.prior,
    }
    rows = evaluate_set(
        distilled,
        Prepared.read(snakemake.input.prepared),
        architecture,
        Protocol(**params.protocol),
        params.seeds,
        matched=wildcards.scale == "matched",
        progress=progress,
    )
    with Path(snakemake.output.results).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*common, *rows[0]])
        writer.writeheader()
        writer.writerows({**common, **row} for row in rows)
