"""Accuracies that a released file records beside those of our students on the same images."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from diver.config.networks import RECORDED
from diver.config.study import NONE
from diver.report.forms import Table
from diver.report.labels import Labels
from diver.report.record import chain
from diver.report.statistics import BEST, LAST, ROUNDING, t_interval
from diver.report.tables import (
    diverged_lines,
    interval_text,
    number_text,
    protocol_lines,
    reported_text,
    without_constant,
)
from diver.study import MATCHED, SetCell

COLUMNS = [
    *("dataset", "ipc", "stage1", "architecture", "recorded", "recorded_n", "ours", "ours_n", "difference", "p"),
    *("best", "diverged"),
]


def recorded_accuracies(path: str | Path) -> dict[str, list[float]]:
    """What the released file said of the set in a file of ours, as fractions by architecture.

    Read from the file's header without a tensor library, which the report's environment does not have.
    """
    return dict(chain(path)[0]["parameters"]["recorded"])


def compare_recorded(
    table: pd.DataFrame,
    recorded: Sequence[tuple[SetCell, dict[str, list[float]]]],
    networks: Mapping[str, str],
    labels: Labels,
) -> Table:
    """A row per released set and network that both know; accuracies in percent.

    `recorded`: sets with what their files say, as fractions, one per evaluation. `networks`: the network of those
    architectures of the study that are a published one as it stands. Welch's t-test; the recorded values are of one
    set of images and several initial weights, as ours are. Networks that the study lacks are named under the table;
    those without a student yet have no row.
    """
    ours = {network: architecture for architecture, network in networks.items()}
    rows: list[dict[str, Any]] = []
    display: list[dict[str, str]] = []
    unmatched: set[str] = set()
    for cell, accuracies in recorded:
        mine = table[
            (table.dataset == cell.dataset)
            & (table.ipc == cell.ipc)
            & (table.stage1 == cell.stage1)
            & (table.stage2 == NONE)
            & (table.scale == MATCHED)
        ]
        for name, fractions in accuracies.items():
            architecture = ours.get(RECORDED.get(name, ""))
            if architecture is None or not fractions:
                unmatched.add(name)
                continue
            theirs = [100 * value for value in fractions]
            students = mine[mine.architecture == architecture]
            if students.empty:
                continue
            found, best, diverged = students[LAST].tolist(), float(students[BEST].mean()), int(students.diverged.sum())
            # Without any spread, as of students that only guess, nothing can be tested.
            several = min(len(theirs), len(found)) > 1 and max(np.ptp(theirs), np.ptp(found)) > ROUNDING
            p = float(stats.ttest_ind(theirs, found, equal_var=False).pvalue) if several else math.nan
            means = sum(theirs) / len(theirs), sum(found) / len(found)
            values = [means[0], len(theirs), means[1], len(found), means[1] - means[0], p, best, diverged]
            names = [cell.dataset, cell.ipc, cell.stage1, architecture]
            rows.append(dict(zip(COLUMNS, [*names, *values], strict=True)))
            display.append(
                {
                    "Dataset": labels.dataset.get(cell.dataset, cell.dataset),
                    "IPC": str(cell.ipc),
                    "Set": labels.stage1.get(cell.stage1, cell.stage1),
                    "Architecture": name,
                    "recorded": f"{interval_text(t_interval(theirs))} ({len(theirs)})",
                    "ours": f"{reported_text(t_interval(found), 'last', means[1], best, diverged)} ({len(found)})",
                    "difference": number_text(means[1] - means[0], signed=True),
                    "Welch's p": "" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001",
                }
            )
    legend = [
        "Test accuracy in %: mean ± half width of the 95 % t-interval (number of evaluations). Recorded: what the "
        "released file says of the same images. Ours: after the last epoch, beside the mean of each student's best "
        "test, which is chosen with the test images in sight.",
        *diverged_lines(sum(row["diverged"] for row in rows)),
        *protocol_lines(table),
    ]
    if unmatched:
        legend.append(f"In the files and not among our students: {', '.join(sorted(unmatched))}.")
    keys = ["Dataset", "IPC", "Set", "Architecture"]
    shown = pd.DataFrame(display, columns=[*keys, "recorded", "ours", "difference", "Welch's p"])
    title = "Released sets: recorded accuracies and ours"
    shown, title, named = without_constant(shown, title, keys)
    return Table(title, pd.DataFrame(rows, columns=COLUMNS), shown, named, named - 1, tuple(legend))
