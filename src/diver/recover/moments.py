"""Moments of whole classes of latents, taken in batches in double precision, and how normal they say a class is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from diver.tensorfile import TensorFileError, read_tensors, write_tensors

NORMALITY = ("mean absolute skewness", "mean absolute excess kurtosis", "share rejected by Jarque-Bera at 5 %")
# The 95th percentile of a chi-squared variable with two degrees of freedom.
_JARQUE_BERA = -2 * math.log(0.05)


class StatisticsError(ValueError):
    """A statistics file cannot be used; the message names it and the remedy."""


@dataclass
class RunningMoments:
    """Count, mean and sums of powers 2, 3 and 4 of the deviations from it, per element; float64, of any shape.

    Batches are joined by the exact update of Chan et al. (1979) in Pebay's form for higher powers (2008), so that
    nothing is a difference of large sums.
    """

    mean: Tensor
    second: Tensor
    third: Tensor
    fourth: Tensor
    count: int = 0

    @classmethod
    def of_shape(cls, *shape: int, device: torch.device | str = "cpu") -> Self:
        mean, second, third, fourth = torch.zeros(4, *shape, dtype=torch.float64, device=device).unbind()
        return cls(mean, second, third, fourth)

    def add(self, values: Tensor) -> None:
        """Take in a batch [N, *shape] of any dtype."""
        x = values.to(self.mean)
        a, b = self.count, len(x)
        if not b:
            return
        n, mean = a + b, x.mean(0)
        x = x - mean
        square = x.square()
        second, third, fourth = square.sum(0), (square * x).sum(0), square.square().sum(0)
        d = mean - self.mean
        # From the highest power down: each uses the lower ones as they were.
        self.fourth += (
            fourth
            + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d**2 * (a * a * second + b * b * self.second) / n**2
            + 4 * d * (a * third - b * self.third) / n
        )
        self.third += third + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * second - b * self.second) / n
        self.second += second + d**2 * (a * b / n)
        self.mean += d * (b / n)
        self.count = n

    def variance(self) -> Tensor:
        """Unbiased; needs two values."""
        return self.second / (self.count - 1)

    def skewness(self) -> Tensor:
        """Adjusted for the sample's size (G1); 0 where all values are equal. Needs three values."""
        n = self.count
        raw = n**0.5 * self.third / self.second**1.5
        return torch.where(self.second > 0, raw * (n * (n - 1)) ** 0.5 / (n - 2), 0.0)

    def excess_kurtosis(self) -> Tensor:
        """Adjusted for the sample's size (G2); 0 where all values are equal. Needs four values."""
        n = self.count
        raw = n * self.fourth / self.second**2 - 3
        return torch.where(self.second > 0, ((n + 1) * raw + 6) * (n - 1) / ((n - 2) * (n - 3)), 0.0)

    def jarque_bera(self) -> Tensor:
        """n / 6 (g1^2 + g2^2 / 4) of the plain moments: chi-squared with two degrees of freedom if normal, about."""
        n = self.count
        skew, kurtosis = n**0.5 * self.third / self.second**1.5, n * self.fourth / self.second**2 - 3
        return torch.where(self.second > 0, n / 6 * (skew**2 + kurtosis**2 / 4), 0.0)

    def normality(self) -> Tensor:
        """NORMALITY, float64 [..., 3], over the last dimension of the shape; needs four values."""
        return torch.stack(
            [
                self.skewness().abs().mean(-1),
                self.excess_kurtosis().abs().mean(-1),
                (self.jarque_bera() > _JARQUE_BERA).double().mean(-1),
            ],
            dim=-1,
        )

    def tensors(self) -> dict[str, Tensor]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "count"}


def normal_reference(count: float) -> tuple[float, float, float]:
    """What NORMALITY is about, for `count` values of a normal: sampling noise alone.

    From the exact variances of G1 and G2, as if these were normal themselves.
    """
    n = count
    skewness = 6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3))
    kurtosis = 4 * skewness * (n * n - 1) / ((n - 3) * (n + 5))
    half = (2 / math.pi) ** 0.5
    return half * skewness**0.5, half * kurtosis**0.5, 0.05


@dataclass(frozen=True)
class ClassStatistics:
    """Mean and unbiased variance of every class's latents at some noise levels, as D3HR keeps of a dataset.

    `levels`: indices of the schedule named by `respacing`, rising. `mean`, `variance`, `skewness`: float32
    [classes, levels, c, h, w]. `normality`: NORMALITY, float32 [classes, levels, 3]; `reference`: what it is of
    samples of a normal. `counts`: images of each class. `facts`: what else is recorded (prior, guidance, settings).
    """

    levels: tuple[int, ...]
    timesteps: tuple[float, ...]
    respacing: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    mean: Tensor
    variance: Tensor
    skewness: Tensor
    normality: Tensor
    reference: tuple[float, ...] = ()
    dataset: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_classes(cls, moments: Iterable[RunningMoments], latent_shape: tuple[int, ...], **about: Any) -> Self:
        """From moments of shape [levels, c * h * w], one a class; `about` are the other fields."""
        moments = list(moments)
        rows = [(m.mean, m.variance(), m.skewness(), m.normality()) for m in moments]
        counts = tuple(m.count for m in moments)
        mean, variance, skewness, normality = (torch.stack(column).float().cpu() for column in zip(*rows, strict=True))
        shape = (*mean.shape[:2], *latent_shape)
        return cls(
            mean=mean.view(shape),
            variance=variance.view(shape),
            skewness=skewness.view(shape),
            normality=normality,
            counts=counts,
            reference=normal_reference(sum(counts) / len(counts)),
            **about,
        )

    def at(self, level: int, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [classes, c, h, w] at a level; raises StatisticsError where they do not fit."""
        if level not in self.levels:
            raise StatisticsError(
                f"statistics of {self.dataset}: level {level} was not kept, of {', '.join(map(str, self.levels))}; "
                "add it to the kept levels and save them again"
            )
        if classes != self.classes:
            raise StatisticsError(
                f"statistics of {self.dataset}: made for other classes than the data's; save them again"
            )
        at = self.levels.index(level)
        return self.mean[:, at], self.variance[:, at].sqrt()

    def write(self, path: str | Path) -> None:
        """Write one safetensors file; the levels are in its header."""
        tensors = {name: getattr(self, name) for name in ("mean", "variance", "skewness", "normality")}
        about = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in tensors}
        write_tensors(path, tensors, {"kind": "class statistics", **about})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file of `write`. Raises StatisticsError naming it."""
        try:
            tensors, header = read_tensors(path)
        except TensorFileError as error:
            raise StatisticsError(f"{path}: {error}; save the statistics again") from error
        if header.pop("kind", None) != "class statistics":
            raise StatisticsError(f"{path}: not a file of class statistics")
        try:
            told: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in header.items()
            }
            return cls(**{**told, **tensors})
        except TypeError as error:
            raise StatisticsError(f"{path}: not a file of class statistics of this version ({error})") from error
