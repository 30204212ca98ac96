"""Accuracy along the values of a setting."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diver.config.study import NONE
from diver.report.figures import legend_below, save, style
from diver.report.labels import Labels
from diver.report.statistics import LAST, PROXY, UNSEEN, seed_means, t_interval
from diver.study import MATCHED

LOOKS = {UNSEEN: ("#0072B2", "o", "unseen mean"), PROXY: ("#D55E00", "s", "proxy")}


def sweeps(
    table: pd.DataFrame, labels: Labels, families: Mapping[str, Sequence[str]], path: str | Path
) -> tuple[Path, Path, Path]:
    """A panel per sweep (columns) and stage-1 set with its IPC (rows): means with 95 % intervals over seeds.

    `families`: sweep -> its stage-2 names in order. The stage-1 set without a second stage is a dashed line in its
    role's colour. Matched scale only.
    """
    table = table[table["scale"] == MATCHED]
    points = [name for names in families.values() for name in names]
    keys = ["dataset", "stage1", "ipc"]
    swept = table.loc[table["stage2"].isin(points), keys].drop_duplicates().sort_values(keys)
    panels = [(str(d), str(s), int(i)) for d, s, i in swept.itertuples(index=False, name=None)]
    several = len({dataset for dataset, _, _ in panels}) > 1
    with style():
        size = (3.4 * len(families) + 0.4, 2.7 * len(panels) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(panels), len(families), squeeze=False, sharey="row")
        for row, (dataset, stage1, ipc) in zip(list(grid), panels, strict=True):
            here = table[(table["dataset"] == dataset) & (table["stage1"] == stage1) & (table["ipc"] == ipc)]
            for axes, names in zip(row, families.values(), strict=True):
                _panel(axes, here, names, [_value(labels.stage2.get(name, name)) for name in names])
                title = f"{labels.stage1.get(stage1, stage1)}, IPC {ipc}: {_family(labels, names)}"
                axes.set_title(f"{labels.dataset.get(dataset, dataset)}: {title}" if several else title)
            row[0].set_ylabel("accuracy (%)")
        handles, _ = grid[0, 0].get_legend_handles_labels()
        legend_below(figure, handles, 4)
        return save(figure, path)


def _family(labels: Labels, names: Sequence[str]) -> str:
    """What the labels of a sweep's points have in common."""
    first = labels.stage2.get(names[0], names[0]).split(" ")
    common = [word for i, word in enumerate(first) if all(_word(labels, name, i) == word for name in names)]
    return " ".join(common) or names[0]


def _word(labels: Labels, name: str, i: int) -> str | None:
    words = labels.stage2.get(name, name).split(" ")
    return words[i] if i < len(words) else None


def _value(label: str) -> str:
    """A point's value: the end of its label."""
    words = label.split(" ")
    return "\n".join(words[-3:]) if len(words) > 2 and words[-2] == "to" else words[-1]


def _panel(axes: Axes, table: pd.DataFrame, names: Sequence[str], ticks: Sequence[str]) -> None:
    for shift, (role, (colour, marker, label)) in zip((-0.08, 0.08), LOOKS.items(), strict=True):
        mine = table[table["role"] == role]
        # A sweep may be applied to some stage-1 sets only.
        here = [i for i, name in enumerate(names) if (mine["stage2"] == name).any()]
        intervals = [t_interval(seed_means(mine[mine["stage2"] == names[i]], LAST)) for i in here]
        mean = np.array([one.mean for one in intervals])
        half = np.nan_to_num([one.half_width for one in intervals])
        x = np.array(here) + shift
        axes.errorbar(x, mean, yerr=half, color=colour, marker=marker, capsize=2.5, linewidth=1.3, label=label)
        alone = mine[mine["stage2"] == NONE]
        if len(alone):
            level = t_interval(seed_means(alone, LAST)).mean
            axes.axhline(level, color=colour, linestyle="--", linewidth=1, label=f"{label}, stage-1 set")
    axes.set_xticks(range(len(names)), ticks, fontsize=8)
