"""Published accuracies of stage-1 methods beside those of our own sets."""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from diver.config.study import NONE
from diver.report.forms import Table
from diver.report.labels import Labels
from diver.report.published import ACCURACY, PublishedError
from diver.report.statistics import BEST, LAST, reported_value, t_interval
from diver.report.tables import OTHER, diverged_lines, number_text, protocol_lines, reported_text, without_constant
from diver.study import MATCHED, SetCell

# Points within which an accuracy counts as reproduced.
CLOSE = 2.0
COLUMNS = [
    *("dataset", "ipc", "stage1", "architecture", "published", "source", "ours", "half_width", "n", "difference"),
    *("reported", "last", "best", "diverged", "reproduced", "departures"),
]


def compare_published(
    table: pd.DataFrame,
    published: pd.DataFrame,
    methods: Mapping[str, str],
    departures: Mapping[SetCell, str],
    labels: Labels,
    published_datasets: Mapping[str, str] | None = None,
    published_networks: Mapping[str, str] | None = None,
) -> Table:
    """A row per published accuracy of a method, dataset and IPC of the study; accuracies in percent.

    `methods`: the published name of each stage-1 entry. `departures`: how the settings of a set differ from the
    published ones, as text. A row with departures, of the set or of the students' protocol, is not called a
    reproduction, whatever its number. `published_datasets`, `published_networks`: the names of datasets and
    architectures in the file of published numbers; their labels when left out. Raises PublishedError if nothing
    matches.
    """
    rows: list[dict[str, Any]] = []
    display: list[dict[str, str]] = []
    datasets, networks = published_datasets or labels.dataset, published_networks or labels.architecture
    # Several datasets, of other sizes, may have one published name; so may networks.
    places = [(stage1, *pair) for stage1 in methods for pair in itertools.product(datasets, networks)]
    counted = published[(published["metric"] == ACCURACY) & published["ipc"].map(lambda ipc: isinstance(ipc, int))]
    for one in counted.to_dict("records"):
        for stage1, dataset, architecture in places:
            theirs = methods[stage1], datasets[dataset], networks[architecture]
            cell = SetCell(dataset, int(one["ipc"]), stage1)
            if cell not in departures or theirs != (one["method"], one["dataset"], one["architecture"]):
                continue
            mine = table[
                (table.dataset == dataset)
                & (table.ipc == cell.ipc)
                & (table.stage1 == stage1)
                & (table.stage2 == NONE)
                & (table.scale == MATCHED)
                & (table.architecture == architecture)
            ]
            if mine.empty:
                continue
            value = reported_value(mine)
            found, reported = t_interval(mine[value].tolist()), "best" if value == BEST else "last"
            last, best, diverged = float(mine[LAST].mean()), float(mine[BEST].mean()), int(mine["diverged"].sum())
            of_students = sorted({text for text in mine["departures"] if isinstance(text, str) and text})
            departed = "; ".join(filter(None, [departures[cell], *(f"students' {text}" for text in of_students)]))
            difference = found.mean - one["mean"]
            close = abs(difference) <= CLOSE and not departed
            values = [dataset, cell.ipc, stage1, architecture, one["mean"], one["source"]]
            values += [found.mean, found.half_width, found.n, difference]
            values += [reported, last, best, diverged, close, departed]
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            spread = "" if pd.isna(one["std"]) else f" ± {one['std']:.1f}"
            display.append(
                {
                    "Dataset": labels.dataset.get(dataset, dataset),
                    "IPC": str(cell.ipc),
                    "Method": labels.stage1.get(stage1, stage1),
                    "Architecture": labels.architecture.get(architecture, architecture),
                    "published": f"{one['mean']:.1f}{spread}",
                    "ours": reported_text(found, reported, last, best, diverged),
                    "students": str(found.n),
                    "difference": number_text(difference, signed=True),
                    "reproduced": "yes" if close else "settings differ" if departed else "no",
                    "settings that differ (published)": departed,
                }
            )
    if not rows:
        raise PublishedError(
            "no published accuracy is of a method, dataset, IPC and architecture that students were trained for"
        )
    legend = [
        "Test accuracy in %. Ours: mean ± half width of the 95 % t-interval over students, of the accuracy that the "
        f"protocol's papers report; {OTHER}. Reproduced: at most {CLOSE:g} points from the published mean under "
        "the published settings. The published spread is what its source prints.",
        *diverged_lines(sum(row["diverged"] for row in rows)),
        *protocol_lines(table),
        *(f"Source of published values: {source}." for source in dict.fromkeys(row["source"] for row in rows)),
    ]
    keys = ["Dataset", "IPC", "Method", "Architecture"]
    shown, title, named = without_constant(pd.DataFrame(display), "Stage 1: published accuracies and ours", keys)
    return Table(title, pd.DataFrame(rows, columns=COLUMNS), shown, named, named - 1, tuple(legend))
