"""Our students beside those of the public PReDD/GLaD evaluation, on the same set, in one run: accuracy and time.

The peer is a checkout of the PReDD repository (its evaluate_synset, get_network and DiffAugment are called as they
are); it needs ema-pytorch and tqdm besides what this project has (`uv pip install --no-deps ema-pytorch tqdm`, and
kornia). Each side runs in a fresh process with all cores; the peer draws its seeds from the clock.

    python benchmarks/peer_glad.py --peer CHECKOUT --set SET --prepared data/prepared/cifar10.safetensors

prints mean and 95 % interval of both over the seeds, Welch's p for the difference, and the ratio of the times.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import torch
from scipy import stats

from diver.config.protocols import protocol
from diver.config.students import Architecture
from diver.data.prepared import Prepared
from diver.report.statistics import t_interval
from diver.sets import DistilledSet
from diver.students import evaluate_set
from diver.students.evaluate import student_images
from diver.workers import best_device

# Peer's name -> ours. Both at the width and depth of the published evaluation.
NETWORKS = {
    "ConvNet": ("convnet-3", {}),
    "ResNet18": ("resnet18-dd", {}),
    "ViTCIFAR": ("vit-glad", {"patch": 4, "depth": 6}),
}


def peer_accuracies(arguments: argparse.Namespace, distilled: DistilledSet, data: Prepared) -> list[float]:
    from torch.utils.data import DataLoader, TensorDataset

    if not torch.cuda.is_available():
        # The checkout moves constants to a GPU when it is imported.
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    sys.path.insert(0, arguments.peer)
    import utils_szy as peer  # the checkout's own module

    size, classes = int(data.test_images.shape[-1]), len(data.classes)
    settings = SimpleNamespace(
        device="cuda" if torch.cuda.is_available() else "cpu",
        dataset="CIFAR10",
        epoch_eval_train=arguments.epochs,
        batch_train=256,
        dsa=True,
        dsa_strategy="color_crop_cutout_flip_scale_rotate",
        dsa_param=peer.ParamDiffAug(),
        model="ConvNet",
    )
    settings.lr_net = peer.get_eval_lrs(settings)[arguments.network]
    test = DataLoader(TensorDataset(data.standardised(data.test_images), data.test_labels), 128)
    images, labels = student_images(distilled, data, matched=True), distilled.hard_labels()
    found = []
    for number in range(arguments.seeds):
        network = peer.get_network(arguments.network, 3, classes, (size, size), depth=3, width=128)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            _, _, tested = peer.evaluate_synset(number, network, images.clone(), labels.clone(), test, settings)
        found.append(100 * float(tested[-1]))
    return found


def our_accuracies(arguments: argparse.Namespace, distilled: DistilledSet, data: Prepared) -> list[float]:
    name, options = NETWORKS[arguments.network]
    rows = evaluate_set(
        distilled,
        data,
        Architecture(network=name, label=name, options=options),
        protocol("glad-eval", epochs=arguments.epochs, precision=arguments.precision),
        range(arguments.seeds),
        progress=lambda *_: None,
        workers=os.cpu_count() or 1,
        device=best_device(),
    )
    return [row["accuracy_last"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="checkout of the PReDD repository")
    parser.add_argument("--set", required=True, help="a distilled set (safetensors)")
    parser.add_argument("--prepared", required=True, help="its prepared dataset")
    parser.add_argument("--network", default="ConvNet", choices=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--only", choices=["peer", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        distilled, data = DistilledSet.read(arguments.set), Prepared.read(arguments.prepared)
        run = peer_accuracies if arguments.only == "peer" else our_accuracies
        started = time.perf_counter()
        accuracies = run(arguments, distilled, data)
        print(json.dumps([time.perf_counter() - started, accuracies]))
        return
    found = {}
    for side in ("peer", "ours"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", side]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[side] = json.loads(output.splitlines()[-1])
        seconds, accuracies = found[side]
        interval = t_interval(accuracies)
        print(f"{side}: {interval.mean:.2f} ± {interval.half_width:.2f} % in {seconds:.0f} s", flush=True)
    p = stats.ttest_ind(found["peer"][1], found["ours"][1], equal_var=False).pvalue
    print(f"{arguments.network}, {arguments.epochs} epochs, {arguments.seeds} seeds: Welch's p = {p:.2f}")
    print(f"peer / ours: {found['peer'][0] / found['ours'][0]:.2f}")


if __name__ == "__main__":
    main()
