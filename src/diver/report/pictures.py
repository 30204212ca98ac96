"""Figures of the sets' images, from the files of the sets and of a trajectory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diver.config.report import CHAINS
from diver.report.galleries import gallery, phases
from diver.sets import UNIT, DistilledSet

# Classes of a gallery, which would be no picture with a thousand.
CLASSES = 20


def draw_sets(titles: Sequence[str], files: Sequence[str | Path], path: str | Path) -> None:
    """The first image of each class, of at most CLASSES, in every set, a row per set."""
    rows: list[tuple[str, np.ndarray, range]] = []
    names: tuple[str, ...] = ()
    for title, file in zip(titles, files, strict=True):
        one = DistilledSet.read(file)
        names = one.classes[:CLASSES]
        # A copy, so that one set at a time is in memory.
        firsts = one.images[:: one.ipc][: len(names)].clone()
        rows.append((title, one.value_range.convert(firsts, UNIT).numpy(), range(len(names))))
    gallery(rows, names, path)


def draw_trace(file: str | Path, path: str | Path) -> None:
    """The predicted clean images along the recorded chains of the first image of a few classes."""
    trace = np.load(file)
    low, high = trace["window"].tolist()
    phases(
        (trace["images"][:, :CHAINS] + 1) / 2,
        trace["indices"].tolist(),
        trace["timesteps"].tolist(),
        (low, high),
        path,
        rows=trace["classes"][:CHAINS].tolist(),
    )
