"""Coresets: real training images that stand for their class in the feature space phi of a fixed encoder.

With mu the mean of phi over a class and S what is selected of it so far, each method selects `ipc` images per class:

    herding (Welling 2009): argmin_x || mu - (sum of phi over S + phi(x)) / (|S| + 1) ||, x not in S;
    k-center (Gonzalez 1985): first argmin_x || mu - phi(x) ||, then argmax_x min_{s in S} || phi(x) - phi(s) ||;
    k-means: the image nearest to each centre of k-means with ipc clusters, none twice.

The encoder is the pixels themselves, or the input of a trained network's last linear layer. Herding and k-center
draw nothing, so the seed has no effect on them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diver.config.distill import PIXELS, CoresetConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, read_teacher
from diver.networks.weights import embed
from diver.progress import Progress, reporter
from diver.sets import DistilledSet

# Images per forward pass of the encoder.
CHUNK = 256


def _check(features: Tensor, k: int) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"features are {features.dtype} {list(features.shape)}, not float [N, D]")
    if not 1 <= k <= len(features):
        raise ValueError(f"{k} of {len(features)} images cannot be selected")
    if not torch.isfinite(features).all():
        raise ValueError("features have values that are not finite")


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features minus their mean, float64 [N, D], and their squared norms [N].

    Distances are expanded into dot products, which makes them as fast as a matrix allows; centring in float64 keeps
    the expansion exact enough.
    """
    centred = features.double()
    centred = centred - centred.mean(0)
    return centred, torch.linalg.vector_norm(centred, dim=1).square()


def herding(features: Tensor, k: int) -> Tensor:
    """Positions int64 [k], in the order of selection, of float features [N, D].

    Raises ValueError for features that are not finite or not [N, D], or k not in 1..N; so do the other two.
    """
    _check(features, k)
    centred, squares = _centred(features)
    total = torch.zeros_like(centred[0])
    chosen: list[int] = []
    for _ in range(k):
        # || total + x ||^2 without || total ||^2; the count only scales it.
        score = squares + 2 * (centred @ total)
        score[chosen] = torch.inf
        chosen.append(int(score.argmin()))
        total += centred[chosen[-1]]
    return torch.tensor(chosen)


def k_center(features: Tensor, k: int) -> Tensor:
    """Positions int64 [k], in the order of selection, of float features [N, D]."""
    _check(features, k)
    centred, squares = _centred(features)
    chosen = [int(squares.argmin())]
    nearest = torch.full_like(squares, torch.inf)
    while len(chosen) < k:
        last = chosen[-1]
        nearest = torch.minimum(nearest, squares - 2 * (centred @ centred[last]) + squares[last])
        nearest[chosen] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def k_means(features: Tensor, k: int, seed: int) -> Tensor:
    """Positions int64 [k], in the order of the clusters, of float features [N, D]; scikit-learn's KMeans, once."""
    from sklearn.cluster import KMeans  # here, because the other two methods do without

    _check(features, k)
    points = features.float().cpu().numpy()
    fitted = KMeans(k, n_init=1, random_state=seed % 2**32).fit(points)
    distances = torch.from_numpy(fitted.transform(points))
    chosen: list[int] = []
    for to_centre in distances.T:
        to_centre[chosen] = torch.inf
        chosen.append(int(to_centre.argmin()))
    return torch.tensor(chosen)


def _encoder(data: Prepared, config: CoresetConfig) -> tuple[Callable[[Tensor], Tensor], str | dict[str, Any]]:
    """Standardised images [n, C, H, W] to features [n, D]; and what a set records, the same on every machine."""
    if config.encoder == PIXELS:
        return lambda images: images.flatten(1), PIXELS
    trained, described = read_teacher("encoder", config.encoder, data, labelled=False, otherwise=f", or {PIXELS!r}")
    return lambda images: embed(trained.network, images, CHUNK), described


def _distill(
    method: str,
    select: Callable[[Tensor, int, int], Tensor],
    data: Prepared,
    ipc: int,
    config: CoresetConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """`ipc` training images of each class, standardised, that `select`(features, ipc, seed) chooses, in its order.

    Each image is encoded once, and one class's features are held. `folder` is not used: nothing takes long.
    progress: called with (images encoded, all images, note); by default a line on stderr now and then.
    Raises ValueError if a class has fewer images, or the encoder is missing, unresolved or of another image size.
    """
    encode, described = _encoder(data, config)
    members = class_members(data, ipc)
    report, done, total = progress or reporter(f"{method}, IPC {ipc}"), 0, sum(map(len, members))
    chosen = []
    for number, mine in enumerate(members):
        parts = []
        for part in mine.split(CHUNK):
            parts.append(encode(data.standardised(data.train_images[part])))
            done += len(part)
            report(done, total, f"images encoded, class {number + 1} of {len(members)}")
        try:
            chosen.append(mine[select(torch.cat(parts), ipc, config.seed)])
        except ValueError as error:
            raise ValueError(f"{method}: class {number}: {error}") from error
    images = data.standardised(data.train_images[torch.cat(chosen)])
    return distilled(images, data, ipc, method, config, code, {"encoder": described})


distill_herding = partial(_distill, "herding", lambda features, k, seed: herding(features, k))
distill_k_center = partial(_distill, "k_center", lambda features, k, seed: k_center(features, k))
distill_k_means = partial(_distill, "k_means", k_means)
