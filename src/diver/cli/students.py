"""Commands that train students on sets: accuracies, comparisons, teachers, protocols."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from diver.cli.common import (
    Json,
    UserError,
    aligned,
    at_home,
    completed,
    cores,
    known,
    mendable,
    options_of,
    print_json,
    settings,
    writable,
)
from diver.cli.reading import DatasetOption, RangeOption, SetArgument, prepared_data, read_set

if TYPE_CHECKING:
    from diver.config.protocols import Protocol
    from diver.config.students import Architecture
    from diver.data.prepared import Prepared
    from diver.networks.weights import Trained
    from diver.report.statistics import Interval
    from diver.sets import DistilledSet

STUDY = Path("config/default.yaml")
# --quick: no more epochs than this, and one test.
QUICK_EPOCHS = 75

# Stands for the mean over the networks of a comparison.
MEAN = "mean"

Row = dict[str, Any]


def _protocol_names() -> list[str]:
    from diver.config.protocols import PRESETS

    return list(PRESETS)


def _network_names() -> list[str]:
    from diver.config.networks import OPTIONS, PRESETS

    return [*OPTIONS, *PRESETS]


PreparedOption = Annotated[
    Path | None, typer.Option(help="The prepared dataset; by default data/prepared/DATASET.safetensors.")
]
StudyOption = Annotated[
    Path, typer.Option(help="Study whose protocol, architectures and seeds are used unless others are given.")
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(help="A named protocol instead of the study's.", autocompletion=completed(_protocol_names)),
]
DepartureOption = Annotated[
    list[str] | None, typer.Option("--set", help="Departure from the protocol, KEY=VALUE; repeatable.")
]
ArchitectureOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Short name in the study, or any network or preset; repeatable.", autocompletion=completed(_network_names)
    ),
]
ArchitecturesOption = Annotated[
    str | None,
    typer.Option(help="The same, several separated by commas.", autocompletion=completed(_network_names)),
]
SeedsOption = Annotated[int | None, typer.Option(min=1, help="Students per architecture; the study's by default.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Students trained at the same time, a core each; all cores by default.")
]
TeacherOption = Annotated[str | None, typer.Option(help="For soft labels: a file of `diver teach`, or timm:NAME.")]
QuickOption = Annotated[
    bool,
    typer.Option("--quick", help=f"Reduced: at most {QUICK_EPOCHS} epochs and one test; on all test images still."),
]


@dataclass(frozen=True)
class Evaluation:
    """How students are trained and tested: chosen once, for all sets that are compared."""

    data: "Prepared"
    protocol: "Protocol"
    architectures: "dict[str, Architecture]"
    seeds: Sequence[int]
    workers: int
    memory_gb: float
    replay_seed: int
    teacher: "Trained | None"

    def rows(self, distilled: "DistilledSet", of: str = "", checkpoints: Path | None = None) -> dict[str, list[Row]]:
        """Rows of results of each architecture, a row per seed; `of` says in the progress which set it is.

        checkpoints: a folder from which training that was killed goes on.
        """
        from diver.progress import reporter
        from diver.students import answer_set, evaluate_set
        from diver.workers import best_device

        replay = None
        if self.teacher and self.protocol.labels == "replay":
            progress = reporter(f"{of}answers", every=5)
            replay = answer_set(
                distilled, self.data, self.teacher, self.protocol, self.replay_seed, True, progress, best_device()
            )
        found = {}
        for number, (name, wanted) in enumerate(self.architectures.items(), 1):
            with mendable():
                found[name] = evaluate_set(
                    distilled,
                    self.data,
                    wanted,
                    self.protocol,
                    self.seeds,
                    progress=reporter(f"{of}{name} ({number} of {len(self.architectures)})", every=5),
                    teacher=self.teacher,
                    replay=replay,
                    workers=self.workers,
                    memory_gb=self.memory_gb,
                    checkpoints=None if checkpoints is None else checkpoints / name,
                    device=best_device(),
                )
        return found

    def note(self) -> str:
        """What protocol it was, how it differs from the published one, and rates that networks have of their own."""
        departures, quirks = self.protocol.departures() or "none", self.protocol.quirks() or "none"
        own = [f"{one.label} {one.learning_rate:g}" for one in self.architectures.values() if one.learning_rate]
        rates = f"; learning rates: {', '.join(own)}" if own else ""
        return f"protocol {self.protocol.name}; departures: {departures}; quirks of its released code: {quirks}{rates}"

    def labels(self) -> dict[str, str]:
        """What each architecture, and the mean over them, is called in tables."""
        return {**{name: one.label for name, one in self.architectures.items()}, MEAN: "mean of the networks"}


def chosen_evaluation(
    sets: "Sequence[DistilledSet]",
    prepared: Path | None = None,
    study: Path = STUDY,
    protocol: str | None = None,
    set_: list[str] | None = None,
    quick: bool = False,
    architecture: list[str] | None = None,
    architectures: str | None = None,
    seeds: int | None = None,
    threads: int | None = None,
    teacher: str | None = None,
) -> Evaluation:
    """The evaluation of sets of one dataset that the options ask for; what they leave out is the study's."""
    from diver.config.protocols import PRESETS, Protocol, by_ipc
    from diver.config.study import load_study
    from diver.networks.weights import load_teacher
    from diver.students import check_set

    if protocol:
        known(protocol, PRESETS, "--protocol")
    students = load_study(at_home(study)).students
    chosen = students.protocol
    if protocol or set_:
        named = [f"name={protocol}"] if protocol else []
        chosen = settings([*named, *(set_ or [])], Protocol, {} if protocol else chosen.model_dump())
    if quick:
        chosen = reduced(chosen)
        typer.echo(
            f"--quick: reduced to at most {QUICK_EPOCHS} epochs and one test; not what the protocol's papers report",
            err=True,
        )
    for key, one in ((key, one) for key in ("epochs", "batch") for one in sets):
        try:
            by_ipc(getattr(chosen.at(len(one.classes)), key), one.ipc, key)
        except ValueError:
            raise UserError(
                f"the study says no {key} for IPC {one.ipc}: give --set {key}=NUMBER, or --protocol NAME "
                "(`diver protocols` lists them)"
            ) from None
    names = [*(architecture or []), *filter(None, map(str.strip, (architectures or "").split(",")))]
    wanted = {name: _architecture(name, students.architectures) for name in names} or students.architectures
    if chosen.needs_teacher() and teacher is None:
        raise UserError(
            f"protocol {chosen.name} needs a teacher's answers: --teacher FILE (made by `diver teach`) or timm:NAME"
        )
    data = prepared_data(prepared, sets[0].dataset)
    for one in sets:
        # Before students of any are trained.
        with mendable():
            check_set(one, data, chosen)
    answering = load_teacher(teacher, data) if teacher and chosen.needs_teacher() else None
    return Evaluation(
        data,
        chosen,
        wanted,
        students.seeds if seeds is None else range(seeds),
        threads or cores(),
        students.memory_gb,
        students.replay_seed,
        answering,
    )


def reduced(chosen: "Protocol") -> "Protocol":
    """The protocol with at most QUICK_EPOCHS epochs and one test, at the end."""
    from diver.config.protocols import Protocol
    from diver.config.protocols import protocol as named

    def fewer(epochs: Any) -> Any:
        return (
            {k: min(v, QUICK_EPOCHS) for k, v in epochs.items()}
            if isinstance(epochs, dict)
            else min(epochs, QUICK_EPOCHS)
        )

    by_classes = chosen.by_classes
    if by_classes != named(chosen.name).by_classes:
        # The named protocol's do not touch what is departed from.
        by_classes = {
            classes: {**changes, **({"epochs": fewer(changes["epochs"])} if "epochs" in changes else {})}
            for classes, changes in by_classes.items()
        }
    changes = {"epochs": fewer(chosen.epochs), "evaluations": 1, "test_every": None, "by_classes": by_classes}
    return Protocol.model_validate({**chosen.model_dump(), **changes})


def _architecture(name: str, of_study: "dict[str, Architecture]") -> "Architecture":
    """An architecture of the study by its short name, or any network by its own."""
    from diver.config.networks import check_network
    from diver.config.students import Architecture

    if name in of_study:
        return of_study[name]
    try:
        check_network(name)
    except ValueError as error:
        raise UserError(f"--architecture {name}: not in the study ({', '.join(of_study)}); {error}") from None
    return Architecture(network=name, label=name)


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


def evaluate(
    set_file: SetArgument,
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
    csv: Annotated[
        Path | None, typer.Option(help="Write a row per student to this file, and go on there after a kill.")
    ] = None,
    json_: Json = False,
    dataset: DatasetOption = None,
    value_range: RangeOption = "auto",
) -> None:
    """Train students on a set and print their accuracy on the test images: mean, 95 % half width, and the best.

    Examples:

    diver evaluate recovered.safetensors --architectures convnet,resnet,vit --seeds 3

    diver evaluate dm.safetensors --protocol dc-eval --set epochs=300 --architecture convnet-3 --seeds 5 --csv dm.csv
    """
    import shutil

    from diver.report.tables import interval_text
    from diver.students import write_rows

    if csv:
        writable(csv, set_file, option="--csv")
    distilled = read_set(set_file, dataset, value_range)
    evaluation = chosen_evaluation(
        [distilled], prepared, study, protocol, set_, quick, architecture, architectures, seeds, threads, teacher
    )
    points = csv.with_name(f".{csv.name}.checkpoints") if csv else None
    found = evaluation.rows(distilled, checkpoints=points)
    rows = [{"architecture": name, **row} for name, of_network in found.items() for row in of_network]
    if csv and points:
        csv.parent.mkdir(parents=True, exist_ok=True)
        write_rows(csv, rows)
        shutil.rmtree(points, ignore_errors=True)
    if json_:
        print_json(rows)
        return
    table = [("network", "accuracy, %", "(best)", "seeds")]
    for name, of_network in found.items():
        one = Accuracies.of(of_network)
        note = f"{len(of_network)} seeds" + (f", {one.diverged} diverged" if one.diverged else "")
        label = evaluation.architectures[name].label
        table.append((label, interval_text(one.interval()), f"({mean(one.best):.1f})", note))
    print(aligned(table))
    print(f"mean ± half width of the 95 % t-interval over seeds, best of {rows[0]['tests']} tests in parentheses")
    print(evaluation.note())


@dataclass(frozen=True)
class Comparison:
    """The accuracies of a set's students minus those of the first set's, of one network and each seed: [n]."""

    set: str
    network: str
    differences: list[float]
    p: float
    p_holm: float = math.nan


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
    from diver.report.tables import diverged_lines, interval_text

    first, *others = found
    head = ["network", *found]
    for name in others:
        head += [f"{name} - {first}", "p", "p (Holm)"]
    rows = [head]
    for net in found[first]:
        row = [labels[net], *(str(of_set[net]) for of_set in found.values())]
        for one in (one for one in comparisons if one.network == net):
            row += [interval_text(t_interval(one.differences), signed=True), _p(one.p), _p(one.p_holm)]
        rows.append(row)
    diverged = sum(one.diverged for of_set in found.values() for net, one in of_set.items() if net != MEAN)
    return "\n".join([aligned(rows), *diverged_lines(diverged)])


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
        list(sets.values()),
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
    print(
        f"accuracy in % of {len(evaluation.seeds)} seeds: mean ± half width of the 95 % t-interval, best test in "
        "parentheses; differences paired by seed, p of the paired t-test, corrected over the table by Holm"
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


def teach(
    out: Annotated[Path, typer.Option(help="Where to write the teacher.")],
    prepared: Annotated[Path, typer.Option(help="The prepared dataset, as `snakemake data` makes it.")],
    network: Annotated[
        str, typer.Option(help="A network or preset.", autocompletion=completed(_network_names))
    ] = "resnet18-dd",
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the network, KEY=VALUE, as norm=batch; repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Departure from protocol full-data, KEY=VALUE; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of its weights and batches.")] = 0,
    json_: Json = False,
) -> None:
    """Train a teacher on the whole training set, for soft-label protocols and as an encoder. Resumes where it stopped.

    Examples:

    diver teach --prepared data/prepared/cifar10.safetensors --out teacher.safetensors --set epochs=5

    diver teach --prepared data/prepared/cifar10.safetensors --out squeezed.safetensors --network resnet
    --option norm=batch
    """
    import shutil

    from diver.config.networks import check_network
    from diver.config.protocols import Protocol
    from diver.data.prepared import Prepared
    from diver.networks.weights import write_trained
    from diver.progress import reporter
    from diver.students import train_teacher
    from diver.workers import best_device

    with mendable(f"--network {network}"):
        check_network(network)
    options = options_of(option, "--option")
    chosen = settings(["name=full-data", *(set_ or [])], Protocol)
    writable(out, prepared)
    points = out.with_name(f".{out.name}.checkpoints")
    data, progress = Prepared.read(prepared), reporter("teacher", every=5)
    with mendable():
        trained = train_teacher(data, network, options, chosen, seed, progress, points, best_device())
    write_trained(out, trained)
    shutil.rmtree(points, ignore_errors=True)
    if json_:
        print_json({"file": str(out), "network": network, "accuracy": trained.accuracy})
    else:
        print(f"{out}: {trained.accuracy:.2f} % of the test images")


def protocols(
    name: Annotated[
        str | None, typer.Argument(help="Show all settings of this one.", autocompletion=completed(_protocol_names))
    ] = None,
    json_: Json = False,
) -> None:
    """List the evaluation protocols, or show one as the YAML that a study may depart from.

    Example: diver protocols hard-idc
    """
    from diver.config.protocols import PRESETS, protocol

    chosen = {one: protocol(one) for one in ([known(name, PRESETS)] if name else PRESETS)}
    if json_:
        print_json({one: found.model_dump(mode="json") for one, found in chosen.items()})
    elif name:
        print(yaml.safe_dump(chosen[name].model_dump(mode="json"), sort_keys=False), end="")
    else:
        for one, found in chosen.items():
            recipe = f"{found.optimizer}, {found.schedule}, {found.augmentation}, labels: {found.labels}"
            print(f"{one:13} {recipe}; reports {found.reported}")
