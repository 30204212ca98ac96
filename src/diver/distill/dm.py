"""Distribution matching (DM; Zhao and Bilen 2023).

Each iteration draws a random network phi and an augmentation A and takes one SGD step on the images S for

    L(S) = sum over classes c of || mean over real x of c of phi(A_c(x)) - mean over s in S_c of phi(A_c(s)) ||^2 .

phi is a ConvNet without its linear layer, with fresh random weights. A_c is DSA with the same parameters for the
real and the synthetic images of a class; its family is drawn once per iteration, its parameters per class, where
the paper also draws the family per class: that lets all classes share one pass through the network.
Images live in standardised space and are never clipped.
"""

import torch
from torch import Tensor, nn

from diver.config.distill import DMConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, draw_members
from diver.networks import create, memory_format
from diver.networks.augment import DSA
from diver.networks.convnet import ConvNet
from diver.progress import Progress, reporter
from diver.sets import DistilledSet

# Real images per forward pass; bounds memory and keeps activations near the cache.
CHUNK = 256
REPORT_EVERY = 10


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


def _embed_real(network: ConvNet, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network.embed(part) for part in images.split(CHUNK)])


def iteration_loss(
    network: ConvNet, augment: DSA, real: Tensor, synthetic: Tensor, classes: int, generator: torch.Generator
) -> Tensor:
    """L for class-major real [classes * B, C, H, W] and synthetic [classes * ipc, C, H, W] images.

    Differentiable with respect to the synthetic images.
    """
    drawn = augment.draw(classes, generator)

    def augmented(images: Tensor) -> Tensor:
        owner = torch.arange(classes).repeat_interleave(len(images) // classes)
        return augment.apply(images, drawn.take(owner)).to(memory_format=memory_format(network))

    embedded_real = _embed_real(network, augmented(real)).unflatten(0, (classes, -1))
    return matching_loss(embedded_real, network.embed(augmented(synthetic)).unflatten(0, (classes, -1)))


def distill_dm(
    data: Prepared, ipc: int, config: DMConfig, code: str = "", progress: Progress | None = None
) -> DistilledSet:
    """A set of `ipc` learned images per class, float32 in standardised space, the same for the same seed.

    progress: called with (iterations done, all iterations, the loss); by default a line on stderr now and then.
    Raises ValueError if a class has fewer images than `ipc` (init: real) or none, FloatingPointError if the loss
    stops being finite.
    """
    classes, (channels, size) = len(data.classes), data.train_images.shape[1:3]
    members = class_members(data.train_labels, classes, ipc if config.init == "real" else 1)
    per_class = min(config.batch_real, *(len(found) for found in members))
    generator = torch.Generator().manual_seed(config.seed)
    if config.init == "real":
        images = data.standardised(data.train_images[draw_members(members, ipc, generator)])
    else:
        images = torch.randn(classes * ipc, *data.train_images.shape[1:], generator=generator)
    images = nn.Parameter(images)
    velocity = torch.zeros_like(images)
    augment, report = DSA(config.augmentation), progress or reporter(f"DM, IPC {ipc}")
    for iteration in range(config.iterations):
        real = data.standardised(data.train_images[draw_members(members, per_class, generator)])
        network = random_network(config, channels, size, config.seed * 1_000_003 + iteration)
        loss = iteration_loss(network, augment, real, images, classes, generator)
        value = loss.item()
        if value - value != 0:
            raise FloatingPointError(f"dm: loss is {value} at iteration {iteration}; lower learning_rate")
        (gradient,) = torch.autograd.grad(loss, images)
        # Written out, because importing what torch.optim needs takes seconds.
        velocity.mul_(config.momentum).add_(gradient)
        with torch.no_grad():
            images.sub_(velocity, alpha=config.learning_rate)
        if (iteration + 1) % REPORT_EVERY == 0 or iteration + 1 == config.iterations:
            report(iteration + 1, config.iterations, f"loss {value:.2f}")
    return distilled(images, data, ipc, "dm", config, code)
