"""Cut the slice of CIFAR-10 that the tests run on: the first 20 training and 10 test images of each class.

Usage: python tests/data/make_slice.py data/prepared/cifar10.safetensors
"""

import gzip
import io
import sys
import tarfile
from pathlib import Path

import torch
from torch import Tensor

from diver.data.prepared import Prepared

ARCHIVE = Path(__file__).parent / "cifar10-slice" / "cifar-10-binary.tar.gz"


def records(images: Tensor, labels: Tensor) -> bytes:
    """CIFAR's binary form."""
    return torch.cat([labels.to(torch.uint8)[:, None], images.flatten(1)], 1).numpy().tobytes()


def firsts(labels: Tensor, count: int) -> Tensor:
    """Indices of the first `count` of each class, in their order in the dataset."""
    return torch.cat([torch.where(labels == c)[0][:count] for c in labels.unique()]).sort().values


def main(prepared: str) -> None:
    data = Prepared.read(prepared)
    train, test = firsts(data.train_labels, 20), firsts(data.test_labels, 10)
    files = {
        f"data_batch_{i}.bin": records(data.train_images[part], data.train_labels[part])
        for i, part in enumerate(train.chunk(5), 1)
    }
    files["test_batch.bin"] = records(data.test_images[test], data.test_labels[test])
    # No times in the archive, so that making it again gives the same bytes.
    with (
        ARCHIVE.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main(sys.argv[1])
