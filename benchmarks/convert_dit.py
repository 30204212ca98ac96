"""DiT-XL/2 at full size, random weights: the network read from a checkpoint beside the published one.

    python benchmarks/convert_dit.py

prints the largest difference of the two outputs, relative to the largest output, the parameters of both, and what
reading the file took. Needs 4 GB of memory, 2.7 GB of disk under --folder and a minute of one core. The other side
is tests/plain_dit.py, written from the paper.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from diver.prior.checkpoint import load_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from plain_dit import PlainDiT, random_weights  # noqa: E402


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the checkpoint is written; a temporary folder if left out")
    options = parser.parse_args()
    plain = random_weights(PlainDiT(width=1152, depth=28, heads=16, classes=1000, size=32))
    parameters, positions = sum(p.numel() for p in plain.parameters()), plain.pos_embed.numel()
    x = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([40, 900]), torch.tensor([207, 1000])
    expected = plain(x, t, y)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "DiT.pt"
        torch.save(plain.state_dict(), path)
        # Two copies of the weights are not held at once.
        del plain
        began = time.perf_counter()
        network = load_checkpoint(path).eval()
        read = time.perf_counter() - began
        difference = float((network(x, timestep=t, class_labels=y).sample - expected).abs().max())
    print(f"published: {parameters - positions} trained parameters, {parameters} with the table of positions")
    print(f"read:      {sum(p.numel() for p in network.parameters())} parameters, in {read:.1f} s")
    print(f"largest relative difference: {difference / float(expected.abs().max()):.2e}")


if __name__ == "__main__":
    main()
