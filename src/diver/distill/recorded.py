"""The gradient through a student's training on a GPU: that of `trajectory_gradient`, from steps that are recorded.

A student's step is hundreds of small operations that take longer to start than to run. Here the augmented images of all
steps are made first, with one application of each family of augmentations, and one graph leads from them back to the
images. What is left of a step has the same shapes each time: its way forward and its way back are recorded once for
each size of a batch, and replayed on the batch, parameters and direction that are put in their memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from diver import graphs
from diver.distill.flat import FlatNetwork
from diver.distill.trajectory import Mode, Trajectory, cross_entropy
from diver.networks.augment import DSA, Augmentation
from diver.networks.views import apply_each

Steps = Sequence[tuple[Tensor, Augmentation]]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting for it."""
    if device.type == "cuda" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def at_once(
    augment: DSA, images: Callable[[Tensor], Tensor], steps: Steps, device: torch.device
) -> tuple[Tensor, Tensor, list[slice]]:
    """The augmented images of all steps [T, C, H, W], their positions int64 [T], and which of them each step has.

    images: positions to images [T, C, H, W], called once.
    """
    sizes = [len(index) for index, _ in steps]
    positions = sent(torch.cat([index for index, _ in steps]), device)
    shown = apply_each(augment, images(positions).split(sizes), [drawn for _, drawn in steps])
    places = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    return torch.cat(shown), positions, places


@dataclass(frozen=True)
class _Batch:
    """Memory of steps on n images [n, C, H, W] with target probabilities [n, K], and of the gradients of both."""

    images: Tensor
    targets: Tensor
    of_images: Tensor
    of_targets: Tensor
    forward: graphs.Graphed
    backward: graphs.Graphed

    def show(self, images: Tensor, targets: Tensor) -> None:
        self.images.copy_(images)
        self.targets.copy_(targets)


class RecordedTrajectory:
    """`trajectory_gradient` of students on augmented rows of images; made once for many of them.

    images: such as will be given, [N, C, H, W]. mode: "adjoint" or "truncated".
    """

    def __init__(self, network: FlatNetwork, augment: DSA, images: Tensor, mode: Mode) -> None:
        self.network, self.augment, self.mode = network, augment, mode
        self._like = images.detach()
        # A student's parameters; lambda, the direction; the step size and its gradient.
        self._theta, self._direction = images.new_zeros(network.size), images.new_zeros(network.size)
        self._rate, self._of_rate = images.new_zeros(()), images.new_zeros(())
        self._batches: dict[int, _Batch] = {}

    def _batch(self, count: int) -> _Batch:
        if count not in self._batches:
            self._batches[count] = self._made(count)
        return self._batches[count]

    def _made(self, count: int) -> _Batch:
        network, theta, direction, rate, of_rate = (
            self.network, self._theta, self._direction, self._rate, self._of_rate
        )  # fmt: skip
        images = self._like.new_zeros(count, *self._like.shape[1:])
        targets = self._like.new_zeros(count, network.options["classes"])
        of_images, of_targets = torch.zeros_like(images), torch.zeros_like(targets)
        logits = graphs.compiled(network.__call__, images.device)

        def forward() -> None:
            """theta_i to theta_{i+1}."""
            at = theta.detach().requires_grad_()
            loss = cross_entropy(logits(at, images), targets)
            theta.addcmul_(torch.autograd.grad(loss, at)[0], rate, value=-1)

        def backward() -> None:
            """lambda of theta_{i+1} to that of theta_i, and what step i contributes."""
            passed = network.passed(theta, images, targets)
            found = network.curvature(theta, direction, passed, targets, self.mode == "adjoint")
            of_rate.sub_(found.slope)
            of_images.copy_(found.images)
            of_targets.copy_(found.targets)
            if found.parameters is not None:
                direction.addcmul_(found.parameters, rate, value=-1)

        device = images.device
        return _Batch(
            images, targets, of_images, of_targets,
            graphs.Graphed(forward, [theta], device), graphs.Graphed(backward, [direction, of_rate], device),
        )  # fmt: skip

    def __call__(
        self,
        images: Tensor,
        targets: Callable[[Tensor], Tensor],
        steps: Steps,
        start: Tensor,
        rate: Tensor,
        leaves: Sequence[Tensor],
        final: Callable[[Tensor], Tensor],
    ) -> Trajectory:
        """F = final(theta_N) after the steps from `start` [P], and its gradients.

        images: [N, C, H, W]; targets: positions int64 [n] to probabilities [n, K]; steps: as drawn; rate: 0-d;
        leaves: what images and targets are made of.
        """
        shown, positions, places = at_once(self.augment, lambda at: images[at], steps, images.device)
        answers = targets(positions)
        parts = [
            (self._batch(place.stop - place.start), place, point)
            for place, point in zip(places, start.new_empty(len(steps), len(start)), strict=True)
        ]
        self._theta.copy_(start)
        self._rate.copy_(rate)
        for batch, place, point in parts:
            point.copy_(self._theta)
            batch.show(shown.detach()[place], answers.detach()[place])
            batch.forward()
        end = self._theta.clone().requires_grad_()
        loss = final(end)
        self._direction.copy_(torch.autograd.grad(loss, end)[0])
        self._of_rate.zero_()
        of_shown, of_answers = torch.empty_like(shown), torch.empty_like(answers)
        for batch, place, point in reversed(parts):
            self._theta.copy_(point)
            batch.show(shown.detach()[place], answers.detach()[place])
            batch.backward()
            of_shown[place].copy_(batch.of_images)
            of_answers[place].copy_(batch.of_targets)
        made = [(shown, of_shown), (answers, of_answers)]
        outputs, found = zip(*((value, of.mul_(-self._rate)) for value, of in made if value.requires_grad), strict=True)
        of_leaves = torch.autograd.grad(outputs, leaves, found, materialize_grads=True)
        return Trajectory(loss.detach(), end.detach(), self._of_rate.clone(), of_leaves)


def recorded_trajectory(network: FlatNetwork, augment: DSA, images: Tensor, mode: Mode) -> RecordedTrajectory | None:
    """None where steps are not recorded, or are kept in one graph with all others."""
    recorded = graphs.records(images.device) and mode != "unrolled"
    return RecordedTrajectory(network, augment, images, mode) if recorded else None
