"""The student trainer: resident tensors, one plain loop, no data loader; the students of a job train side by side.

On a CPU each student has one core and its own random numbers, so what it becomes does not depend on how many others
are trained, before or beside it: bit for bit what it becomes alone. Separate networks beat one stack of them there
(`benchmarks/students.py` measures both).
"""

import contextlib
import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks import create, memory_format
from diver.networks.views import augmentation, draw_mix
from diver.progress import Progress, reporter
from diver.provenance import code_digest
from diver.students.inputs import StudentData, StudentError
from diver.students.optimizers import OPTIMIZERS, decay_factors, flatten_parameters
from diver.students.protocol import StudentProtocol, StudentResult
from diver.tensorfile import TensorFileError, canonical_json, read_tensors, write_tensors
from diver.workers import keep_freed_memory, side_by_side

# Small enough that activations stay in the cache of one core.
TEST_BATCH = 250
# A step's images are passed through the network in parts whose activations fit this, which bounds memory; smaller
# parts measured no faster.
PART_BYTES = 512 << 20
# Buffers of the size of the parameters: weights, gradient, average, and at most two of the optimiser.
BUFFERS = 5
SAVE_SECONDS = 60.0


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


@torch.inference_mode()
def test_accuracy(network: nn.Module, data: StudentData, precision: str = "fp32") -> float:
    """Percentage of the test images whose largest logit is their label; a logit that is no number never counts."""
    right, layout = 0, memory_format(network)
    with _autocast(precision, data.test_images.device):
        for x, y in zip(data.test_images.split(TEST_BATCH), data.test_labels.split(TEST_BATCH), strict=True):
            right += int((network(data.floats(x).to(memory_format=layout)).argmax(1) == y).sum())
    return 100.0 * right / len(data.test_labels)


def couples_images(network: nn.Module) -> bool:
    """Whether an image's output depends on the other images of its batch (batch normalisation)."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def activation_bytes(network: nn.Module, image: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, per image; `image` is float32 [1, C, H, W]."""
    parameters = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = max(tensor.numel() * tensor.element_size(), kept.get(tensor.data_ptr(), 0))
        return tensor

    training = network.training
    network.eval()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        network(image)
    network.train(training)
    return sum(kept.values())


class _Average:
    """Moving average of a network's parameters and floating-point buffers, as a network of its own."""

    def __init__(self, network: nn.Module, flat: Tensor) -> None:
        self.network = copy.deepcopy(network).eval()
        self.flat, _ = flatten_parameters(self.network)
        self._live = flat
        pairs = zip(self.network.buffers(), network.buffers(), strict=True)
        self._buffers = [(mine, live) for mine, live in pairs if live.is_floating_point()]

    def update(self, decay: float) -> None:
        self.flat.lerp_(self._live, 1 - decay)
        for mine, live in self._buffers:
            mine.lerp_(live, 1 - decay)


class Student:
    """One network in training. `run` goes through the epochs; state between epochs can be saved and restored."""

    def __init__(
        self, name: str, options: dict[str, Any], data: StudentData, protocol: StudentProtocol, seed: int
    ) -> None:
        """Draws the weights from torch's global generator, which the caller has seeded."""
        self.data, self.protocol, self.seed = data, protocol, seed
        channels, size = data.images.shape[1:3]
        network = create(name, data.classes, channels, size, **options).to(data.images.device)
        self.layout = memory_format(network)
        self.network = network.train()
        self.flat, self.gradient = flatten_parameters(network)
        decay = decay_factors(network, protocol.decay_vectors)
        self.optimizer = OPTIMIZERS[protocol.optimizer](self.flat, decay, protocol)
        self.average = _Average(network, self.flat) if protocol.ema_decay else None
        # Apart from the stream that drew the weights.
        self.generator = torch.Generator().manual_seed(seed + 1_000_003)
        self.augment = augmentation(protocol.augmentation, size=None, mean=data.mean, std=data.std)
        self.coupled = couples_images(network)
        self.epoch = self.steps = self.updates = 0
        self.accuracies: list[float] = []
        self.loss, self.diverged, self.seconds = float("nan"), False, 0.0
        self.part = protocol.batch
        if not self.coupled and data.images.device.type == "cpu":
            each = activation_bytes(network, data.floats(data.images[:1]))
            self.part = max(1, min(protocol.batch, PART_BYTES // each))

    @property
    def tested_network(self) -> nn.Module:
        return self.average.network if self.average else self.network

    def _target(self, index: Tensor | slice) -> Tensor:
        """Class probabilities float32 [n, K] of training images, for labels that do not depend on the view."""
        if self.protocol.labels == "soft" and self.data.soft_labels is not None:
            return F.softmax(self.data.soft_labels[index] / self.protocol.temperature, 1)
        return F.one_hot(self.data.labels[index], self.data.classes).float()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [n, C, S, S] and target probabilities [n, K] of the batches of one epoch."""
        data, protocol, generator = self.data, self.protocol, self.generator
        count = len(data.images)
        if protocol.labels == "replay" and data.replay is not None:
            for number in range(data.replay.batches):
                answer = data.replay.answered(self.epoch, number)
                x = self.augment.apply(data.floats(data.images[answer.index]), answer.view)
                yield answer.mix.apply(x), F.softmax(answer.logits.to(x.device) / protocol.temperature, 1)
            return
        # The order within a batch that is the whole set has no effect.
        order: Sequence[Tensor | slice] = [slice(None)]
        if count > protocol.batch:
            order = torch.randperm(count, generator=generator).split(protocol.batch)
        for index in order:
            x, target = data.floats(data.images[index]), self._target(index)
            x = self.augment.apply(x, self.augment.draw(len(x), generator))
            if protocol.mix != "none":
                mix = draw_mix(
                    protocol.mix, len(x), protocol.mix_alpha, protocol.mix_probability, generator, size=x.shape[-1]
                )
                x, target = mix.apply(x), mix.blend(target)
            if protocol.labels == "teacher" and data.teacher is not None:
                target = F.softmax(data.teacher.logits(x) / protocol.temperature, 1)
            yield x, target

    def _step(self, x: Tensor, target: Tensor, rate: float) -> None:
        """One optimiser step; a batch whose images do not depend on each other goes through in parts."""
        x = x.to(memory_format=self.layout)
        self.gradient.zero_()
        part = len(x) if self.coupled else self.part
        total = 0.0
        with _autocast(self.protocol.precision, x.device):
            if self.protocol.double_forward and self.coupled:
                with torch.no_grad():
                    self.network(x)
            for images, wanted in zip(x.split(part), target.split(part), strict=True):
                logits = self.network(images).float() / self.protocol.temperature
                loss = F.cross_entropy(logits, wanted, reduction="sum") / len(x)
                loss.backward()
                total += loss.item()
        if self.protocol.labels in ("teacher", "replay"):
            # What the protocols minimise and report is the divergence, lower by a constant of the targets.
            total += float(torch.xlogy(target, target).sum() / len(x))
        self.optimizer.step(self.flat, self.gradient, rate)
        self.steps += 1
        self.loss, self.diverged = total, total - total != 0

    def _update_average(self) -> None:
        if self.average:
            self.average.update(self.protocol.decay(self.updates))
            self.updates += 1

    def run_epoch(self) -> None:
        """One pass over the images, and the test if one is due; ends at once when the loss is no number."""
        protocol, rate = self.protocol, self.protocol.rate(self.epoch)
        if protocol.momentum_reset and self.epoch and rate < protocol.rate(self.epoch - 1):
            self.optimizer.reset()
        for x, target in self._batches():
            self._step(x, target, rate)
            if self.diverged:
                break
            if not protocol.ema_per_epoch:
                self._update_average()
        if protocol.ema_per_epoch and not self.diverged:
            self._update_average()
        self.epoch += 1
        if self.diverged or self.epoch in protocol.tested_epochs():
            self.tested_network.eval()
            self.accuracies.append(test_accuracy(self.tested_network, self.data, protocol.precision))
            self.network.train()

    def run(self, report: Callable[[int], None], checkpoint: "Checkpoint | None" = None) -> StudentResult:
        """All epochs that are left. The caller's global generator drives dropout."""
        keep_freed_memory()
        if checkpoint:
            checkpoint.restore(self)
        started, saved = time.perf_counter() - self.seconds, time.perf_counter()
        while self.epoch < self.protocol.passes and not self.diverged:
            self.run_epoch()
            report(self.epoch)
            self.seconds = time.perf_counter() - started
            if checkpoint and time.perf_counter() - saved >= checkpoint.every:
                checkpoint.save(self)
                saved = time.perf_counter()
        if checkpoint:
            checkpoint.save(self)
        report(self.protocol.passes)
        return StudentResult(
            seed=self.seed,
            accuracy_last=self.accuracies[-1],
            accuracy_best=max(self.accuracies),
            train_loss_last=self.loss,
            diverged=self.diverged,
            epochs=self.protocol.epochs,
            steps=self.steps,
            seconds=self.seconds,
            parameters=self.flat.numel(),
        )

    def _tensors(self) -> dict[str, Tensor]:
        """All state that changes, aliased where it lives."""
        found = {"flat": self.flat, **{f"optimizer.{k}": v for k, v in self.optimizer.state.items()}}
        found |= {f"buffer.{k}": v for k, v in self.network.named_buffers()}
        if self.average:
            found["average"] = self.average.flat
            found |= {f"average.{k}": v for k, v in self.average.network.named_buffers()}
        return found

    _NUMBERS = ("epoch", "steps", "updates", "accuracies", "loss", "diverged", "seconds")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers from which `load` goes on as if nothing had happened."""
        random = {"random.batches": self.generator.get_state(), "random.network": torch.get_rng_state()}
        if self.flat.is_cuda:
            random["random.device"] = torch.cuda.get_rng_state(self.flat.device)
        return {**self._tensors(), **random}, {name: getattr(self, name) for name in self._NUMBERS}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])
        self.generator.set_state(tensors["random.batches"])
        torch.set_rng_state(tensors["random.network"])
        if self.flat.is_cuda:
            torch.cuda.set_rng_state(tensors["random.device"], self.flat.device)
        for name in self._NUMBERS:
            setattr(self, name, numbers[name])


@dataclass(frozen=True)
class Checkpoint:
    """Where a student's state is kept, and of what: a file with another key is not resumed but written over."""

    path: Path
    key: str
    every: float

    def save(self, student: Student) -> None:
        tensors, numbers = student.state()
        # JSON has no NaN: the loss of a diverged student is kept as text.
        write_tensors(self.path, tensors, {**numbers, "loss": repr(numbers["loss"]), "key": self.key})

    def restore(self, student: Student) -> None:
        """Go on where the file stopped, if there is one of the same key."""
        try:
            tensors, header = read_tensors(self.path)
        except TensorFileError:
            return
        if header.pop("key", None) == self.key:
            student.load(tensors, {**header, "loss": float(header["loss"])})


def students_at_once(
    name: str, options: dict[str, Any], data: StudentData, protocol: StudentProtocol, workers: int, memory_bytes: float
) -> int:
    """How many students of a network fit the bound at a time, at most `workers`. Raises StudentError if none does."""
    with torch.random.fork_rng(devices=[]):
        network = create(name, data.classes, *data.images.shape[1:3], **options)
    parameters = sum(p.numel() for p in network.parameters()) * 4
    each = activation_bytes(network, data.floats(data.images[:1].cpu()))
    batch = min(protocol.batch, len(data.images))
    held = each * batch if couples_images(network) else min(each * batch, max(PART_BYTES, each))
    student = BUFFERS * parameters + held
    if student > memory_bytes:
        raise StudentError(
            f"a {name} student with {batch} images a step needs {student / 2**30:.1f} GB, the bound is "
            f"{memory_bytes / 2**30:.1f} GB; raise students.memory_gb or lower the protocol's batch"
        )
    return max(1, min(workers, int(memory_bytes // student)))


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
    workers: students that train at the same time on a CPU, a core each; fewer where memory_gb would be exceeded.
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
    # A GPU cannot be shared with processes that are forked after it was used.
    wanted = workers if device.type == "cpu" else 1
    at_once = students_at_once(network, options, data, protocol, wanted, memory_gb * 2**30)
    identity = ""
    if checkpoints is not None:
        code = code_digest(__file__)
        about = canonical_json([network, options, asdict(protocol), data.digest(), code, torch.__version__])
        identity = hashlib.sha256(about.encode()).hexdigest()

    def train(number: int, report: Callable[[int], None]) -> StudentResult:
        seed, every = seeds[number], max(1, protocol.passes // 20)

        def now_and_then(epoch: int) -> None:
            if epoch % every == 0 or epoch == protocol.passes:
                report(epoch)

        point = None
        if checkpoints is not None:
            path = Path(checkpoints) / f"{network.replace(':', '-')}-{seed}.safetensors"
            point = Checkpoint(path, f"{identity}-{seed}", SAVE_SECONDS)
        threads = torch.get_num_threads()
        if device.type == "cpu":
            torch.set_num_threads(1)
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                student = Student(network, options, data, protocol, seed)
                result = student.run(now_and_then, point)
        finally:
            torch.set_num_threads(threads)
        if keep:
            keep(student)
        return result

    return side_by_side(train, len(seeds), at_once, lambda done: show(done, total, "epochs"))
