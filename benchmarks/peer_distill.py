"""Loss and gradient of DC, DM and MTT beside the public codes: the same weights and batches, without augmentation.

    python benchmarks/peer_distill.py --dc-peer DatasetCondensation --mtt-peer mtt-distillation

DC and DM are compared with VICO-UoE/DatasetCondensation, MTT with GeorgeCazenavette/mtt-distillation: their networks
and helpers are called as they are; what stands inside their main functions, the sums over classes and the student's
steps, is written here again. Each comparison is made in float32 and in float64. Where a value before a ReLU is nearer
to zero than float32 is exact, its sign is a matter of the order of sums, and one such value moves its class's gradient
by about 1e-3, on either side; in float64 there is none. `benchmarks/distill.py` compares times.
"""

import argparse
import sys
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.config.distill import DCConfig
from diver.data.prepared import Prepared
from diver.distill.dc import fresh_network, matching
from diver.distill.dm import iteration_loss
from diver.distill.flat import FlatNetwork
from diver.distill.mtt import matching_loss
from diver.distill.trajectory import Training, trajectory_gradient
from diver.networks.augment import DSA
from diver.networks.convnet import ConvNet

CLASSES, SIZE, WIDTH, DEPTH = 10, 32, 128, 3
# Loss, and gradients by name, each [parts, ...].
Found = tuple[float, dict[str, Tensor]]


def say(about: str, peer: Found, ours: Found) -> None:
    """How far losses and gradients are apart; gradients of the images also class by class."""
    line = [f"{about}: loss {peer[0]:.6g} and {ours[0]:.6g}, {abs(ours[0] / peer[0] - 1):.0e} apart"]
    for name, theirs in peer[1].items():
        a, b = theirs.flatten(1), ours[1][name].flatten(1)
        each = (b - a).norm(dim=1) / a.norm(dim=1)
        line.append(f"gradient of the {name} {float((b - a).norm() / a.norm()):.0e}")
        if len(each) > 1:
            line.append(f"by class {float(each.median()):.0e}, {int((each < 1e-4).sum())} of {len(each)} below 1e-4")
    print("; ".join(line), flush=True)


def peer_module(checkout: str, name: str) -> Any:
    """A module of the checkout. It imports a name of SciPy that is gone and two packages, which are not used here."""
    for missing in ("scipy.ndimage.interpolation", "wandb", "kornia"):
        module = types.ModuleType(missing)
        module.rotate = None  # type: ignore[attr-defined]
        sys.modules.setdefault(missing, module)
    sys.path.insert(0, checkout)
    for shared in ("utils", "networks", "reparam_module"):
        sys.modules.pop(shared, None)
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


def same_weights(checkout: str, ipc: int) -> tuple[Any, Any, ConvNet]:
    """The peer's utils, its network and ours."""
    peer = peer_module(checkout, "utils")
    theirs, own = (
        peer.get_network("ConvNet", 3, CLASSES, (SIZE, SIZE)),
        fresh_network(DCConfig(), CLASSES, 3, SIZE, ipc),
    )
    theirs = theirs.cpu()
    with torch.no_grad():
        for a, b in zip(theirs.parameters(), own.parameters(), strict=True):
            a.copy_(b)
    return peer, theirs, own


def batches(data: Prepared, ipc: int, count: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Real images of each class, and synthetic ones [classes, ipc, C, H, W]."""
    generator, real = torch.Generator().manual_seed(ipc), []
    for c in range(CLASSES):
        mine = (data.train_labels == c).nonzero().flatten()
        chosen = mine[torch.randperm(len(mine), generator=generator)[:count]]
        real.append(data.standardised(data.train_images[chosen]).to(dtype))
    return real, torch.randn(CLASSES, ipc, 3, SIZE, SIZE, generator=generator).to(dtype).requires_grad_()


def dc(checkout: str, data: Prepared, ipc: int, dtype: torch.dtype, count: int) -> tuple[Found, Found]:
    peer, theirs, own = same_weights(checkout, ipc)
    real, images = batches(data, ipc, count, dtype)
    theirs, settings = theirs.to(dtype), SimpleNamespace(device="cpu", dis_metric="ours")
    weights, entropy = list(theirs.parameters()), nn.CrossEntropyLoss()
    loss = torch.zeros(())
    for c, mine in enumerate(images):
        wanted = torch.autograd.grad(entropy(theirs(real[c]), torch.full((len(real[c]),), c)), weights)
        got = torch.autograd.grad(entropy(theirs(mine), torch.full((ipc,), c)), weights, create_graph=True)
        loss = loss + peer.match_loss(got, [g.detach().clone() for g in wanted], settings)
    (expected,) = torch.autograd.grad(loss, images)
    ours, found = matching(own.to(dtype), DSA("none"), real, images, "channels", torch.Generator())
    return (loss.item(), {"images": expected}), (ours.item(), {"images": found})


def dm(checkout: str, data: Prepared, ipc: int, dtype: torch.dtype, count: int) -> tuple[Found, Found]:
    _, theirs, own = same_weights(checkout, ipc)
    real, images = batches(data, ipc, count, dtype)
    theirs, loss = theirs.to(dtype), torch.zeros((), dtype=dtype)
    for mine, others in zip(images, real, strict=True):
        difference = theirs.embed(others).detach().mean(0) - theirs.embed(mine).mean(0)
        loss = loss + difference.square().sum()
    (expected,) = torch.autograd.grad(loss, images)
    flat, generator = images.flatten(0, 1), torch.Generator()
    ours = iteration_loss(own.to(dtype).requires_grad_(False), DSA("none"), torch.cat(real), flat, CLASSES, generator)
    (found,) = torch.autograd.grad(ours, images)
    return (loss.item(), {"images": expected}), (ours.item(), {"images": found})


def mtt(checkout: str, data: Prepared, ipc: int, dtype: torch.dtype, steps: int) -> tuple[Found, Found]:
    network = FlatNetwork(CLASSES, 3, SIZE, WIDTH, DEPTH)
    _, images = batches(data, ipc, 1, dtype)
    labels, start = torch.arange(CLASSES).repeat_interleave(ipc), network.initial(1).to(dtype)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    target, rate = start + 0.01 * noise.to(dtype), torch.tensor(0.01, dtype=dtype, requires_grad=True)
    convnet = peer_module(checkout, "networks").ConvNet(
        3, CLASSES, WIDTH, DEPTH, "relu", "instancenorm", "avgpooling", (SIZE, SIZE)
    )
    student = peer_module(checkout, "reparam_module").ReparamModule(convnet.to(dtype))
    theta = start.clone().requires_grad_()
    for _ in range(steps):
        gradient = F.cross_entropy(student(images.flatten(0, 1), flat_param=theta), labels)
        theta = theta - rate * torch.autograd.grad(gradient, theta, create_graph=True)[0]
    loss = (theta - target).square().sum() / (start - target).square().sum()
    expected, expected_rate = torch.autograd.grad(loss, [images, rate])
    targets = F.one_hot(labels, CLASSES).to(dtype)
    training = Training(network, lambda _: [(images.flatten(0, 1), targets, 1.0)])

    def final(end: Tensor) -> Tensor:
        return matching_loss(end, start, target)

    found = trajectory_gradient(start, training, steps, rate.detach(), [images], final)
    return (
        (loss.item(), {"images": expected, "step size": expected_rate.view(1, 1)}),
        (found.loss.item(), {"images": found.leaves[0], "step size": found.rate.view(1, 1)}),
    )


# Method -> (comparison; real images a class, or steps, in float32 and in float64).
METHODS: dict[str, tuple[Callable[..., tuple[Found, Found]], int, int]] = {
    "dc": (dc, 256, 32),
    "dm": (dm, 256, 32),
    "mtt": (mtt, 5, 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dc-peer", help="checkout of VICO-UoE/DatasetCondensation, for dc and dm")
    parser.add_argument("--mtt-peer", help="checkout of GeorgeCazenavette/mtt-distillation, for mtt")
    parser.add_argument("--prepared", default="data/prepared/cifar10.safetensors", help="CIFAR-10, prepared")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = Prepared.read(options.prepared)
    for method, (compare, *counts) in METHODS.items():
        checkout = options.mtt_peer if method == "mtt" else options.dc_peer
        for ipc in options.ipc if checkout else []:
            for dtype, count in zip((torch.float32, torch.float64), counts, strict=True):
                name = str(dtype).removeprefix("torch.")
                say(f"{method}, IPC {ipc}, {name}", *compare(checkout, data, ipc, dtype, count))


if __name__ == "__main__":
    main()
