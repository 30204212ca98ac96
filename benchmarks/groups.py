"""Seconds of D3HR's search of groups for a class, beside what drawing its normals alone takes, on one device.

    python benchmarks/groups.py                                           100,000 groups of 10 at 4096 dimensions
    python benchmarks/groups.py --candidates 1000000 --threads 2          as published, for one class

The draws are what no way of computing it avoids: candidates * ipc * dimensions normals, as many as the search makes and
in the same chunks.
"""

import argparse
import time
from collections.abc import Callable

import torch

from diver.recover import groups
from diver.recover.groups import Weights, choose_group
from diver.workers import best_device


def seconds(work: Callable[[], object]) -> float:
    """Wall time, the device's work included."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=100_000, help="groups")
    parser.add_argument("--ipc", type=int, default=10, help="vectors in a group")
    parser.add_argument("--dimensions", type=int, default=4096, help="of a vector; 4 x 32 x 32 are DiT-XL/2's")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, shape = best_device(), (options.ipc, options.dimensions)
    mean, std = torch.zeros(options.dimensions, device=device), torch.ones(options.dimensions, device=device)

    def search(candidates: int) -> groups.Chosen:
        return choose_group(mean, std, options.ipc, candidates, Weights(), 0, 0)

    def draw() -> None:
        chunk = max(1, (groups.CPU_DRAWS if device.type == "cpu" else groups.GPU_DRAWS) // (shape[0] * shape[1]))
        draws, generator = torch.empty(chunk, *shape, device=device), torch.Generator(device)
        for _ in range(0, options.candidates, chunk):
            draws.normal_(generator=generator)

    search(1000)
    drawn, found = seconds(draw), []
    took = seconds(lambda: found.append(search(options.candidates)))
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{options.candidates:,} groups of {shape[0]} at {shape[1]} dimensions, {name}: {took:.1f} s")
    rate = options.candidates * shape[0] * shape[1] / took
    print(
        f"drawing alone: {drawn:.1f} s, {100 * drawn / took:.0f} %; {rate / 1e6:.0f} million normals a second searched"
    )
    print(f"score of the chosen group {found[0].score:.3f}, mean of all {found[0].mean_score:.3f}")


if __name__ == "__main__":
    main()
