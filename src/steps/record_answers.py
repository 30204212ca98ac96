"""Store a teacher's answers to the augmented batches of a set."""

from diver.config.protocols import Protocol
from diver.config.students import Teacher
from diver.data.prepared import Prepared
from diver.networks.weights import load_teacher
from diver.places import placed
from diver.progress import step_log
from diver.sets import DistilledSet
from diver.students import answer_set
from diver.study import MATCHED
from diver.workers import best_device

wildcards, params = snakemake.wildcards, snakemake.params
label = f"answers to {wildcards.stage1} + {wildcards.set}, IPC {wildcards.ipc}"
with step_log(snakemake.log[0], snakemake.threads, label, snakemake.resources.gpu) as progress:
    data, chosen = Prepared.read(snakemake.input.prepared), Teacher(**params.teacher)
    teacher = load_teacher(placed(params.source, snakemake.input), data, chosen.network, chosen.options)
    answers = answer_set(
        DistilledSet.read(snakemake.input.set),
        data,
        teacher,
        Protocol(**params.protocol),
        params.seed,
        wildcards.scale == MATCHED,
        progress,
        best_device(),
    )
    answers.write(snakemake.output.answers)
