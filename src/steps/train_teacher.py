"""Train the study's teacher on the whole training set."""

import shutil

from diver.config.students import Teacher
from diver.data.prepared import Prepared
from diver.networks.weights import write_trained
from diver.progress import step_log
from diver.students import train_teacher
from diver.workers import best_device

params = snakemake.params
with step_log(
    snakemake.log[0], snakemake.threads, f"teacher of {snakemake.wildcards.dataset}", snakemake.resources.gpu
) as progress:
    chosen = Teacher(**params.teacher)
    trained = train_teacher(
        Prepared.read(snakemake.input.prepared),
        chosen.network,
        chosen.options,
        chosen.protocol,
        chosen.seed,
        progress,
        checkpoints=params.checkpoints,
        device=best_device(),
    )
    write_trained(snakemake.output.teacher, trained)
    shutil.rmtree(params.checkpoints, ignore_errors=True)
    print(f"teacher: {trained.accuracy:.2f} % of the test images")
