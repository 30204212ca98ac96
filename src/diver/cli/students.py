"""Commands that train students on a set, or a teacher, and that show the protocols of both."""

from pathlib import Path
from statistics import fmean as mean
from typing import Annotated

import typer
import yaml

from diver.cli.common import (
    Json,
    UserError,
    aligned,
    at_home,
    completed,
    known,
    mendable,
    options_of,
    print_json,
    settings,
    writable,
)
from diver.cli.comparison import Accuracies
from diver.cli.evaluation import (
    STUDY,
    ArchitectureOption,
    ArchitecturesOption,
    DepartureOption,
    PreparedOption,
    ProtocolOption,
    QuickOption,
    SeedsOption,
    StudyOption,
    TeacherOption,
    ThreadsOption,
    chosen_evaluation,
    network_names,
    protocol_names,
)
from diver.cli.reading import DatasetOption, RangeOption, SetArgument, read_set
from diver.config.base import LAST_SEED


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
    from diver.study import prepared_path

    distilled = read_set(set_file, dataset, value_range)
    if csv:
        data, answering = prepared or at_home(prepared_path(distilled.dataset)), [Path(teacher)] if teacher else []
        writable(csv, set_file, at_home(study), data, *answering, option="--csv")
    evaluation = chosen_evaluation(
        {str(set_file): distilled},
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
        note = f"{len(of_network)} seed{'' if len(of_network) == 1 else 's'}" + (
            f", {one.diverged} diverged" if one.diverged else ""
        )
        label = evaluation.architectures[name].label
        table.append((label, interval_text(one.interval()), f"({mean(one.best):.1f})", note))
    print(aligned(table))
    tests = rows[0]["tests"]
    best = f"best of {tests} tests in parentheses" if tests > 1 else "one test, so the best in parentheses is the same"
    print(f"mean ± half width of the 95 % t-interval over seeds, {best}")
    print(evaluation.note())


def teach(
    out: Annotated[Path, typer.Option(help="Where to write the teacher.")],
    prepared: Annotated[Path, typer.Option(help="The prepared dataset, as `snakemake data` makes it.")],
    network: Annotated[
        str | None,
        typer.Option(help="A network or preset.", show_default="resnet18-dd", autocompletion=completed(network_names)),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the network, KEY=VALUE, as norm=batch; repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Departure from protocol full-data, KEY=VALUE; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Seed of its weights and batches.")] = 0,
    weights: Annotated[
        str | None,
        typer.Option(help="Train nothing, take these: a state dict (.pt, .pth, ...) of --network, or timm:NAME."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="How a state dict's images were standardised, as 0.49,0.48,0.45.", show_default="the dataset's"
        ),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Likewise, the deviations.", show_default="the dataset's")] = None,
    json_: Json = False,
) -> None:
    """Train a teacher on the whole training set, for soft-label protocols and as an encoder. Resumes where it stopped.

    With --weights it is one that was trained elsewhere, and its accuracy on the test images shows whether the order of
    its classes and its standardisation are what they are taken for.

    Examples:

    diver teach --prepared data/prepared/cifar10.safetensors --out teacher.safetensors --set epochs=5

    diver teach --prepared data/prepared/cifar10.safetensors --out squeezed.safetensors --network resnet
    --option norm=batch

    diver teach --prepared data/prepared/cifar10.safetensors --out teacher.safetensors --weights released.pth
    --network torchvision:resnet18 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """
    import shutil

    from diver.config.networks import check_network
    from diver.config.protocols import Protocol
    from diver.config.students import of_whole_set
    from diver.data.prepared import Prepared
    from diver.networks.weights import is_state_dict, write_trained
    from diver.progress import reporter
    from diver.students import adopt_teacher, train_teacher
    from diver.workers import best_device

    if network:
        with mendable(f"--network {network}"):
            check_network(network)
    options = options_of(option, "--option")
    chosen = settings(["name=full-data", *(set_ or [])], Protocol)
    with mendable("--set"):
        of_whole_set(chosen)
    foreign = weights is not None and is_state_dict(weights)
    if weights is not None and set_:
        raise UserError(f"--set {set_[0]}: with --weights nothing is trained; leave one of them out")
    if weights is not None and not foreign and (network or option):
        raise UserError(f"--network and --option are not for --weights {weights}, which says its network itself")
    if not foreign and (mean is not None or std is not None):
        raise UserError("--mean and --std are of a state dict that --weights gives; all else has its own")
    means, stds = (_numbers(text, name) for text, name in ((mean, "--mean"), (std, "--std")))
    if is_state_dict(out):
        raise UserError(f"--out {out}: would be taken for a state dict by its suffix; name it .safetensors")
    writable(out, prepared, *([Path(weights)] if weights else []))
    points = out.with_name(f".{out.name}.checkpoints")
    data = Prepared.read(prepared)
    with mendable():
        if weights is not None:
            trained = adopt_teacher(data, weights, network, options, means, stds, best_device())
        else:
            network, progress = network or "resnet18-dd", reporter("teacher", every=5)
            trained = train_teacher(data, network, options, chosen, seed, progress, points, best_device())
    write_trained(out, trained)
    shutil.rmtree(points, ignore_errors=True)
    chance, reached = 100 / len(data.classes), trained.accuracy or 0.0
    if weights is not None and reached < chance + (100 - chance) / 10:
        seen = " Were its images standardised otherwise (--mean, --std)?" if foreign else ""
        typer.echo(
            f"{weights}: {reached:.2f} % is near chance ({chance:.3g} %). Are its classes others, or in another order "
            f"than {', '.join(data.classes[:3])}, ...?{seen}",
            err=True,
        )
    if json_:
        print_json({"file": str(out), "network": trained.name, "accuracy": trained.accuracy})
    else:
        print(f"{out}: {trained.accuracy:.2f} % of the test images")


def _numbers(text: str | None, option: str) -> list[float] | None:
    """The numbers of an option, one a channel."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: numbers with commas between them, one for each channel") from None


def protocols(
    name: Annotated[
        str | None, typer.Argument(help="Show all settings of this one.", autocompletion=completed(protocol_names))
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
