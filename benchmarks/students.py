"""Our student trainer beside the same work written the usual way, in one run.

The usual way: a DataLoader over a TensorDataset for every seed, torch.optim, a scheduler, `ema_pytorch`-like
averaging by parameter, and a DataLoader for the test images; network, augmentation, batches and schedule are the
same. Images are random, for only time is compared. Each side runs in a fresh process, because importing what a
trainer needs is part of a student's price.

    python benchmarks/students.py --architecture convnet --ipc 10 --epochs 20
"""

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from choose_students import ARCHITECTURES
from torch import Tensor
from torch.nn import functional as F

from diver.networks import create
from diver.networks.augment import DSA
from diver.students import StudentProtocol, train_students

CLASSES = 10


def fixed_data(ipc: int, tests: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    labels, test_labels = torch.arange(CLASSES).repeat_interleave(ipc), torch.arange(tests) % CLASSES
    return torch.randn(len(labels), 3, 32, 32), labels, torch.randn(tests, 3, 32, 32), test_labels


def run_ours(
    name: str, protocol: StudentProtocol, seeds: list[int], data: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    network, options = ARCHITECTURES[name]
    train_students(network, options, *data, protocol, seeds, progress=lambda *_: None)


def run_plain(
    name: str, protocol: StudentProtocol, seeds: list[int], data: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    from torch.utils.data import DataLoader, TensorDataset

    images, labels, test_images, test_labels = data
    kind, options = ARCHITECTURES[name]
    for seed in seeds:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        network, dsa = create(kind, CLASSES, 3, 32, **options), DSA(protocol.augmentation)
        average = copy.deepcopy(network).eval()
        optimizer = torch.optim.SGD(
            network.parameters(), protocol.learning_rate, protocol.momentum, weight_decay=protocol.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: protocol.rate(e) / protocol.learning_rate)
        loader = DataLoader(TensorDataset(images, labels), protocol.batch, shuffle=True)
        for _ in range(protocol.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(network(dsa.apply(x, dsa.draw(len(x), generator))), y).backward()
                optimizer.step()
                with torch.no_grad():
                    for mine, live in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                        if live.is_floating_point():
                            mine.lerp_(live, 1 - protocol.ema_decay)
            scheduler.step()
        with torch.no_grad():
            for x, y in DataLoader(TensorDataset(test_images, test_labels), 128):
                (average(x).argmax(1) == y).sum().item()


RUNNERS: dict[str, Callable[..., None]] = {"ours": run_ours, "plain": run_plain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="convnet", choices=list(ARCHITECTURES))
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=list(RUNNERS), help="run one side in this process and print its seconds")
    arguments = parser.parse_args()
    if arguments.only is None:
        spent = {}
        for side in RUNNERS:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", side]
            spent[side] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{side}: {spent[side]:.2f} core-seconds for {arguments.seeds} students, torch's import left out")
        print(f"plain / ours: {spent['plain'] / spent['ours']:.2f}")
        return
    torch.set_num_threads(1)
    data = fixed_data(arguments.ipc, arguments.tests)
    protocol = StudentProtocol(arguments.epochs, 0.01, batch=arguments.batch)
    started = time.process_time()
    RUNNERS[arguments.only](arguments.architecture, protocol, list(range(arguments.seeds)), data)
    print(time.process_time() - started)


if __name__ == "__main__":
    main()
