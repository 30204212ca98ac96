"""SRe2L (Yin, Xing and Shen 2023): images that a trained network recognises, with the statistics of its training.

A batch of images x with labels y starts as noise and is learned by Adam, with a rate that falls as a cosine, from

    L = mean cross entropy(f(A(x)), y) + r_bn * sum over layers l of w_l d_l + tv * TV(A(x)) + l2 * mean ||A(x)||,

    d_l = || mean_l(A(x)) - running mean_l || + || var_l(A(x)) - running var_l || .

l are the BatchNorm layers of the network f, with the mean and biased variance per channel of what enters them;
w_l is `first_bn` for the first that runs and 1 for the others. A is a random resized crop, a flip and a shift rolled
around. TV sums the norms of the four differences of neighbours, each over the whole batch.

Batches are those of the released code: the first image of every class, then the second, and so on, cut into equal
parts of at most `batch`. There a batch also ends with the last class; here it goes on with the next image of the
first, which only matters where `batch` is no multiple of the classes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from diver.config.distill import SRe2LConfig
from diver.data.prepared import Prepared
from diver.distill.base import distilled, read_teacher, standard_range
from diver.distill.loop import Run
from diver.distill.pixels import as_jpeg, resample, taps
from diver.networks.views import Flip, RandomResizedCrop
from diver.progress import Progress, reporter
from diver.sets import DistilledSet
from diver.workers import best_device

BETAS, EPSILON = (0.5, 0.9), 1e-8
# Networks of convolutions and BatchNorm measured faster so, on CPUs, than in their usual layout.
LAYOUT = torch.channels_last


class _Moments(torch.autograd.Function):
    """Mean and biased variance [C] per channel of x [N, C, ...], given a mean [C] near which they are found.

    Both take a third of torch.var_mean's time, and so does their gradient, which is linear in x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        axes, count = [0, *range(2, x.ndim)], x.numel() // x.shape[1]
        # Squares of what is left of values far from zero would lose the variance.
        centred = x - near.view(-1, *[1] * (x.ndim - 2))
        offset = centred.sum(axes) / count
        ctx.save_for_backward(x, near + offset)
        return near + offset, centred.square_().sum(axes) / count - offset.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, mean_gradient: Tensor, variance_gradient: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        count, shape = x.numel() // x.shape[1], (-1, *[1] * (x.ndim - 2))
        slope = 2 * variance_gradient / count
        return torch.addcmul((mean_gradient / count - slope * mean).view(shape), x, slope.view(shape)), None


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The BatchNorm layers that have running statistics."""
    return [
        m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]


def answer(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits of images [N, C, H, W], and the distances d_l, 0-d, in the order in which the layers run."""
    distances: list[Tensor] = []

    def measure(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = _Moments.apply(inputs[0], layer.running_mean)
        distances.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

    hooks = [layer.register_forward_pre_hook(measure) for layer in batch_norms(network)]
    try:
        return network(images), distances
    finally:
        for hook in hooks:
            hook.remove()


def total_variation(images: Tensor) -> Tensor:
    """Sum, 0-d, of the norms over the batch [N, C, H, W] of its differences down, across and along both diagonals."""
    down, across = images[:, :, 1:] - images[:, :, :-1], images[..., 1:] - images[..., :-1]
    falling = images[:, :, 1:, 1:] - images[:, :, :-1, :-1]
    rising = images[:, :, 1:, :-1] - images[:, :, :-1, 1:]
    return down.norm() + across.norm() + falling.norm() + rising.norm()


def image_loss(network: nn.Module, images: Tensor, labels: Tensor, config: SRe2LConfig) -> Tensor:
    """L, 0-d, of views A(x), float [N, C, H, W], with labels int64 [N]; differentiable with respect to the views.

    The network is in eval mode.
    """
    if config.r_bn:
        logits, distances = answer(network, images)
        statistics = config.first_bn * distances[0] + sum(distances[1:])
        loss = F.cross_entropy(logits, labels) + config.r_bn * statistics
    else:
        loss = F.cross_entropy(network(images), labels)
    if config.tv:
        loss = loss + config.tv * total_variation(images)
    if config.l2:
        loss = loss + config.l2 * images.flatten(1).norm(dim=1).mean()
    return loss


@dataclass(frozen=True)
class View:
    """What is drawn of A, for all images or one row for each: the crop's values, bool flips, shifts down and right."""

    box: Tensor
    flipped: Tensor
    shift: Tensor


class Viewer:
    """Draws views as the settings say, and applies them."""

    def __init__(self, config: SRe2LConfig) -> None:
        self.config = config
        # A crop of the whole area and ratio 1 is the image itself.
        self.crop = RandomResizedCrop((config.min_scale, 1)) if config.crop else RandomResizedCrop((1, 1), (1, 1))

    def draw(self, images: int, generator: torch.Generator) -> View:
        """Values of one view for `images` images, or of one each with views: own."""
        n = images if self.config.views == "own" else 1
        box, flipped = self.crop.draw(n, generator), Flip().draw(n, generator)
        least = 0 if self.config.one_sided else -self.config.jitter
        shift = torch.randint(least, self.config.jitter + 1, (n, 2), generator=generator)
        return View(box, flipped & self.config.flip, shift)

    def apply(self, images: Tensor, view: View) -> Tensor:
        """Views of float images [N, C, H, W], of the same size: cropped, then flipped, then shifted."""
        height, width = images.shape[2:]
        top, left, tall, wide = self.crop.boxes(view.box.to(images.device), height, width).unbind(1)
        rows, columns = taps(top, tall, height, height), taps(left, wide, width, width)
        columns = torch.where(view.flipped.to(images.device)[:, None, None], columns.flip(1), columns)
        down, right = view.shift.to(images.device).unbind(1)
        return resample(images, _rolled(rows, down), _rolled(columns, right))


def _rolled(weights: Tensor, shift: Tensor) -> Tensor:
    """Weights [n, h, H] whose results are rolled by shifts int64 [n]."""
    order = (torch.arange(weights.shape[1], device=weights.device) - shift[:, None]) % weights.shape[1]
    return weights.gather(1, order[:, :, None].expand_as(weights))


def adam_step(variable: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rate: float, step: int) -> None:
    """Step number `step`, from 1, of Adam in place, as torch.optim has it, whose import takes seconds."""
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    spread = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    variable.addcdiv_(first, spread, value=-rate / (1 - BETAS[0] ** step))


def distill_sre2l(
    data: Prepared,
    ipc: int,
    config: SRe2LConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """A set of `ipc` learned images per class, float32 in standardised space, the same for the same seed.

    No image of `data` is used, only its classes, size and standardisation.
    progress: called with (updates done, all updates of all batches, the loss); by default a line on stderr now and
    then. folder: where a run that is stopped is kept to go on from, and pictures are written.
    Raises ValueError or WeightsError if the teacher is missing, unresolved, of other classes or another image size,
    or has no BatchNorm layers with running statistics; FloatingPointError if the loss stops being finite.
    """
    trained, described = read_teacher("teacher", config.teacher, data)
    network = trained.network.to(memory_format=LAYOUT)
    if config.r_bn and not batch_norms(network):
        raise ValueError(
            f"teacher {config.teacher}: {trained.name} with {trained.options} has no BatchNorm layers with running "
            "statistics, which SRe2L matches; train one that has, as resnet with the option norm: batch, or set r_bn: 0"
        )
    classes, device, pixels = len(data.classes), best_device(), standard_range(data)
    generator = torch.Generator().manual_seed(config.seed)
    # In the order of the batches: image 0 of each class first.
    images = torch.randn(ipc * classes, *data.train_images.shape[1:], generator=generator).to(device)
    labels = torch.arange(classes, device=device).repeat(ipc)
    batches = torch.arange(len(images)).tensor_split(math.ceil(len(images) / config.batch))
    first, second = (torch.zeros_like(images[: len(batches[0])]) for _ in range(2))
    least, most = (pixels.from_unit(torch.full_like(images[:1], value)) for value in (0.0, 1.0))
    viewer = Viewer(config)

    def iteration(number: int) -> float:
        batch, step = divmod(number, config.iterations)
        rows = slice(int(batches[batch][0]), int(batches[batch][-1]) + 1)
        mine = images[rows]
        moments = first[: len(mine)], second[: len(mine)]
        if step == 0:
            for moment in moments:
                moment.zero_()
        learned = mine.detach().requires_grad_()
        views = viewer.apply(learned, viewer.draw(len(mine), generator)).contiguous(memory_format=LAYOUT)
        loss = image_loss(network, views, labels[rows], config)
        (gradient,) = torch.autograd.grad(loss, learned)
        rate = 0.5 * (1 + math.cos(math.pi * step / config.iterations)) * config.learning_rate
        adam_step(mine, gradient, *moments, rate, step + 1)
        if config.clip:
            torch.clamp(mine, least, most, out=mine)
        return loss.item()

    def class_major() -> Tensor:
        return images.unflatten(0, (ipc, classes)).transpose(0, 1).flatten(0, 1)

    shape = list(data.train_images.shape[1:])
    about = [ipc, {**config.model_dump(mode="json"), "teacher": described}, classes, shape, data.mean, data.std, code]
    state = {"images": images, "first": first, "second": second}
    run = Run("sre2l", state, generator, about, folder, progress or reporter("SRe2L"))
    run.iterate(len(batches) * config.iterations, iteration, lambda: (class_major(), pixels, ipc))
    result = as_jpeg(class_major(), pixels) if config.rounding == "released" else class_major()
    return distilled(result, data, ipc, "sre2l", config, code, {"teacher": described})
