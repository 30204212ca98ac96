"""Matching training trajectories (MTT; Cazenavette et al. 2022).

Each iteration starts a student from the weights theta_t of an expert after a random epoch t < `max_start`, trains it
for `syn_steps` steps of gradient descent on the augmented synthetic images, and compares where it ends with where the
expert was M = `expert_epochs` later:

    loss = || end - theta_{t + M} ||^2 / || theta_t - theta_{t + M} ||^2 .

Images and the student's step size are learned by SGD with momentum on the gradients through the student's training.
The released code evaluates on test images as it goes and keeps the best set; here the last set is returned. It draws
experts in shuffled files, here each is drawn by itself. Images are never clipped.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.config.distill import MTTConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, first_images, standard_range
from diver.distill.experts import Experts
from diver.distill.loop import Run, momentum_step
from diver.distill.recorded import recorded_trajectory, sent
from diver.distill.trajectory import Trajectory, augmented, draw_steps, trajectory_gradient
from diver.networks.augment import DSA
from diver.progress import Progress, reporter
from diver.sets import WHITENING, DistilledSet
from diver.workers import best_device


def matching_loss(end: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """The loss of the equation, 0-d, from vectors [P]."""
    return (end - target).square().sum() / (start - target).square().sum()


def distill_mtt(
    data: Prepared,
    ipc: int,
    config: MTTConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """A set of `ipc` learned images per class, float32 in standardised space, the same for the same seed.

    Records the student's learning rate (syn_lr) and the experts with their network.
    With experts of white images, white images are learned (from noise, or real images made white), and what is returned
    is what they are white images of, standardised. Students see what was learned only when the set is whitened again,
    as the step's `zca` says (the whitening of the training images with its epsilon); published accuracies of such sets
    are of white images, test images included, and protocol `dc-eval` does that.
    progress: called with (iterations done, all iterations, the loss); by default a line on stderr now and then.
    folder: where a run that is stopped is kept to go on from, and pictures are written.
    Raises ValueError if a class has fewer images than `ipc` (init: real), or there are no experts of this data that
    reach far enough; FloatingPointError if the loss stops being finite or the step size positive.
    """
    experts, device = Experts.open(config.experts), best_device()
    experts.require(data, config.max_start - 1 + config.expert_epochs, "mtt")
    classes, scale, zca = len(data.classes), standard_range(data), experts.zca
    members = class_members(data, ipc if config.init == "real" else 1)
    generator = torch.Generator().manual_seed(config.seed)
    first = first_images(data, ipc, config.init, members, generator)
    if zca and config.init == "real":
        first = zca.whiten(scale.to_unit(first))
    images, rate = nn.Parameter(first.to(device)), torch.tensor(config.syn_rate, device=device)
    velocity, rate_velocity = torch.zeros_like(images), torch.zeros_like(rate)
    targets = F.one_hot(torch.arange(classes, device=device).repeat_interleave(ipc), classes).to(images)
    augment, mode = DSA(config.augmentation), config.gradient
    network = experts.network.with_precision(config.precision)
    student = recorded_trajectory(network, augment, images, mode)

    def answers(mine: Tensor) -> Tensor:
        return targets[mine]

    def gradient(start: Tensor, target: Tensor) -> Trajectory:
        steps = draw_steps(len(images), config.syn_steps, config.batch_syn, augment, generator)

        def final(end: Tensor) -> Tensor:
            return matching_loss(end, start, target)

        if student:
            return student(images, answers, steps, start, rate, [images], final)
        training = augmented(network, augment, images, answers, steps)
        return trajectory_gradient(start, training, len(steps), rate, [images], final, mode)

    def iteration(number: int) -> float:
        expert = int(torch.randint(experts.count, (), generator=generator))
        epoch = int(torch.randint(config.max_start, (), generator=generator))
        found = gradient(*(sent(experts.weights(expert, e), device) for e in (epoch, epoch + config.expert_epochs)))
        momentum_step(images, found.leaves[0], velocity, config.learning_rate, config.momentum)
        momentum_step(rate, found.rate, rate_velocity, config.rate_rate, config.momentum)
        # Together, because reading is waiting for the device.
        loss, size = torch.stack([found.loss, rate]).tolist()
        if size <= 0:
            raise FloatingPointError(f"mtt: step size is {size:.3g} at iteration {number}; lower rate_rate")
        return float(loss)

    def standardised() -> Tensor:
        return scale.from_unit(zca.restore(images.detach())) if zca else images.detach()

    state = {"images": images, "velocity": velocity, "rate": rate, "rate_velocity": rate_velocity}
    about = [ipc, config.model_dump(mode="json", exclude={"experts"}), experts.record(), data.identity(), code]
    run = Run("mtt", state, generator, about, folder, progress or reporter("MTT"))
    run.iterate(config.iterations, iteration, lambda: (standardised(), scale, ipc))
    recorded: dict[str, Any] = {
        "syn_lr": rate.item(),
        "experts": experts.record(),
        WHITENING: {"epsilon": experts.config.zca_epsilon, "sha256": zca.digest()} if zca else None,
    }
    return distilled(standardised(), data, ipc, "mtt", config, code, recorded)
