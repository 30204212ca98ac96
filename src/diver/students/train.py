"""The student trainer: the students of a job train side by side, and none depends on how many others do.

On a CPU each student has one core and its own random numbers: bit for bit what it becomes alone. Separate networks beat
one stack of them there (`benchmarks/students.py` measures both). On a GPU the steps of all are recorded and run
together, each still as it would alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diver import graphs
from diver.networks import create
from diver.progress import Progress, reporter
from diver.provenance import code_digest
from diver.students.inputs import StudentData, StudentError
from diver.students.needs import activation_bytes, couples_images
from diver.students.protocol import StudentProtocol, StudentResult
from diver.students.student import (
    PART_BYTES,
    Checkpoint,
    Student,
    images_at_once,
)
from diver.students.together import train_together
from diver.tensorfile import canonical_json
from diver.workers import side_by_side

# Buffers of the size of the parameters: weights, gradient, average, and at most two of the optimiser.
BUFFERS = 5
SAVE_SECONDS = 60.0


def students_at_once(
    name: str, options: dict[str, Any], data: StudentData, protocol: StudentProtocol, workers: int, memory_bytes: float
) -> int:
    """How many students of a network fit the bound at a time, at most `workers`. Raises StudentError if none does."""
    with torch.random.fork_rng(devices=[]):
        network = create(name, data.classes, *data.images.shape[1:3], **options)
    parameters = sum(p.numel() for p in network.parameters()) * 4
    each, device = activation_bytes(network, data.floats(data.images[:1].cpu())), data.images.device.type
    batch = min(protocol.batch, len(data.images))
    # A GPU keeps the memory of each recorded step, and the last batch of an epoch has one of its own.
    sizes = [batch, len(data.images) % batch] if device == "cuda" else [batch]
    most = each * batch if couples_images(network) else max(PART_BYTES[device], each)
    held = sum(min(each * size, most) for size in sizes)
    tested = each * images_at_once(each, device)
    # Processes on a CPU test while others train; on a GPU one student at a time is tested, beside the recorded steps.
    student, shared = BUFFERS * parameters, 0
    if device == "cpu":
        student += max(held, tested)
    else:
        # And a network that takes the students' weights (`_summed_loss`).
        student, shared = student + held, tested + parameters
    if student + shared > memory_bytes:
        raise StudentError(
            f"a {name} student with {batch} images a step needs {(student + shared) / 2**30:.1f} GB, the bound is "
            f"{memory_bytes / 2**30:.1f} GB; raise students.memory_gb or lower the protocol's batch"
        )
    return max(1, min(workers, int((memory_bytes - shared) // student)))


def train_students(
    network: str,
    options: dict[str, Any],
    data: StudentData,
    protocol: StudentProtocol,
    seeds: Sequence[int],
    progress: Progress | None = None,
    workers: int = 1,
    memory_gb: float = 8.0,
    checkpoints: str | Path | None = None,
    keep: Callable[[Student], None] | None = None,
) -> list[StudentResult]:
    """Train one student per seed on a set and test it; results in the order of the seeds.

    progress: called with (epochs done, all epochs, note); by default a line on stderr now and then.
    workers: students that train at the same time on a CPU, a core each. On a GPU all do. Fewer do where memory_gb
    would be exceeded.
    checkpoints: a folder where the state of each student is kept, once a minute and when it is done; training that
    was killed goes on from there, with the same result.
    keep: called with each student when it is done, in the process that trained it.
    Initial weights, order, augmentation and dropout depend on the seed alone, so results but for `seconds` repeat
    exactly on one machine, however many students are trained at a time.
    Raises StudentError for data that do not fit together or the protocol, ValueError for an unknown network or option.
    """
    data.check(protocol)
    show, total = progress or reporter(f"{network} students"), protocol.passes * len(seeds)
    device = data.images.device
    recorded = graphs.records(device)
    # A GPU cannot be shared with processes that are forked after it was used.
    wanted = len(seeds) if recorded else workers if device.type == "cpu" else 1
    at_once = students_at_once(network, options, data, protocol, wanted, memory_gb * 2**30)
    points: list[Checkpoint | None] = [None] * len(seeds)
    if checkpoints is not None:
        code = code_digest(__file__)
        # A state goes on only as it was begun: recorded steps have random numbers of their own.
        begun = [device.type, recorded, torch.__version__]
        about = canonical_json([network, options, asdict(protocol), data.digest(), code, *begun])
        identity = hashlib.sha256(about.encode()).hexdigest()
        paths = [Path(checkpoints) / f"{network.replace(':', '-')}-{seed}.safetensors" for seed in seeds]
        points = [Checkpoint(path, f"{identity}-{seed}", SAVE_SECONDS) for path, seed in zip(paths, seeds, strict=True)]
    every, drawing = max(1, protocol.passes // 20), [device] if device.type == "cuda" else []

    def train(number: int, report: Callable[[int], None]) -> StudentResult:
        def now_and_then(epoch: int) -> None:
            if epoch % every == 0 or epoch == protocol.passes:
                report(epoch)

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.random.fork_rng(devices=drawing):
                torch.manual_seed(seeds[number])
                student = Student(network, options, data, protocol, seeds[number])
                result = student.run(now_and_then, points[number])
        finally:
            torch.set_num_threads(threads)
        if keep:
            keep(student)
        return result

    def train_group(number: int, report: Callable[[int], None]) -> list[StudentResult]:
        mine, students = slice(number * at_once, (number + 1) * at_once), []
        with graphs.own_stream(device), torch.random.fork_rng(devices=drawing):
            for seed in seeds[mine]:
                torch.manual_seed(seed)
                students.append(Student(network, options, data, protocol, seed))
            results = train_together(students, points[mine], report)
        if keep:
            for student in students:
                keep(student)
        return results

    def shown(done: int) -> None:
        show(done, total, "epochs")

    if recorded:
        found = side_by_side(train_group, -(-len(seeds) // at_once), 1, shown)
        return [result for group in found for result in group]
    return side_by_side(train, len(seeds), at_once, shown)
