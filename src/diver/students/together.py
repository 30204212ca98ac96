"""Students on a GPU: all of a job step by step together, each step a recorded graph.

A student's graph holds nothing of the others, so it becomes what it becomes alone: it is recorded and replayed on a
stream of the student's own, since a library's workspace may belong to a stream, and with random numbers of its own.
Only students that are shown the same stored answers share one stream. What is random is drawn for many epochs at once,
and images that are seen through the same kind of view are made together.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, tee

import torch
from torch import Tensor

from diver import graphs
from diver.graphs import Graphed
from diver.networks.views import apply_each
from diver.students.optimizers import SGD, AdamW
from diver.students.protocol import StudentResult
from diver.students.student import Average, Checkpoint, Student

# Images of a student that are made at once, and epochs at most: a loss that is no number is seen after so many.
AHEAD_BYTES, AHEAD_EPOCHS = 64 << 20, 100


def prepared(student: Student, epochs: int) -> list[Iterator[tuple[Tensor, Tensor]]]:
    """`Student.batches` of so many epochs, to be gone through in turn; where there are several, made at once."""
    if student.protocol.labels == "replay" or epochs == 1:
        return [student.batches() for _ in range(epochs)]
    by_epoch = [list(student.draw()) for _ in range(epochs)]
    drawn = [batch for epoch in by_epoch for batch in epoch]
    rows, images = torch.cat([batch.index for batch in drawn]), student.data.images
    x = student.data.floats(images[rows.to(images.device, non_blocking=True)])
    seen = x.split([len(batch.index) for batch in drawn])
    shown = apply_each(student.augment, seen, [batch.view for batch in drawn])
    batches = student.finished(shown, drawn)
    return [islice(batches, len(epoch)) for epoch in by_epoch]


@dataclass
class _Step:
    """A recorded step for batches of one size, and the tensors that it reads: images, targets, [rate, weight]."""

    images: Tensor
    target: Tensor
    knobs: Tensor
    graph: Graphed


def _update(
    optimizer: SGD | AdamW, average: Average | None, flat: Tensor, gradient: Tensor, loss: Tensor, knobs: Tensor
) -> None:
    """One step of a student's weights and of their average. knobs: as in `Runner.run`."""
    optimizer.step(flat, gradient, knobs[0])
    if average:
        # Only a student whose loss is a number is averaged, and only where the protocol does so.
        average.update_if(torch.isfinite(loss) & (knobs[1] > 0), knobs[1])


class Runner:
    """One student's steps. losses: of those since the last `end`, float32."""

    def __init__(self, student: Student, stream: "torch.cuda.Stream | None") -> None:
        self.student, self.stream = student, stream
        self.device = student.flat.device
        self.generator = torch.Generator(self.device) if student.flat.is_cuda and student.random else None
        self._update = graphs.compiled(_update, self.device, False)
        self.loss = torch.zeros((), device=self.device)
        self.losses: list[Tensor] = []
        self._steps: dict[int, _Step] = {}

    def _step(self, images: Tensor, target: Tensor) -> _Step:
        student = self.student
        x = torch.empty_like(images, memory_format=student.layout).copy_(images)
        wanted, knobs = target.clone(), torch.zeros(2, device=self.device)

        def step() -> None:
            total = torch.stack(list(student.gradients(x, wanted))).sum()
            if student.protocol.labels in ("teacher", "replay"):
                total = total + torch.xlogy(wanted, wanted).sum() / len(x)
            self._update(student.optimizer, student.average, student.flat, student.gradient, total, knobs)
            self.loss.copy_(total)

        state = [*student.tensors().values(), student.gradient, self.loss]
        return _Step(x, wanted, knobs, Graphed(step, state, self.device))

    def run(self, images: Tensor, target: Tensor, knobs: Tensor) -> None:
        """One step. knobs: float32 [2], the learning rate and what part of the weights goes into their average."""
        step = self._steps.get(len(images))
        if step is None:
            step = self._steps[len(images)] = self._step(images, target)
        step.images.copy_(images)
        step.target.copy_(target)
        step.knobs.copy_(knobs)
        with graphs.drawing_from(self.generator):
            if self.generator:
                # A recorded step's random numbers come from the generator as it is when the step is replayed.
                self.generator.manual_seed(hash((self.student.seed, self.student.steps)) & (2**63 - 1))
            step.graph()
        self.losses.append(self.loss.clone())
        self.student.steps += 1

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def end(self, first: int, sizes: Sequence[int]) -> None:
        """Note the loss after epochs from `first` on, of `sizes` steps; after one that is no number none count."""
        student, losses = self.student, torch.stack(self.losses).tolist()
        self.losses = []
        for number, loss in enumerate(losses):
            student.loss, student.diverged = loss, loss - loss != 0
            if student.diverged:
                student.steps -= len(losses) - number - 1
                while number >= sizes[0]:
                    number, sizes, first = number - sizes[0], sizes[1:], first + 1
                student.epoch = first + 1
                break


def _until(student: Student) -> int:
    """The epoch at which all that is drawn ahead has been used: the same however often a run was stopped."""
    protocol, epoch = student.protocol, student.epoch
    size = len(student.data.images) * student.data.images[0].numel() * 4
    ahead = max(1, min(AHEAD_EPOCHS, AHEAD_BYTES // size))
    return min(epoch - epoch % ahead + ahead, *(e for e in protocol.tested_epochs() if e > epoch))


def _streams(students: Sequence[Student]) -> "list[torch.cuda.Stream | None]":
    """A stream for each student, or none where all are shown the same batches."""
    one = students[0]
    spread = one.flat.is_cuda and one.protocol.labels != "replay"
    return [torch.cuda.Stream(one.flat.device) if spread else None for _ in students]


def _run(students: Sequence[Student], saves: Sequence[Checkpoint | None], report: Callable[[], None]) -> None:
    """All epochs that are left of students that are equally far."""
    device, protocol = students[0].flat.device, students[0].protocol
    streams = _streams(students)
    runners = [Runner(student, stream) for student, stream in zip(students, streams, strict=True)]
    saved = time.perf_counter()
    while active := [runner for runner in runners if not runner.student.done]:
        began = time.perf_counter()
        one = active[0].student
        first, until = one.epoch, _until(one)
        if protocol.labels == "replay":
            # All are shown the same.
            made = [tee(epoch, len(active)) for epoch in prepared(one, until - first)]
            work = [[epoch[number] for epoch in made] for number in range(len(active))]
        else:
            work = []
            for runner in active:
                if runner.stream:
                    runner.stream.wait_stream(torch.cuda.current_stream(device))
                with runner.on_stream():
                    work.append(prepared(runner.student, until - first))
        sizes, weights = [one.batches_per_epoch] * (until - first), []
        for size in sizes:
            for number in range(size):
                due = protocol.ema_decay > 0 and (not protocol.ema_per_epoch or number + 1 == size)
                weights.append(1 - protocol.decay(one.updates) if due else 0.0)
                one.updates += due
        for runner in active:
            runner.student.updates = one.updates
        rates = [protocol.rate(first + number) for number, size in enumerate(sizes) for _ in range(size)]
        knobs = torch.tensor([rates, weights]).T.contiguous().to(device, non_blocking=True)
        for runner in active:
            if runner.stream:
                runner.stream.wait_stream(torch.cuda.current_stream(device))
        place = 0
        for number, size in enumerate(sizes):
            for runner in active:
                runner.student.epoch = first + number
                with runner.on_stream():
                    runner.student.start_epoch()
            for _ in range(size):
                for runner, epochs in zip(active, work, strict=True):
                    with runner.on_stream():
                        runner.run(*next(epochs[number]), knobs[place])
                place += 1
        for runner in active:
            runner.student.epoch = until
            with runner.on_stream():
                runner.end(first, sizes)
            if runner.stream:
                torch.cuda.current_stream(device).wait_stream(runner.stream)
            runner.student.test_if_due()
            runner.student.seconds += (time.perf_counter() - began) / len(active)
        report()
        ended = len(active) == sum(runner.student.done for runner in active)
        if ended or time.perf_counter() - saved >= min((s.every for s in saves if s), default=0):
            for save, student in zip(saves, students, strict=True):
                if save:
                    save.save(student)
            saved = time.perf_counter()


def train_together(
    students: Sequence[Student], checkpoints: Sequence[Checkpoint | None], report: Callable[[int], None]
) -> list[StudentResult]:
    """All epochs that are left of students of one network, data and protocol; each alone would become the same.

    report: called with the epochs that all have done together. A student that was stopped elsewhere than the others is
    trained on with those that were stopped there.
    """
    for student, checkpoint in zip(students, checkpoints, strict=True):
        if checkpoint:
            checkpoint.restore(student)
    passes = students[0].protocol.passes

    def tell() -> None:
        report(sum(passes if student.diverged else student.epoch for student in students))

    for epoch in sorted({student.epoch for student in students}):
        group = [number for number, student in enumerate(students) if student.epoch == epoch and not student.done]
        if group:
            _run([students[number] for number in group], [checkpoints[number] for number in group], tell)
    tell()
    return [student.result() for student in students]
