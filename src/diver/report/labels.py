"""Names and order of what tables and figures show; given by the caller, so that no method is known here by name."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from diver.config.study import NONE, Study
from diver.report.statistics import Cell
from diver.study import FULL, MATCHED, set_cells


@dataclass(frozen=True)
class Labels:
    """Short name -> displayed name. The order of a mapping is the order of display; other names follow, as they are."""

    stage1: Mapping[str, str] = field(default_factory=dict)
    stage2: Mapping[str, str] = field(default_factory=dict)
    architecture: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, str] = field(default_factory=dict)

    def order_cells(self, cells: Iterable[Cell]) -> list[Cell]:
        """Cells by dataset, IPC, stage 1, stage 2 and scale (the matched one first)."""

        def key(cell: Cell) -> tuple[tuple[int, str], int, tuple[int, str], tuple[int, str], bool]:
            return (
                _rank(self.dataset, cell.dataset),
                cell.ipc,
                _rank(self.stage1, cell.stage1),
                _rank(self.stage2, cell.stage2),
                cell.scale != MATCHED,
            )

        return sorted(cells, key=key)

    def sets_in_order(self, table: pd.DataFrame) -> list[tuple[Cell, dict[Any, Any]]]:
        """Rows of a table that has one for each set, each with the set's cell (at the matched scale), ordered."""
        rows = {
            Cell(str(row["dataset"]), int(row["ipc"]), str(row["stage1"]), str(row["stage2"]), MATCHED): row
            for row in table.to_dict("records")
        }
        return [(cell, rows[cell]) for cell in self.order_cells(rows)]

    def treatment(self, cell: Cell) -> str:
        """Displayed stage 2, with the scale when it is not the matched one."""
        name = self.stage2.get(cell.stage2, cell.stage2)
        return name if cell.scale == MATCHED else f"{name}, {cell.scale} scale"


def names_of(study: Study, datasets: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What `Labels` holds of a study: labels and order of its entries. `datasets`: displayed names."""
    first, second = defaultdict[tuple[str, int], set[str]](set), defaultdict[tuple[str, int, str], set[str]](set)
    for cell in set_cells(study):
        first[cell.dataset, cell.ipc].add(cell.stage1)
        second[cell.dataset, cell.ipc, cell.stage1].add(cell.stage2)
    networks = [study.students_at(dataset).architectures for dataset in study.datasets]
    return {
        "stage1": {**_told(study.distill, first.values()), FULL: "all training images"},
        "stage2": {NONE: "stage-1 set", **_told(study.recover, second.values())},
        "architecture": _told(study.all_architectures(), networks),
        "dataset": {name: datasets.get(name, name) for name in study.datasets},
    }


def _told(entries: Mapping[str, Any], together: Iterable[Collection[str]]) -> dict[str, str]:
    """Label of each entry, with its short name where one that stands beside it has the same label."""
    told = {name: entry.label for name, entry in entries.items()}
    for names in together:
        beside = Counter(entries[name].label for name in names if name in entries)
        told |= {
            name: f"{one.label} ({name})" for name, one in entries.items() if name in names and beside[one.label] > 1
        }
    return told


def ordered(names: Mapping[str, str], present: Iterable[str]) -> list[str]:
    """The names that are present, in the order of the mapping; those that it does not hold follow alphabetically."""
    return sorted(set(present), key=lambda name: _rank(names, name))


def _rank(names: Mapping[str, str], name: str) -> tuple[int, str]:
    known = list(names)
    return (known.index(name), "") if name in known else (len(known), name)
