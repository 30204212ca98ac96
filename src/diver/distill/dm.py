"""Distribution matching (DM; Zhao and Bilen 2023).

Each iteration draws a random network phi and an augmentation A and takes one SGD step on the images S for

    L(S) = sum over classes c of || mean over real x of c of phi(A_c(x)) - mean over s in S_c of phi(A_c(s)) ||^2 .

phi is a ConvNet without its linear layer, with fresh random weights. A_c is DSA with the same parameters for the
real and the synthetic images of a class; its family is drawn once per iteration, its parameters per class, where
the paper also draws the family per class: that lets all classes share one pass through the network.
Images live in standardised space and are never clipped.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from diver.config.distill import DMConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, draw_members, first_images, standard_range
from diver.distill.loop import Run, momentum_step
from diver.networks import create, memory_format
from diver.networks.augment import DSA
from diver.networks.convnet import ConvNet
from diver.progress import Progress, reporter
from diver.sets import DistilledSet
from diver.workers import best_device

# Real images per forward pass; bounds memory and keeps activations near the cache.
CHUNK = 256


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


def _embed_real(network: ConvNet, images: Tensor, precision: str) -> Tensor:
    half = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16")
    with torch.no_grad(), half:
        return torch.cat([network.embed(part).to(images) for part in images.split(CHUNK)])


def iteration_loss(
    network: ConvNet,
    augment: DSA,
    real: Tensor,
    synthetic: Tensor,
    classes: int,
    generator: torch.Generator,
    precision: str = "fp32",
) -> Tensor:
    """L for class-major real [classes * B, C, H, W] and synthetic [classes * ipc, C, H, W] images.

    Differentiable with respect to the synthetic images.
    """
    drawn = augment.draw(classes, generator)

    def augmented(images: Tensor) -> Tensor:
        owner = torch.arange(classes).repeat_interleave(len(images) // classes)
        return augment.apply(images, drawn.take(owner)).to(memory_format=memory_format(network))

    embedded_real = _embed_real(network, augmented(real), precision).unflatten(0, (classes, -1))
    return matching_loss(embedded_real, network.embed(augmented(synthetic)).unflatten(0, (classes, -1)))


def distill_dm(
    data: Prepared,
    ipc: int,
    config: DMConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """A set of `ipc` learned images per class, float32 in standardised space, the same for the same seed.

    progress: called with (iterations done, all iterations, the loss); by default a line on stderr now and then.
    folder: where a run that is stopped is kept to go on from, and pictures are written.
    Raises ValueError if a class has fewer images than `ipc` (init: real) or none, FloatingPointError if the loss
    stops being finite.
    """
    classes, (channels, size) = len(data.classes), data.train_images.shape[1:3]
    members = class_members(data.train_labels, classes, ipc if config.init == "real" else 1)
    per_class = min(config.batch_real, *(len(found) for found in members))
    generator, device = torch.Generator().manual_seed(config.seed), best_device()
    images = nn.Parameter(first_images(data, ipc, config.init, members, generator).to(device))
    velocity, augment, train = torch.zeros_like(images), DSA(config.augmentation), data.train_images.to(device)

    def iteration(number: int) -> float:
        real = data.standardised(train[draw_members(members, per_class, generator).to(device)])
        network = random_network(config, channels, size, config.seed * 1_000_003 + number).to(device)
        loss = iteration_loss(network, augment, real, images, classes, generator, config.precision)
        (gradient,) = torch.autograd.grad(loss, images)
        momentum_step(images, gradient, velocity, config.learning_rate, config.momentum)
        return loss.item()

    about = [ipc, config.model_dump(mode="json"), data.digest(), code]
    run = Run("dm", {"images": images, "velocity": velocity}, generator, about, folder, progress or reporter("DM"))
    run.iterate(config.iterations, iteration, lambda: (images, standard_range(data), ipc))
    return distilled(images, data, ipc, "dm", config, code)
