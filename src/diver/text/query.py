"""Global Semantic Query, clusters and Local Semantic Awareness of EDITS (arXiv 2509.13858).

For one class with image features I and caption features T, both [N, d], and temperature tau:

    A = softmax over rows of I T' / tau       Q = A T        F = [I, Q]

so that each image asks all captions of its class. The clusters are k-means of F with as many clusters as images per
class; in each, the members nearest to the centre speak for it. The released flag for L2-normalised features computes
the quotient and drops it, so that its features are raw and at tau = 0.01 A is nearly a pick of one caption;
`normalise` does what it says, and False gives the released behaviour.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diver.text.resources import TextError

Features = Literal["image", "concat", "gsq"]


def attention(images: Tensor, texts: Tensor, tau: float, normalise: bool = True) -> Tensor:
    """A, float64 [N, N], whose rows sum to 1, of image features [N, d] and caption features [N, d].

    Raises TextError if the two do not match or are not finite, or tau is not positive.
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise TextError(
            f"image features {list(images.shape)} and caption features {list(texts.shape)}: not both [N, d]"
        )
    if not (torch.isfinite(images).all() and torch.isfinite(texts).all()):
        raise TextError("features have values that are not finite")
    if tau <= 0:
        raise TextError(f"tau = {tau}: the temperature has to be above 0")
    images, texts = _ready(images, normalise), _ready(texts, normalise)
    return (images @ texts.T / tau).softmax(1)


def joined(images: Tensor, texts: Tensor, features: Features, tau: float, normalise: bool = True) -> Tensor:
    """What is clustered, float64: "image" I [N, d], "concat" [I, T] and "gsq" [I, Q], both [N, 2d].

    Raises as `attention`.
    """
    weights = attention(images, texts, tau, normalise)
    first, second = _ready(images, normalise), _ready(texts, normalise)
    if features == "image":
        return first
    return torch.cat([first, weights @ second if features == "gsq" else second], 1)


def _ready(features: Tensor, normalise: bool) -> Tensor:
    features = features.double()
    return F.normalize(features, dim=1) if normalise else features


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of N points: `labels` int64 [N], -1 for an outlier; `centres` float64 [k, D]; `points` [N, D]."""

    points: Tensor
    labels: Tensor
    centres: Tensor

    def members(self, number: int) -> Tensor:
        """Positions of a cluster's members, the nearest to its centre first."""
        mine = (self.labels == number).nonzero().flatten()
        distances = torch.linalg.vector_norm(self.points[mine] - self.centres[number], dim=1)
        return mine[distances.argsort(stable=True)]

    def nearest(self, number: int, count: int) -> Tensor:
        """The `count` members nearest to the centre, all of them where there are fewer."""
        return self.members(number)[:count]


def cluster(points: Tensor, k: int, seed: int, contamination: float = 0.0) -> Clusters:
    """k-means with k clusters, ten starts, of points [N, D] without their outliers.

    contamination: share that the local outlier factor of ten neighbours takes out first; 0 takes none. Raises
    TextError if fewer than k points are left, or fewer than k different ones.
    """
    from sklearn.cluster import KMeans
    from sklearn.neighbors import LocalOutlierFactor

    points = points.double()
    kept = torch.arange(len(points))
    if contamination and len(points) > 1:
        factor = LocalOutlierFactor(min(10, len(points) - 1), contamination=contamination)
        kept = torch.from_numpy(factor.fit_predict(points.numpy()) == 1).nonzero().flatten()
    if len(kept) < k:
        raise TextError(
            f"{len(kept)} of {len(points)} captioned images are left for {k} clusters; caption more, or lower "
            "contamination"
        )
    fitted = KMeans(k, n_init=10, random_state=seed % 2**32).fit(points[kept].numpy())
    if (different := len(set(fitted.labels_.tolist()))) < k:
        raise TextError(f"{len(kept)} captioned images make {different} clusters, not {k}: the others repeat them")
    labels = torch.full((len(points),), -1)
    labels[kept] = torch.from_numpy(fitted.labels_).long()
    return Clusters(points, labels, torch.from_numpy(fitted.cluster_centers_))
