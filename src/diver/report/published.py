"""Published numbers: one file, a row per number, each with its source."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ["method", "variant", "dataset", "ipc", "architecture", "metric", "mean", "std", "source"]
ACCURACY = "top-1 accuracy, %"
# Images per class of a whole training set, and of numbers that do not depend on them.
NO_COUNT = ("full", "")


class PublishedError(ValueError):
    """A file of published numbers is faulty. One line."""


def read_published(path: str | Path) -> pd.DataFrame:
    """The published numbers, a row each; `ipc` is an int, or 'full' or '' for numbers of no set.

    `std` is what the publication prints after the mean, whatever it stands for there; it may be empty (NaN). One
    number may be there from several sources, where these differ. Raises PublishedError, which names file and line, for
    missing columns or values, doubles, and numbers that cannot be: an accuracy outside [0, 100], a negative spread.
    """
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    if missing := [name for name in COLUMNS if name not in table]:
        raise PublishedError(f"{path}: no column {', '.join(missing)}")

    def refuse(bad: "pd.Series[bool]", what: str) -> None:
        if bad.any():
            line = int(np.flatnonzero(bad)[0]) + 2
            raise PublishedError(f"{path}: line {line}: {what}")

    for name in ("method", "dataset", "architecture", "metric", "source"):
        refuse(table[name].str.strip() == "", "a number without a source" if name == "source" else f"no {name}")
    refuse(~(table["ipc"].str.fullmatch(r"[1-9]\d*") | table["ipc"].isin(NO_COUNT)), "ipc is a count, 'full' or empty")
    mean, std = (pd.to_numeric(table[name], errors="coerce") for name in ("mean", "std"))
    refuse(~np.isfinite(mean), "the mean is no number")
    refuse((table["metric"] == ACCURACY) & ~mean.between(0, 100), "an accuracy lies between 0 and 100 %")
    refuse((std.isna() & (table["std"] != "")) | (std < 0), "the spread is no number, or negative")
    refuse(
        table.duplicated(["method", "variant", "dataset", "ipc", "architecture", "metric", "source"]),
        "it repeats an earlier one",
    )
    ipc = [int(text) if text.isdigit() else text for text in table["ipc"]]
    return table[COLUMNS].assign(ipc=pd.Series(ipc, dtype=object), mean=mean, std=std)


def find(
    table: pd.DataFrame,
    method: str,
    dataset: str,
    ipc: int,
    architecture: str,
    variant: str | None = None,
    sources: Sequence[str] = (),
) -> pd.DataFrame:
    """Published accuracies of a cell, the preferred first: those whose source has the first of the texts, and so on.

    `variant`: which variant they must be of, if it matters. Without `sources` the file's order stands.
    """
    wanted = {"method": method, "dataset": dataset, "ipc": ipc, "architecture": architecture, "metric": ACCURACY}
    rows = table[np.logical_and.reduce([table[name] == value for name, value in wanted.items()])]
    rows = rows if variant is None else rows[rows["variant"] == variant]
    ranks = [next((i for i, text in enumerate(sources) if text in source), len(sources)) for source in rows["source"]]
    return rows.iloc[np.argsort(ranks, kind="stable")]
