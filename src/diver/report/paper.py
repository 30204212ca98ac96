"""Tables of a publication: our accuracies, the published ones, and whether they agree, cell by cell.

A cell that has no number says why; none is left out. A table is made from whatever students there are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from diver.config.report import UNSEEN_MEAN, PaperTable
from diver.config.study import NONE, Study
from diver.report.forms import Table
from diver.report.labels import Labels
from diver.report.published import find
from diver.report.statistics import (
    BEST,
    LAST,
    LEVEL,
    UNSEEN,
    Cell,
    Interval,
    reported_value,
    students_of,
    t_interval,
)
from diver.report.tables import (
    OTHER,
    ROW_NAMES,
    diverged_lines,
    diverged_text,
    number_text,
    protocol_lines,
    reported_text,
)
from diver.study import SetCell, prepared_path, prior_path

NO_PUBLISHED = "no published number"
ARCHITECTURE = "Architecture"
COLUMNS = [
    *Cell._fields,
    *("architecture", "ours", "low", "high", "seeds", "reported", "last", "best"),
    *("diverged", "why_missing", "students_missing"),
    *("published_method", "published", "published_std", "published_source", "published_also"),
    *("difference", "agrees", "settings_that_differ"),
]


@dataclass(frozen=True)
class Planned:
    """A cell of the table as the study has it, before anything is run.

    `members`: architectures that its number is the mean of. `needs`: what must be there for it to be run, as
    (what it is, path). `absent`: why the study has no such cell, '' if it has.
    """

    cell: tuple[Any, ...]
    architecture: str
    members: tuple[str, ...]
    seeds: tuple[int, ...]
    method: str
    published_dataset: str
    published_architecture: str
    departures: str = ""
    needs: tuple[tuple[str, str], ...] = ()
    absent: str = ""


def plan(study: Study, table: PaperTable, datasets: Mapping[str, str]) -> list[dict[str, Any]]:
    """All cells of a table, in its order, as dictionaries of `Planned`, so that they can be a rule's parameter.

    `datasets`: name of each dataset of the study in the file of published numbers.
    """
    found = []
    for dataset in table.datasets or study.datasets:
        for ipc in table.ipc or study.ipcs(dataset):
            for stage1 in table.stage1 or study.distill:
                for stage2 in table.stage2 or [NONE, *study.recover]:
                    for architecture in table.columns():
                        cell = Cell(dataset, ipc, stage1, stage2, table.scale)
                        found.append(asdict(_planned(study, table, cell, architecture, datasets)))
    return found


def _planned(study: Study, table: PaperTable, cell: Cell, architecture: str, datasets: Mapping[str, str]) -> Planned:
    students, networks = study.students_at(cell.dataset), study.all_architectures()
    unseen = tuple(name for name, one in students.architectures.items() if one.role == UNSEEN)
    first, second = study.distill[cell.stage1], study.recover.get(cell.stage2)
    names = [entry.published or entry.label for entry in (first, second) if entry is not None]
    label = UNSEEN_MEAN if architecture == UNSEEN_MEAN else networks[architecture].label
    absent = _absent(study, cell, architecture)
    return Planned(
        cell=tuple(cell),
        architecture=architecture,
        members=unseen if architecture == UNSEEN_MEAN else (architecture,),
        seeds=tuple(students.seeds),
        method=" + ".join(names),
        published_dataset=datasets.get(cell.dataset, cell.dataset),
        published_architecture=table.published_architectures.get(architecture, label),
        departures="" if absent else "; ".join(study.departures(first, cell.dataset, cell.ipc)),
        needs=() if absent else _needs(study, SetCell(cell.dataset, cell.ipc, cell.stage1, cell.stage2)),
        absent=absent,
    )


def _needs(study: Study, cell: SetCell) -> tuple[tuple[str, str], ...]:
    needs = [("the data", str(prepared_path(cell.dataset)))]
    settings = study.distill[cell.stage1].at(cell.dataset, cell.ipc)
    if study.distill[cell.stage1].method == "released":
        needs.insert(0, ("the released set", str(settings["path"])))
    if cell.stage2 != NONE:
        needs.insert(0, ("the prior", prior_path(study, cell.dataset)))
    return tuple(needs)


def _absent(study: Study, cell: Cell, architecture: str) -> str:
    first, entry, students = study.distill[cell.stage1], study.recover.get(cell.stage2), study.students_at(cell.dataset)
    if cell.ipc not in study.ipcs(cell.dataset) or not first.covers(cell.dataset, cell.ipc):
        return f"not in the study: no {first.label} there at this IPC"
    if entry is not None and entry.applies_to is not None and cell.stage1 not in entry.applies_to:
        return f"not in the study: {entry.label} is not applied to {first.label}"
    if entry is not None and not entry.covers(cell.dataset, cell.ipc):
        return f"not in the study: no {entry.label} there at this IPC"
    if architecture not in (UNSEEN_MEAN, *students.architectures):
        return "not in the study: no such student of this dataset"
    if cell.scale != "matched" and cell.stage2 not in students.as_published.get(cell.stage1, []):
        return f"not in the study: no students at the {cell.scale} scale"
    return ""


def plans(study: Study, datasets: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """All tables of a study by name: title, cells (`plan`), variant and sources, as a rule's parameter."""
    return {
        name: {
            "title": table.title,
            "cells": plan(study, table, datasets),
            "variant": table.variant,
            "sources": table.sources,
        }
        for name, table in study.report.tables.items()
    }


def read_students(paths: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """The tidy table of students from one file or several (CSV or Parquet), in its order; empty without a file."""
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    read = [
        pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=False)
        for path in files
    ]
    if not read:
        return pd.DataFrame()
    keys = [*Cell._fields, "architecture", "seed"]
    return pd.concat(read, ignore_index=True).sort_values(keys, ignore_index=True)


def paper_table(
    results: pd.DataFrame,
    published: pd.DataFrame,
    title: str,
    cells: Sequence[Mapping[str, Any]],
    labels: Labels,
    variant: str | None = None,
    sources: Sequence[str] = (),
    root: str | Path = ".",
) -> Table:
    """The table of the planned cells. `results`: the tidy table of students, of all or of some, or an empty one.

    Ours is the accuracy that the protocol's papers report, the last or the best of all tests; both are in the data.
    Ours and the published number agree if the published mean lies in our interval. What a publication prints after
    its mean is shown but not used, for sources differ in what it is and of how many students. A cell with some of its
    seeds has the mean over those that all its architectures have. `root`: folder that the paths in the plan start from.
    """
    cited: dict[str, int] = {}
    data, display = [], []
    plans = [Planned(**one) for one in cells]
    for planned in plans:
        ours = _ours(results, planned, Path(root))
        theirs = find(
            published,
            planned.method,
            planned.published_dataset,
            planned.cell[1],
            planned.published_architecture,
            variant,
            sources,
        )
        row = _record(planned, ours, theirs)
        data.append(row)
        display.append(_display(planned, ours, row, theirs, labels, cited))
    shown = pd.DataFrame(display)
    keys = [*ROW_NAMES, ARCHITECTURE]
    same = [name for name in ("Dataset", "Stage 1", ARCHITECTURE) if shown[name].nunique() == 1]
    heading = ", ".join([title, *(str(shown[name].iloc[0]) for name in same)])
    kept = [name for name in keys if name not in same]
    lines = (*_legend(results, plans, data, labels), *(f"[{n}] {text}." for text, n in cited.items()))
    frame = pd.DataFrame(data, columns=COLUMNS)
    return Table(heading, frame, shown.drop(columns=same), len(kept), max(1, len(kept) - 1), lines)


@dataclass(frozen=True)
class _Ours:
    """interval: of the accuracy that is reported; last, best: the means of both."""

    interval: Interval | None
    diverged: int
    why: str
    missing: str
    departures: str
    reported: str = ""
    last: float = math.nan
    best: float = math.nan


def _ours(results: pd.DataFrame, planned: Planned, root: Path) -> _Ours:
    """Our number of a cell, or why there is none; and which of its students are missing."""
    rows = students_of(results, Cell(*planned.cell)) if len(results) else results
    rows = rows[rows["architecture"].isin(planned.members)] if len(rows) else rows
    if rows.empty:
        return _Ours(None, 0, planned.absent or _why_not_run(planned, root), "", planned.departures)

    def by_seed(value: str) -> pd.DataFrame:
        found = rows.pivot_table(index="seed", columns="architecture", values=value, dropna=False)
        return found.reindex(index=list(planned.seeds), columns=list(planned.members))

    value = reported_value(rows)
    grid = by_seed(value)
    complete = grid.dropna()
    missing = "; ".join(
        f"{name} seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
        for name in grid.columns
        if (seeds := list(grid.index[grid[name].isna()]))
    )
    of_students = sorted({text for text in rows["departures"] if isinstance(text, str) and text})
    departures = "; ".join(filter(None, [planned.departures, *(f"students' {text}" for text in of_students)]))
    diverged = int(rows["diverged"].sum())
    if complete.empty:
        return _Ours(None, diverged, f"students missing: {missing}", missing, departures)
    last, best = (float(by_seed(one).dropna().mean(axis=1).mean()) for one in (LAST, BEST))
    reported = "best" if value == BEST else "last"
    return _Ours(t_interval(complete.mean(axis=1)), diverged, "", missing, departures, reported, last, best)


def _why_not_run(planned: Planned, root: Path) -> str:
    lacking = [f"{what} {path}" for what, path in planned.needs if not (root / path).exists()]
    return f"not run: needs {lacking[0]}" if lacking else "not run: no student yet"


def _record(planned: Planned, ours: _Ours, theirs: pd.DataFrame) -> dict[str, Any]:
    nothing = math.nan
    interval = ours.interval or Interval(nothing, nothing, nothing, 0)
    first = theirs.iloc[0] if len(theirs) else None
    mean = nothing if first is None else float(first["mean"])
    values = [
        *planned.cell,
        *(planned.architecture, interval.mean, interval.low, interval.high, interval.n),
        *(ours.reported, ours.last, ours.best),
        *(ours.diverged, ours.why, ours.missing, planned.method, mean),
        *(nothing if first is None else first["std"], NO_PUBLISHED if first is None else first["source"]),
        "; ".join(f"{one['mean']:g} ({one['source']})" for one in theirs.iloc[1:].to_dict("records")),
        *(interval.mean - mean, _agrees(interval, mean), ours.departures),
    ]
    return dict(zip(COLUMNS, values, strict=True))


def _agrees(interval: Interval, published: float) -> str:
    """'yes', 'no', or '' where one of the two is missing or a single seed leaves no interval."""
    if math.isnan(published) or math.isnan(interval.low):
        return ""
    return "yes" if interval.low <= published <= interval.high else "no"


def _display(
    planned: Planned,
    ours: _Ours,
    row: Mapping[str, Any],
    theirs: pd.DataFrame,
    labels: Labels,
    cited: dict[str, int],
) -> dict[str, str]:
    cell = Cell(*planned.cell)
    names = (
        labels.dataset.get(cell.dataset, cell.dataset),
        str(cell.ipc),
        labels.stage1.get(cell.stage1, cell.stage1),
        labels.treatment(cell),
        labels.architecture.get(planned.architecture, planned.architecture),
    )
    text = ours.why
    if ours.interval is not None:
        text = reported_text(ours.interval, ours.reported, ours.last, ours.best, ours.diverged)
        text += f" ({ours.interval.n} of {len(planned.seeds)} seeds)" if ours.interval.n < len(planned.seeds) else ""
    else:
        text += diverged_text(ours.diverged)
    numbers = []
    for one in theirs.to_dict("records"):
        spread = "" if pd.isna(one["std"]) else f" ± {one['std']:g}"
        numbers.append(f"{one['mean']:g}{spread} [{cited.setdefault(str(one['source']), len(cited) + 1)}]")
    settled = row["agrees"] or ("one seed" if ours.interval is not None and len(theirs) else "")
    differ = ", settings differ" if settled == "yes" and row["settings_that_differ"] else ""
    return {
        **dict(zip([*ROW_NAMES, ARCHITECTURE], names, strict=True)),
        "ours": text,
        "published": "; ".join(numbers) or NO_PUBLISHED,
        "difference": "" if math.isnan(row["difference"]) else number_text(row["difference"], signed=True),
        "agrees": settled + differ,
    }


def _legend(
    results: pd.DataFrame, plans: Sequence[Planned], data: Sequence[Mapping[str, Any]], labels: Labels
) -> list[str]:
    lines = [
        f"Test accuracy in %. Ours: mean ± half width of the {100 * LEVEL:.0f} % t-interval over seeds, of the "
        f"accuracy that the protocol's papers report; {OTHER}. "
        "Published: mean ± what its source prints, with its source in brackets, the preferred one first.",
        "Agrees: the published mean lies in our interval. A wide interval agrees easily, and under other settings "
        "agreement is no reproduction.",
    ]
    if any(row["why_missing"] for row in data):
        lines.append("A cell without a number of ours says why.")
    lines += diverged_lines(sum(row["diverged"] for row in data))
    partial = [row for row in data if row["students_missing"]]
    for row in partial:
        where = f"{row['dataset']}, IPC {row['ipc']}, {row['stage1']} + {row['stage2']}, {row['architecture']}"
        lines.append(f"Students missing, {where}: {row['students_missing']}.")
    by_stage1: dict[str, list[str]] = {}
    for planned in plans:
        by_stage1.setdefault(planned.cell[2], []).extend(filter(None, planned.departures.split("; ")))
    for stage1, texts in by_stage1.items():
        if texts:
            name = labels.stage1.get(stage1, stage1)
            lines.append(f"{name}: settings that differ (published): {'; '.join(dict.fromkeys(texts))}.")
    shown = dict.fromkeys(Cell(*planned.cell) for planned in plans)
    used = [students_of(results, cell) for cell in shown] if len(results) else []
    return lines + (protocol_lines(pd.concat(used)) if any(map(len, used)) else [])
