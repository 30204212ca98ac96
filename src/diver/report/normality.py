"""How normal D3HR's inverted classes are at each noise level: a figure of the statistics files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diver.report.figures import GREY, SERIES, legend_below, save, style
from diver.tensorfile import TensorFileError, read_tensors

PANELS = ("mean |skewness|", "mean |excess kurtosis|", "rejected by Jarque-Bera (%)")


@dataclass(frozen=True)
class Normality:
    """`timesteps`: [L], rising. `values`: [classes, L, 3], a row a PANELS. `reference`: those of normal samples."""

    timesteps: tuple[float, ...]
    values: NDArray[np.float64]
    reference: tuple[float, ...]
    level: int

    @classmethod
    def read(cls, path: str | Path) -> "Normality":
        """Of a statistics file. Raises ValueError naming it."""
        try:
            tensors, header = read_tensors(path)
            values = tensors["normality"].double().numpy() * (1, 1, 100)
            first, second, third = header["reference"]
            return cls(tuple(header["timesteps"]), values, (first, second, 100 * third), header["facts"]["level"])
        except (TensorFileError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: no statistics whose normality can be drawn ({error})") from error


def draw_normality(entries: Sequence[tuple[str, Normality]], path: str | Path) -> tuple[Path, ...]:
    """A panel per measure over the timestep: the mean over classes with the span of all classes, a colour an entry.

    A dotted line is what samples of a normal of as many images give. Written as PNG, SVG and PDF.
    """
    with style():
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        axes = figure.subplots(1, len(PANELS))
        for i, (axis, title) in enumerate(zip(axes, PANELS, strict=True)):
            for (name, one), colour in zip(entries, _colours(len(entries)), strict=True):
                mean, low, high = (f(one.values[:, :, i], axis=0) for f in (np.mean, np.min, np.max))
                axis.fill_between(one.timesteps, low, high, color=colour, alpha=0.18, linewidth=0)
                axis.plot(one.timesteps, mean, "o-", color=colour, markersize=3.5, label=name if i == 0 else None)
            heights = {one.reference[i] for _, one in entries}
            for j, height in enumerate(sorted(heights)):
                label = "normal samples" if i == 0 and j == 0 else None
                axis.axhline(height, color=GREY, linestyle=":", linewidth=1.2, label=label)
            axis.set_title(title)
            axis.set_xlabel("timestep of the inversion")
            axis.set_ylim(bottom=0)
        handles, _ = axes[0].get_legend_handles_labels()
        legend_below(figure, handles, len(entries) + 1)
        return save(figure, path)


def _colours(count: int) -> Sequence[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]
