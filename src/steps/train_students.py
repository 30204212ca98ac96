"""Train the students of a group of architectures on one set, all seeds; a row each."""

import csv
from pathlib import Path

from diver.config.students import Architecture, Protocol
from diver.data.prepared import Prepared
from diver.progress import step_log
from diver.sets import DistilledSet
from diver.students import evaluate_set

wildcards, params = snakemake.wildcards, snakemake.params
label = f"students on {wildcards.stage1} + {wildcards.set}, IPC {wildcards.ipc}"
with step_log(snakemake.log[0], snakemake.threads, label) as progress:
    distilled, data = DistilledSet.read(snakemake.input.set), Prepared.read(snakemake.input.prepared)
    rows = []
    for name, settings in params.architectures.items():
        architecture = Architecture(**settings)
        common = {
            "study": params.study,
            "dataset": wildcards.dataset,
            "ipc": int(wildcards.ipc),
            "stage1": wildcards.stage1,
            "stage2": wildcards.set,
            "scale": wildcards.scale,
            "architecture": name,
            "role": architecture.role,
            "prior": params.prior,
        }
        trained = evaluate_set(
            distilled,
            data,
            architecture,
            Protocol(**params.protocol),
            params.seeds,
            matched=wildcards.scale == "matched",
            progress=lambda done, total, note, name=name: progress(done, total, f"{note} of {name},"),
        )
        rows.extend({**common, **row} for row in trained)
    with Path(snakemake.output.results).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
