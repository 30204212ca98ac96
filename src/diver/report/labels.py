"""Names and order of what tables and figures show; given by the caller, so that no method is known here by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from diver.config.study import NONE, Study
from diver.report.statistics import Cell
from diver.study import FULL, MATCHED


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
    return {
        "stage1": {**{name: entry.label for name, entry in study.distill.items()}, FULL: "all training images"},
        "stage2": {NONE: "stage-1 set", **{name: entry.label for name, entry in study.recover.items()}},
        "architecture": _networks(study),
        "dataset": {name: datasets.get(name, name) for name in study.datasets},
    }


def _networks(study: Study) -> dict[str, str]:
    """Label of each architecture, with its short name where another one of a dataset has the same label."""
    labels = {name: entry.label for name, entry in study.all_architectures().items()}
    told = dict(labels)
    for dataset in study.datasets:
        here = [labels[name] for name in study.students_at(dataset).architectures]
        told |= {
            name: f"{labels[name]} ({name})"
            for name in study.students_at(dataset).architectures
            if here.count(labels[name]) > 1
        }
    return told


def ordered(names: Mapping[str, str], present: Iterable[str]) -> list[str]:
    """The names that are present, in the order of the mapping; those that it does not hold follow alphabetically."""
    return sorted(set(present), key=lambda name: _rank(names, name))


def _rank(names: Mapping[str, str], name: str) -> tuple[int, str]:
    known = list(names)
    return (known.index(name), "") if name in known else (len(known), name)
