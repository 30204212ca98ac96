"""The prepared dataset: the one file that every other room reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from diver.tensorfile import TensorFileError, read_tensors, tensors_digest, write_tensors

_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


@lru_cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 [C, 1, 1], kept because bringing numbers to a GPU waits for it."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def standardise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [n, C, H, W] as float32: to [0, 1], minus the mean, over the deviation, per channel."""
    centre, spread = (_per_channel(tuple(v), images.device) for v in (mean, std))
    return (images.float() / 255 - centre) / spread


class ContentError(ValueError):
    """Prepared content is not what it should be; one line that names the source or file, and the fault."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A dataset in memory: images uint8 [N, C, H, W], labels int64 [N], with what is needed to use them."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    dataset: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _TENSORS}

    def digest(self) -> str:
        """SHA-256 over the tensors with their dtypes and shapes: the content, whatever its source."""
        return tensors_digest(self._tensors())

    def identity(self) -> str:
        """The same over what methods see of it: the content, and the numbers that it is standardised by."""
        return tensors_digest(self._tensors(), {"mean": self.mean, "std": self.std})

    def write(self, path: str | Path) -> None:
        """Write one safetensors file, atomically, with deterministic bytes."""
        header: dict[str, Any] = {
            "dataset": self.dataset,
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
            "digest": self.digest(),
        }
        write_tensors(path, self._tensors(), header)

    @classmethod
    def read(cls, path: str | Path, check: bool = False) -> Self:
        """Read a file of `write`; `check` also recomputes its digest. Raises ContentError."""
        try:
            tensors, header = read_tensors(path)
            found = cls(
                **{name: tensors[name] for name in _TENSORS},
                dataset=header["dataset"],
                classes=tuple(header["classes"]),
                mean=tuple(header["mean"]),
                std=tuple(header["std"]),
            )
        except TensorFileError as error:
            raise ContentError(f"{path}: {error}") from error
        except (KeyError, TypeError) as error:
            raise ContentError(f"{path}: not a prepared dataset, {error} is missing or malformed") from error
        if check and (got := found.digest()) != header.get("digest"):
            raise ContentError(f"{path}: content has digest {got}, its header says {header.get('digest')}")
        return found

    def standardised(self, images: Tensor) -> Tensor:
        """Images of this dataset, uint8 [n, C, H, W], as float32 by its mean and deviation."""
        return standardise(images, self.mean, self.std)
