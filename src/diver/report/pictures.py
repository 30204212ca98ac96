"""Figures of the sets' images, from the files of the sets and of a trajectory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diver.report.galleries import gallery, phases
from diver.sets import UNIT, DistilledSet

# Classes whose chains are shown.
CHAINS = 4


def draw_sets(titles: Sequence[str], files: Sequence[str | Path], path: str | Path) -> None:
    """The first image of each class in every set, a row per set. Raises ValueError if a class has no image."""
    sets = [DistilledSet.read(file).in_range(UNIT) for file in files]
    rows = {title: (one.images.numpy(), one.hard_labels().numpy()) for title, one in zip(titles, sets, strict=True)}
    gallery(rows, sets[0].classes, path)


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
