"""Prototypes of classes, the centres of clusters of their latents: D4M's by mini-batch k-means, MGD3's by k-means."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diver.config.native.d4m import D4MConfig
from diver.config.native.mgd3 import MGD3Config
from diver.prior.base import Prior
from diver.progress import Progress
from diver.recover.latents import Latents
from diver.tensorfile import TensorFileError, read_tensors, write_tensors


class PrototypesError(ValueError):
    """Prototypes cannot be found or read; one line."""


def minibatch_centres(points: Tensor, k: int, config: D4MConfig, last: bool) -> tuple[Tensor, int]:
    """Centres float32 [k, D] of points [n, D] in a shuffled stream, and how many of the points were left out.

    scikit-learn's mini-batch k-means takes `km_expand` * k points at a time. What does not fill a batch is taken at
    the end; with `drop_leftover` only in the last class and if there are k of them. Raises ValueError for fewer
    points than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(points) < k:
        raise ValueError(f"{len(points)} latents make no {k} clusters")
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(config.seed))
    stream, size = points[order].numpy(), config.km_expand * k
    means = MiniBatchKMeans(k, random_state=config.seed % 2**32, batch_size=size, n_init="auto")
    # The first batch has to hold as many points as there are clusters, also where a class is smaller than a batch.
    whole = len(stream) // size * size
    for first in range(0, whole, size):
        means.partial_fit(stream[first : first + size])
    rest = stream[whole:]
    kept = len(rest) > 0 and not (config.drop_leftover and not (last and len(rest) >= k))
    if whole == 0 and not kept:
        raise ValueError(f"{len(points)} latents fill no batch of {size}; take a smaller km_expand")
    if kept:
        means.partial_fit(rest)
    return torch.from_numpy(means.cluster_centers_).float(), 0 if kept else len(rest)


def kmeans_centres(points: Tensor, k: int, config: MGD3Config) -> Tensor:
    """Centres float32 [k, D] of points [n, D] by k-means. Raises ValueError for fewer points than clusters."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(points) < k:
        raise ValueError(f"{len(points)} latents make no {k} modes")
    with warnings.catch_warnings():
        # Equal images make fewer distinct clusters than asked for, which is no fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(k, n_init=config.n_init, random_state=config.seed % 2**32).fit(points.numpy())
    return torch.from_numpy(fitted.cluster_centers_).float()


def find_prototypes(
    latents: Latents, ipc: int, config: D4MConfig | MGD3Config, progress: Progress | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """`ipc` prototypes of each class, float32 [classes, ipc, c, h, w], and what is recorded of them.

    Raises PrototypesError naming the class that has too few latents.
    """
    classes, found, left = len(latents.bounds), [], 0
    for c in range(classes):
        mine = latents.of(c)
        try:
            if isinstance(config, MGD3Config):
                centres = kmeans_centres(mine.flatten(1), ipc, config)
            elif config.from_prototypes:
                centres, dropped = minibatch_centres(mine.flatten(1), ipc, config, c == classes - 1)
                left += dropped
            else:
                if len(mine) < ipc:
                    raise ValueError(f"{len(mine)} latents are no {ipc} prototypes")
                generator = torch.Generator().manual_seed(config.seed + c)
                centres = mine[torch.randperm(len(mine), generator=generator)[:ipc]]
        except ValueError as error:
            raise PrototypesError(f"class {c}: {error}") from error
        found.append(centres.reshape(ipc, *mine.shape[1:]))
        if progress is not None:
            progress(c + 1, classes, "classes clustered")
    return torch.stack(found), {"latents": len(latents), "left_out": left}


def write_prototypes(path: str | Path, prototypes: Tensor, found: dict[str, Any]) -> None:
    """Prototypes [classes, ipc, c, h, w] to a file, with what is recorded of them."""
    write_tensors(path, {"prototypes": prototypes}, found)


def read_prototypes(path: str | Path, classes: int, ipc: int, prior: Prior) -> tuple[Tensor, dict[str, Any]]:
    """Prototypes of a file, class-major [classes * ipc, c, h, w], and their record. Raises PrototypesError."""
    try:
        tensors, found = read_tensors(path)
        prototypes = tensors["prototypes"]
    except (TensorFileError, KeyError) as error:
        raise PrototypesError(f"{path}: no prototypes ({error})") from error
    if prototypes.shape != (classes, ipc, *prior.latent_shape):
        raise PrototypesError(
            f"{path}: prototypes of shape {list(prototypes.shape)}; {classes} classes, IPC {ipc} and {prior.name} "
            f"take {[classes, ipc, *prior.latent_shape]}"
        )
    return prototypes.flatten(0, 1), found
