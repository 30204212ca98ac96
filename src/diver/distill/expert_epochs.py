"""Epochs of experts: stacks of networks that take each step together, plainly or recorded, and the accuracy of one.

GSAM (Zhuang et al. 2022, algorithm 1), with g the gradient at theta and g_p that at theta + rho g / |g| on the same
batch, steps along g_p - alpha (g - <g, g_p> g_p / |g_p|^2). If it is adaptive (Kwon et al. 2021), g_p is that at
theta + rho theta^2 g / |theta g|, by elements.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from diver import graphs
from diver.config.distill import ExpertsConfig
from diver.distill.flat import FlatNetwork
from diver.distill.recorded import at_once
from diver.distill.trajectory import parts
from diver.networks.augment import DSA

# Bytes of images that are augmented together for experts that take their steps together.
TOGETHER = 2**28
# Added to norms, as GSAM's released code does.
EPSILON = 1e-12
# Images per pass when accuracy is measured.
CHUNK = 250


def _dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)


def gsam_direction(gradient: Tensor, perturbed: Tensor, alpha: float) -> Tensor:
    """GSAM's direction [S, P] from the gradients at theta and at the perturbed theta, both [S, P]."""
    along = _dots(gradient, perturbed) / (_dots(perturbed, perturbed) + EPSILON)
    return perturbed - alpha * (gradient - along * perturbed)


def stack_gradient(network: FlatNetwork, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Gradients [S, P] of the mean cross entropies of S experts with weights [S, P].

    images: [S, B, C, H, W], labels: int64 [S, B], a batch for each.
    """
    found = torch.zeros_like(weights)
    targets = F.one_hot(labels, network.options["classes"]).to(weights.dtype)
    for total, flat, shown, own in zip(found, weights, images, targets, strict=True):
        for rows in parts(torch.arange(len(own), device=own.device), network):
            passed = network.passed(flat, shown[rows], own[rows], len(rows) / len(own))
            total += network.gradient(passed)
    return found


class Optimizer:
    """SGD with momentum and decay as in torch.optim, on weights [S, P] in place; with GSAM's direction if asked for."""

    def __init__(self, config: ExpertsConfig, velocity: Tensor) -> None:
        self.config, self.velocity = config, velocity

    def step(self, weights: Tensor, gradient: Callable[[Tensor], Tensor]) -> None:
        config = self.config
        direction = gradient(weights)
        if config.optimizer == "gsam":
            scaled = direction * weights if config.adaptive else direction
            radius = config.rho / (torch.linalg.vector_norm(scaled, dim=1, keepdim=True) + EPSILON)
            move = radius * (scaled * weights if config.adaptive else scaled)
            direction = gsam_direction(direction, gradient(weights + move), config.alpha)
        if config.weight_decay:
            direction = direction.add(weights, alpha=config.weight_decay)
        if config.momentum:
            direction = self.velocity.mul_(config.momentum).add_(direction)
        weights.sub_(direction, alpha=config.learning_rate)


def train_epoch(
    network: FlatNetwork,
    optimizer: Optimizer,
    weights: Tensor,
    batch: Callable[[Tensor], Tensor],
    labels: Tensor,
    generators: Sequence[torch.Generator],
) -> None:
    """One epoch of S experts with weights [S, P], in place; each draws order and augmentation from its own generator.

    batch: positions int64 [n] to images [n, C, H, W]; labels: int64 [N].
    """
    config, augment = optimizer.config, DSA(optimizer.config.augmentation)
    orders = torch.stack([torch.randperm(len(labels), generator=generator) for generator in generators])
    for chosen in orders.split(config.batch, dim=1):
        shown = [
            augment.apply(batch(mine), augment.draw(len(mine), generator))
            for mine, generator in zip(chosen.to(labels.device), generators, strict=True)
        ]
        images, own = torch.stack(shown), labels[chosen.to(labels.device)]
        optimizer.step(weights, partial(stack_gradient, network, images, own))


class RecordedEpochs:
    """`train_epoch` by steps of all experts that are recorded, one for each size of a batch.

    An expert's passes follow those of another, by torch's own layers: one's batch is enough for a GPU. Images of many
    steps are augmented together.
    """

    def __init__(
        self,
        network: FlatNetwork,
        optimizer: Optimizer,
        weights: Tensor,
        batch: Callable[[Tensor], Tensor],
        labels: Tensor,
    ) -> None:
        self.network, self.optimizer, self.weights, self.batch, self.labels = network, optimizer, weights, batch, labels
        self._steps: dict[int, tuple[Tensor, Tensor, graphs.Graphed]] = {}
        self._logits = graphs.compiled(network.__call__, weights.device)

    def _step(self, count: int) -> tuple[Tensor, Tensor, graphs.Graphed]:
        """Memory for images [S, n, C, H, W] and labels [S, n] of n = `count`, and the step on them."""
        if count not in self._steps:
            options, experts = self.network.options, len(self.weights)
            images = self.weights.new_zeros(experts, count, options["channels"], options["size"], options["size"])
            labels = self.labels.new_zeros(experts, count)

            def gradient(weights: Tensor) -> Tensor:
                found = []
                for row, shown, own in zip(weights, images, labels, strict=True):
                    # In memory of its own, because kernels want it aligned, which rows of any length are not.
                    flat = row.detach().clone().requires_grad_()
                    loss = F.cross_entropy(self._logits(flat, shown), own)
                    found += torch.autograd.grad(loss, flat)
                return torch.stack(found)

            def step() -> None:
                self.optimizer.step(self.weights, gradient)

            state = [self.weights, self.optimizer.velocity]
            self._steps[count] = images, labels, graphs.Graphed(step, state, self.weights.device)
        return self._steps[count]

    def __call__(self, generators: Sequence[torch.Generator]) -> None:
        """An epoch, in place; each expert draws order and augmentation from its own generator."""
        config, options, augment = self.optimizer.config, self.network.options, DSA(self.optimizer.config.augmentation)
        orders = torch.stack([torch.randperm(len(self.labels), generator=generator) for generator in generators])
        steps = orders.split(config.batch, dim=1)
        bytes_of_step = steps[0].numel() * options["channels"] * options["size"] ** 2 * self.weights.element_size()
        chunk = max(1, TOGETHER // bytes_of_step)
        for first in range(0, len(steps), chunk):
            together = steps[first : first + chunk]
            drawn = [
                (mine, augment.draw(len(mine), generator))
                for chosen in together
                for mine, generator in zip(chosen, generators, strict=True)
            ]
            shown, positions, places = at_once(augment, self.batch, drawn, self.weights.device)
            own = self.labels[positions]
            for number, chosen in enumerate(together):
                images, labels, step = self._step(chosen.shape[1])
                mine = places[number * len(generators) : (number + 1) * len(generators)]
                torch.stack([shown[place] for place in mine], out=images)
                torch.stack([own[place] for place in mine], out=labels)
                step()


@torch.no_grad()
def accuracy(network: FlatNetwork, flat: Tensor, batch: Callable[[Tensor], Tensor], labels: Tensor) -> float:
    """Share of images, asked for by `batch`, that the network classifies as `labels` say."""
    positions = torch.arange(len(labels), device=labels.device).split(CHUNK)
    right = sum(int((network(flat, batch(part)).argmax(1) == labels[part]).sum()) for part in positions)
    return right / len(labels)
