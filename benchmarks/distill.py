"""Seconds per iteration of DC, DM and MTT, ours beside the public codes, on one device in one run.

    python benchmarks/distill.py --dc-peer DatasetCondensation --mtt-peer mtt-distillation

DC and DM are timed against VICO-UoE/DatasetCondensation, MTT against GeorgeCazenavette/mtt-distillation: their
networks, augmentation, losses and helpers are called from loops that do what their scripts do in an iteration, nothing
else (no tests, pictures or logging). On a CPU each side runs in a process of its own; on a GPU all run in this one,
which starts the device once and has what is fused at hand in later rounds. The sides alternate, and the fastest
iteration of all counts, since other work on a machine only ever adds. The floor is what the convolutions' counted
operations would take at the rate of a large matrix product that is measured in the same run, on a GPU in the row's own
arithmetic (TF32 where a row says float32). Random images in
CIFAR-10's shape, ConvNet-3 of width 128, float32 unless a row says otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLASSES, SIZE, PER_CLASS, WIDTH = 10, 32, 300, 128
AUGMENTATION = "color_crop_cutout_flip_scale_rotate"
# Multiply-adds of one ConvNet-3 pass of an image; a gradient costs two passes more.
MACS = 32**2 * 27 * WIDTH + (16**2 + 8**2) * 9 * WIDTH**2
# DC at IPC 10 trains its network between rounds; fewer rounds and epochs than published (10, 50), on both sides.
OUTER, INNER = 2, 10
# Of MTT's student: the graph of the published 30 steps at IPC 10 does not fit 24 GB on the public side.
STEPS = {1: 50, 10: 3}


GPU_REPORTS = 3


def random_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (CLASSES * PER_CLASS, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return images, torch.arange(CLASSES).repeat_interleave(PER_CLASS)


# The public side: one iteration as their scripts have it.


def _public(folder: str, ipc: int) -> tuple[Any, Namespace, Tensor, Tensor, Callable[[int, int], Tensor]]:
    """Their modules, arguments, synthetic images and labels, and real images of a class."""
    # Both codes have modules of these names.
    for name in ("utils", "networks", "reparam_module"):
        sys.modules.pop(name, None)
    sys.path.insert(0, folder)
    import utils

    sys.path.remove(folder)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, _ = random_data()
    real = ((images.float() / 255 - 0.5) / 0.25).to(device)
    arguments = Namespace(
        device=device, dsa=True, dsa_strategy=AUGMENTATION, dsa_param=utils.ParamDiffAug(), dis_metric="ours",
        lr_net=0.01, batch_train=256, dc_aug_param=None, distributed=False, batch_syn=None, dsa_after=0,
    )  # fmt: skip
    synthetic = torch.randn(CLASSES * ipc, 3, SIZE, SIZE, device=device, requires_grad=True)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(ipc)

    def draw(number: int, count: int) -> Tensor:
        return real[number * PER_CLASS + torch.randperm(PER_CLASS)[:count]]

    return utils, arguments, synthetic, labels, draw


def public_dm(folder: str, ipc: int) -> Callable[[], object]:
    utils, arguments, synthetic, _, draw = _public(folder, ipc)
    optimizer = torch.optim.SGD([synthetic], lr=1.0, momentum=0.5)

    def augmented(images: Tensor, seed: int) -> Tensor:
        # Their siamese form of a single image is an error in today's torch; the other form costs the same.
        seed = seed if len(images) > 1 else -1
        return utils.DiffAugment(images, AUGMENTATION, seed=seed, param=arguments.dsa_param)

    def iteration() -> object:
        network = utils.get_network("ConvNet", 3, CLASSES, (SIZE, SIZE)).to(arguments.device)
        network.requires_grad_(False)
        loss = torch.zeros((), device=arguments.device)
        for number in range(CLASSES):
            mine, seed = synthetic[number * ipc : (number + 1) * ipc], int(time.time() * 1000) % 100000
            real = network.embed(augmented(draw(number, 256), seed)).detach()
            loss = loss + (real.mean(0) - network.embed(augmented(mine, seed)).mean(0)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return iteration


def public_dc(folder: str, ipc: int) -> Callable[[], object]:
    from torch.utils.data import DataLoader, TensorDataset

    utils, arguments, synthetic, labels, draw = _public(folder, ipc)
    arguments.dsa = False
    optimizer, entropy = torch.optim.SGD([synthetic], lr=0.1, momentum=0.5), torch.nn.CrossEntropyLoss()
    rounds = 1 if ipc == 1 else OUTER

    def iteration() -> object:
        network = utils.get_network("ConvNet", 3, CLASSES, (SIZE, SIZE)).to(arguments.device)
        weights, trained = list(network.parameters()), torch.optim.SGD(network.parameters(), lr=arguments.lr_net)
        for number in range(rounds):
            loss = torch.zeros((), device=arguments.device)
            for c in range(CLASSES):
                wanted = torch.full((256,), c, device=arguments.device)
                real = torch.autograd.grad(entropy(network(draw(c, 256)), wanted), weights)
                fake = entropy(network(synthetic[c * ipc : (c + 1) * ipc]), wanted[:ipc])
                loss = loss + utils.match_loss(
                    torch.autograd.grad(fake, weights, create_graph=True), [g.detach().clone() for g in real], arguments
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if number + 1 < rounds:
                pairs = DataLoader(
                    TensorDataset(synthetic.detach().clone(), labels), arguments.batch_train, shuffle=True
                )
                for _ in range(INNER):
                    utils.epoch("train", pairs, network, trained, entropy, arguments, aug=False)
        return loss.item()

    return iteration


def public_mtt(folder: str, ipc: int) -> Callable[[], object]:
    for name in ("wandb", "kornia"):
        sys.modules.setdefault(name, type(sys)(name))
    utils, arguments, synthetic, labels, _ = _public(folder, ipc)
    sys.path.insert(0, folder)
    from reparam_module import ReparamModule

    sys.path.remove(folder)

    entropy, rate = torch.nn.CrossEntropyLoss(), torch.tensor(0.01, device=arguments.device, requires_grad=True)
    optimizers = [torch.optim.SGD([synthetic], 100.0, momentum=0.5), torch.optim.SGD([rate], 1e-7, momentum=0.5)]

    def iteration() -> object:
        network = ReparamModule(utils.get_network("ConvNet", 3, CLASSES, (SIZE, SIZE), dist=False).to(arguments.device))
        start = torch.cat([p.detach().flatten() for p in network.parameters()])
        target, points = start + 0.01 * torch.randn_like(start), [start.requires_grad_()]
        for _ in range(STEPS[ipc]):
            index = torch.randperm(len(synthetic))
            images = utils.DiffAugment(synthetic[index], AUGMENTATION, param=arguments.dsa_param)
            loss = entropy(network(images, flat_param=points[-1]), labels[index])
            (gradient,) = torch.autograd.grad(loss, points[-1], create_graph=True)
            points.append(points[-1] - rate * gradient)
        ratio = (points[-1] - target).square().sum() / (start.detach() - target).square().sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        ratio.backward()
        for optimizer in optimizers:
            optimizer.step()
        return ratio.item()

    return iteration


PUBLIC = {"dm": public_dm, "dc": public_dc, "mtt": public_mtt}


def time_public(method: str, folder: str, ipc: int, repeats: int) -> float:
    iteration = PUBLIC[method](folder, ipc)
    iteration()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        iteration()
        times.append(time.perf_counter() - began)
    return min(times)


# Our side: the method as it is called by everyone, timed from one report of progress to the next.


def time_ours(method: str, variant: dict[str, Any], ipc: int, repeats: int) -> float:
    from diver.config.distill import SETTINGS, ExpertsConfig
    from diver.data.prepared import Prepared
    from diver.distill import METHODS, loop
    from diver.workers import keep_freed_memory

    keep_freed_memory()
    images, labels = random_data()
    names = tuple(f"class {number}" for number in range(CLASSES))
    data = Prepared(images, labels, images[:10], labels[:10], "random", names, (0.5,) * 3, (0.25,) * 3)
    settings: dict[str, Any] = {"iterations": repeats + 1, **variant}
    with tempfile.TemporaryDirectory() as folder:
        # DC reports after each round of an iteration.
        rounds = 1
        if method == "dc" and ipc > 1:
            settings, rounds = {**settings, "outer": OUTER, "inner": INNER}, OUTER
        if method == "mtt":
            from diver.distill.experts import train_experts

            train_experts(data, ExpertsConfig(count=1, epochs=1), Path(folder), progress=lambda *_: None)
            # The gradient of the step size is computed either way; a step along it may end below zero.
            settings |= {"experts": folder, "syn_steps": STEPS[ipc], "expert_epochs": 1, "max_start": 1, "rate_rate": 0}
        together = 1
        if torch.cuda.is_available():
            # A report waits for the device, which a run of thousands of iterations does a hundred times.
            loop.REPORTS, together, rounds = GPU_REPORTS, repeats, 1
            settings["iterations"] = GPU_REPORTS * repeats
        stamps = []
        METHODS[method](data, ipc, SETTINGS[method](**settings), progress=lambda *_: stamps.append(time.perf_counter()))
    return min(after - before for before, after in zip(stamps, stamps[rounds:], strict=False)) / together


def operations(method: str, ipc: int) -> float:
    """Floating-point operations of an iteration's convolutions that no way of computing it avoids."""
    rounds, synthetic = (1 if ipc == 1 else OUTER), CLASSES * ipc
    passes = {
        "dm": CLASSES * 256 + 3 * synthetic,
        # Real images: forward and gradient. Synthetic ones: the same, and its derivative, which is two such.
        "dc": rounds * (3 * CLASSES * 256 + 9 * synthetic) + (rounds - 1) * INNER * 3 * synthetic,
        "mtt": STEPS[ipc] * 9 * synthetic,
    }
    return 2.0 * MACS * passes[method]


def matrix_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a large matrix product; on a GPU as torch's convolutions, in TF32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(2, 3072, 3072, device=device, dtype=dtype)
    best = float("inf")
    # Sides that are timed in this process have what is torch's default.
    torch.backends.cuda.matmul.allow_tf32 = True
    for _ in range(5):
        began = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - began)
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * 3072**3 / best


OURS: dict[str, dict[str, dict[str, Any]]] = {
    "dm": {"ours": {}, "ours, real images in bf16": {"precision": "bf16"}},
    "dc": {"ours": {}, "ours, real images in bf16": {"precision": "bf16"}},
    "mtt": {
        "ours": {},
        "ours, truncated gradient": {"gradient": "truncated"},
        "ours, convolutions in bf16": {"precision": "bf16"},
    },
}


def precision_of(side: dict[str, Any]) -> str:
    return side.get("precision", "fp32")


def side_seconds(kind: str, method: str, ipc: int, what: str, repeats: int) -> float:
    """Seconds of an iteration in this process. what: the checkout of the public code, or our variant's name."""
    if kind == "public":
        return time_public(method, what, ipc, repeats)
    return time_ours(method, OURS[method][what], ipc, repeats)


def run_side(options: argparse.Namespace, kind: str, method: str, ipc: int, what: str) -> float:
    if torch.cuda.is_available():
        return side_seconds(kind, method, ipc, what, options.repeats)
    command = [sys.executable, __file__, "--threads", str(options.threads), "--repeats", str(options.repeats)]
    command += ["--side", kind, method, str(ipc), what]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dc-peer", help="checkout of VICO-UoE/DatasetCondensation; without it only ours is timed")
    parser.add_argument("--mtt-peer", help="checkout of GeorgeCazenavette/mtt-distillation")
    parser.add_argument("--methods", nargs="+", choices=list(PUBLIC), default=list(PUBLIC))
    parser.add_argument("--ipc", nargs="+", type=int, choices=list(STEPS), default=list(STEPS))
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"],
        help="sides of ours; bf16 takes many times as long on a processor without its instructions",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="of torch, on both sides")
    parser.add_argument("--repeats", type=int, default=3, help="iterations timed in a round")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each side")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        kind, method, ipc, what = options.side
        print(json.dumps(side_seconds(kind, method, int(ipc), what, options.repeats)))
        return
    # On a CPU all rows have the floor of float32, which shows what half precision gains.
    rates = {"fp32": matrix_rate()}
    rates["bf16"] = matrix_rate(torch.bfloat16) if torch.cuda.is_available() else rates["fp32"]
    for precision, rate in rates.items():
        print(f"matrix product, {precision}: {rate / 1e9:.0f} GFLOP/s with {options.threads} threads")
    for method in options.methods:
        peer = options.mtt_peer if method == "mtt" else options.dc_peer
        for ipc in options.ipc:
            sides = [("public", str(Path(peer).resolve()))] if peer else []
            sides += [("ours", name) for name, side in OURS[method].items() if precision_of(side) in options.precision]
            found: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for kind, what in sides:
                    found[kind, what].append(run_side(options, kind, method, ipc, what))
            work = operations(method, ipc)
            first = min(found[sides[0]])
            for (kind, what), times in found.items():
                best = min(times)
                ratio = f", {first / best:.2f} times faster" if peer and kind == "ours" else ""
                name = "public code" if kind == "public" else what
                floor = work / rates[precision_of(OURS[method].get(what, {}))]
                print(
                    f"{method}, IPC {ipc}, {name}: {best:.4f} s{ratio}, floor is {100 * floor / best:.0f} %", flush=True
                )


if __name__ == "__main__":
    main()
