"""Intervals, paired tests and corrections against scipy and closed forms."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tidy import make_table

from diver.report import statistics as st
from diver.report.statistics import Cell, StatisticsError

DIVER = Cell("cifar10", 10, "dm", "diver", "matched")
STAGE1 = DIVER._replace(stage2="none")
UNSEEN = ["resnet", "vit", "mobilenet"]


def per_seed(table: pd.DataFrame, cell: Cell, architectures: list[str]) -> np.ndarray:
    """Average over architectures by seed, computed the plain way."""
    rows = st.students_of(table, cell)
    seeds = sorted(rows["seed"].unique())
    return np.array(
        [rows[rows.architecture.isin(architectures) & (rows.seed == s)].accuracy_last.mean() for s in seeds]
    )


@pytest.fixture
def table() -> pd.DataFrame:
    return make_table().sample(frac=1, random_state=0)


def test_t_interval_is_scipys() -> None:
    values = [31.2, 30.1, 33.4, 29.9]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    interval = st.t_interval(values)
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert interval.n == 4 and interval.mean == pytest.approx(np.mean(values))


def test_t_interval_closed_form_for_two_values() -> None:
    # With one degree of freedom t is Cauchy: the 97.5 % quantile is tan(0.475 pi).
    assert st.t_interval([1.0, 3.0]).half_width == pytest.approx(math.tan(0.475 * math.pi))


def test_single_seed_has_a_mean_and_no_interval() -> None:
    interval = st.t_interval([12.5])
    assert interval.mean == 12.5 and math.isnan(interval.low) and math.isnan(interval.half_width)
    with pytest.raises(StatisticsError):
        st.t_interval([])


def test_differences_without_spread_are_not_said_to_be_of_one_seed(table: pd.DataFrame) -> None:
    from diver.report.tables import correction_lines

    pair = [(st.Cell("cifar10", 1, "dm", "diver", "matched"), st.Cell("cifar10", 1, "dm", "none", "matched"))]
    same = table.assign(accuracy_last=20.0 + table["seed"] + 5 * (table["stage2"] == "diver"))
    assert "without any spread" in correction_lines(st.compare(same, pair))[0]
    assert "single seed" in correction_lines(st.compare(same[same["seed"] == 0], pair))[0]


def test_students_that_only_guess_say_nothing_of_what_could_be_found(table: pd.DataFrame) -> None:
    from diver.report.tables import correction_lines

    def legend(guessing: list[str], shift: float = 0.0) -> str:
        mask, changed = table["stage2"].isin(guessing) & (table["stage1"] == "dm"), table.copy()
        changed.loc[mask, "accuracy_last"] = 10.0 + shift * (table["stage2"] != "none")
        return " ".join(correction_lines(st.compare(changed, [(DIVER, STAGE1), (vae, STAGE1)], ["unseen"])))

    vae = DIVER._replace(stage2="vae")
    alone = st.minimum_detectable(per_seed(table, DIVER, UNSEEN).std(ddof=1), 3)
    assert f"of {alone:.1f} points" in legend(["none", "vae"]) and "over the 2 comparisons" in legend(["none", "vae"])
    assert "points" not in legend(["none", "vae", "diver"]) and "testable" not in legend(["none", "vae"])
    told = legend(["none", "vae"], shift=1.0)
    assert "not distinguishable" in told and "or not testable, as the difference is the same for all seeds" in told


def test_unseen_mean_averages_within_a_seed_and_leaves_the_proxy_out(table: pd.DataFrame) -> None:
    found = st.unseen_by_seed(table)
    mine = st.students_of(found, DIVER).sort_values("seed")
    assert mine["accuracy_last"].to_numpy() == pytest.approx(per_seed(table, DIVER, UNSEEN))


@pytest.mark.parametrize(("role", "names"), [("unseen", UNSEEN), ("proxy", ["convnet"])])
def test_paired_difference_is_the_paired_t_test(table: pd.DataFrame, role: str, names: list[str]) -> None:
    ours, theirs = per_seed(table, DIVER, names), per_seed(table, STAGE1, names)
    found = st.difference(table, DIVER, STAGE1, role)
    assert found is not None
    reference = stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(reference.pvalue)
    bounds = reference.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((bounds.low, bounds.high))


def test_pairing_removes_what_a_seed_shares() -> None:
    table = make_table(seeds=4)
    shared = table["seed"].map({0: 0.0, 1: 5.0, 2: -7.0, 3: 3.0})
    before, after = (
        st.difference(one, DIVER, STAGE1) for one in (table, table.assign(accuracy_last=table.accuracy_last + shared))
    )
    assert before is not None and after is not None
    assert after.interval.half_width == pytest.approx(before.interval.half_width)


def test_missing_or_double_students_are_refused(table: pd.DataFrame) -> None:
    row = st.students_of(table, DIVER).query("architecture == 'vit' and seed == 1")
    with pytest.raises(StatisticsError, match="different seeds"):
        st.difference(table.drop(row.index), DIVER, STAGE1)
    with pytest.raises(StatisticsError, match="seed 1 of vit is in the table twice"):
        st.difference(pd.concat([table, row]), DIVER, STAGE1)
    fewer = table.drop(st.students_of(table, DIVER).query("seed == 1").index)
    with pytest.raises(StatisticsError, match="same seeds"):
        st.difference(fewer, DIVER, STAGE1)


def test_differences_without_spread() -> None:
    assert st.paired_p([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(st.paired_p([10.0 - 9.9, 20.0 - 19.9, 30.0 - 29.9]))
    assert math.isnan(st.paired_p([1.0]))


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last may not be below the third.
    found = st.holm([0.01, 0.04, np.nan, 0.03, 0.005])
    assert found[[0, 1, 3, 4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(found[2])
    assert st.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("n", [3, 5, 20])
def test_minimum_detectable_has_the_power_that_it_promises(n: int) -> None:
    effect = st.minimum_detectable(2.0, n)
    critical = stats.t.ppf(0.975, n - 1)
    shift = effect * math.sqrt(n) / 2.0
    power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    assert power == pytest.approx(0.8, abs=2e-4)


def test_minimum_detectable_approaches_the_normal_closed_form() -> None:
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 3.0 / math.sqrt(4000)
    assert st.minimum_detectable(3.0, 4000) == pytest.approx(expected, rel=2e-3)
    assert math.isnan(st.minimum_detectable(math.nan, 1)) and math.isnan(st.minimum_detectable(0.0, 3))
    # The level after a correction over many comparisons, with few seeds.
    assert st.minimum_detectable(1.0, 3, 0.05 / 44) > 5 * st.minimum_detectable(1.0, 3)


def test_compare_corrects_over_all_its_rows(table: pd.DataFrame) -> None:
    found = st.compare(table, st.stage1_pairs(table))
    # Random has four treatments (one at two scales), DM seven, at two IPC and for two roles.
    assert len(found) == (4 + 7) * 2 * 2
    assert found["p_holm"].to_numpy() == pytest.approx(st.holm(found["p"]))
    assert (found["distinguishable"] == (found["p_holm"] < 0.05)).all()
    assert (found["p_holm"] >= found["p"]).all()


def test_reference_has_the_same_scale_where_there_is_one(table: pd.DataFrame) -> None:
    published = DIVER._replace(scale="as-published")
    assert dict(st.stage1_pairs(table))[published] == STAGE1
    extra = st.students_of(table, STAGE1).assign(scale="as-published")
    pairs = dict(st.stage1_pairs(pd.concat([table, extra])))
    assert pairs[published] == STAGE1._replace(scale="as-published")
    assert pairs[DIVER] == STAGE1


def test_step_pairs_follow_the_ladder(table: pd.DataFrame) -> None:
    pairs = st.step_pairs(table[table.ipc == 10], "dm", ["none", "raw", "diver"])
    assert [(a.stage2, b.stage2) for a, b in pairs] == [("raw", "none"), ("diver", "raw")]
