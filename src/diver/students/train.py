"""The student trainer: resident tensors, one plain loop, no data loader.

The optimiser is written out on one flat buffer per network. On networks this small the many tiny operations of a
general optimiser are a good part of a step, and merely importing what `torch.optim` needs takes longer than
training a student on ten images. A test holds it to `torch.optim.SGD`.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks import create, memory_format
from diver.networks.augment import DSA
from diver.progress import Progress, reporter
from diver.students.protocol import StudentProtocol, StudentResult

# Small enough that activations stay in the cache of one core.
TEST_BATCH = 250


class StudentError(ValueError):
    """The images or labels given to the trainer do not fit together."""


def _check(images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor) -> None:
    for name, x, y in (("training", images, labels), ("test", test_images, test_labels)):
        if x.ndim != 4 or x.dtype != torch.float32:
            raise StudentError(f"{name} images are {x.dtype} {list(x.shape)}, not float32 [N, C, H, W]")
        if y.shape != (len(x),) or y.dtype != torch.int64 or not len(y):
            raise StudentError(f"{name} labels are {y.dtype} {list(y.shape)}, not int64 [{len(x)}] with N > 0")
    if images.shape[1:] != test_images.shape[1:] or images.shape[-1] != images.shape[-2]:
        raise StudentError(
            f"training images are {list(images.shape[1:])}, test images {list(test_images.shape[1:])}; "
            "both must be equal and square"
        )


def flatten_parameters(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Move all parameters into one buffer and all gradients into another; both float [P], aliased by the network."""
    parameters = list(network.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    gradient = torch.zeros_like(flat)
    start = 0
    for p in parameters:
        end = start + p.numel()
        p.data, p.grad = flat[start:end].view_as(p), gradient[start:end].view_as(p)
        start = end
    return flat, gradient


def sgd_step(
    flat: Tensor, gradient: Tensor, velocity: Tensor, rate: float, momentum: float, weight_decay: float
) -> None:
    """One step of SGD with momentum and weight decay, in place, as `torch.optim.SGD`; `velocity` starts at zero."""
    velocity.mul_(momentum).add_(gradient).add_(flat, alpha=weight_decay)
    flat.sub_(velocity, alpha=rate)


class _Average:
    """Exponential moving average of a network's parameters and floating-point buffers, as a network of its own."""

    def __init__(self, network: nn.Module, flat: Tensor) -> None:
        self.network = copy.deepcopy(network).eval()
        self._average, _ = flatten_parameters(self.network)
        self._flat = flat
        pairs = zip(self.network.buffers(), network.buffers(), strict=True)
        self._buffers = [(mine, live) for mine, live in pairs if live.is_floating_point()]

    def update(self, decay: float) -> None:
        self._average.lerp_(self._flat, 1 - decay)
        for mine, live in self._buffers:
            mine.lerp_(live, 1 - decay)


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


@torch.inference_mode()
def test_accuracy(network: nn.Module, images: Tensor, labels: Tensor, precision: str = "fp32") -> float:
    """Percentage of images [N, C, H, W] whose largest logit is their label; a logit that is no number never counts."""
    right = 0
    with _autocast(precision, images.device):
        for x, y in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
            right += int((network(x).argmax(1) == y).sum())
    return 100.0 * right / len(labels)


def _batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor | None]:
    """Shuffled index batches of one epoch; None stands for the whole set, whose order has no effect."""
    if count <= batch:
        yield None
        return
    yield from torch.randperm(count, generator=generator).split(batch)


def _train_one(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    protocol: StudentProtocol,
    seed: int,
    report: Callable[[int], None],
) -> StudentResult:
    started = time.perf_counter()
    # Apart from the stream that drew the weights.
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    flat, gradient = flatten_parameters(network.train())
    velocity = torch.zeros_like(flat)
    average, augment = _Average(network, flat), DSA(protocol.augmentation)
    tested = set(protocol.tested_epochs())
    accuracies: list[float] = []
    step, loss_value, diverged = 0, float("nan"), False
    for epoch in range(protocol.epochs):
        rate = protocol.rate(epoch)
        for index in _batches(len(images), protocol.batch, generator):
            x, y = (images, labels) if index is None else (images[index], labels[index])
            gradient.zero_()
            with _autocast(protocol.precision, x.device):
                loss = F.cross_entropy(network(augment.apply(x, augment.draw(len(x), generator))), y)
            loss.backward()
            sgd_step(flat, gradient, velocity, rate, protocol.momentum, protocol.weight_decay)
            average.update(protocol.decay(step))
            step += 1
            loss_value = loss.item()
            diverged = loss_value - loss_value != 0
            if diverged:
                break
        report(epoch + 1)
        if diverged or epoch + 1 in tested:
            accuracies.append(test_accuracy(average.network, test_images, test_labels, protocol.precision))
        if diverged:
            break
    return StudentResult(
        seed=seed,
        accuracy_last=accuracies[-1],
        accuracy_best=max(accuracies),
        train_loss_last=loss_value,
        diverged=diverged,
        epochs=protocol.epochs,
        steps=step,
        seconds=time.perf_counter() - started,
        parameters=flat.numel(),
    )


def train_students(
    network_name: str,
    options: dict[str, Any],
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    protocol: StudentProtocol,
    seeds: Sequence[int],
    classes: int | None = None,
    progress: Progress | None = None,
) -> list[StudentResult]:
    """Train one student per seed on a set and test it; results in the order of the seeds.

    images: float32 [N, C, S, S] with int64 labels [N]; test images float32 [M, C, S, S] with labels [M]; all on one
    device, already in the value ranges that the study wants (nothing is converted or clipped).
    classes: number of logits, by default the largest label plus one.
    progress: called with (epochs done, all epochs, note); by default a line on stderr now and then.
    Initial weights, order and augmentation depend on the seed alone, so results but for `seconds` repeat exactly
    on one machine and one number of threads.
    Raises StudentError for tensors that do not fit together and ValueError for an unknown network or option.
    Source: GLaD (Cazenavette et al. 2023), evaluation; DSA, Zhao and Bilen 2021.
    """
    _check(images, labels, test_images, test_labels)
    outputs = classes or int(torch.cat([labels, test_labels]).max()) + 1
    show = progress or reporter(f"{network_name} students")
    total = protocol.epochs * len(seeds)
    results = []
    for number, seed in enumerate(seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = create(network_name, outputs, images.shape[1], images.shape[-1], **options).to(images.device)
            layout = memory_format(network)
            images, test_images = images.to(memory_format=layout), test_images.to(memory_format=layout)

            def report(epoch: int, before: int = number * protocol.epochs) -> None:
                if epoch % max(1, protocol.epochs // 10) == 0:
                    show(before + epoch, total, "epochs")

            results.append(_train_one(network, images, labels, test_images, test_labels, protocol, seed, report))
    return results
