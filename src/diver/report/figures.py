"""Figures of a study, as PNG, SVG and PDF whose bytes depend on the data only.

A treatment keeps its colour and marker in every figure; both come from its place in the labels.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from diver.config.study import NONE
from diver.report.labels import Labels, ordered
from diver.report.statistics import (
    LAST,
    PROXY,
    UNSEEN,
    Cell,
    by_student,
    cells,
    seed_means,
    students_of,
    t_interval,
    unseen_by_seed,
)
from diver.study import FULL, MATCHED

DPI = 150
FORMS = (".png", ".svg", ".pdf")
MARKERS = "osD^vPX*<>"
GREY = "#666666"
# Okabe and Ito (2008), for colour-blind readers; the first, of the set that all are compared with, is grey.
PALETTE = (GREY, "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#000000")
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
UNSEEN_MEAN = "unseen\nmean"


@contextmanager
def style() -> Iterator[None]:
    """Look of all figures; the fixed salt makes the identifiers in an SVG the same in every run."""
    look: dict[Any, Any] = {
        "svg.hashsalt": "diver",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
        "font.family": "DejaVu Sans",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "figure.facecolor": "white",
        "axes.grid.axis": "y",
        "grid.color": "#E2E2E2",
    }
    with matplotlib.rc_context(), sns.axes_style("whitegrid"):
        matplotlib.rcParams.update(look)
        yield


def save(figure: Figure, path: str | Path) -> tuple[Path, Path, Path]:
    """Write all forms beside each other; `path` is one of them, or their name without a suffix."""
    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix in FORMS else stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg, pdf = (stem.parent / f"{stem.name}{suffix}" for suffix in FORMS)
    # Versions and dates in the metadata would change the bytes without a change of the figure.
    figure.savefig(png, dpi=DPI, metadata={"Software": None})
    figure.savefig(svg, dpi=DPI, metadata={"Date": None, "Creator": None})
    figure.savefig(pdf, dpi=DPI, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return png, svg, pdf


def _colours(labels: Labels, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each stage-2 name, by its place in the labels."""
    every = [*labels.stage2, *(name for name in names if name not in labels.stage2)]
    return {name: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(every)}


def cross_architecture(
    table: pd.DataFrame,
    labels: Labels,
    path: str | Path,
) -> tuple[Path, Path, Path]:
    """Accuracy of every architecture and of the unseen mean, with intervals over seeds; matched scale.

    A panel for each stage-1 set (rows; of each dataset when there are several) and IPC (columns), a colour for each
    stage-2 treatment. Stage-1 sets without any are left to `references`, unless all are.
    """
    treated = table.loc[table["stage2"] != NONE, "stage1"].unique()
    table = table[table["stage1"].isin(treated)] if len(treated) else table[table["stage1"] != FULL]
    shown = table[table["scale"] == MATCHED]
    names = list(ordered(labels.stage2, shown["stage2"]))
    chosen = labels.order_cells(cells(shown))
    panels = list(dict.fromkeys((one.dataset, one.stage1) for one in chosen))
    ipcs = sorted({one.ipc for one in chosen})
    points = _architecture_points(shown, labels)
    networks = [labels.architecture.get(one, one) for one in ordered(labels.architecture, shown["architecture"])]
    order = [_tick(name, role) for name in networks for role in (PROXY, UNSEEN)] + [UNSEEN_MEAN]
    colours = _colours(labels, names)
    # Datasets may have other students, whose places on an axis are other ones.
    alike = len({frozenset(own) for _, own in points.groupby("dataset")["place"]}) == 1
    with style():
        figure = Figure(
            figsize=(4.6 * max(1.0, len(names) / 8) * len(ipcs) + 0.4, 2.75 * len(panels) + 0.75), layout="constrained"
        )
        grid = figure.subplots(len(panels), len(ipcs), squeeze=False, sharex=alike, sharey="col")
        for i, (dataset, stage1) in enumerate(panels):
            for j, ipc in enumerate(ipcs):
                mine = points[(points.dataset == dataset) & (points.stage1 == stage1) & (points.ipc == ipc)]
                _point_panel(grid[i, j], mine, order, [name for name in names if name in set(mine.stage2)], colours)
                title = f"{labels.stage1.get(stage1, stage1)}, IPC {ipc}"
                several = len({one for one, _ in panels}) > 1
                grid[i, j].set_title(f"{labels.dataset.get(dataset, dataset)}: {title}" if several else title)
                grid[i, j].set_ylabel("test accuracy (%)" if j == 0 else "")
                if mine.empty and not alike:
                    grid[i, j].set_xticks([])
        _legend(figure, names, labels, colours)
        return save(figure, path)


def _tick(label: str, role: str) -> str:
    """Label of an architecture on the axis, saying that it is a proxy."""
    return f"{label}\n(proxy)" if role == PROXY else label


def _architecture_points(table: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """A row per point that the figure averages over seeds: the cell, `place` on the axis, seed, accuracy."""
    records = []
    for cell in cells(table):
        rows = students_of(table, cell)
        students = by_student(rows).reset_index()
        roles = dict(zip(rows["architecture"], rows["role"], strict=True))
        for seed, architecture, value in students.itertuples(index=False, name=None):
            place = _tick(labels.architecture.get(architecture, architecture), roles[architecture])
            records.append({**cell._asdict(), "place": place, "seed": seed, LAST: value})
        unseen = rows[rows["role"] == UNSEEN]
        means = seed_means(unseen) if len(unseen) else pd.Series(dtype=float)
        records.extend({**cell._asdict(), "place": UNSEEN_MEAN, "seed": s, LAST: value} for s, value in means.items())
    return pd.DataFrame(records)


def _bounds(values: ArrayLike) -> tuple[float, float]:
    interval = t_interval(values)
    return interval.low, interval.high


def _point_panel(
    axes: Axes,
    points: pd.DataFrame,
    order: Sequence[str],
    names: Sequence[str],
    colours: Mapping[str, tuple[str, str]],
) -> None:
    places = [place for place in order if place in set(points["place"])]
    sns.pointplot(
        data=points,
        x="place",
        y=LAST,
        hue="stage2",
        order=places,
        hue_order=list(names),
        palette=[colours[name][0] for name in names],
        markers=[colours[name][1] for name in names],
        linestyles="none",
        errorbar=_bounds,
        dodge=min(0.11 * len(names), 0.8) if len(names) > 1 else False,
        markersize=5.5,
        err_kws={"linewidth": 1.4},
        legend=False,
        ax=axes,
    )
    axes.set_xlabel("")
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    # A set that the study does not have at an IPC has no place, and panels that share the axis keep theirs.
    if not places:
        return
    if UNSEEN_MEAN in places:
        axes.axvspan(len(places) - 1.5, len(places) - 0.5, color="#F1F1F1", zorder=0, linewidth=0)
    axes.set_xlim(-0.5, len(places) - 0.5)


def _legend(figure: Figure, names: Sequence[str], labels: Labels, colours: Mapping[str, tuple[str, str]]) -> None:
    handles = [
        Line2D([], [], color=colours[name][0], marker=colours[name][1], linestyle="none", markersize=6.5, label=label)
        for name in names
        for label in [labels.stage2.get(name, name)]
    ]
    legend_below(figure, handles, min(4, len(names)), columnspacing=1.6)


def legend_below(figure: Figure, handles: Sequence[Any], columns: int, **look: Any) -> None:
    """A legend below the panels, in so many columns or as many as the figure is wide enough for."""
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, **look)
    renderer = FigureCanvasAgg(figure).get_renderer()
    while columns > 1 and legend.get_window_extent(renderer).width > figure.bbox.width:
        legend.remove()
        columns -= 1
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, **look)


def ladder(
    table: pd.DataFrame,
    labels: Labels,
    path: str | Path,
    stage1: str,
    steps: Sequence[str],
) -> tuple[Path, Path, Path]:
    """Accuracy along the steps of a ladder on one stage-1 set: unseen mean and proxy, a panel per dataset and IPC.

    Points are means with intervals over seeds, joined in the order of `steps` (stage-2 names); matched scale.
    """
    chosen = [
        one
        for one in labels.order_cells(cells(table))
        if one.stage1 == stage1 and one.scale == MATCHED and one.stage2 in steps
    ]
    panels = list(dict.fromkeys((one.dataset, one.ipc) for one in chosen))
    ticks = ["\n".join(textwrap.wrap(labels.stage2.get(name, name), 12)) for name in steps]
    looks: dict[str, tuple[Any, ...]] = {
        UNSEEN: ("#0072B2", "o", "-", "unseen mean"),
        PROXY: ("#D55E00", "s", "--", "proxy"),
    }
    with style():
        figure = Figure(figsize=(max(3.2, 0.92 * len(steps) + 0.5) * len(panels), 4.0), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (dataset, ipc) in zip(grid, panels, strict=True):
            here = [one for one in chosen if (one.dataset, one.ipc) == (dataset, ipc)]
            for shift, (role, (colour, marker, line, _)) in zip((-0.06, 0.06), looks.items(), strict=True):
                _joined(axes, table, here, steps, role, shift, {"color": colour, "marker": marker, "linestyle": line})
            axes.set_xticks(range(len(steps)), ticks, fontsize=8.5)
            axes.set_xlim(-0.4, len(steps) - 0.6)
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            several = len({one for one, _ in panels}) > 1
            axes.set_title(f"{labels.dataset.get(dataset, dataset)}, IPC {ipc}" if several else f"IPC {ipc}")
        grid[0].set_ylabel("test accuracy (%)")
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle=line, label=name)
            for role, (colour, marker, line, name) in looks.items()
            if role in set(table["role"])
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        return save(figure, path)


def _joined(
    axes: Axes,
    table: pd.DataFrame,
    chosen: Sequence[Any],
    steps: Sequence[str],
    role: str,
    shift: float,
    look: dict[str, Any],
) -> None:
    of_role = table[table["role"] == role]
    by_step = {one.stage2: students_of(of_role, one) for one in chosen}
    present = [name for name in steps if name in by_step and len(by_step[name])]
    intervals = [t_interval(seed_means(by_step[name])) for name in present]
    if not intervals:
        return
    x = [steps.index(name) + shift for name in present]
    y = [one.mean for one in intervals]
    half = np.nan_to_num([one.half_width for one in intervals])
    axes.errorbar(x, y, yerr=half, markersize=6, linewidth=1.4, elinewidth=1.4, capsize=3, **look)


def references(table: pd.DataFrame, labels: Labels, path: str | Path) -> tuple[Path, Path, Path]:
    """Floor and ceiling: unseen mean of every stage-1 set by itself, and of the whole training set as a dashed line.

    A panel per dataset, a place for each IPC, a colour for each stage-1 set; intervals over seeds, matched scale.
    """
    alone = table[(table["scale"] == MATCHED) & (table["stage2"] == NONE)]
    points = unseen_by_seed(alone)
    datasets = ordered(labels.dataset, points["dataset"])
    names = [name for name in ordered(labels.stage1, points["stage1"]) if name != FULL]
    colours = _colours(Labels(stage2=labels.stage1), names)
    with style():
        figure = Figure(figsize=(5.4 * len(datasets) + 0.4, 4.0), layout="constrained")
        grid = figure.subplots(1, len(datasets), squeeze=False)[0]
        for axes, dataset in zip(grid, datasets, strict=True):
            mine = points[points["dataset"] == dataset]
            sets = mine[mine["stage1"] != FULL]
            places = [f"IPC {ipc}" for ipc in sorted(sets["ipc"].unique())]
            sets = sets.assign(place=[f"IPC {ipc}" for ipc in sets["ipc"]], stage2=sets["stage1"])
            _point_panel(axes, sets, places, [name for name in names if name in set(sets["stage1"])], colours)
            ceiling = mine.loc[mine["stage1"] == FULL, LAST]
            if len(ceiling):
                level = t_interval(ceiling)
                axes.axhline(level.mean, color="#000000", linewidth=1.2, linestyle="--", zorder=1)
                text = f"{labels.stage1.get(FULL, FULL)}: {level.mean:.1f}"
                axes.annotate(
                    text,
                    (0.02, level.mean),
                    (0, -4),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="top",
                    fontsize=9,
                )
            axes.set_title(labels.dataset.get(dataset, dataset))
            axes.set_ylabel("unseen mean, test accuracy (%)" if dataset == datasets[0] else "")
        _legend(figure, names, Labels(stage2=labels.stage1), colours)
        return save(figure, path)


def quality(table: pd.DataFrame, labels: Labels, path: str | Path) -> tuple[Path, Path, Path]:
    """High-frequency energy over that of real images (log axis) and Fréchet distance to real images of every set.

    A row of two panels for each dataset and IPC, with a line for each set in the colour and marker of its treatment.
    `table`: a row per set, of `Reference.measure` with the set's names.
    """
    rows = labels.sets_in_order(table)
    places = list(dict.fromkeys((cell.dataset, cell.ipc) for cell, _ in rows))
    chosen = [[(cell, row) for cell, row in rows if (cell.dataset, cell.ipc) == place] for place in places]
    colours = _colours(labels, ordered(labels.stage2, table["stage2"]))
    several = len({dataset for dataset, _ in places}) > 1
    with style():
        heights = [len(here) + 2.5 for here in chosen]
        figure = Figure(figsize=(9.4, 0.23 * sum(heights) + 0.4), layout="constrained")
        grid = figure.subplots(len(places), 2, squeeze=False, sharey="row", height_ratios=heights)
        for (left, right), (dataset, ipc), here in zip(grid, places, chosen, strict=True):
            _set_panel(left, here, "high_frequency_ratio", colours)
            _set_panel(right, here, "frechet", colours)
            _ratio_axis(left, table["high_frequency_ratio"])
            left.set_yticks(range(len(here)), [_set_name(cell, labels) for cell, _ in here])
            left.set_ylim(len(here) - 0.4, -0.6)
            title = f"{labels.dataset.get(dataset, dataset)}, IPC {ipc}" if several else f"IPC {ipc}"
            left.set_title(f"{title}: high-frequency energy")
            right.set_title(f"{title}: Fréchet distance")
        grid[-1, 0].set_xlabel("share of energy, ratio to real images (dashed)")
        grid[-1, 1].set_xlabel("distance to real images in features")
        return save(figure, path)


def _set_name(cell: Cell, labels: Labels) -> str:
    first = labels.stage1.get(cell.stage1, cell.stage1)
    return first if cell.stage2 == NONE else f"{first}, {labels.treatment(cell)}"


def _set_panel(
    axes: Axes, rows: Sequence[tuple[Cell, Mapping[Any, Any]]], value: str, colours: Mapping[str, tuple[str, str]]
) -> None:
    """One measure of the sets, the first at the top; thin lines between those of different stage-1 sets."""
    for place, (cell, row) in enumerate(rows):
        colour, marker = colours[cell.stage2]
        axes.plot(row[value], place, color=colour, marker=marker, markersize=6.5, linestyle="none")
    for place, ((before, _), (after, _)) in enumerate(zip(rows, rows[1:], strict=False)):
        if before.stage1 != after.stage1:
            axes.axhline(place + 0.5, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)


def _ratio_axis(axes: Axes, ratios: pd.Series) -> None:
    """A log axis with room for all ratios, whole factors as ticks, and a dashed line at 1."""
    low, high = min(0.5, ratios.min()) / 1.2, max(2.0, ratios.max()) * 1.2
    ticks = [factor * 10.0**power for power in range(-6, 7) for factor in (1, 2, 5)]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvline(1, color="#000000", linewidth=1.2, linestyle="--", zorder=1)
