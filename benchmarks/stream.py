"""What recovering a set from file to file adds to memory as the set grows.

    python benchmarks/stream.py [IMAGES ...]

writes sets of random 32-pixel images (by default 2,000 and 20,000), encodes and decodes each with the shipped prior in
a process of its own, and prints the time, the input's size and the peak of resident memory, which counts the pages of
the mapped input. About three minutes on one core.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from diver.config.recover import VAEConfig
from diver.prior.load import load_prior
from diver.recover.run import recover_file
from diver.sets import UNIT, DistilledSet

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PRIOR = Path(__file__).parents[1] / "data/shipped/cifar10-prior"


def recover_one(path: Path) -> None:
    torch.set_num_threads(1)
    prior, began = load_prior(PRIOR), time.perf_counter()
    recover_file(path, path.with_suffix(".out"), prior, "vae", VAEConfig(batch=100))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{time.perf_counter() - began:.0f} s, input {path.stat().st_size / 1e6:.0f} MB, peak {peak:.0f} MB")


def main(counts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            ipc, path = count // 10, Path(folder) / f"{count}.safetensors"
            images = torch.rand(ipc * 10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            labels = torch.arange(10).repeat_interleave(ipc)
            DistilledSet(images, "random", CLASSES, ipc, UNIT, labels).write(path)
            del images
            print(f"{count} images: ", end="", flush=True)
            subprocess.run([sys.executable, __file__, "--one", str(path)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        recover_one(Path(sys.argv[2]))
    else:
        main([int(count) for count in sys.argv[1:]] or [2000, 20000])
