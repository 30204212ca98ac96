"""How students are trained and tested for the commands that do: the options, and what they come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver.cli.common import UserError, at_home, completed, cores, known, mendable, settings
from diver.cli.reading import prepared_data

if TYPE_CHECKING:
    from diver.config.protocols import Protocol
    from diver.config.students import Architecture
    from diver.data.prepared import Prepared
    from diver.networks.weights import Trained
    from diver.sets import DistilledSet

STUDY = Path("config/default.yaml")
# --quick: no more epochs than this, and one test.
QUICK_EPOCHS = 75

# Stands for the mean over the networks of a comparison.
MEAN = "mean"

Row = dict[str, Any]


def protocol_names() -> list[str]:
    from diver.config.protocols import PRESETS

    return list(PRESETS)


def network_names() -> list[str]:
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
    typer.Option(
        help="A named protocol and its rates instead of the study's.", autocompletion=completed(protocol_names)
    ),
]
DepartureOption = Annotated[
    list[str] | None, typer.Option("--set", help="Departure from the protocol, KEY=VALUE; repeatable.")
]
ArchitectureOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Short name in the study, or any network or preset; repeatable.", autocompletion=completed(network_names)
    ),
]
ArchitecturesOption = Annotated[
    str | None,
    typer.Option(help="The same, several separated by commas.", autocompletion=completed(network_names)),
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
    # That the sets' methods learned, for networks without a rate of their own.
    learned_rates: Sequence[float] = ()

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
        """What protocol it was, how it differs from the published one, rates that networks have of their own or sets
        brought, and which accuracy counts."""
        departures = self.protocol.departures(len(self.data.classes)) or "none"
        quirks = self.protocol.quirks() or "none"
        own = [f"{one.label} {one.learning_rate:g}" for one in self.architectures.values() if one.learning_rate]
        rates = f"; learning rates: {', '.join(own)}" if own else ""
        if self.learned_rates and len(own) < len(self.architectures):
            learned = ", ".join(f"{rate:g}" for rate in self.learned_rates)
            rates += f"; learning rate that the set's method learned: {learned}"
        return (
            f"protocol {self.protocol.name}; departures: {departures}; quirks of its released code: {quirks}{rates}; "
            f"accuracy that it reports: {self.protocol.reported}"
        )

    def labels(self) -> dict[str, str]:
        """What each architecture, and the mean over them, is called in tables."""
        return {**{name: one.label for name, one in self.architectures.items()}, MEAN: "mean of the networks"}


def chosen_evaluation(
    given: "Mapping[str, DistilledSet]",
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
    """The evaluation of sets of one dataset, by their names, that the options ask for; what they leave out is the
    study's."""
    from diver.config.protocols import PRESETS, Protocol, by_ipc, under
    from diver.config.study import load_study
    from diver.networks.weights import load_teacher
    from diver.sets import learned_rate
    from diver.students import check_set, white_epsilon

    sets = list(given.values())
    if protocol:
        known(protocol, PRESETS, "--protocol")
    students = load_study(at_home(study)).students
    chosen = students.protocol
    departed = {pair.partition("=")[0].strip(): pair.partition("=")[2] for pair in set_ or []}
    if "name" in departed:
        raise UserError(f"--set name={departed['name']}: use --protocol {departed['name']}")
    if protocol or set_:
        named = [f"name={protocol}"] if protocol else []
        chosen = settings([*named, *(set_ or [])], Protocol, {} if protocol else under(chosen.model_dump(), departed))
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
                f"protocol {chosen.name} says no {key} for IPC {one.ipc}: give --set {key}=NUMBER, or --protocol NAME "
                "(`diver protocols` lists them)"
            ) from None
    names = [*(architecture or []), *filter(None, map(str.strip, (architectures or "").split(",")))]
    if architectures is not None and not names:
        raise UserError(f"--architectures {architectures!r}: names no network; give some, as convnet,resnet")
    wanted = {name: _architecture(name, students.architectures) for name in names} or students.architectures
    if protocol or "learning_rate" in departed:
        # The study's rates are tuned for its own protocol.
        wanted = {name: one.model_copy(update={"learning_rate": None}) for name, one in wanted.items()}
    if chosen.needs_teacher() and teacher is None:
        raise UserError(
            f"protocol {chosen.name} needs a teacher's answers: --teacher FILE (made by `diver teach`) or timm:NAME"
        )
    if teacher and not chosen.needs_teacher():
        raise UserError(
            f"--teacher {teacher}: protocol {chosen.name} asks no teacher; leave it out, or take one that does, as "
            "--protocol soft-fkd"
        )
    data = prepared_data(prepared, sets[0].dataset)
    for name, one in given.items():
        # Before students of any are trained.
        with mendable(name):
            check_set(one, data, chosen)
    _try_networks(sets, data, chosen, wanted)
    if chosen.labels == "hard" and any(one.soft_labels is not None for one in sets):
        typer.echo("labels: hard, so soft labels of a set are not used; --set labels=own uses them", err=True)
    if any(white_epsilon(one, chosen) is not None for one in sets):
        typer.echo("white images (ZCA) where a set was learned on them; --set zca=false takes ordinary ones", err=True)
    learned = [rate for one in sets if (rate := learned_rate(one)) is not None] if chosen.learned_rate else []
    answering = load_teacher(teacher, data) if teacher else None
    return Evaluation(
        data,
        chosen,
        wanted,
        students.seeds if seeds is None else range(seeds),
        threads or cores(),
        students.memory_gb,
        students.replay_seed,
        answering,
        list(dict.fromkeys(learned)),
    )


def _try_networks(
    sets: "Sequence[DistilledSet]", data: "Prepared", chosen: "Protocol", wanted: "dict[str, Architecture]"
) -> None:
    """Refuse a network that cannot be trained, before others are: its size first, which takes no time."""
    from diver.config.networks import check_options
    from diver.config.protocols import by_ipc
    from diver.students import smallest_batch, try_network

    classes, shape = len(data.classes), list(data.test_images.shape[1:])
    batch = min(smallest_batch(len(one.images), by_ipc(chosen.at(classes).batch, one.ipc, "batch")) for one in sets)
    for one in wanted.values():
        with mendable(f"network {one.label}"):
            check_options(one.network, one.options, shape[-1])
    for one in wanted.values():
        with mendable():
            try_network(one.network, one.options, classes, shape, batch, one.label)


def reduced(chosen: "Protocol") -> "Protocol":
    """The protocol with at most QUICK_EPOCHS epochs and one test, at the end."""
    from diver.config.protocols import Protocol

    def fewer(epochs: Any) -> Any:
        return (
            {k: v and min(v, QUICK_EPOCHS) for k, v in epochs.items()}
            if isinstance(epochs, dict)
            else min(epochs, QUICK_EPOCHS)
        )

    by_classes = {
        classes: {**changes, **({"epochs": fewer(changes["epochs"])} if "epochs" in changes else {})}
        for classes, changes in chosen.by_classes.items()
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
