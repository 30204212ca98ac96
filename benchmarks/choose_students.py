"""Choose learning rates, batch and epochs of the embedded study's students, without looking at the test images.

Students are trained on random real images and tested on the last 5000 training images, which the random images are
not drawn from; the file's test tensors are never opened. Accuracy is a mean over two random sets, one student each.

    python benchmarks/choose_students.py --prepared data/prepared/cifar10.safetensors

prints one line per setting as it ends, and at the end the rate of every architecture with the best mean over
the schedules.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from diver.students import StudentData, StudentProtocol, train_students
from diver.tensorfile import KEY

HELD_OUT = 5000
SETS = (0, 1)
# Narrow enough that three students of one of these take about ten seconds of one core, testing included.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "convnet": ("convnet", {"width": 32, "depth": 3}),
    "resnet": ("resnet", {"width": 16, "blocks": 1, "stem_stride": 2}),
    "vit": ("vit", {"dim": 64, "depth": 4, "heads": 4, "patch": 8}),
    "mobilenet": ("mobilenet", {"width": 0.35, "repeats": 1, "stem_stride": 2}),
}


def read_training(path: str) -> tuple[Tensor, Tensor, tuple[float, ...], tuple[float, ...]]:
    """Training images uint8 [N, C, H, W], labels int64 [N], mean and deviation; nothing else is read."""
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()[KEY])
        images, labels = opened.get_tensor("train_images"), opened.get_tensor("train_labels")
    return images, labels, tuple(header["mean"]), tuple(header["std"])


def random_set(images: Tensor, labels: Tensor, ipc: int, seed: int) -> tuple[Tensor, Tensor]:
    """`ipc` images of each class, class-major, drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    index = torch.cat([order[labels[order] == c][:ipc] for c in range(int(labels.max()) + 1)])
    return images[index], labels[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True, help="prepared dataset (safetensors)")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01, 0.03, 0.1])
    parser.add_argument(
        "--schedules",
        nargs="+",
        default=["1:300:25", "10:50:25"],
        help="IPC:epochs:batch, as many as wanted",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images, labels, mean, std = read_training(arguments.prepared)
    classes = int(labels.max()) + 1
    pool, test = (images[:-HELD_OUT], labels[:-HELD_OUT]), (images[-HELD_OUT:], labels[-HELD_OUT:])
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    print("architecture,ipc,epochs,batch,learning_rate,accuracy,diverged,seconds_per_student", flush=True)
    for name, schedule, rate in itertools.product(arguments.architectures, arguments.schedules, arguments.rates):
        ipc, epochs, batch = map(int, schedule.split(":"))
        network, options = ARCHITECTURES[name]
        protocol = StudentProtocol(epochs, rate, batch)
        started = time.process_time()
        results = []
        for seed in SETS:
            data = StudentData(*random_set(*pool, ipc, seed), *test, classes, mean, std)
            results += train_students(network, options, data, protocol, [seed], lambda *_: None)
        seconds = (time.process_time() - started) / len(SETS)
        accuracy = sum(r.accuracy_last for r in results) / len(SETS)
        diverged = sum(r.diverged for r in results)
        print(f"{name},{ipc},{epochs},{batch},{rate},{accuracy:.2f},{diverged},{seconds:.2f}", flush=True)
        found[name][rate].append(accuracy)
    for name, by_rate in found.items():
        means = {rate: sum(accuracies) / len(accuracies) for rate, accuracies in by_rate.items()}
        best = max(means, key=lambda rate: means[rate])
        print(f"best for {name}: learning_rate={best}, mean accuracy over the schedules {means[best]:.2f}")


if __name__ == "__main__":
    main()
