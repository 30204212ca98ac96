"""A picture of the workflow: its rules in layers, each below what it needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diver.report.figures import GREY, PALETTE, save, style

BOX, ROW, COLUMN = 0.34, 0.95, 1.75
SWEEPS = 24


def layers(edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Rules in rows: a rule stands one row below the lowest that it needs, ordered so that edges cross little.

    `edges`: (needed, needing). Raises ValueError for a cycle.
    """
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    before: dict[str, list[str]] = {name: [a for a, b in edges if b == name] for name in names}
    after: dict[str, list[str]] = {name: [b for a, b in edges if a == name] for name in names}
    depth: dict[str, int] = {}
    while len(depth) < len(names):
        ready = [name for name in names if name not in depth and all(one in depth for one in before[name])]
        if not ready:
            raise ValueError(f"rules need each other in a circle: {', '.join(set(names) - set(depth))}")
        depth.update({name: 1 + max((depth[one] for one in before[name]), default=-1) for name in ready})
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in names:
        rows[depth[name]].append(name)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        place = {name: (i + 0.5) / len(row) for row in rows for i, name in enumerate(row)}
        for row in rows if down else rows[::-1]:
            near = before if down else after
            means = {
                name: sum(place[one] for one in near[name]) / len(near[name]) if near[name] else place[name]
                for name in row
            }
            row.sort(key=lambda name, means=means: (means[name], name))  # type: ignore[misc]
            place.update({name: (i + 0.5) / len(row) for i, name in enumerate(row)})
    return rows


def draw_rulegraph(
    edges: Sequence[tuple[str, str]], phases: Mapping[str, str], path: str | Path
) -> tuple[Path, Path, Path]:
    """`edges`: (needed rule, needing rule). `phases`: the phase of each rule, a colour each."""
    rows = layers(edges)
    widest = max(len(row) for row in rows)
    at = {
        name: ((i + 0.5) * widest / len(row) * COLUMN, -j * ROW)
        for j, row in enumerate(rows)
        for i, name in enumerate(row)
    }
    kinds = list(dict.fromkeys(phases[name] for row in rows for name in row))
    colours = {kind: PALETTE[1:][i % len(PALETTE[1:])] for i, kind in enumerate(kinds)}
    with style():
        figure = Figure(figsize=(widest * COLUMN + 0.3, len(rows) * ROW + 0.5), layout="constrained")
        axes = figure.subplots()
        for needed, needing in edges:
            _edge(axes, at[needed], at[needing])
        for name, (x, y) in at.items():
            colour = colours[phases[name]]
            text = name.replace("_", " ")
            axes.text(
                x, y, text, ha="center", va="center", fontsize=9, zorder=3,
                bbox={"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour, "linewidth": 1.8},
            )  # fmt: skip
        for kind, colour in colours.items():
            axes.plot([], [], color=colour, linewidth=4, label=kind)
        axes.set_xlim(0, widest * COLUMN)
        axes.set_ylim(-(len(rows) - 1) * ROW - 0.4, 0.4)
        axes.axis("off")
        figure.legend(loc="outside lower center", ncols=min(7, len(kinds)))
        return save(figure, path)


def _edge(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "",
        (end[0], end[1] + BOX / 2),
        (start[0], start[1] - BOX / 2),
        arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 0.9, "alpha": 0.7, "shrinkA": 0, "shrinkB": 2},
    )
