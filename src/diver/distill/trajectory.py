"""The gradient through a student's training: what the synthetic images, their labels and the step size change.

A student takes N steps of gradient descent, theta_{i+1} = theta_i - rate * g_i with g_i = d loss_i(theta_i) / d theta,
and F(theta_N) is to be differentiated with respect to the step size and to what the losses are made of, the leaves.
Backwards from lambda = dF / d theta_N, step i contributes

    - <lambda, g_i>                         to the gradient of the step size,
    - rate * d<lambda, g_i> / d leaf        to that of a leaf, and
    - rate * d<lambda, g_i> / d theta_i     to lambda, which then belongs to step i - 1.

That needs theta_i and nothing else of the way there. What the last passes left is kept as long as it fits a bound, and
made again for those before, so memory does not grow with the steps; the result is the same. <lambda, g_i> is the slope
of loss_i in the direction lambda.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from diver.distill.flat import FlatNetwork, Passed
from diver.networks.augment import DSA, Augmentation

Mode = Literal["adjoint", "unrolled", "truncated"]
# Values of a block's activations that are handled together: more images than that are faster in parts, near the cache.
CACHED = 2**21
# Bytes of passes that are kept for the way back.
KEPT = 2**31


@dataclass(frozen=True)
class Trajectory:
    """F(theta_N), 0-d; theta_N [P]; the gradients of the step size, 0-d, and of the leaves. All detached."""

    loss: Tensor
    end: Tensor
    rate: Tensor
    leaves: tuple[Tensor, ...]


class Left(Protocol):
    """What a pass leaves."""

    def bytes(self) -> int: ...


L = TypeVar("L", bound=Left)


@dataclass(frozen=True)
class Slope:
    """The derivative of a loss in a direction, 0-d, and its gradients: of the leaves and, if asked, of theta."""

    value: Tensor
    leaves: Sequence[Tensor]
    theta: Tensor | None


class Course(Protocol[L]):
    """A student's training: at step i a loss of theta [P], in parts that add up to it."""

    def loss(self, theta: Tensor, step: int) -> Tensor:
        """loss_i, 0-d, differentiable in theta and the leaves any number of times."""

    def passed(self, theta: Tensor, step: int) -> Iterator[L]:
        """What is needed of each part, which is made when it is asked for."""

    def gradient(self, left: L) -> Tensor:
        """A part's gradient with respect to theta."""

    def slope(self, theta: Tensor, direction: Tensor, left: L, leaves: Sequence[Tensor], onward: bool) -> Slope:
        """A part's, in a direction [P]; with the gradient of theta only if `onward`."""


@dataclass(frozen=True)
class Part:
    """Images [n, C, H, W] and target probabilities [n, K] of a step, made from the leaves, and their pass."""

    images: Tensor
    targets: Tensor
    passed: Passed

    def bytes(self) -> int:
        return self.passed.bytes()


@dataclass(frozen=True)
class Training:
    """What a student is trained on: at step i the images batch(i), as parts that are made one after the other.

    batch: i to the parts' (images [n, C, H, W], target probabilities [n, K], share of the step's images), anew from the
    leaves and the same each time.
    """

    network: FlatNetwork
    batch: Callable[[int], Iterable[tuple[Tensor, Tensor, float]]]

    def loss(self, theta: Tensor, step: int) -> Tensor:
        parts = self.batch(step)
        return torch.stack([cross_entropy(self.network(theta, x), y) * share for x, y, share in parts]).sum()

    def passed(self, theta: Tensor, step: int) -> Iterator[Part]:
        for images, targets, share in self.batch(step):
            yield Part(images, targets, self.network.passed(theta, images, targets, share))

    def gradient(self, left: Part) -> Tensor:
        return self.network.gradient(left.passed)

    def slope(self, theta: Tensor, direction: Tensor, left: Part, leaves: Sequence[Tensor], onward: bool) -> Slope:
        found = self.network.curvature(theta, direction, left.passed, left.targets, onward)
        made = [(left.images, found.images), (left.targets, found.targets)]
        outputs, of_outputs = zip(*((value, of) for value, of in made if value.requires_grad), strict=True)
        of_leaves = torch.autograd.grad(outputs, leaves, of_outputs, materialize_grads=True)
        return Slope(found.slope, of_leaves, found.parameters)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over [N, K] logits and target probabilities; 0-d."""
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def draw_steps(
    images: int, steps: int, batch: int | None, augment: DSA, generator: torch.Generator
) -> list[tuple[Tensor, Augmentation]]:
    """For each step the positions int64 [n] of its images, and their augmentation.

    Every image comes once before any comes again. Where `batch` does not divide the images, a pass begins with what
    is left over, as in MTT's released code; without a batch each step has all images.
    """
    found: list[Tensor] = []
    while len(found) < steps:
        found += reversed(torch.randperm(images, generator=generator).split(batch or images))
    return [(part, augment.draw(len(part), generator)) for part in found[:steps]]


def augmented(
    network: FlatNetwork,
    augment: DSA,
    images: Tensor,
    targets: Callable[[Tensor], Tensor],
    steps: Sequence[tuple[Tensor, Augmentation]],
) -> Training:
    """Training on augmented rows of images [N, C, H, W], as `draw_steps` drew them.

    targets: positions int64 [n] to probabilities [n, K].
    """

    def batch(step: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        index, drawn = steps[step]
        for rows in parts(torch.arange(len(index), device=images.device), network):
            mine = index.to(images.device)[rows]
            shown = augment.apply(images.index_select(0, mine), drawn.take(rows.cpu()))
            yield shown, targets(mine), len(rows) / len(index)

    return Training(network, batch)


def parts(indices: Tensor, network: FlatNetwork) -> list[Tensor]:
    """Positions of images, cut into parts that are handled faster one by one on a CPU."""
    together = max(1, CACHED // (network.options["width"] * network.options["size"] ** 2))
    return [indices] if indices.is_cuda else list(indices.tensor_split(-(-len(indices) // together)))


def _unrolled(
    start: Tensor,
    course: Course[L],
    steps: int,
    rate: Tensor,
    leaves: tuple[Tensor, ...],
    final: Callable[[Tensor], Tensor],
) -> Trajectory:
    size, theta = rate.detach().requires_grad_(), start.detach().requires_grad_()
    for step in range(steps):
        (gradient,) = torch.autograd.grad(course.loss(theta, step), theta, create_graph=True)
        theta = theta - size * gradient
    loss = final(theta)
    of_rate, *of_leaves = torch.autograd.grad(loss, [size, *leaves], materialize_grads=True)
    return Trajectory(loss.detach(), theta.detach(), of_rate, tuple(of_leaves))


def trajectory_gradient(
    start: Tensor,
    course: Course[L],
    steps: int,
    rate: Tensor,
    leaves: Sequence[Tensor],
    final: Callable[[Tensor], Tensor],
    mode: Mode = "adjoint",
) -> Trajectory:
    """F = final(theta_N) after N = `steps` steps from `start` [P], and its gradients.

    rate: 0-d. leaves: tensors that require gradients.
    mode: "adjoint" as above; "unrolled", the same from one graph of all steps, whose memory grows with them;
        "truncated", which keeps lambda as it is at the end (TESLA; Cui et al. 2023): it leaves out that a step moves
        the parameters at which later gradients are taken.
    Raises ValueError for another mode.
    """
    leaves = tuple(leaves)
    if mode not in get_args(Mode):
        raise ValueError(f"gradient {mode!r} is not known; choose {', '.join(get_args(Mode))}")
    if mode == "unrolled":
        return _unrolled(start, course, steps, rate, leaves, final)
    points, minus_rate = [start.detach()], -rate.detach()
    kept, counts, held = deque[tuple[int, L]](), [0] * steps, 0
    for step in range(steps):
        change = torch.zeros_like(start)
        for left in course.passed(points[-1], step):
            change += course.gradient(left)
            counts[step] += 1
            kept.append((step, left))
            held += left.bytes()
            while held > KEPT:
                held -= kept.popleft()[1].bytes()
        points.append(torch.addcmul(points[-1], change, minus_rate))
    end = points.pop().requires_grad_()
    loss = final(end)
    (adjoint,) = torch.autograd.grad(loss, end)
    of_rate, of_leaves = torch.zeros_like(minus_rate), [torch.zeros_like(leaf) for leaf in leaves]
    for step in reversed(range(steps)):
        # Nothing asks for lambda before the first step.
        onward = mode == "adjoint" and step > 0
        theta, change = points.pop(), torch.zeros_like(adjoint)
        mine: list[L] = []
        while kept and kept[-1][0] == step:
            mine.insert(0, kept.pop()[1])
        # A step's first parts are the first to be let go.
        again = islice(course.passed(theta, step), counts[step] - len(mine))
        for left in chain(again, mine):
            slope = course.slope(theta, adjoint, left, leaves, onward)
            of_rate -= slope.value
            for total, of in zip(of_leaves, slope.leaves, strict=True):
                total.addcmul_(of, minus_rate)
            if slope.theta is not None:
                change += slope.theta
        adjoint = torch.addcmul(adjoint, change, minus_rate)
    return Trajectory(loss.detach(), end.detach(), of_rate, tuple(of_leaves))
