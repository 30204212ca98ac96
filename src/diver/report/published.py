"""Published numbers, and how the gains here compare with the published ones."""

from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ["method", "variant", "dataset", "ipc", "architecture", "metric", "mean", "std", "source"]
BASE = "none"


class PublishedError(ValueError):
    """A file of published numbers is faulty or has no such number. One line."""


def read_published(path: str | Path) -> pd.DataFrame:
    """The published numbers, a row each. Raises PublishedError for missing columns, doubles and missing sources.

    `std` is what the publication prints after the mean, whatever it stands for there; it may be empty (NaN).
    """
    table = pd.read_csv(path, keep_default_na=False, na_values={"std": [""]}, dtype={"ipc": int, "mean": float})
    if missing := [name for name in COLUMNS if name not in table]:
        raise PublishedError(f"{path}: no column {', '.join(missing)}")
    double = table.duplicated(["method", "variant", "dataset", "ipc", "architecture", "metric", "source"])
    if double.any():
        raise PublishedError(f"{path}: line {int(np.flatnonzero(double)[0]) + 2} repeats an earlier one")
    if (table["source"] == "").any():
        raise PublishedError(f"{path}: a number without a source")
    return table[COLUMNS]


def lookup(table: pd.DataFrame, **wanted: str | int) -> pd.Series:
    """The one row with the given column values. Raises PublishedError if there is none or more than one."""
    rows = table
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    if len(rows) != 1:
        raise PublishedError(f"{len(rows)} published numbers for {wanted}; exactly one was expected")
    return rows.iloc[0]


def compare_gains(
    published: pd.DataFrame, ours: pd.DataFrame, method: str, variant: str, dataset: str, source: str
) -> pd.DataFrame:
    """Published gain of a variant over its method beside ours, for each IPC that both have.

    `ours`: columns ipc, mean, low, high (percentage points, such as rows of `statistics.paired_differences`).
    `source`: text that the source of the published rows begins with. Columns: ipc, published_before,
    published_after, published_gain, gain, low, high, agrees (the published gain lies in our interval).
    The published gain has no interval: the publication prints no spread of differences.
    """
    quoted = published[published["source"].str.startswith(source)]
    records = []
    for row in ours.sort_values("ipc").to_dict("records"):
        key: dict[str, str | int] = {"method": method, "dataset": dataset, "ipc": int(row["ipc"])}
        if quoted[np.logical_and.reduce([quoted[name] == value for name, value in key.items()])].empty:
            continue
        before = float(lookup(quoted, variant=BASE, **key)["mean"])
        after = float(lookup(quoted, variant=variant, **key)["mean"])
        gain = after - before
        record = {"ipc": row["ipc"], "published_before": before, "published_after": after, "published_gain": gain}
        bounds = {"gain": row["mean"], "low": row["low"], "high": row["high"]}
        records.append({**record, **bounds, "agrees": bool(row["low"] <= gain <= row["high"])})
    names = ["ipc", "published_before", "published_after", "published_gain", "gain", "low", "high", "agrees"]
    return pd.DataFrame(records, columns=names)
