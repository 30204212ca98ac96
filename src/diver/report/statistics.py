"""Intervals and paired differences over the tidy table of trained students.

The unit that is repeated is the seed. Architectures are a fixed choice, not a sample, so an average over
architectures is taken within a seed, and intervals and tests are over seeds only. All accuracies are in percent.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

# Not its parts, which take a second and are imported when used: every call of Snakemake imports this module.
import scipy
from numpy.typing import ArrayLike, NDArray

from diver.config.study import NONE
from diver.study import MATCHED

LAST, BEST = "accuracy_last", "accuracy_best"
UNSEEN, PROXY = "unseen", "proxy"
LEVEL, POWER = 0.95, 0.8
# Accuracies are multiples of 0.01 %; spreads far below that are rounding errors of a subtraction.
ROUNDING = 1e-9
QUANTILES = 10_000


class StatisticsError(ValueError):
    """The table does not allow the statistic: a student is missing or there twice. One line."""


class Cell(NamedTuple):
    """A set as it was given to students: the unit that tables and figures have a row or a point for."""

    dataset: str
    ipc: int
    stage1: str
    stage2: str
    scale: str


@dataclass(frozen=True)
class Interval:
    """Mean with its t-interval over `n` seeds; `low` and `high` are NaN for a single seed."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """Paired difference in percentage points between a cell and its reference.

    `p`: two-sided paired t-test over seeds. `spread`: standard deviation over seeds. Both are NaN for a single seed.
    """

    cell: Cell
    reference: Cell
    role: str
    interval: Interval
    p: float
    spread: float


def t_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Student's t-interval of the mean of values [n]; NaN bounds for n = 1. Raises StatisticsError for n = 0."""
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise StatisticsError("an interval needs at least one value")
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(scipy.stats.t.ppf((1 + level) / 2, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return Interval(mean, mean - half, mean + half, int(array.size))


def cells(table: pd.DataFrame) -> list[Cell]:
    """The cells of a table, in order of appearance."""
    rows = table[list(Cell._fields)].drop_duplicates()
    return [Cell(str(a), int(b), str(c), str(d), str(e)) for a, b, c, d, e in rows.to_numpy()]


def students_of(table: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Rows of a cell."""
    mask = np.logical_and.reduce([table[key] == value for key, value in cell._asdict().items()])
    return table[mask]


def by_student(rows: pd.DataFrame, value: str = LAST) -> pd.Series:
    """The value of each student of one cell, indexed by (seed, architecture).

    Raises StatisticsError if a student is there twice or one of the grid seeds x architectures is missing.
    """
    series = rows.set_index(["seed", "architecture"])[value].sort_index()
    if not series.index.is_unique:
        twice = series.index[series.index.duplicated()][0]
        raise StatisticsError(f"{_where(rows)}: seed {twice[0]} of {twice[1]} is in the table twice")
    if len(series) != rows["seed"].nunique() * rows["architecture"].nunique():
        raise StatisticsError(f"{_where(rows)}: architectures have different seeds, so their mean has no pairs")
    return series


def seed_means(rows: pd.DataFrame, value: str = LAST) -> pd.Series:
    """Average over the architectures in `rows` (of one cell) within each seed, indexed by seed."""
    return by_student(rows, value).groupby("seed").mean()


def unseen_by_seed(table: pd.DataFrame, value: str = LAST) -> pd.DataFrame:
    """A row per cell and seed: the cell's columns, `seed`, and the mean of `value` over the unseen architectures."""
    records: list[dict[str, Any]] = []
    for cell in cells(table):
        rows = students_of(table, cell)
        means = seed_means(rows[rows["role"] == UNSEEN], value)
        records.extend({**cell._asdict(), "seed": seed, value: mean} for seed, mean in means.items())
    return pd.DataFrame(records, columns=[*Cell._fields, "seed", value])


def difference(
    table: pd.DataFrame, cell: Cell, reference: Cell, role: str = UNSEEN, value: str = LAST
) -> Difference | None:
    """Cell minus reference: differences by (seed, architecture), averaged over the role's architectures in a seed.

    None if no architecture has the role. Raises StatisticsError if the two do not have the same students.
    """
    of_role = table[table["role"] == role]
    ours, theirs = (students_of(of_role, one) for one in (cell, reference))
    if ours.empty and theirs.empty:
        return None
    left, right = by_student(ours, value), by_student(theirs, value)
    if not left.index.equals(right.index):
        raise StatisticsError(f"{_name(cell)} and {_name(reference)} do not have the same seeds and architectures")
    per_seed = (left - right).groupby("seed").mean().to_numpy(dtype=float)
    spread = float(per_seed.std(ddof=1)) if per_seed.size > 1 else math.nan
    return Difference(cell, reference, role, t_interval(per_seed), paired_p(per_seed), spread)


def reported_value(rows: pd.DataFrame) -> str:
    """The accuracy that the papers of the rows' protocol report: BEST of all tests, or LAST, also where they differ."""
    return BEST if len(rows) and set(rows.get("reported", [])) == {"best"} else LAST


def paired_p(differences: ArrayLike) -> float:
    """Two-sided p-value of the t-test that the mean of differences [n] is zero; NaN for n = 1.

    Without any spread it is 1 for a zero difference (two sets of students that only guess), and NaN for another: a few
    accuracies on the grid of the test images may agree by chance, and that they do is no proof.
    """
    array = np.asarray(differences, dtype=float)
    if array.size < 2:
        return math.nan
    if array.std(ddof=1) <= ROUNDING:
        return 1.0 if abs(array.mean()) <= ROUNDING else math.nan
    return float(scipy.stats.ttest_1samp(array, 0.0).pvalue)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's (1979) adjusted p-values, same order; NaN stays NaN and is not counted as a comparison."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    rising = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(rising), 0, -1)
    adjusted[rising] = np.minimum(1.0, np.maximum.accumulate(factors * p[rising]))
    return adjusted


def minimum_detectable(spread: float, n: int, alpha: float = 1 - LEVEL, power: float = POWER) -> float:
    """Smallest true difference that a paired two-sided t-test over n seeds finds with the given power.

    `spread`: standard deviation of the differences over seeds, taken as known. NaN for n = 1, and without any spread,
    which says nothing of how much there would be.
    """
    return math.nan if n < 2 or spread <= ROUNDING else spread * _noncentrality(n, alpha, power) / math.sqrt(n)


@lru_cache
def _noncentrality(n: int, alpha: float, power: float) -> float:
    critical = float(scipy.stats.t.ppf(1 - alpha / 2, n - 1))
    # scipy's noncentral t distribution is NaN for the large values that few seeds and many comparisons need, so the
    # power is averaged over quantiles of the estimated standard deviation, given which the statistic is normal.
    quantiles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    bounds = critical * np.sqrt(scipy.stats.chi2.ppf(quantiles, n - 1) / (n - 1))

    def lack(noncentrality: float) -> float:
        found = scipy.stats.norm.cdf(noncentrality - bounds) + scipy.stats.norm.cdf(-noncentrality - bounds)
        return float(found.mean()) - power

    upper = critical + 1
    while lack(upper) < 0:
        upper *= 2
    return float(scipy.optimize.brentq(lack, 0.0, upper))


def stage1_pairs(table: pd.DataFrame) -> list[tuple[Cell, Cell]]:
    """Every recovered cell with its stage-1 set.

    The reference has the same scale; where the stage-1 set was trained at the matched scale only, that one.
    """
    present = cells(table)
    pairs = []
    for cell in present:
        candidates = [cell._replace(stage2=NONE), cell._replace(stage2=NONE, scale=MATCHED)]
        reference = next((one for one in candidates if one in present), None)
        if cell.stage2 != NONE and reference is not None:
            pairs.append((cell, reference))
    return pairs


def step_pairs(table: pd.DataFrame, stage1: str, ladder: Sequence[str]) -> list[tuple[Cell, Cell]]:
    """Every step of a ladder with the step before it, at the matched scale, for each dataset and IPC."""
    chosen = [one for one in cells(table) if one.stage1 == stage1 and one.scale == MATCHED]
    grid = dict.fromkeys((one.dataset, one.ipc) for one in chosen)
    steps = [
        (Cell(dataset, ipc, stage1, after, MATCHED), Cell(dataset, ipc, stage1, before, MATCHED))
        for dataset, ipc in grid
        for before, after in zip(ladder, ladder[1:], strict=False)
    ]
    return [pair for pair in steps if pair[0] in chosen and pair[1] in chosen]


def compare(
    table: pd.DataFrame,
    pairs: Iterable[tuple[Cell, Cell]],
    roles: Sequence[str] = (UNSEEN, PROXY),
    value: str = LAST,
) -> pd.DataFrame:
    """All paired differences of a table, corrected together: a row per pair and role.

    Columns: the cell's, reference_stage2, reference_scale, role, mean, low, high, seeds, p, p_holm, distinguishable
    (p_holm below 5 %), minimum_detectable, minimum_detectable_corrected (at the level of Holm's first step).
    Raises StatisticsError if the students of a pair do not match.
    """
    found = [difference(table, a, b, role, value) for a, b in pairs for role in roles]
    rows = [one for one in found if one is not None]
    adjusted = holm([one.p for one in rows])
    comparisons = max(1, int(np.sum(~np.isnan(adjusted))))
    records = [
        {
            **one.cell._asdict(),
            "reference_stage2": one.reference.stage2,
            "reference_scale": one.reference.scale,
            "role": one.role,
            "mean": one.interval.mean,
            "low": one.interval.low,
            "high": one.interval.high,
            "seeds": one.interval.n,
            "p": one.p,
            "p_holm": p_holm,
            "distinguishable": bool(p_holm < 1 - LEVEL),
            "minimum_detectable": minimum_detectable(one.spread, one.interval.n),
            "minimum_detectable_corrected": minimum_detectable(one.spread, one.interval.n, (1 - LEVEL) / comparisons),
        }
        for one, p_holm in zip(rows, adjusted, strict=True)
    ]
    return pd.DataFrame(records, columns=DIFFERENCE_COLUMNS)


DIFFERENCE_COLUMNS = [
    *Cell._fields,
    *("reference_stage2", "reference_scale", "role", "mean", "low", "high", "seeds", "p", "p_holm"),
    *("distinguishable", "minimum_detectable", "minimum_detectable_corrected"),
]


def _name(cell: Cell) -> str:
    return f"{cell.dataset}, IPC {cell.ipc}, {cell.stage1} + {cell.stage2} ({cell.scale})"


def _where(rows: pd.DataFrame) -> str:
    found = cells(rows)
    return _name(found[0]) if found else "no student"
