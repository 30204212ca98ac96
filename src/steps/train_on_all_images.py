"""Train the students of a group of architectures on the whole training set, all seeds; a row each."""

import shutil
from pathlib import Path

from diver.config.students import Architecture, FullData
from diver.data.prepared import Prepared
from diver.progress import step_log
from diver.students import evaluate_full, write_rows
from diver.study import FULL, MATCHED
from diver.workers import best_device

wildcards, params = snakemake.wildcards, snakemake.params
with step_log(
    snakemake.log[0], snakemake.threads, f"students on all of {wildcards.dataset}", snakemake.resources.gpu
) as progress:
    data, full = Prepared.read(snakemake.input.prepared), FullData(**params.full)
    rows = []
    for name, settings in params.architectures.items():
        architecture = Architecture(label=name, **settings)
        trained = evaluate_full(
            data,
            architecture,
            full.protocol,
            full.seeds or params.seeds,
            full.learning_rate.get(name),
            lambda done, total, note, name=name: progress(done, total, f"{note} of {name},"),
            workers=snakemake.threads,
            memory_gb=snakemake.resources.student_memory / 1024,
            checkpoints=Path(params.checkpoints) / name,
            device=best_device(),
        )
        common = {
            "study": params.study,
            "dataset": wildcards.dataset,
            "ipc": trained[0]["images"] // len(data.classes),
            "stage1": FULL,
            "stage2": "none",
            "scale": MATCHED,
            "architecture": name,
            "role": architecture.role,
            "prior": "",
        }
        rows.extend({**common, **row} for row in trained)
    write_rows(snakemake.output.results, rows)
    shutil.rmtree(params.checkpoints, ignore_errors=True)
