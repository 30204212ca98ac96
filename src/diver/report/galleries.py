"""Pictures of images, shown pixel by pixel (nearest neighbour): sets beside each other, and a chain on its way."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from diver.report.figures import DPI, save, style

PHASES = (("chaotic", "#D55E00"), ("semantic", "#0072B2"), ("refinement", "#117755"))
IMAGE_PIXELS = 96
# Upper estimate of the width of a bold letter of 10 points, in pixels.
BOLD_WIDTH = 12.5
GAP = 4


def _as_rgb(images: ArrayLike) -> NDArray[np.float32]:
    """Images [..., C, H, W] with one or three channels as [..., H, W, 3] clipped to [0, 1]."""
    array = np.moveaxis(np.asarray(images, dtype=np.float32), -3, -1)
    if array.shape[-1] not in (1, 3):
        raise ValueError(f"images have {array.shape[-1]} channels; one or three can be shown")
    return np.clip(np.broadcast_to(array, (*array.shape[:-1], 3)), 0, 1)


def _mosaic(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], int, int]:
    """Images [rows, columns, H, W, 3] side by side on white; also the height and width of an enlarged image."""
    factor = max(1, round(IMAGE_PIXELS / max(images.shape[2:4])))
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    rows, columns, height, width, _ = large.shape
    canvas = np.ones((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), dtype=np.float32)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = large[i, j]
    return canvas, height, width


def _show_mosaic(canvas: NDArray[np.float32], left: float, top: float) -> tuple[Figure, Axes]:
    """A figure that shows the canvas pixel for pixel, with margins in inches for text at its left and top."""
    height, width = canvas.shape[0] / DPI, canvas.shape[1] / DPI
    margin = 0.08
    total = (left + width + margin, top + height + margin)
    figure = Figure(figsize=total)
    axes = figure.add_axes((left / total[0], margin / total[1], width / total[0], height / total[1]))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.axis("off")
    return figure, axes


def _row_titles(axes: Axes, titles: Sequence[str], height: int, shift: float = 0) -> None:
    for i, title in enumerate(titles):
        middle = i * (height + GAP) + height / 2
        text = "\n".join(textwrap.wrap(title, 16))
        axes.text(-GAP * 2, middle + shift, text, ha="right", va="center", fontsize=10)


def _left_margin(titles: Sequence[str]) -> float:
    """Inches that wrapped row titles need."""
    longest = max((len(line) for title in titles for line in textwrap.wrap(title, 16)), default=0)
    return 0.15 + 0.092 * longest


def gallery(
    sets: Sequence[tuple[str, ArrayLike, ArrayLike]], classes: Sequence[str], path: str | Path
) -> tuple[Path, Path, Path]:
    """One row per set and one column per class: the first image of the class, so that columns show the same image.

    `sets`: (row title, images [N, C, H, W] nominally in [0, 1], integer labels [N]); values outside are clipped for
    display. Sets of different image sizes are brought to the largest by whole factors where that fits.
    Raises ValueError if a class has no image.
    """
    rows = []
    for title, images, labels in sets:
        found, array = np.asarray(labels), _as_rgb(images)
        firsts = [np.flatnonzero(found == i) for i in range(len(classes))]
        if empty := [classes[i] for i, first in enumerate(firsts) if not len(first)]:
            raise ValueError(f"{title}: no image of class {', '.join(empty)}")
        rows.append(array[[first[0] for first in firsts]])
    size = max(row.shape[1] for row in rows)
    canvas, height, width = _mosaic(np.stack([_enlarge(row, size) for row in rows]))
    titles = [title for title, *_ in sets]
    with style():
        figure, axes = _show_mosaic(canvas, _left_margin(titles), 0.3)
        _row_titles(axes, titles, height)
        for j, name in enumerate(classes):
            middle = j * (width + GAP) + width / 2
            text = textwrap.shorten(name.replace("_", " "), 11, placeholder="…") if len(name) > 11 else name
            axes.text(middle, -GAP * 2, text, ha="center", va="bottom", fontsize=8.5)
        return save(figure, path)


def _enlarge(images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Square images [N, S, S, 3] to the given size by nearest neighbour."""
    index = (np.arange(size) * images.shape[1]) // size
    return images[:, index][:, :, index]


def phases(
    images: ArrayLike,
    indices: Sequence[int],
    timesteps: Sequence[int],
    window: tuple[int, int],
    path: str | Path,
    rows: Sequence[str] = (),
    columns: int = 12,
) -> tuple[Path, Path, Path]:
    """The predicted clean image along one chain, from the noisy end to the clean one, under the names of its phases.

    `images`: [K, C, H, W] or, for several chains as rows, [K, N, C, H, W], nominally in [0, 1].
    `indices`, `timesteps`: [K], of the respaced and of the full schedule, falling. `window`: lowest and highest index
    with guidance, both included. `rows`: titles of the N rows. `columns`: how many of the K to show, evenly spaced.
    """
    array = _as_rgb(images)
    array = array[:, None] if array.ndim == 4 else array
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(columns, len(indices))).round().astype(int))
    canvas, height, width = _mosaic(np.moveaxis(array[chosen], 0, 1))
    k, t = ([int(values[i]) for i in chosen] for values in (indices, timesteps))
    with style():
        figure, axes = _show_mosaic(canvas, _left_margin(rows) if rows else 0.08, 0.75)
        _row_titles(axes, rows, height)
        for j in range(len(chosen)):
            middle = j * (width + GAP) + width / 2
            text = f"k={k[j]}\nt={t[j]}"
            axes.text(middle, -GAP * 2, text, ha="center", va="bottom", fontsize=8.5, color="#333333")
        phase = [0 if one > window[1] else 1 if one >= window[0] else 2 for one in k]
        _phase_bars(axes, phase, width)
        return save(figure, path)


def _phase_bars(axes: Axes, phase: Sequence[int], width: int) -> None:
    """A coloured line with its phase's name over the columns of each phase."""
    notes = ("label only", "label + guidance", "label only")
    level = -GAP * 2 - 54
    for number in sorted(set(phase)):
        name, colour = PHASES[number]
        first, last = phase.index(number), len(phase) - 1 - phase[::-1].index(number)
        left, right = first * (width + GAP), last * (width + GAP) + width
        axes.plot([left, right], [level, level], color=colour, linewidth=4, clip_on=False, solid_capstyle="butt")
        # A narrow phase has room for its name only.
        text = f"{name} ({notes[number]})"
        text = text if len(text) * BOLD_WIDTH <= right - left else name
        axes.text((left + right) / 2, level - 9, text, ha="center", va="bottom", color=colour, weight="bold")
    axes.set_autoscale_on(False)
