"""Tables of a study: their numbers, and the same rows as texts for people."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from diver.config.study import NONE
from diver.report.forms import Table
from diver.report.labels import Labels, ordered
from diver.report.statistics import (
    BEST,
    LAST,
    PROXY,
    UNSEEN,
    Cell,
    Interval,
    cells,
    compare,
    seed_means,
    stage1_pairs,
    step_pairs,
    students_of,
    t_interval,
)
from diver.study import MATCHED

NOT_DISTINGUISHABLE = "~"
DIVERGED = "†"
MISSING = "n/a"
# Says in every column name that the number was chosen with the test images in sight.
BEST_NAME = "best_peeking_at_test"
# For legends, of `reported_text`.
OTHER = (
    "in parentheses the other one: after the last epoch, or the best of all tests, chosen with the test images in sight"
)
ROW_NAMES = ("Dataset", "IPC", "Stage 1", "Stage 2")


def number_text(value: float, signed: bool = False) -> str:
    """'31.2', or '+31.2'; a difference that rounds to zero has a plus."""
    # Adding zero turns the -0.0 of rounding into 0.0.
    rounded = round(value, 1) + 0.0
    return (f"{rounded:+.1f}" if signed else f"{rounded:.1f}").replace("-", "−")


def interval_text(interval: Interval, signed: bool = False) -> str:
    """'31.2 ± 0.9', half width of the interval after the sign; 'n/a' instead of it for a single seed."""
    half = MISSING if math.isnan(interval.half_width) else f"{interval.half_width:.1f}"
    return f"{number_text(interval.mean, signed)} ± {half}"


def cross_architecture(table: pd.DataFrame, labels: Labels) -> Table:
    """All sets x all architectures, the mean over the unseen ones, and the differences to the stage-1 set.

    `table`: the tidy table of one study, a row per trained student. Raises StatisticsError if students are missing.
    """
    differences = compare(table, stage1_pairs(table))
    columns = {UNSEEN: "Δ unseen", PROXY: "Δ proxy"}
    rows = labels.order_cells(cells(table))
    legend = ["Δ: difference to the stage-1 set, paired by seed and architecture, in percentage points."]
    if any(one.scale != MATCHED for one in rows):
        legend.append(
            "Rows of another scale than the matched one are compared with the stage-1 set at the same scale if it was "
            "trained so, else at the matched scale."
        )
    return _assemble(
        "Test accuracy of student architectures", table, labels, rows, {"": (differences, columns)}, legend
    )


def ablation(table: pd.DataFrame, labels: Labels, stage1: str, ladder: Sequence[str]) -> Table:
    """The steps of a ladder on one stage-1 set, at the matched scale, in the ladder's order.

    Differences to the stage-1 set and to the step before it, corrected together. Raises StatisticsError if students
    are missing.
    """
    names = replace(labels, stage2={name: labels.stage2.get(name, name) for name in ladder})
    needed = [NONE, *ladder]
    chosen = table[(table["stage1"] == stage1) & (table["scale"] == MATCHED) & table["stage2"].isin(needed)]
    to_stage1, by_step = stage1_pairs(chosen), step_pairs(chosen, stage1, ladder)
    every = compare(chosen, dict.fromkeys([*to_stage1, *by_step]))
    step_before = dict(zip(ladder[1:], ladder, strict=False))
    is_step = every["reference_stage2"] == every["stage2"].map(step_before)
    groups = {
        "": (every[every["reference_stage2"] == NONE], {UNSEEN: "Δ unseen", PROXY: "Δ proxy"}),
        "step": (every[is_step], {UNSEEN: "Δ unseen to row above", PROXY: "Δ proxy to row above"}),
    }
    legend = ["Δ: difference to the stage-1 set or to the row above, paired by seed and architecture, in points."]
    rows = [one for one in names.order_cells(cells(chosen)) if one.stage2 in ladder]
    return _assemble("Ladder", chosen, names, rows, groups, legend, every)


def metrics_text(results: pd.DataFrame, cross: Table, ladder_of: str | None, ladder: Sequence[str]) -> str:
    """A few headline numbers as JSON, for `dvc metrics show`: unseen means of the ladder's two ends, or of every
    stage-1 set where there is no ladder, and how many students there were and diverged. `cross`: of
    `cross_architecture`.
    """
    ends = {ladder[0], ladder[-1]} if ladder else {NONE}
    shown = cross.data[(cross.data["scale"] == MATCHED) & cross.data["stage2"].isin(ends)]
    if ladder:
        shown = shown[shown["stage1"] == ladder_of]
    unseen = {
        f"{row.dataset}/ipc{row.ipc}/{row.stage1}" + (f"+{row.stage2}" if row.stage2 != NONE else ""): round(mean, 2)
        for row, mean in zip(shown.itertuples(), shown["unseen_last_mean"], strict=True)
    }
    counts = {"students": len(results), "diverged": int(results["diverged"].sum())}
    return json.dumps({"unseen": unseen, **counts}, indent=1) + "\n"


Differences = Mapping[str, tuple[pd.DataFrame, Mapping[str, str]]]


def _assemble(
    title: str,
    table: pd.DataFrame,
    labels: Labels,
    rows: Sequence[Cell],
    groups: Differences,
    legend: Sequence[str],
    family: pd.DataFrame | None = None,
) -> Table:
    """`groups`: prefix of the columns in the data -> (differences, role -> displayed column).

    `family`: all comparisons that were corrected together, when the groups do not show each exactly once.
    """
    display, data = [], []
    for cell in rows:
        texts, numbers = _accuracies(students_of(table, cell), labels)
        for prefix, (differences, columns) in groups.items():
            for role, column in columns.items():
                text, found = difference_text(differences, cell, role)
                texts[column] = text
                name = f"difference_{prefix}_{role}" if prefix else f"difference_{role}"
                numbers.update({f"{name}_{key}": value for key, value in found.items()})
        display.append({**_row_names(cell, labels), **texts})
        data.append({**cell._asdict(), **numbers})
    networks = [labels.architecture.get(name, name) for name in ordered(labels.architecture, table["architecture"])]
    order = [*ROW_NAMES, *(text for name in networks for text in (f"{name} (proxy)", name)), "unseen mean"]
    order += [column for _, columns in groups.values() for column in columns.values()]
    # Datasets may have other students: those of the later ones belong before the mean too.
    frame = pd.DataFrame(display)
    frame = frame[[column for column in dict.fromkeys(order) if column in frame]]
    shown, title, keys = without_constant(frame.fillna(""), title, ROW_NAMES)
    corrected = family if family is not None else next(iter(groups.values()))[0]
    lines = (*_legend(table, labels), *legend, *correction_lines(corrected))
    return Table(title, pd.DataFrame(data), shown, keys, keys - 1, lines)


def without_constant(display: pd.DataFrame, title: str, keys: Sequence[str]) -> tuple[pd.DataFrame, str, int]:
    """Without columns that say the same in every row, which belong in the title; and how many columns name a row.

    keys: the first columns, which name a row.
    """
    same = [name for name in ("Dataset", "Stage 1", "Architecture") if name in keys and display[name].nunique() == 1]
    title = ", ".join([title, *(str(display[name].iloc[0]) for name in same)])
    return display.drop(columns=same), title, len(keys) - len(same)


def _row_names(cell: Cell, labels: Labels) -> dict[str, str]:
    names = (
        labels.dataset.get(cell.dataset, cell.dataset),
        str(cell.ipc),
        labels.stage1.get(cell.stage1, cell.stage1),
        labels.treatment(cell),
    )
    return dict(zip(ROW_NAMES, names, strict=True))


def _accuracies(rows: pd.DataFrame, labels: Labels) -> tuple[dict[str, str], dict[str, Any]]:
    """Displayed and raw accuracy of each architecture and of the unseen mean, for the students of one cell."""
    texts: dict[str, str] = {}
    numbers: dict[str, Any] = {}
    for name in ordered(labels.architecture, rows["architecture"]):
        one = rows[rows["architecture"] == name]
        role = str(one["role"].iloc[0])
        column = labels.architecture.get(name, name) + (" (proxy)" if role == PROXY else "")
        texts[column] = accuracy(one, name, numbers)
    if (rows["role"] == UNSEEN).any():
        texts["unseen mean"] = accuracy(rows[rows["role"] == UNSEEN], "unseen", numbers)
    numbers["students"] = len(rows)
    return texts, numbers


def accuracy(rows: pd.DataFrame, name: str, numbers: dict[str, Any]) -> str:
    """'31.2 ± 0.9 (31.8) †1': last accuracy of students, mean of their best, and how many diverged if any did.

    Several architectures are averaged within a seed. The numbers go into `numbers` as NAME_last_mean and so on.
    """
    intervals = {"last": t_interval(seed_means(rows, LAST)), BEST_NAME: t_interval(seed_means(rows, BEST))}
    for kind, interval in intervals.items():
        for key in ("mean", "low", "high"):
            numbers[f"{name}_{kind}_{key}"] = getattr(interval, key)
    diverged = int(rows["diverged"].sum())
    numbers[f"{name}_seeds"], numbers[f"{name}_diverged"] = intervals["last"].n, diverged
    return f"{interval_text(intervals['last'])} ({intervals[BEST_NAME].mean:.1f})" + diverged_text(diverged)


def reported_text(interval: Interval, reported: str, last: float, best: float, diverged: int) -> str:
    """'31.2 ± 0.9 (best 31.8)': the accuracy that a protocol's papers report, 'last' or 'best', beside the other."""
    other = f"best {number_text(best)}" if reported == "last" else f"last {number_text(last)}"
    return f"{interval_text(interval)} ({other})" + diverged_text(diverged)


def diverged_text(count: int) -> str:
    """' †2', or '' for none."""
    return f" {DIVERGED}{count}" if count else ""


def difference_text(differences: pd.DataFrame, cell: Cell, role: str) -> tuple[str, dict[str, Any]]:
    """A cell's row of `compare` as text, marked where it is not distinguishable, and its numbers; '' for none."""
    mask = differences["role"] == role
    for key, value in cell._asdict().items():
        mask &= differences[key] == value
    if not mask.any():
        return "", {}
    row = differences[mask].iloc[0]
    found = {str(key): row[key] for key in differences.columns if key not in (*Cell._fields, "role")}
    interval = Interval(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["seeds"]))
    mark = "" if row["distinguishable"] else f" {NOT_DISTINGUISHABLE}"
    return interval_text(interval, signed=True) + mark, found


def _legend(table: pd.DataFrame, labels: Labels) -> list[str]:
    lines = [
        "Test accuracy in % after the last epoch: mean ± half width of the 95 % t-interval over "
        f"{seeds_text(table)}; in parentheses the mean of each student's best test, which is "
        "chosen with the test images in sight.",
        *protocol_lines(table),
    ]
    over: dict[str, list[str]] = {}
    for dataset, rows in table[table["role"] == UNSEEN].groupby("dataset"):
        names = ordered(labels.architecture, rows["architecture"])
        texts = ", ".join(labels.architecture.get(name, name) for name in names)
        over.setdefault(texts, []).append(labels.dataset.get(str(dataset), str(dataset)))
    for texts, datasets in over.items():
        where = f" ({', '.join(datasets)})" if len(over) > 1 else ""
        lines.append(
            f"Unseen mean{where}: average over {texts} within a seed; its interval is over seeds, for these "
            "architectures."
        )
    return lines + diverged_lines(int(table["diverged"].sum()))


def seeds_text(table: pd.DataFrame) -> str:
    """How many seeds each set and architecture has: '3 seeds', or '1 to 3 seeds' where they have not all the same."""
    counts = table.groupby([*Cell._fields, "architecture"])["seed"].nunique()
    low, high = counts.min(), counts.max()
    return ("" if low == high else f"{low} to ") + f"{high} seed{'' if high == 1 else 's'}"


def diverged_lines(count: int) -> list[str]:
    """What the mark of diverged students means, if there are any."""
    return [f"{DIVERGED}k: k of the students diverged ({count} in all); they count as measured."] if count else []


def protocol_lines(table: pd.DataFrame) -> list[str]:
    """A line for each protocol: what was departed from, which quirks are on, what its papers report."""
    lines = []
    for keys, rows in table.groupby(["protocol", "quirks", "reported"], sort=False):
        name, quirks, reported = map(str, keys)
        departures = list(dict.fromkeys(filter(None, "; ".join(rows["departures"]).split("; "))))
        text = f"Protocol {name}, whose papers report the {reported} accuracy"
        text += f"; departures: {'; '.join(departures)}" if departures else ", without departures"
        lines.append(f"{text}; quirks of its released code: {quirks or 'none'}.")
        if "white" in rows and rows["white"].any():
            lines.append(f"Protocol {name}: sets learned on white images (ZCA) are trained and tested on white ones.")
    return lines


def untested(seeds: int) -> str:
    """Why no comparison of a table could be tested, where each has at most so many seeds."""
    if seeds < 2:
        return "with a single seed no difference can be distinguished from zero"
    return "the differences are the same for all seeds, and without any spread nothing can be tested"


def or_untested(tested: int, comparisons: int) -> str:
    """What else the mark means where not all comparisons of a table could be tested; '' where they could."""
    return ", or not testable, as the difference is the same for all seeds" if tested < comparisons else ""


def correction_lines(differences: pd.DataFrame) -> list[str]:
    """What the mark means, and what the seeds of a table of `compare` could have found."""
    tested = differences.dropna(subset=["p"])
    if differences.empty:
        return []
    if tested.empty:
        return [f"{NOT_DISTINGUISHABLE}: {untested(int(differences['seeds'].max()))}."]
    typical, corrected = tested["minimum_detectable"].median(), tested["minimum_detectable_corrected"].median()
    lines = [
        "The intervals are for one comparison at a time; the mark is for all of them together.",
        f"{NOT_DISTINGUISHABLE}: not distinguishable from zero at 5 % (paired t-test over seeds, Holm's correction "
        f"over the {len(tested)} comparisons of this table){or_untested(len(tested), len(differences))}.",
    ]
    if not math.isnan(typical):
        lines.append(
            f"A difference of {typical:.1f} points (median over the comparisons) would be found with 80 % power by one "
            f"test alone, and one of {corrected:.1f} points after the correction's first step."
        )
    return lines


def quality(table: pd.DataFrame, labels: Labels) -> Table:
    """All sets x the measures of their images. `table`: a row per set, of `Reference.measure` with the set's names."""
    rows = labels.sets_in_order(table)
    data = pd.DataFrame([row for _, row in rows], columns=table.columns)
    display = pd.DataFrame([{**_row_names(cell, labels), **_measures(row)} for cell, row in rows])
    shown, title, keys = without_constant(display, "Images of the sets beside real ones", ROW_NAMES)
    return Table(title, data, shown, keys, keys - 1, tuple(_quality_legend(data, labels)))


def _measures(row: Mapping[Any, Any]) -> dict[str, str]:
    return {
        "high-frequency energy (%)": f"{100 * row['high_frequency']:.1f}",
        "ratio to real": f"{row['high_frequency_ratio']:.2f}",
        "Fréchet distance": _digits(row["frechet"]),
        "coverage (%)": f"{100 * row['coverage']:.2f}",
        "coverage by class (%)": f"{100 * row['coverage_by_class']:.2f}",
        "density": f"{row['density']:.2f}",
    }


def _digits(value: float, digits: int = 3) -> str:
    """A positive number with so many significant digits, none of its integer ones cut off."""
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _quality_legend(table: pd.DataFrame, labels: Labels) -> list[str]:
    lines = [
        "High-frequency energy: share of an image's spectral energy beyond half of the Nyquist frequency, mean over "
        "the images.",
        "Fréchet distance: between normal distributions fitted to features of the set and of real images, as in the "
        "FID; few images bias it upward, so compare it within an IPC only.",
        "Coverage: share of real images with an image of the set nearer than their k-th nearest real one, k = "
        f"{_only(table, 'neighbours')}; it grows with the number of images. By class: among each class's own images, "
        "mean over the classes.",
        "Density: mean number of such real images for an image of the set, over k; 1 is expected of images distributed "
        "as the real ones.",
    ]
    for dataset, rows in table.groupby("dataset", sort=False):
        known = _only(rows, "extractor_accuracy")
        accuracy = "" if known == "" or pd.isna(known) else f" ({float(known):.1f} % on the test images)"
        lines.append(
            f"{labels.dataset.get(str(dataset), str(dataset))}: features of the {_only(rows, 'extractor')}{accuracy}; "
            f"{_only(rows, 'reference_images')} real training images (drawn by seed {_only(rows, 'reference_seed')}), "
            f"high-frequency energy {100 * float(_only(rows, 'reference_high_frequency')):.1f} %."
        )
    return lines


def _only(rows: pd.DataFrame, column: str) -> Any:
    """The value of a column that has one."""
    (value,) = rows[column].unique()
    return value
