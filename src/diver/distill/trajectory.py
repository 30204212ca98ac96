"""The gradient through a student's training: what the synthetic images, their labels and the step size change.

A student takes N steps of gradient descent, theta_{i+1} = theta_i - rate * g_i with g_i = d loss_i(theta_i) / d theta,
and F(theta_N) is to be differentiated with respect to the step size and to what the losses are made of, the leaves.
Backwards from lambda = dF / d theta_N, step i contributes

    - <lambda, g_i>                         to the gradient of the step size,
    - rate * d<lambda, g_i> / d leaf        to that of a leaf, and
    - rate * d<lambda, g_i> / d theta_i     to lambda, which then belongs to step i - 1.

That needs theta_i and nothing else of the way there, hence the memory of one step. <lambda, g_i> is the slope of loss_i
in the direction lambda, so where a slope is given it takes one pass forward, and its gradients one pass backward.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from diver.distill.flat import FlatNetwork
from diver.networks.augment import DSA, Augmentation

Mode = Literal["adjoint", "unrolled", "truncated"]
Summands = Tensor | Iterable[Tensor]
# Values of a block's activations that are handled together: more images than that are faster in parts, near the cache.
CACHED = 2**21


@dataclass(frozen=True)
class Trajectory:
    """F(theta_N), 0-d; theta_N [P]; the gradients of the step size, 0-d, and of the leaves. All detached."""

    loss: Tensor
    end: Tensor
    rate: Tensor
    leaves: tuple[Tensor, ...]


@dataclass(frozen=True)
class Training:
    """What a student is trained on: at step i the images batch(i), as parts that are made one after the other.

    batch: i to the parts' (images [n, C, H, W], target probabilities [n, K], share of the step's images), anew from the
    leaves and the same each time.
    """

    network: FlatNetwork
    batch: Callable[[int], Iterable[tuple[Tensor, Tensor, float]]]

    def losses(self, theta: Tensor, step: int) -> Iterator[Tensor]:
        """Cross entropies that add up to the mean over the step's images."""
        for images, targets, share in self.batch(step):
            yield cross_entropy(self.network(theta, images), targets) * share

    def slopes(self, theta: Tensor, direction: Tensor, step: int) -> Iterator[Tensor]:
        """Their derivatives when theta moves in a constant direction."""
        for images, targets, share in self.batch(step):
            logits, change = self.network.directional(theta, direction, images)
            relative = change - (logits.softmax(1) * change).sum(1, keepdim=True)
            yield (targets * relative).sum(1).mean() * -share


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


def _summands(found: Summands) -> Iterable[Tensor]:
    return [found] if isinstance(found, Tensor) else found


def _accumulate(totals: Sequence[Tensor], value: Tensor, inputs: Sequence[Tensor], factor: Tensor) -> None:
    """Add factor * d value / d inputs to the totals; what the value does not depend on gets nothing."""
    for total, part in zip(totals, torch.autograd.grad(value, inputs, allow_unused=True), strict=True):
        if part is not None:
            total.add_(part * factor)


def _unrolled(
    start: Tensor,
    step_loss: Callable[[Tensor, int], Summands],
    steps: int,
    rate: Tensor,
    leaves: tuple[Tensor, ...],
    final: Callable[[Tensor], Tensor],
) -> Trajectory:
    size, theta = rate.detach().requires_grad_(), start.detach().requires_grad_()
    for step in range(steps):
        loss = sum(_summands(step_loss(theta, step)), torch.zeros_like(size))
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - size * gradient
    loss = final(theta)
    of_rate, *of_leaves = torch.autograd.grad(loss, [size, *leaves], materialize_grads=True)
    return Trajectory(loss.detach(), theta.detach(), of_rate, tuple(of_leaves))


def trajectory_gradient(
    start: Tensor,
    step_loss: Callable[[Tensor, int], Summands],
    steps: int,
    rate: Tensor,
    leaves: Sequence[Tensor],
    final: Callable[[Tensor], Tensor],
    mode: Mode = "adjoint",
    slope: Callable[[Tensor, Tensor, int], Summands] | None = None,
) -> Trajectory:
    """F = final(theta_N) after N = `steps` steps from `start` [P], and its gradients.

    step_loss: (theta [P], i) to loss_i, 0-d, or to several that add up to it, each of which is differentiated before
        the next is asked for, so that the memory is that of the largest. It is called twice for an i and makes
        everything from the leaves anew.
    rate: 0-d. leaves: tensors that require gradients.
    mode: "adjoint" as above; "unrolled", the same from one graph of all steps, whose memory grows with them;
        "truncated", which keeps lambda as it is at the end (TESLA; Cui et al. 2023): it leaves out that a step moves
        the parameters at which later gradients are taken.
    slope: (theta, direction [P], i) to the derivative of loss_i in that direction, in as many summands; by default it
        comes from differentiating twice.
    Raises ValueError for another mode.
    """
    leaves = tuple(leaves)
    if mode not in get_args(Mode):
        raise ValueError(f"gradient {mode!r} is not known; choose {', '.join(get_args(Mode))}")
    if mode == "unrolled":
        return _unrolled(start, step_loss, steps, rate, leaves, final)

    def twice(theta: Tensor, direction: Tensor, step: int) -> Iterator[Tensor]:
        theta = theta if theta.requires_grad else theta.requires_grad_()
        for loss in _summands(step_loss(theta, step)):
            yield torch.dot(torch.autograd.grad(loss, theta, create_graph=True)[0], direction)

    points, minus_rate = [start.detach()], -rate.detach()
    for step in range(steps):
        theta = points[-1].detach().requires_grad_()
        change = torch.zeros_like(theta)
        for loss in _summands(step_loss(theta, step)):
            _accumulate([change], loss, [theta], minus_rate)
        points.append(points[-1] + change)
    end = points.pop().requires_grad_()
    loss = final(end)
    (adjoint,) = torch.autograd.grad(loss, end)
    of_rate, of_leaves = torch.zeros_like(minus_rate), [torch.zeros_like(leaf) for leaf in leaves]
    for step in reversed(range(steps)):
        # Nothing asks for lambda before the first step.
        onward = mode == "adjoint" and step > 0
        theta, change = points.pop().detach().requires_grad_(onward), torch.zeros_like(adjoint)
        totals, inputs = ([*of_leaves, change], [*leaves, theta]) if onward else (of_leaves, leaves)
        for pulled in _summands((slope or twice)(theta, adjoint, step)):
            of_rate -= pulled.detach()
            if inputs:
                _accumulate(totals, pulled, inputs, minus_rate)
        if onward:
            adjoint = adjoint + change
    return Trajectory(loss.detach(), end.detach(), of_rate, tuple(of_leaves))
