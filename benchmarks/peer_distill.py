"""Stage-1 methods beside the public code of their authors: the same loss and gradient, and the time of an iteration.

    python benchmarks/peer_distill.py --peer CHECKOUT dc

CHECKOUT is the public code of the method: for dc VICO-UoE/DatasetCondensation. First both get the same weights and the
same batches, without augmentation, and loss and gradient with respect to the images are compared. Then each side is
timed in fresh processes, in turn, with the same number of threads; the shortest times count. Ours does what every
step of the study does first (`keep_freed_memory`). The published settings make the iteration. `--processor` counts
seconds of the processor instead of the clock's: others on the machine disturb them less, but they leave out what a
virtual machine waits for when it is given memory anew, which is a large part of the peer's time.

A method is a Section: what compares, what times one side, and how these times make an iteration.
"""

import argparse
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diver.config.distill import DCConfig
from diver.data.prepared import Prepared
from diver.distill.dc import fresh_network, matching, train_epoch
from diver.networks.augment import DSA
from diver.workers import best_device, keep_freed_memory

Seconds = dict[str, float]


@dataclass(frozen=True)
class Section:
    """compare(arguments, data, ipc) prints; seconds(side, arguments, data, ipc) times one side's parts of an iteration.

    iteration(seconds, ipc) adds the parts up.
    """

    compare: Callable[[argparse.Namespace, Prepared, int], None]
    seconds: Callable[[str, argparse.Namespace, Prepared, int], Seconds]
    iteration: Callable[[Seconds, int], float]


def timed(work: Callable[[], Any], processor: bool) -> float:
    """Seconds of one call by the clock, with what it left running on a GPU, or of the processor."""
    clock = time.process_time if processor else time.perf_counter
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def say_equal(about: str, losses: tuple[float, float], gradients: tuple[Tensor, Tensor]) -> None:
    """Loss of the peer and ours, and how far the gradients [classes, ...] are apart, together and class by class."""
    peer, ours = (gradient.flatten(1) for gradient in gradients)
    apart, each = (ours - peer).norm() / peer.norm(), (ours - peer).norm(dim=1) / peer.norm(dim=1)
    print(f"{about}: loss peer {losses[0]:.6f}, ours {losses[1]:.6f} ({abs(losses[1] / losses[0] - 1):.1e} apart)")
    print(
        f"{about}: gradient, relative difference {apart:.1e}; by class median {each.median():.1e}, largest "
        f"{each.max():.1e}, {int((each < 1e-4).sum())} of {len(each)} below 1e-4",
        flush=True,
    )


# --- DC (VICO-UoE/DatasetCondensation)


def _dc_peer(checkout: str) -> Any:
    """Its utils; it imports a name of SciPy that is gone, for a rotation that is not used here."""
    gone = types.ModuleType("scipy.ndimage.interpolation")
    gone.rotate = None  # type: ignore[attr-defined]
    sys.modules.setdefault(gone.__name__, gone)
    sys.path.insert(0, checkout)
    import utils as peer  # the checkout's own module

    return peer


def _dc_settings(peer: Any, ipc: int) -> SimpleNamespace:
    outer, inner = peer.get_loops(ipc)
    return SimpleNamespace(
        device=str(best_device()), dis_metric="ours", dsa=False, dc_aug_param=None, outer=outer, inner=inner
    )


def _dc_peer_loss(
    peer: Any, settings: SimpleNamespace, network: nn.Module, batch: Callable[[int], Tensor], images: Tensor
) -> Tensor:
    """The public code's loss over all classes, with the graph to the images [classes, ipc, C, H, W]."""
    parameters, criterion = list(network.parameters()), nn.CrossEntropyLoss()
    loss = torch.zeros((), device=images.device)
    for c, own in enumerate(images):
        real = batch(c)
        target = torch.autograd.grad(criterion(network(real), real.new_full((len(real),), c).long()), parameters)
        label = torch.full((len(own),), c, device=own.device)
        found = torch.autograd.grad(criterion(network(own), label), parameters, create_graph=True)
        loss += peer.match_loss(found, [g.detach().clone() for g in target], settings)
    return loss


def dc_compare(arguments: argparse.Namespace, data: Prepared, ipc: int) -> None:
    """In float32 with whole batches, and in float64 with a part of them.

    Where a value before a ReLU is nearer to zero than float32 is exact, its sign is a matter of the order of sums, and
    one such value moves its class's gradient by about 1e-3; in float64 there is none.
    """
    peer, device, generator = _dc_peer(arguments.peer), best_device(), torch.Generator().manual_seed(ipc)
    settings, classes, (channels, size) = _dc_settings(peer, ipc), len(data.classes), data.train_images.shape[1:3]
    theirs = peer.get_network("ConvNet", channels, classes, (size, size))
    network = fresh_network(DCConfig(), classes, channels, size, ipc).to(device)
    with torch.no_grad():
        for own, other in zip(theirs.parameters(), network.parameters(), strict=True):
            own.copy_(other)
    members = [(data.train_labels == c).nonzero().flatten() for c in range(classes)]
    chosen = [own[torch.randperm(len(own), generator=generator)[:256]] for own in members]
    start = torch.randn(classes, ipc, channels, size, size, generator=generator).to(device)
    for dtype, count in ((torch.float32, 256), (torch.float64, 32)):
        real = [data.standardised(data.train_images[part[:count]]).to(device, dtype) for part in chosen]
        images = start.to(dtype).requires_grad_()
        loss = _dc_peer_loss(peer, settings, theirs.to(dtype), real.__getitem__, images)
        (expected,) = torch.autograd.grad(loss, images)
        ours, found = matching(network.to(dtype), DSA("none"), real, images, "channels", generator)
        name = str(dtype).removeprefix("torch.")
        say_equal(f"IPC {ipc}, {name}, {count} real", (loss.item(), ours.item()), (expected, found))


def dc_seconds(side: str, arguments: argparse.Namespace, data: Prepared, ipc: int) -> Seconds:
    """Seconds of a round of matching (with the update of the images) and of an epoch of training between two."""
    device, classes, (channels, size) = best_device(), len(data.classes), data.train_images.shape[1:3]
    members = [(data.train_labels == c).nonzero().flatten() for c in range(classes)]
    images = torch.randn(classes * ipc, channels, size, size).to(device).requires_grad_()
    labels, shape = torch.arange(classes, device=device).repeat_interleave(ipc), (classes, ipc)
    optimizer = torch.optim.SGD([images], 0.1, 0.5)
    if side == "peer":
        peer = _dc_peer(arguments.peer)
        settings, resident = _dc_settings(peer, ipc), data.standardised(data.train_images).to(device)
        network, indices = peer.get_network("ConvNet", channels, classes, (size, size)), [m.tolist() for m in members]
        steps = torch.optim.SGD(network.parameters(), 0.01)
        pairs = peer.TensorDataset(images.detach().clone(), labels)
        loader = torch.utils.data.DataLoader(pairs, batch_size=256, shuffle=True)

        def matched() -> None:
            def batch(c: int) -> Tensor:
                return resident[np.random.permutation(indices[c])[:256]]

            loss = _dc_peer_loss(peer, settings, network, batch, images.unflatten(0, shape))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def trained() -> None:
            peer.epoch("train", loader, network, steps, nn.CrossEntropyLoss(), settings, aug=False)
    else:
        keep_freed_memory()
        config, generator, none = DCConfig(), torch.Generator().manual_seed(1), DSA("none")
        own, train = fresh_network(config, classes, channels, size, 1).to(device), data.train_images.to(device)

        def matched() -> None:
            chosen = [m[torch.randperm(len(m), generator=generator)[:256]].to(device) for m in members]
            real = (data.standardised(train[part]) for part in chosen)
            _, gradient = matching(own, none, real, images.unflatten(0, shape), "channels", generator)
            images.grad = gradient.flatten(0, 1)
            optimizer.step()

        def trained() -> None:
            train_epoch(own, none, images.detach(), labels, config, generator)

    trained()
    epoch = min(timed(trained, arguments.processor) for _ in range(5))
    # A round is long on a CPU, and its warm-up is the training; on a GPU the first one is not to count.
    rounds = [timed(matched, arguments.processor) for _ in range(5 if torch.cuda.is_available() else 1)]
    return {"round": min(rounds), "epoch": epoch}


def dc_iteration(seconds: Seconds, ipc: int) -> float:
    outer, inner = DCConfig().loops(ipc)
    return outer * seconds["round"] + (outer - 1) * inner * seconds["epoch"]


SECTIONS = {"dc": Section(dc_compare, dc_seconds, dc_iteration)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(SECTIONS))
    parser.add_argument("--peer", required=True, help="checkout of the method's public code")
    parser.add_argument("--prepared", default="data/prepared/cifar10.safetensors", help="a prepared dataset")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2, help="fresh processes of each side")
    parser.add_argument("--processor", action="store_true", help="seconds of the processor, not of the clock")
    parser.add_argument("--only", choices=["peer", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    section, data = SECTIONS[arguments.method], Prepared.read(arguments.prepared)
    if arguments.only:
        print(json.dumps(section.seconds(arguments.only, arguments, data, arguments.ipc[0])))
        return
    for ipc in arguments.ipc:
        section.compare(arguments, data, ipc)
    for ipc in arguments.ipc:
        best: dict[str, Seconds] = {}
        for side in ["peer", "ours"] * arguments.turns:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", side, "--ipc", str(ipc)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            best[side] = {part: min(value, best.get(side, found)[part]) for part, value in found.items()}
        whole = {side: section.iteration(parts, ipc) for side, parts in best.items()}
        for side, parts in best.items():
            named = ", ".join(f"{part} {value:.3f} s" for part, value in parts.items())
            print(f"IPC {ipc}: {side}: {named}; an iteration {whole[side]:.1f} s")
        print(f"IPC {ipc}: peer / ours: {whole['peer'] / whole['ours']:.2f}", flush=True)


if __name__ == "__main__":
    main()
