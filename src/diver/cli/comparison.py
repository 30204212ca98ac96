"""Sets side by side: the same students on each, and paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from statistics import median, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver.cli.common import Json, UserError, aligned, print_json
from diver.cli.evaluation import (
    MEAN,
    STUDY,
    ArchitectureOption,
    ArchitecturesOption,
    DepartureOption,
    Evaluation,
    PreparedOption,
    ProtocolOption,
    QuickOption,
    Row,
    SeedsOption,
    StudyOption,
    TeacherOption,
    ThreadsOption,
    chosen_evaluation,
)
from diver.cli.reading import DatasetOption, RangeOption, read_set

if TYPE_CHECKING:
    from diver.report.statistics import Interval
    from diver.sets import DistilledSet


@dataclass(frozen=True)
class Accuracies:
    """Of the students of a set and network, or of the networks' mean within each seed: percent [n], by seed."""

    last: list[float]
    best: list[float]
    diverged: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Accuracies":
        from diver.report.statistics import BEST, LAST

        return cls([row[LAST] for row in rows], [row[BEST] for row in rows], sum(row["diverged"] for row in rows))

    @classmethod
    def averaged(cls, several: "Sequence[Accuracies]") -> "Accuracies":
        last, best = (
            [mean(seed) for seed in zip(*values, strict=True)]
            for values in ([one.last for one in several], [one.best for one in several])
        )
        return cls(last, best, sum(one.diverged for one in several))

    def interval(self) -> "Interval":
        from diver.report.statistics import t_interval

        return t_interval(self.last)

    def __str__(self) -> str:
        from diver.report.tables import diverged_text, interval_text

        return f"{interval_text(self.interval())} ({mean(self.best):.1f})" + diverged_text(self.diverged)


@dataclass(frozen=True)
class Comparison:
    """The accuracies of a set's students minus those of the first set's, of one network and each seed: [n]."""

    set: str
    network: str
    differences: list[float]
    p: float
    p_holm: float = math.nan

    def distinguishable(self) -> bool:
        from diver.report.statistics import LEVEL

        return self.p_holm < 1 - LEVEL

    def minimum_detectable(self) -> float:
        """Points that a test of this comparison alone would find with 80 % power."""
        from diver.report.statistics import minimum_detectable

        return minimum_detectable(stdev(self.differences), len(self.differences))


BySet = dict[str, dict[str, Accuracies]]


def accuracies(sets: "dict[str, DistilledSet]", evaluation: Evaluation) -> BySet:
    """Set -> network -> accuracies, and the networks' mean."""
    found: BySet = {}
    for name, one in sets.items():
        found[name] = {net: Accuracies.of(rows) for net, rows in evaluation.rows(one, f"{name}, ").items()}
        if len(found[name]) > 1:
            found[name][MEAN] = Accuracies.averaged(list(found[name].values()))
    return found


def compared(found: BySet) -> list[Comparison]:
    """Each other set with the first, network by network; all p-values are corrected together by Holm."""
    from diver.report.statistics import holm, paired_p

    first, *others = found
    pairs = [(name, net) for name in others for net in found[first]]
    values = [
        [a - b for a, b in zip(found[name][net].last, found[first][net].last, strict=True)] for name, net in pairs
    ]
    p = [paired_p(one) for one in values]
    return [
        Comparison(*pair, one, *both)
        for pair, one, both in zip(pairs, values, zip(p, map(float, holm(p)), strict=True), strict=True)
    ]


def _p(value: float) -> str:
    return "n/a" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def comparison_table(found: BySet, comparisons: Sequence[Comparison], labels: dict[str, str]) -> str:
    """A row for each network: each set's accuracies, then each difference to the first and its p."""
    from diver.report.statistics import t_interval
    from diver.report.tables import NOT_DISTINGUISHABLE, diverged_lines, interval_text

    first, *others = found
    head = ["network", *found]
    for name in others:
        head += [f"{name} - {first}", "p", "p (Holm)"]
    rows = [head]
    for net in found[first]:
        row = [labels[net], *(str(of_set[net]) for of_set in found.values())]
        for one in (one for one in comparisons if one.network == net):
            mark = "" if one.distinguishable() else f" {NOT_DISTINGUISHABLE}"
            row += [interval_text(t_interval(one.differences), signed=True) + mark, _p(one.p), _p(one.p_holm)]
        rows.append(row)
    diverged = sum(one.diverged for of_set in found.values() for net, one in of_set.items() if net != MEAN)
    return "\n".join([aligned(rows), *diverged_lines(diverged), *_correction(comparisons)])


def _correction(comparisons: Sequence[Comparison]) -> list[str]:
    """What the mark means, and what these seeds could have found."""
    from diver.report.tables import NOT_DISTINGUISHABLE, or_untested, untested

    tested = [one for one in comparisons if not math.isnan(one.p)]
    found = [size for one in tested if not math.isnan(size := one.minimum_detectable())]
    if all(one.distinguishable() for one in comparisons):
        marked = []
    elif not tested:
        return [f"{NOT_DISTINGUISHABLE}: {untested(max(len(one.differences) for one in comparisons))}"]
    else:
        more = or_untested(len(tested), len(comparisons))
        marked = [f"{NOT_DISTINGUISHABLE}: not distinguishable from zero at 5 %, corrected over the table{more}"]
    if not found:
        return marked
    power = f"a difference of {median(found):.1f} points (median) would be found with 80 % power by one test alone"
    return [*marked, power]


def _comparison_json(found: BySet, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Accuracies and differences as JSON has them: what a single seed does not have is null."""
    from diver.report.statistics import t_interval

    def half(values: Sequence[float]) -> float | None:
        return None if len(values) < 2 else t_interval(values).half_width

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    means = {
        name: {
            net: {
                **{"accuracies": one.last, "mean": mean(one.last), "half_width": half(one.last)},
                **{"best": one.best, "diverged": one.diverged},
            }
            for net, one in of_set.items()
        }
        for name, of_set in found.items()
    }
    differences = [
        {
            "set": one.set,
            "network": one.network,
            "differences": one.differences,
            "mean": mean(one.differences),
            "half_width": half(one.differences),
            "p": number(one.p),
            "p_holm": number(one.p_holm),
            "minimum_detectable": None if len(one.differences) < 2 else number(one.minimum_detectable()),
        }
        for one in comparisons
    ]
    return {"accuracies": means, "differences_to_the_first": differences}


def compare(
    set_files: Annotated[
        list[Path], typer.Argument(metavar="SET...", help="Two or more sets, of this project or released by others.")
    ],
    prepared: PreparedOption = None,
    study: StudyOption = STUDY,
    protocol: ProtocolOption = None,
    set_: DepartureOption = None,
    quick: QuickOption = False,
    architecture: ArchitectureOption = None,
    architectures: ArchitecturesOption = None,
    seeds: SeedsOption = None,
    threads: ThreadsOption = None,
    teacher: TeacherOption = None,
    json_: Json = False,
    dataset: DatasetOption = None,
    value_range: RangeOption = "auto",
) -> None:
    """Train the same students on several sets: accuracies, and differences to the first set paired by seed.

    Examples:

    diver compare res_DC_CIFAR10_ConvNet_1ipc.pt recovered.safetensors

    diver compare dm.safetensors vae.safetensors diver.safetensors --architectures resnet,vit --seeds 5 --json
    """
    if len(set_files) < 2:
        raise UserError("one set is compared with nothing: give two or more, or take `diver evaluate`")
    letters = [chr(ord("A") + number) if len(set_files) <= 26 else str(number + 1) for number in range(len(set_files))]
    sets = {name: read_set(path, dataset, value_range) for name, path in zip(letters, set_files, strict=True)}
    first = sets["A"] if "A" in sets else sets["1"]
    for path, one in zip(set_files, sets.values(), strict=True):
        if (one.dataset, one.classes) != (first.dataset, first.classes):
            raise UserError(f"{path}: a set of {one.dataset}, and {set_files[0]} is one of {first.dataset}")
    evaluation = chosen_evaluation(
        dict(zip(map(str, set_files), sets.values(), strict=True)),
        prepared,
        study,
        protocol,
        set_,
        quick,
        architecture,
        architectures,
        seeds,
        threads,
        teacher,
    )
    found = accuracies(sets, evaluation)
    comparisons = compared(found)
    likeness = {name: _psnr(first, one) for name, one in list(sets.items())[1:]}
    if json_:
        files = dict(zip(letters, map(str, set_files), strict=True))
        about = {"sets": files, "seeds": list(evaluation.seeds), "protocol": evaluation.note()}
        print_json({**about, **_comparison_json(found, comparisons), "psnr_db": likeness})
        return
    for name, path in zip(letters, set_files, strict=True):
        alike = likeness.get(name)
        print(f"{name}: {path}, IPC {sets[name].ipc}" + (f"; PSNR to {letters[0]}: {alike:.1f} dB" if alike else ""))
    print(comparison_table(found, comparisons, evaluation.labels()))
    count = len(evaluation.seeds)
    print(
        f"accuracy in % of {count} seed{'' if count == 1 else 's'}: mean ± half width of the 95 % t-interval, best "
        "test in parentheses; differences paired by seed, p of the paired t-test, corrected over the table by Holm"
    )
    print(evaluation.note())


def _psnr(a: "DistilledSet", b: "DistilledSet") -> float | None:
    """Mean over images of the PSNR between two sets' images in [0, 1], if they are of one shape and differ."""
    from diver.pictures import psnr
    from diver.sets import UNIT

    if a.images.shape != b.images.shape:
        return None
    value = float(psnr(a.in_range(UNIT).images, b.in_range(UNIT).images).mean())
    return value if math.isfinite(value) else None


def accuracy_lost(distilled: "DistilledSet", evaluation: Evaluation) -> dict[str, Any]:
    """What rounding a set to 8 bits costs students, as the form's files record it; a table of it goes to stderr."""
    from diver.exports import rounded

    found = accuracies({"before": distilled, "after": rounded(distilled)}, evaluation)
    comparisons = compared(found)
    typer.echo(comparison_table(found, comparisons, evaluation.labels()), err=True)
    typer.echo("before and after rounding to 8 bits, students of the same seeds; " + evaluation.note(), err=True)
    return {"protocol": evaluation.note(), "seeds": list(evaluation.seeds), **_comparison_json(found, comparisons)}
