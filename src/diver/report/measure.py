"""Measures sets of a dataset against its real training images, all of them by the same features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from diver.data.prepared import Prepared
from diver.networks.weights import Trained, embed
from diver.report.quality import (
    NEIGHBOURS,
    coverage,
    density,
    frechet_distance,
    high_frequency_energy,
    neighbour_radii,
)

# Side of the images that stand for themselves where there is no network to encode them.
SIDE = 8
CHUNK = 256


@dataclass(frozen=True)
class Extractor:
    """Standardised float32 images [n, C, S, S] to features [n, D]; accuracy in percent of the test images, if known."""

    name: str
    accuracy: float | None
    features: Callable[[Tensor], Tensor]

    @classmethod
    def of_teacher(cls, trained: Trained) -> Self:
        """The input of the network's last linear layer."""
        return cls(f"teacher {trained.name}", trained.accuracy, lambda images: embed(trained.network, images, CHUNK))

    @classmethod
    def of_pixels(cls) -> Self:
        """The pixels of the images at `SIDE` x `SIDE`."""

        def shrink(images: Tensor) -> Tensor:
            return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False).flatten(1)

        return cls(f"pixels at {SIDE} x {SIDE}", None, shrink)


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images that sets are measured against.

    features: float64 [N, D]; labels: int64 [N]; radii, class_radii: float64 [N], to the k-th neighbour among all and
    among those of the own class; high_frequency: mean share of their energy.
    """

    extractor: Extractor
    features: Tensor
    labels: Tensor
    radii: Tensor
    class_radii: Tensor
    high_frequency: float
    seed: int

    @classmethod
    def of(cls, data: Prepared, extractor: Extractor, per_class: int, seed: int = 0) -> Self:
        """At most `per_class` training images of each class, drawn by `seed`; every class needs more than k of them."""
        chosen = _draw(data.train_labels, len(data.classes), per_class, seed)
        features, shares = [], []
        for part in chosen.split(CHUNK):
            images = data.standardised(data.train_images[part])
            features.append(extractor.features(images).double())
            shares.append(high_frequency_energy(images))
        points, labels = torch.cat(features), data.train_labels[chosen]
        within = torch.empty(len(points), dtype=torch.float64)
        for one in labels.unique():
            within[labels == one] = neighbour_radii(points[labels == one])
        high = float(torch.cat(shares).mean())
        return cls(extractor, points, labels, neighbour_radii(points), within, high, seed)

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Measures of a set's images [n, C, S, S], as students get them, with labels [n]; and what they rest on."""
        high = float(high_frequency_energy(images).mean())
        features = self.extractor.features(images).double()
        return {
            "images": len(images),
            "high_frequency": high,
            "high_frequency_ratio": high / self.high_frequency,
            "frechet": frechet_distance(features, self.features),
            "coverage": coverage(self.features, features, radii=self.radii),
            "coverage_by_class": self._coverage_by_class(features, labels),
            "density": density(self.features, features, radii=self.radii),
            "neighbours": NEIGHBOURS,
            "extractor": self.extractor.name,
            "extractor_accuracy": self.extractor.accuracy,
            "features": self.features.shape[1],
            "reference_images": len(self.features),
            "reference_seed": self.seed,
            "reference_high_frequency": self.high_frequency,
        }

    def _coverage_by_class(self, features: Tensor, labels: Tensor) -> float:
        """Mean over the classes of the coverage of each class's real images by its own synthetic ones."""
        every = []
        for one in self.labels.unique():
            real, own = self.labels == one, features[labels == one]
            every.append(coverage(self.features[real], own, radii=self.class_radii[real]) if len(own) else 0.0)
        return sum(every) / len(every)


def _draw(labels: Tensor, classes: int, per_class: int, seed: int) -> Tensor:
    """Positions of at most `per_class` images of each class, rising."""
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == one).nonzero().flatten() for one in range(classes)]
    drawn = [own[torch.randperm(len(own), generator=generator)[:per_class]] for own in members]
    return torch.cat(drawn).sort().values
