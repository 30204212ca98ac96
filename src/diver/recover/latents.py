"""Latents of real training images in one file, which is written and read piece by piece.

The file is numpy's, a row per image and class-major: `index` in the training set, `label` and `latent`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diver.config.native import LatentsConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior, PriorError
from diver.progress import Progress
from diver.recover.sampler import KeyedNoise


class LatentsError(ValueError):
    """A file of latents is refused; one line that names the file and the fault."""


def symmetric(images: Tensor, size: int) -> Tensor:
    """uint8 [n, C, H, W] as the autoencoder takes them: float32 [n, C, size, size] in [-1, 1]."""
    scaled = images.float() / 127.5 - 1
    if scaled.shape[-2:] == (size, size):
        return scaled
    return F.interpolate(scaled, (size, size), mode="bilinear", antialias=True)


def require_channels(data: Prepared, prior: Prior) -> None:
    """Raise PriorError if the prior takes images of other channels than the data's."""
    if data.train_images.shape[1] != prior.image_channels:
        raise PriorError(
            f"prior {prior.name} takes {prior.image_channels} channels, images of {data.dataset} have "
            f"{data.train_images.shape[1]}"
        )


def chosen_images(labels: Tensor, classes: int, per_class: int | None, seed: int) -> Tensor:
    """Positions int64 of the images to encode, class-major and in the dataset's order within a class.

    Raises ValueError for a class without images.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for c in range(classes):
        members = (labels == c).nonzero().flatten()
        if not len(members):
            raise ValueError(f"class {c} has no training images")
        if per_class is not None and per_class < len(members):
            members = members[torch.randperm(len(members), generator=generator)[:per_class]].sort().values
        parts.append(members)
    return torch.cat(parts)


def encode_latents(
    data: Prepared,
    prior: Prior,
    config: LatentsConfig,
    posterior: Literal["sample", "mean"],
    out: str | Path,
    progress: Progress | None = None,
) -> None:
    """Write scaled clean latents of training images, holding one batch at a time; the file is whole or not there.

    Raises PriorError if the prior takes images of other channels, ValueError for a class without images.
    """
    require_channels(data, prior)
    chosen = chosen_images(data.train_labels, len(data.classes), config.per_class, config.seed)
    kind = np.dtype([("index", "<i8"), ("label", "<i8"), ("latent", np.dtype(config.dtype), prior.latent_shape)])
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        rows = np.lib.format.open_memmap(part, mode="w+", dtype=kind, shape=(len(chosen),))
        for first in range(0, len(chosen), config.batch):
            at = chosen[first : first + config.batch]
            images = symmetric(data.train_images[at], prior.image_size).to(prior.device)
            noise = KeyedNoise(config.seed, at.tolist()).draw("posterior", prior.latent_shape, images)
            latents = prior.encode(images, noise if posterior == "sample" else None)
            piece = slice(first, first + len(at))
            rows["index"][piece], rows["label"][piece] = at.numpy(), data.train_labels[at].numpy()
            rows["latent"][piece] = latents.cpu().numpy()
            if progress is not None:
                progress(first + len(at), len(chosen), "images encoded")
        rows.flush()
        del rows
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class Latents:
    """A file of `encode_latents`, read a class at a time. `bounds`: first row and end of each class."""

    rows: Any
    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def open(cls, path: str | Path, data: Prepared, prior: Prior | None = None) -> Self:
        """Raises LatentsError for what is no such file, or one of another dataset or, if one is given, prior."""
        try:
            rows = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise LatentsError(f"{path}: not a file of latents ({str(error).splitlines()[0]})") from error
        if rows.dtype.names != ("index", "label", "latent") or rows.ndim != 1:
            raise LatentsError(f"{path}: not a file of latents: its rows are {rows.dtype}")
        if prior is not None and rows.dtype["latent"].shape != prior.latent_shape:
            found = list(rows.dtype["latent"].shape)
            raise LatentsError(f"{path}: latents of {found}, and prior {prior.name} has {list(prior.latent_shape)}")
        index, labels = np.asarray(rows["index"]), np.asarray(rows["label"])
        fits = len(rows) > 0 and index.min() >= 0 and index.max() < len(data.train_labels)
        if not fits or (data.train_labels.numpy()[index] != labels).any() or (np.diff(labels) < 0).any():
            raise LatentsError(f"{path}: not of the training images of {data.dataset}; encode them again")
        edges = np.searchsorted(labels, np.arange(len(data.classes) + 1)).tolist()
        bounds = tuple(zip(edges[:-1], edges[1:], strict=True))
        empty = [c for c, (first, end) in enumerate(bounds) if first == end]
        if empty:
            raise LatentsError(f"{path}: no latents of class {empty[0]} ({data.classes[empty[0]]})")
        return cls(rows, bounds)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, c: int) -> Tensor:
        """Scaled clean latents of a class, float32 [n, c, h, w]."""
        first, end = self.bounds[c]
        return torch.from_numpy(np.ascontiguousarray(self.rows["latent"][first:end], dtype=np.float32))

    def indices(self, c: int) -> Tensor:
        """Where the images of `of(c)` are in the training set, int64 [n]."""
        first, end = self.bounds[c]
        return torch.from_numpy(np.ascontiguousarray(self.rows["index"][first:end]))
