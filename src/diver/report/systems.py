"""Diffusion-native systems side by side: accuracy, what DIVER on top adds, what their sets cost, published numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from diver.config.study import NONE
from diver.report.forms import Table
from diver.report.labels import Labels
from diver.report.published import ACCURACY
from diver.report.statistics import (
    LEVEL,
    PROXY,
    UNSEEN,
    Cell,
    cells,
    compare,
    stage1_pairs,
    students_of,
)
from diver.report.tables import (
    MISSING,
    accuracy,
    correction_lines,
    difference_text,
    diverged_lines,
    protocol_lines,
    seeds_text,
    without_constant,
)
from diver.study import MATCHED, SetCell

NO_DATASET, NO_IPC = "no published number at this dataset", "no published number at this IPC"

# What names a row, and what is kept of a difference.
NAMES = ("Dataset", "IPC", "Set", "Stage 2")
KEPT = ("mean", "low", "high", "p_holm")


@dataclass(frozen=True)
class Cost:
    """Seconds that a set cost: making it of what was prepared, its own preparation, and the one that systems share.

    On the clock, for Snakemake takes a job's processor time now and then and misses most of a short one's. NaN where it
    was not recorded.
    """

    making: float
    own: float
    shared: float


def time_of(paths: Sequence[str | Path]) -> float:
    """Seconds: the sum over the benchmarks of rules, the mean of repetitions of each; NaN if one is not there."""
    seconds = 0.0
    for path in paths:
        try:
            seconds += float(pd.read_csv(path, sep="\t", na_values=["NA", "-"])["s"].mean())
        except (OSError, ValueError, KeyError):
            return math.nan
    return seconds


def systems(
    table: pd.DataFrame,
    labels: Labels,
    methods: Mapping[str, str],
    natives: Sequence[str],
    costs: Mapping[SetCell, Cost],
    classes: Mapping[str, int],
    published: pd.DataFrame | None = None,
    datasets: Mapping[str, str] | None = None,
) -> Table:
    """A row per set of the study at the matched scale: systems, what stage 2 makes of them, and the other sets.

    `table`: the tidy table of one study. `methods`: the method of each stage-1 entry; `natives`: entries that are
    diffusion-native systems. Systems are compared with the first entry that is none, if there is one, and sets of
    stage 2 with what they were made of; all comparisons are corrected together. `classes`: their number by dataset.
    `datasets`: the name of each in the file of published numbers; its label when left out.
    Raises StatisticsError if students are missing.
    """
    rows = [cell for cell in labels.order_cells(cells(table)) if cell.scale == MATCHED]
    control = next((name for name in methods if name not in natives), None)
    pairs = [pair for pair in stage1_pairs(table) if pair[0] in rows]
    if control is not None:
        systems_own = [cell for cell in rows if cell.stage2 == NONE and cell.stage1 in natives]
        pairs += [(cell, cell._replace(stage1=control)) for cell in systems_own]
    differences = compare(table, [(a, b) for a, b in pairs if b in rows])
    display, data = [], []
    for cell in rows:
        students = students_of(table, cell)
        numbers: dict[str, Any] = dict(
            cell._asdict(), method=methods.get(cell.stage1, ""), native=cell.stage1 in natives
        )
        texts: dict[str, str] = {
            "Dataset": labels.dataset.get(cell.dataset, cell.dataset),
            "IPC": str(cell.ipc),
            "Set": labels.stage1.get(cell.stage1, cell.stage1),
            "Stage 2": "" if cell.stage2 == NONE else labels.treatment(cell),
        }
        for role, name in ((UNSEEN, "unseen mean"), (PROXY, "proxy")):
            some = students[students["role"] == role]
            if len(some):
                texts[name] = accuracy(some, role, numbers)
            texts[f"Δ {role}"], found = difference_text(differences, cell, role)
            numbers |= {f"difference_{role}_{key}": found[key] for key in KEPT if found}
        cost = costs.get(SetCell(cell.dataset, cell.ipc, cell.stage1, cell.stage2))
        texts.update(_cost(cost, cell, classes[cell.dataset], numbers))
        texts["published"] = _published(published, cell, methods, natives, datasets or labels.dataset, numbers)
        display.append(texts)
        data.append(numbers)
    shown = pd.DataFrame(display).fillna("")
    shown = shown[[column for column in shown if (shown[column] != "").any()]]
    names = [name for name in NAMES if name in shown]
    shown, title, keys = without_constant(shown, "Diffusion-native systems", names)
    legend = _legend(table, labels, control, differences)
    return Table(title, pd.DataFrame(data), shown, keys, keys - 1, tuple(legend))


def _cost(cost: Cost | None, cell: Cell, classes: int, numbers: dict[str, Any]) -> dict[str, str]:
    """Seconds per image of making a set, and per class of preparing it."""
    if cost is None:
        return {}
    parts = {
        "s per image": ("seconds_per_image", cost.making / (classes * cell.ipc)),
        "preparation, s per class": ("preparation_per_class", cost.own / classes),
        "shared preparation, s per class": ("shared_per_class", cost.shared / classes),
    }
    texts = {}
    for column, (name, seconds) in parts.items():
        numbers[name] = seconds
        texts[column] = MISSING if math.isnan(seconds) else f"{seconds:.2f}" if seconds else ""
    return texts


def _published(
    published: pd.DataFrame | None,
    cell: Cell,
    methods: Mapping[str, str],
    natives: Sequence[str],
    datasets: Mapping[str, str],
    numbers: dict[str, Any],
) -> str:
    """Published accuracies of a system's own set at the dataset and IPC, or that there is none."""
    if published is None or cell.stage2 != NONE or cell.stage1 not in natives:
        return ""
    of_method = (published["method"].str.lower() == methods[cell.stage1].lower()) & (published["metric"] == ACCURACY)
    there = published[of_method & (published["dataset"] == datasets.get(cell.dataset, cell.dataset))]
    rows = there[there["ipc"].astype(str) == str(cell.ipc)]
    numbers["published"], numbers["published_source"] = "", ""
    if rows.empty:
        return NO_DATASET if there.empty else NO_IPC
    texts = []
    for row in rows.to_dict("records"):
        spread = "" if pd.isna(row["std"]) or row["std"] == "" else f" ± {float(row['std']):.1f}"
        texts.append(f"{float(row['mean']):.1f}{spread} ({row['architecture']}, {row['variant']})")
    numbers["published"] = "; ".join(texts)
    numbers["published_source"] = "; ".join(dict.fromkeys(map(str, rows["source"])))
    return str(numbers["published"])


def _legend(table: pd.DataFrame, labels: Labels, control: str | None, differences: pd.DataFrame) -> list[str]:
    against = f"; systems with {labels.stage1.get(control, control)}" if control is not None else ""
    lines = [
        f"Test accuracy in % after the last epoch: mean ± half width of the {100 * LEVEL:.0f} % t-interval over "
        f"{seeds_text(table)}, in parentheses the mean of each student's best test, which is "
        "chosen with the test images in sight; the unseen mean is over architectures within a seed.",
        *diverged_lines(int(table["diverged"].sum())),
        *protocol_lines(table),
        "Δ: paired by seed and architecture, in percentage points: sets of stage 2 with the set they are made of"
        f"{against}.",
        "s per image: seconds on the clock of the job that makes the set, start of the process and reading of the "
        "prior included, over its images; of stage 2 in addition to the set.",
        "Preparation: seconds of the system's own preparing jobs, over the classes; shared: of those that all systems "
        "of the study use, such as the latents of the training images, which are made once.",
        "Published: other protocols and priors than the ones here, for orientation.",
    ]
    return lines + correction_lines(differences)
