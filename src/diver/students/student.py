"""One student: a network in training on resident tensors, in a plain loop without a data loader."""

import contextlib
import copy
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diver import graphs
from diver.networks import create, memory_format
from diver.networks.augment import Augmentation
from diver.networks.views import Augmenter, Mix, View, augmentation, draw_mix, mosaic_factor
from diver.students.inputs import StudentData
from diver.students.needs import activation_bytes, couples_images, draws
from diver.students.optimizers import OPTIMIZERS, decay_factors, flatten_parameters
from diver.students.protocol import StudentProtocol, StudentResult
from diver.tensorfile import TensorFileError, canonical_json, read_tensors, write_tensors
from diver.workers import keep_freed_memory

# On a CPU small enough that activations stay in the cache of one core, on a GPU large enough to fill it; and what the
# activations of such a batch may take, counted as training keeps them, which is more than testing does.
TEST_BATCH, TEST_BYTES = {"cpu": 250, "cuda": 2000}, {"cpu": 1 << 30, "cuda": 1 << 30}
# A step's images are passed through the network in parts whose activations fit this, which bounds memory; smaller
# parts measured no faster on a CPU.
PART_BYTES = {"cpu": 512 << 20, "cuda": 2 << 30}


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Products in bfloat16, if `precision` says so. Weights are cast anew each time: recorded steps must do so."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type == "cpu")


def images_at_once(each: int, device: str) -> int:
    """Images that are tested at once. each: `activation_bytes` of the network."""
    return max(1, min(TEST_BATCH[device], TEST_BYTES[device] // each))


@torch.inference_mode()
def test_accuracy(network: nn.Module, data: StudentData, batch: int, precision: str = "fp32") -> float:
    """Percentage of the test images whose largest logit is their label; the first NaN is the largest, as for argmax.

    batch: images at once.
    """
    device, layout = data.test_images.device, memory_format(network)
    right = torch.zeros((), dtype=torch.int64, device=device)
    with autocast(precision, device):
        for x, y in zip(data.test_images.split(batch), data.test_labels.split(batch), strict=True):
            right += (network(data.floats(x).to(memory_format=layout)).argmax(1) == y).sum()
    return 100.0 * right.item() / len(data.test_labels)


@functools.lru_cache(maxsize=1)
def _summed_loss(
    name: str, options: str, classes: int, channels: int, size: int, device: torch.device, in_bf16: bool
) -> Callable[[Tensor, dict[str, Tensor], Tensor, Tensor, float], Tensor]:
    """The sum of images' cross entropies as a function of a network's parameters [P] and buffers.

    One for all students of a network, so that its operations are fused once. It has weights of its own, which are never
    used. options: as JSON. in_bf16: whether it is called so; instance normalisations are one pass then, where they can.
    """
    with torch.random.fork_rng(devices=[]):
        network = create(name, classes, channels, size, **json.loads(options)).to(device).train()
    layout, shapes = memory_format(network), {name: p.shape for name, p in network.named_parameters()}
    if in_bf16 and find_spec("triton"):
        from diver.networks.one_pass import in_one_pass, works  # here, because torch brings Triton on Linux only

        if works(device) and in_one_pass(network):
            layout = torch.channels_last
    used = {name for name, _ in network.named_parameters()}

    def loss(flat: Tensor, buffers: dict[str, Tensor], images: Tensor, target: Tensor, temperature: float) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        pairs = zip(parts, shapes.items(), strict=True)
        named = {key: part.view(shape) for part, (key, shape) in pairs if key in used}
        images = images.contiguous(memory_format=layout)
        logits = functional_call(network, {**named, **buffers}, (images,)).float() / temperature
        return F.cross_entropy(logits, target, reduction="sum")

    return loss


def augmenter(protocol: StudentProtocol, size: int, mean: Sequence[float], std: Sequence[float]) -> Augmenter:
    """A protocol's views of standardised images of `size` pixels."""
    factor = protocol.patches or mosaic_factor(size)
    return augmentation(protocol.augmentation, size=None, mean=mean, std=std, factor=factor)


class Average:
    """Moving average of a network's parameters and floating-point buffers, as a network of its own."""

    def __init__(self, network: nn.Module, flat: Tensor) -> None:
        self.network = copy.deepcopy(network).eval()
        self.flat, _ = flatten_parameters(self.network)
        pairs = zip(self.network.buffers(), network.buffers(), strict=True)
        self._pairs = [(self.flat, flat), *((mine, live) for mine, live in pairs if live.is_floating_point())]

    def update(self, decay: float) -> None:
        for mine, live in self._pairs:
            mine.lerp_(live, 1 - decay)

    def update_if(self, wanted: Tensor, weight: Tensor) -> None:
        """The same with tensors, 0-d: towards the network by `weight`, if it is wanted (bool)."""
        for mine, live in self._pairs:
            torch.where(wanted, mine.lerp(live, weight), mine, out=mine)


@dataclass(frozen=True)
class Drawn:
    """Random numbers of a batch: positions int64 [n] of its images, how they are seen, and mixed if they are."""

    index: Tensor
    view: Augmentation | View
    mix: Mix | None


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
        self.average = Average(network, self.flat) if protocol.ema_decay else None
        # Apart from the stream that drew the weights.
        self.generator = torch.Generator().manual_seed(seed + 1_000_003)
        self.augment = augmenter(protocol, size, data.mean, data.std)
        self.coupled = couples_images(network)
        # The set is one batch.
        self.whole = len(data.images) <= protocol.batch
        self.epoch = self.steps = self.updates = 0
        self.accuracies: list[float] = []
        self.loss, self.diverged, self.seconds = float("nan"), False, 0.0
        # What recorded steps want to know; others run as they are written.
        self.random = False
        if graphs.records(data.images.device):
            self.random = draws(network, data.floats(data.images[:1]))
            shape, in_bf16 = (data.classes, channels, size), protocol.precision == "bf16"
            summed = _summed_loss(name, canonical_json(options), *shape, data.images.device, in_bf16)
            self._summed_loss = graphs.compiled(summed, data.images.device, False)
        each, device = activation_bytes(network, data.floats(data.images[:1])), data.images.device.type
        self.tested = images_at_once(each, device)
        self.part = protocol.batch if self.coupled else max(1, min(protocol.batch, PART_BYTES[device] // each))

    @property
    def tested_network(self) -> nn.Module:
        return self.average.network if self.average else self.network

    def _target(self, index: Tensor | slice) -> Tensor:
        """Class probabilities float32 [n, K] of training images, for labels that do not depend on the view."""
        if isinstance(index, Tensor):
            index = index.to(self.data.labels.device, non_blocking=True)
        if self.protocol.labels == "soft" and self.data.soft_labels is not None:
            return F.softmax(self.data.soft_labels[index] / self.protocol.temperature, 1)
        return F.one_hot(self.data.labels[index], self.data.classes).float()

    @property
    def batches_per_epoch(self) -> int:
        if self.protocol.labels == "replay" and self.data.replay is not None:
            return self.data.replay.batches
        return -(-len(self.data.images) // self.protocol.batch)

    def draw(self) -> Iterator[Drawn]:
        """The random numbers of one epoch, batch by batch."""
        protocol, count, generator = self.protocol, len(self.data.images), self.generator
        # The order within a batch that is the whole set has no effect.
        order = [torch.arange(count)]
        if not self.whole:
            order = list(torch.randperm(count, generator=generator).split(protocol.batch))
        for index in order:
            view, size = self.augment.draw(len(index), generator), self.data.images.shape[-1]
            mix = None
            if protocol.mix != "none":
                kind, alpha, probability = protocol.mix, protocol.mix_alpha, protocol.mix_probability
                mix = draw_mix(kind, len(index), alpha, probability, generator, size=size)
            yield Drawn(index, view, mix)

    def pixels(self, index: Tensor) -> Tensor:
        """Training images float32 [n, C, S, S] at positions int64 [n] on the CPU."""
        if self.whole:
            return self.data.floats(self.data.images)
        return self.data.floats(self.data.images[index.to(self.data.images.device, non_blocking=True)])

    def finished(self, shown: Sequence[Tensor], drawn: Sequence[Drawn]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of augmented batches [n, C, S, S]: images as they are trained on, and target probabilities [n, K]."""
        mixed = [x if one.mix is None else one.mix.apply(x) for x, one in zip(shown, drawn, strict=True)]
        if self.protocol.labels == "teacher" and self.data.teacher is not None:
            logits = self.data.teacher.logits(torch.cat(mixed)) / self.protocol.temperature
            yield from zip(mixed, F.softmax(logits, 1).split([len(x) for x in mixed]), strict=True)
            return
        for x, one in zip(mixed, drawn, strict=True):
            target = self._target(slice(None) if self.whole else one.index)
            yield x, target if one.mix is None else one.mix.blend(target)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 [n, C, S, S] and target probabilities [n, K] of the batches of one epoch."""
        data, protocol = self.data, self.protocol
        if protocol.labels == "replay" and data.replay is not None:
            for number in range(data.replay.batches):
                answer = data.replay.answered(self.epoch, number)
                # In the order of the answers, also where the set is one batch.
                images = data.images[answer.index.to(data.images.device, non_blocking=True)]
                x = self.augment.apply(data.floats(images), answer.view)
                logits = answer.logits.to(x.device, non_blocking=True)
                yield answer.mix.apply(x), F.softmax(logits / protocol.temperature, 1)
            return
        for drawn in self.draw():
            yield from self.finished([self.augment.apply(self.pixels(drawn.index), drawn.view)], [drawn])

    def gradients(self, x: Tensor, target: Tensor) -> Iterator[Tensor]:
        """Adds the gradient of the mean cross entropy part by part; yields each part's share of it, 0-d, detached."""
        x = x.to(memory_format=self.layout)
        part = len(x) if self.coupled else self.part
        recorded, buffers = graphs.records(x.device), dict(self.network.named_buffers())
        if not recorded:
            self.gradient.zero_()
        with autocast(self.protocol.precision, x.device):
            if self.protocol.double_forward and self.coupled:
                with torch.no_grad():
                    self.network(x)
            for number, (images, wanted) in enumerate(zip(x.split(part), target.split(part), strict=True)):
                if recorded:
                    # Adding to `grad` happens on the stream that used the parameter first, which need not be recorded.
                    leaf = self.flat.detach().requires_grad_()
                    loss = self._summed_loss(leaf, buffers, images, wanted, self.protocol.temperature) / len(x)
                    (found,) = torch.autograd.grad(loss, leaf)
                    self.gradient.add_(found) if number else self.gradient.copy_(found)
                else:
                    logits = self.network(images).float() / self.protocol.temperature
                    loss = F.cross_entropy(logits, wanted, reduction="sum") / len(x)
                    loss.backward()
                yield loss.detach()

    def _step(self, x: Tensor, target: Tensor, rate: float) -> None:
        """One optimiser step; a batch whose images do not depend on each other goes through in parts."""
        total = 0.0
        for loss in self.gradients(x, target):
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

    def start_epoch(self) -> float:
        """Its learning rate."""
        rate = self.protocol.rate(self.epoch)
        if self.protocol.momentum_reset and self.epoch and rate < self.protocol.rate(self.epoch - 1):
            self.optimizer.reset()
        return rate

    def test_if_due(self) -> None:
        if self.diverged or self.epoch in self.protocol.tested_epochs():
            self.tested_network.eval()
            found = test_accuracy(self.tested_network, self.data, self.tested, self.protocol.precision)
            self.accuracies.append(found)
            self.network.train()

    def run_epoch(self) -> None:
        """One pass over the images, and the test if one is due; ends at once when the loss is no number."""
        rate = self.start_epoch()
        for x, target in self.batches():
            self._step(x, target, rate)
            if self.diverged:
                break
            if not self.protocol.ema_per_epoch:
                self._update_average()
        if self.protocol.ema_per_epoch and not self.diverged:
            self._update_average()
        self.epoch += 1
        self.test_if_due()

    @property
    def done(self) -> bool:
        return self.diverged or self.epoch >= self.protocol.passes

    def run(self, report: Callable[[int], None], checkpoint: "Checkpoint | None" = None) -> StudentResult:
        """All epochs that are left, step by step. The caller's global generator drives dropout."""
        keep_freed_memory()
        if checkpoint:
            checkpoint.restore(self)
        started, saved = time.perf_counter() - self.seconds, time.perf_counter()
        while not self.done:
            self.run_epoch()
            report(self.epoch)
            self.seconds = time.perf_counter() - started
            if checkpoint and time.perf_counter() - saved >= checkpoint.every:
                checkpoint.save(self)
                saved = time.perf_counter()
        if checkpoint:
            checkpoint.save(self)
        report(self.protocol.passes)
        return self.result()

    def result(self) -> StudentResult:
        return StudentResult(
            seed=self.seed,
            accuracy_last=self.accuracies[-1],
            accuracy_best=max(self.accuracies),
            train_loss_last=self.loss,
            # The loss is of before the last step.
            diverged=self.diverged or not bool(self.flat.isfinite().all()),
            epochs=self.protocol.epochs,
            steps=self.steps,
            seconds=self.seconds,
            parameters=self.flat.numel(),
        )

    def tensors(self) -> dict[str, Tensor]:
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
        return {**self.tensors(), **random}, {name: getattr(self, name) for name in self._NUMBERS}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        for name, tensor in self.tensors().items():
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
