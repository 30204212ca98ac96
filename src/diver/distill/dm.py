"""Distribution matching (DM; Zhao and Bilen 2023).

Each iteration draws a random network phi and an augmentation A and takes one SGD step on the images S for

    L(S) = sum over classes c of || mean over real x of c of phi(A_c(x)) - mean over s in S_c of phi(A_c(s)) ||^2 .

phi is a ConvNet without its linear layer, with fresh random weights. A_c is DSA with the same parameters for the
real and the synthetic images of a class; its family is drawn once per iteration, its parameters per class, where
the paper also draws the family per class: that lets all classes share one pass through the network.
Images live in standardised space and are never clipped.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diver import graphs
from diver.config.distill import DMConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, draw_members, first_images, redraw, standard_range
from diver.distill.loop import Run, momentum_step
from diver.networks import create, memory_format
from diver.networks.augment import DSA, Augmentation
from diver.networks.convnet import ConvNet
from diver.progress import Progress, reporter
from diver.sets import DistilledSet
from diver.workers import best_device

# Pixels of the real images of a forward pass: 256 images of 32 x 32 on a CPU, near its cache; on a GPU what fills it.
PIXELS = {"cpu": 1 << 18, "cuda": 1 << 22}


def matching_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """Scalar L of the equation from embeddings [classes, B, D] and [classes, ipc, D]."""
    return (real.mean(1) - synthetic.mean(1)).square().sum()


def random_network(config: DMConfig, channels: int, size: int, seed: int) -> ConvNet:
    """A ConvNet with random, frozen weights that depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create("convnet", 1, channels, size, width=config.width, depth=config.depth)
    assert isinstance(network, ConvNet)
    return network.requires_grad_(False)


def _embed_real(embed: Callable[[Tensor], Tensor], images: Tensor, precision: str) -> Tensor:
    half = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    together = max(1, PIXELS[images.device.type] // (images.shape[-1] * images.shape[-2]))
    with torch.no_grad(), half:
        return torch.cat([embed(part).to(images) for part in images.split(together)])


def _augmented(network: ConvNet, augment: DSA, images: Tensor, drawn: Augmentation) -> Tensor:
    """Class-major images, each class by its row of what was drawn."""
    classes = len(drawn.values)
    owner = torch.arange(classes).repeat_interleave(len(images) // classes)
    return augment.apply(images, drawn.take(owner)).to(memory_format=memory_format(network))


def iteration_loss(
    network: ConvNet,
    augment: DSA,
    real: Tensor,
    synthetic: Tensor,
    classes: int,
    generator: torch.Generator,
    precision: str = "fp32",
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """L for class-major real [classes * B, C, H, W] and synthetic [classes * ipc, C, H, W] images.

    embed: the network's own `embed`, if fused. Differentiable with respect to the synthetic images.
    """
    embed = embed or network.embed
    drawn = augment.draw(classes, generator)
    shown, wanted = (_augmented(network, augment, images, drawn) for images in (synthetic, real))
    embedded_real = _embed_real(embed, wanted, precision).unflatten(0, (classes, -1))
    return matching_loss(embedded_real, embed(shown).unflatten(0, (classes, -1)))


class _Recorded:
    """`iteration_loss` of augmented images and its gradient as a recorded step; the network stays the same one."""

    def __init__(
        self, embed: Callable[[Tensor], Tensor], real: Tensor, shown: Tensor, classes: int, precision: str
    ) -> None:
        """embed: of a network that stays where it is. real, shown: as the augmented images will be."""
        self.real, self.shown = torch.empty_like(real), torch.empty_like(shown)
        self.gradient, self.loss = torch.zeros_like(shown), shown.new_zeros(())

        def step() -> None:
            leaf = self.shown.detach().requires_grad_()
            wanted = _embed_real(embed, self.real, precision).unflatten(0, (classes, -1))
            loss = matching_loss(wanted, embed(leaf).unflatten(0, (classes, -1)))
            self.gradient.copy_(torch.autograd.grad(loss, leaf)[0])
            self.loss.copy_(loss.detach())

        self._step = graphs.Graphed(step, [self.gradient, self.loss], shown.device)

    def __call__(self, real: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient with respect to `shown`; both change with the next call."""
        self.real.copy_(real)
        self.shown.copy_(shown.detach())
        self._step()
        return self.loss, self.gradient


def distill_dm(
    data: Prepared,
    ipc: int,
    config: DMConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """A set of `ipc` learned images per class, float32 in standardised space, the same for the same seed.

    Images of a class that has fewer than `batch_real` come again, all of them equally often but for one.
    progress: called with (iterations done, all iterations, the loss); by default a line on stderr now and then.
    folder: where a run that is stopped is kept to go on from, and pictures are written.
    Raises ValueError if a class has fewer images than `ipc` (init: real) or none, FloatingPointError if the loss
    stops being finite.
    """
    classes, (channels, size) = len(data.classes), data.train_images.shape[1:3]
    members = class_members(data, ipc if config.init == "real" else 1)
    per_class = min(config.batch_real, max(map(len, members)))
    generator, device = torch.Generator().manual_seed(config.seed), best_device()
    images = nn.Parameter(first_images(data, ipc, config.init, members, generator).to(device))
    velocity, augment, train = torch.zeros_like(images), DSA(config.augmentation), data.train_images.to(device)

    # One network for all iterations, which take new weights: what is recorded or fused belongs to it.
    fixed = random_network(config, channels, size, config.seed).to(device)
    embed = graphs.compiled(fixed.embed, device, on_cpu=True)
    recorded: list[_Recorded] = []

    def drawn_real() -> Tensor:
        return data.standardised(train[draw_members(members, per_class, generator).to(device, non_blocking=True)])

    def recorded_iteration(number: int) -> Tensor:
        """As `iteration`, but for the weights, which the device draws."""
        real, drawn = drawn_real(), augment.draw(classes, generator)
        redraw(fixed, config.seed * 1_000_003 + number)
        wanted, shown = (_augmented(fixed, augment, batch, drawn) for batch in (real, images))
        if not recorded:
            recorded.append(_Recorded(embed, wanted, shown, classes, config.precision))
        loss, of_shown = recorded[0](wanted, shown)
        (gradient,) = torch.autograd.grad(shown, images, of_shown)
        momentum_step(images, gradient, velocity, config.learning_rate, config.momentum)
        return loss

    def iteration(number: int) -> float:
        real = drawn_real()
        fixed.load_state_dict(random_network(config, channels, size, config.seed * 1_000_003 + number).state_dict())
        loss = iteration_loss(fixed, augment, real, images, classes, generator, config.precision, embed)
        (gradient,) = torch.autograd.grad(loss, images)
        momentum_step(images, gradient, velocity, config.learning_rate, config.momentum)
        return loss.item()

    about = [ipc, config.model_dump(mode="json"), data.identity(), code]
    run = Run("dm", {"images": images, "velocity": velocity}, generator, about, folder, progress or reporter("DM"))
    chosen = recorded_iteration if graphs.records(device) else iteration
    run.iterate(config.iterations, chosen, lambda: (images, standard_range(data), ipc))
    return distilled(images, data, ipc, "dm", config, code)
