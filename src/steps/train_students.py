"""Train the students of a group of architectures on one set, all seeds; a row each."""

import shutil
from pathlib import Path

from diver.config.protocols import Protocol
from diver.config.students import Architecture, Teacher
from diver.data.prepared import Prepared
from diver.networks.weights import load_teacher
from diver.places import placed
from diver.progress import step_log
from diver.sets import DistilledSet
from diver.students import Replay, evaluate_set, write_rows
from diver.study import MATCHED
from diver.workers import best_device

wildcards, params = snakemake.wildcards, snakemake.params
label = f"students on {wildcards.stage1} + {wildcards.set}, IPC {wildcards.ipc}"
with step_log(snakemake.log[0], snakemake.threads, label, snakemake.resources.gpu) as progress:
    distilled, data = DistilledSet.read(snakemake.input.set), Prepared.read(snakemake.input.prepared)
    protocol, teacher, replay = Protocol(**params.protocol), None, None
    if protocol.labels == "teacher":
        chosen = Teacher(**params.teacher)
        teacher = load_teacher(placed(params.source, snakemake.input), data, chosen.network, chosen.options)
    if protocol.labels == "replay":
        replay = Replay.read(snakemake.input.labels)
    rows = []
    for name, settings in params.architectures.items():
        architecture = Architecture(label=name, **settings)
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
            protocol,
            params.seeds,
            matched=wildcards.scale == MATCHED,
            progress=lambda done, total, note, name=name: progress(done, total, f"{note} of {name},"),
            teacher=teacher,
            replay=replay,
            workers=snakemake.threads,
            memory_gb=snakemake.resources.student_memory / 1024,
            checkpoints=Path(params.checkpoints) / name,
            device=best_device(),
        )
        rows.extend({**common, **row} for row in trained)
    write_rows(snakemake.output.results, rows)
    shutil.rmtree(params.checkpoints, ignore_errors=True)
