"""`diver`: single steps on a set of your own, without the workflow."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from diver.config.base import ConfigError, nearest
from diver.config.study import Study, load_study

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False, rich_markup_mode=None)


class UserError(Exception):
    """Something that the user can mend; shown as one line."""


def _settings(pairs: list[str], model: type[Any], base: dict[str, Any] | None = None, option: str = "--set") -> Any:
    """Settings from KEY=VALUE texts, values read as YAML, over those of `base`."""
    values = dict(base or {})
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found:
            raise UserError(f"{option} {pair}: write KEY=VALUE; keys: {', '.join(model.model_fields)}")
        if key not in model.model_fields:
            raise UserError(f"{option} {pair}: unknown key {key!r}; {nearest(key, list(model.model_fields))}")
        values[key] = yaml.safe_load(value)
    try:
        return model(**values)
    except ValidationError as error:
        raise UserError(
            "; ".join(f"{option} {e['loc'][0] if e['loc'] else ''}: {e['msg']}" for e in error.errors())
        ) from None


@app.command()
def schema(out: Annotated[Path, typer.Option(help="File to write.")] = Path("config/schema.json")) -> None:
    """Write the JSON schema of a study's configuration, for editors.

    Example: diver schema --out config/schema.json
    """
    out.write_text(json.dumps(Study.model_json_schema(), indent=2) + "\n")


@app.command()
def check(study: Annotated[Path, typer.Argument(help="A study's YAML file.")]) -> None:
    """Check a study's configuration and say how many jobs it has.

    Example: diver check config/default.yaml
    """
    from diver.study import set_cells, student_cells, student_groups

    loaded = load_study(study)
    sets, jobs, groups = len(list(set_cells(loaded))), list(student_cells(loaded)), student_groups(loaded)
    students = sum(len(groups[job.group]) for job in jobs) * len(loaded.students.seeds)
    print(f"{study}: valid; {sets} sets, {len(jobs)} student jobs, {students} students")


@app.command()
def info(set_file: Annotated[Path, typer.Argument(help="A distilled set (safetensors).")]) -> None:
    """Describe a distilled set as JSON: size, range, the chain of methods that made it.

    Example: diver info results/default/distilled/cifar10/ipc10/dm.safetensors
    """
    from diver.sets import DistilledSet

    found = DistilledSet.read(set_file)
    images = found.images
    described = {
        "dataset": found.dataset,
        "classes": list(found.classes),
        "ipc": found.ipc,
        "images": list(images.shape),
        "labels": "hard" if found.soft_labels is None else "soft",
        "value_range": found.value_range.kind,
        "min": round(float(images.min()), 4),
        "max": round(float(images.max()), 4),
        "steps": [{"method": s.method, "seed": s.seed, "parameters": s.parameters} for s in found.steps],
        "digest": found.digest(),
    }
    print(json.dumps(described, indent=2))


@app.command()
def recover(
    set_file: Annotated[Path, typer.Argument(help="A distilled set (safetensors).")],
    out: Annotated[Path, typer.Option(help="Where to write the recovered set.")],
    prior: Annotated[str, typer.Option(help="Directory or hub name in diffusers' DiT layout.")] = (
        "data/shipped/cifar10-prior"
    ),
    method: Annotated[str, typer.Option(help="Stage-2 method: vae, raw, predd or diver.")] = "diver",
    preset: Annotated[str | None, typer.Option(help="A published setting; `diver presets` lists them.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, KEY=VALUE; repeatable.")] = None,
    prior_set: Annotated[
        list[str] | None,
        typer.Option(
            "--prior-set", help="How the prior is read, KEY=VALUE: autoencoder, precision, compile, family, ..."
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Only classes FIRST:END (numbers, END left out): a shard for `diver merge`.")
    ] = None,
) -> None:
    """Recover a distilled set with a frozen prior. A run that was stopped goes on after its last batch.

    Examples:

    diver recover dm.safetensors --out recovered.safetensors --set gamma=0.05 --set cfg_scale=2

    diver recover sre2l.safetensors --out shard-0.safetensors --classes 0:250 --prior facebook/DiT-XL-2-256
    --prior-set autoencoder=stabilityai/sd-vae-ft-mse --prior-set precision=bf16 --preset diver-paper --set batch=64
    """
    from diver.config.prior import PriorOptions
    from diver.config.recover import PRESETS, SETTINGS
    from diver.prior.load import load_prior
    from diver.progress import reporter
    from diver.recover.run import recover_file

    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset {preset}: {nearest(preset, list(PRESETS))}")
    if preset is not None:
        method = PRESETS[preset].method
    if method not in SETTINGS:
        raise UserError(f"--method {method}: {nearest(method, list(SETTINGS))}")
    config = _settings(set_ or [], SETTINGS[method], PRESETS[preset].settings if preset else None)
    options = _settings(prior_set or [], PriorOptions, option="--prior-set")
    try:
        first, end = map(int, classes.split(":")) if classes else (0, 0)
    except ValueError:
        raise UserError(f"--classes {classes}: write FIRST:END, for example 0:250") from None
    part = range(first, end) if classes else None
    loaded = load_prior(prior, options)
    try:
        recover_file(set_file, out, loaded, method, config, classes=part, progress=reporter(method, every=2))
    except ValueError as error:
        raise UserError(str(error)) from None
    print(out)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A set as DC, DSA and DM release it (a pickled dict).")],
    out: Annotated[Path, typer.Option(help="Where to write it as a distilled set (safetensors).")],
    dataset: Annotated[str, typer.Option(help="A dataset of config/datasets, or an ImageNet subset: imagefruit, ...")],
    value_range: Annotated[
        str, typer.Option(help="What its numbers mean: dataset (standardised as the dataset is), unit or symmetric.")
    ] = "dataset",
) -> None:
    """Read a set that others have released. Nothing in the file is executed; what it records is printed.

    Example: diver import res_DM_imagenet-fruits_ConvNet_1ipc.pt --dataset imagefruit --out fruit.safetensors
    """
    from diver.data.spec import SpecError, load_dataset_spec
    from diver.data.subsets import subsets
    from diver.sets import IMAGENET, SYMMETRIC, UNIT, ValueRange, import_released

    kinds = ("dataset", "unit", "symmetric")
    if value_range not in kinds:
        raise UserError(f"--value-range {value_range}: {nearest(value_range, list(kinds))}")
    if dataset in subsets():
        classes, of_dataset = subsets()[dataset], IMAGENET
    else:
        path = Path("config/datasets") / f"{dataset}.yaml"
        known = [*subsets(), *(found.stem for found in path.parent.glob("*.yaml"))]
        if not path.exists():
            raise UserError(f"--dataset {dataset}: {nearest(dataset, known)}")
        try:
            spec = load_dataset_spec(path)
        except SpecError as error:
            raise UserError(str(error)) from None
        classes, of_dataset = spec.classes, ValueRange.standardised(spec.mean, spec.std)
    named = {"unit": UNIT, "symmetric": SYMMETRIC, "dataset": of_dataset}
    chosen = named[value_range]
    found, facts = import_released(file, dataset, classes, chosen)
    found.write(out)
    low, high = float(found.images.min()), float(found.images.max())
    print(f"{out}: {list(found.images.shape)}, IPC {found.ipc}, values {low:.2f} to {high:.2f} read as {chosen.kind}")
    print(f"classes in the order of the labels: {', '.join(classes)}")
    for name, values in facts["accuracies"].items():
        flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
        if flat:
            print(f"recorded for {name}: {100 * sum(flat) / len(flat):.2f} % (mean of {len(flat)})")


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Shards of one recovered set, in any order.")],
    source: Annotated[Path, typer.Option(help="The set that was recovered: it gives classes and labels.")],
    out: Annotated[Path, typer.Option(help="Where to write the whole set.")],
) -> None:
    """Put the shards of `diver recover --classes` together.

    Example: diver merge shard-0.safetensors shard-1.safetensors --source sre2l.safetensors --out whole.safetensors
    """
    from diver.setfile import merge as put_together

    put_together(source, shards, out)
    print(out)


@app.command()
def presets(name: Annotated[str | None, typer.Argument(help="Show all settings of this one.")] = None) -> None:
    """List the published stage-2 settings, or show one as YAML.

    Example: diver presets diver-paper
    """
    from diver.config.recover import PRESETS, SETTINGS

    if name is None:
        for known, found in PRESETS.items():
            print(f"{known:20} {found.method:6} {found.source}")
        return
    if name not in PRESETS:
        raise UserError(f"{name}: {nearest(name, list(PRESETS))}")
    chosen = PRESETS[name]
    settings = SETTINGS[chosen.method](**chosen.settings).model_dump(mode="json")
    print(yaml.safe_dump({"method": chosen.method, "settings": settings}, sort_keys=False), end="")


@app.command()
def evaluate(
    set_file: Annotated[Path, typer.Argument(help="A distilled set (safetensors).")],
    prepared: Annotated[Path, typer.Option(help="The prepared dataset, as `snakemake data` makes it.")],
    study: Annotated[Path, typer.Option(help="Study whose protocol, architectures and seeds are used.")] = Path(
        "config/default.yaml"
    ),
    protocol: Annotated[str | None, typer.Option(help="A named protocol instead of the study's.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Departure from it, KEY=VALUE; repeatable.")] = None,
    architecture: Annotated[
        list[str] | None, typer.Option(help="Short name in the study, or any network or preset; repeatable.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Students per architecture; the study's by default.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Students trained at the same time, a core each.")] = 1,
    teacher: Annotated[str | None, typer.Option(help="For soft labels: a file of `diver teach`, or timm:NAME.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
) -> None:
    """Train students on a distilled set and print their accuracy on the test images, last and (best).

    Examples:

    diver evaluate recovered.safetensors --prepared data/prepared/cifar10.safetensors --architecture vit

    diver evaluate dm.safetensors --prepared data/prepared/cifar10.safetensors --protocol dc-eval --set epochs=300
    --architecture convnet-3 --architecture resnet18-dd --seeds 5 --threads 2
    """
    from diver.config.protocols import Protocol
    from diver.config.students import Architecture
    from diver.data.prepared import Prepared
    from diver.networks.weights import load_teacher
    from diver.progress import reporter
    from diver.report.statistics import t_interval
    from diver.report.tables import interval_text
    from diver.sets import DistilledSet
    from diver.students import answer_set, evaluate_set
    from diver.workers import best_device

    students = load_study(study).students
    chosen = students.protocol
    if protocol or set_:
        base = {} if protocol else chosen.model_dump()
        named = [f"name={protocol}"] if protocol else []
        chosen = _settings([*named, *(set_ or [])], Protocol, base)
    architectures = {name: _architecture(name, students.architectures) for name in architecture or []}
    architectures = architectures or students.architectures
    if chosen.needs_teacher() and teacher is None:
        raise UserError(
            f"protocol {chosen.name} needs a teacher's answers: --teacher FILE (made by `diver teach`) or timm:NAME"
        )
    data, distilled = Prepared.read(prepared), DistilledSet.read(set_file)
    answering = load_teacher(teacher, data) if teacher and chosen.needs_teacher() else None
    replay = None
    if answering and chosen.labels == "replay":
        progress = reporter("answers", every=5)
        replay = answer_set(distilled, data, answering, chosen, students.replay_seed, progress=progress)
    for name, wanted in architectures.items():
        assert isinstance(wanted, Architecture)
        rows = evaluate_set(
            distilled,
            data,
            wanted,
            chosen,
            students.seeds if seeds is None else range(seeds),
            progress=reporter(name, every=5),
            teacher=answering,
            replay=replay,
            workers=threads,
            memory_gb=students.memory_gb,
            device=best_device(),
        )
        if json_:
            print(json.dumps([{"architecture": name, **row} for row in rows]))
            continue
        last = t_interval([row["accuracy_last"] for row in rows])
        best = sum(row["accuracy_best"] for row in rows) / len(rows)
        diverged = sum(row["diverged"] for row in rows)
        note = f"  {diverged} diverged" if diverged else ""
        print(f"{wanted.label:14} {interval_text(last)} % ({best:.1f})  {len(rows)} seeds{note}")
    if not json_:
        departures, quirks = rows[0]["departures"] or "none", chosen.quirks() or "none"
        print(f"protocol {chosen.name}; departures: {departures}; quirks of its released code: {quirks}")


def _architecture(name: str, known: dict[str, Any]) -> Any:
    """An architecture of the study by its short name, or any network by its own."""
    from diver.config.networks import check_network
    from diver.config.students import Architecture

    if name in known:
        return known[name]
    try:
        check_network(name)
    except ValueError as error:
        raise UserError(f"--architecture {name}: not in the study ({', '.join(known)}); {error}") from None
    return Architecture(network=name, label=name)


@app.command()
def teach(
    prepared: Annotated[Path, typer.Option(help="The prepared dataset, as `snakemake data` makes it.")],
    out: Annotated[Path, typer.Option(help="Where to write the teacher.")],
    network: Annotated[str, typer.Option(help="A network or preset.")] = "resnet18-dd",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Departure from protocol full-data, KEY=VALUE; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of its weights and batches.")] = 0,
) -> None:
    """Train a teacher on the whole training set, for soft-label protocols and as an encoder. Resumes where it stopped.

    Example: diver teach --prepared data/prepared/cifar10.safetensors --out teacher.safetensors --set epochs=5
    """
    import shutil

    from diver.config.networks import check_network
    from diver.config.protocols import Protocol
    from diver.data.prepared import Prepared
    from diver.networks.weights import write_trained
    from diver.progress import reporter
    from diver.students import train_teacher
    from diver.workers import best_device

    try:
        check_network(network)
    except ValueError as error:
        raise UserError(f"--network {network}: {error}") from None
    chosen = _settings(["name=full-data", *(set_ or [])], Protocol)
    points = out.with_name(f".{out.name}.checkpoints")
    trained = train_teacher(
        Prepared.read(prepared), network, {}, chosen, seed, reporter("teacher", every=5), points, best_device()
    )
    write_trained(out, trained)
    shutil.rmtree(points, ignore_errors=True)
    print(f"{out}: {trained.accuracy:.2f} % of the test images")


@app.command()
def protocols(name: Annotated[str | None, typer.Argument(help="Show all settings of this one.")] = None) -> None:
    """List the evaluation protocols, or show one as the YAML that a study may depart from.

    Example: diver protocols hard-idc
    """
    from diver.config.protocols import PRESETS, protocol

    if name is None:
        for known in PRESETS:
            found = protocol(known)
            recipe = f"{found.optimizer}, {found.schedule}, {found.augmentation}, labels: {found.labels}"
            print(f"{known:10} {recipe}; reports {found.reported}")
        return
    if name not in PRESETS:
        raise UserError(f"{name}: {nearest(name, list(PRESETS))}")
    print(yaml.safe_dump(protocol(name).model_dump(mode="json"), sort_keys=False), end="")


@app.command()
def export(
    set_file: Annotated[Path, typer.Argument(help="A distilled set (safetensors).")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    form: Annotated[str, typer.Option(help="Whose file layout: ddranking or dcbench.")] = "ddranking",
    method: Annotated[
        str | None, typer.Option(help="dcbench: whose loader to write for; default: the method that made the set.")
    ] = None,
) -> None:
    """Write a distilled set as an external judge reads it: DD-Ranking or DC-BENCH.

    Example: diver export dm.safetensors --form ddranking --out results/ranking/dm
    """
    from diver.exports import EXPORTS, ExportError
    from diver.sets import DistilledSet

    if form not in EXPORTS:
        raise UserError(f"--form {form}: {nearest(form, list(EXPORTS))}")
    if method and form != "dcbench":
        raise UserError(f"--method {method}: only for --form dcbench, which has a layout per method; leave it out")
    try:
        written = EXPORTS[form](DistilledSet.read(set_file), out, **({"method": method} if method else {}))
    except ExportError as error:
        raise UserError(f"{set_file}: {error}") from None
    print(*written, sep="\n")


@app.command()
def judge(
    classifier: Annotated[Path, typer.Option(help="State dict of a CIFAR-10 ResNet-20 (ImageNet-standardised input).")],
    prior: Annotated[str, typer.Option(help="Directory or hub name in diffusers' DiT layout.")] = (
        "data/shipped/cifar10-prior"
    ),
    per_class: Annotated[int, typer.Option(min=1, help="Samples per class.")] = 10,
    cfg_scale: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale; 1 is off.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
) -> None:
    """Say how many of a prior's samples an independent classifier assigns to the class that was asked for.

    Example: diver judge --classifier resnet20.th --prior data/prior/snapshots/cifar10/2500
    """
    from diver.prior.judge import agreement, load_classifier, sample_classes
    from diver.prior.load import load_prior
    from diver.progress import reporter

    judge_of = load_classifier(classifier)
    images, labels = sample_classes(
        load_prior(prior), per_class, cfg_scale, seed, progress=reporter("samples", every=5)
    )
    share, half = agreement(judge_of, images, labels)
    print(f"{share:.1f} ± {half:.1f} % of {len(labels)} samples, guidance {cfg_scale:g}")


def main() -> None:
    """Entry point: errors that the user can mend are one line and exit code 2."""
    from diver.data.prepared import ContentError
    from diver.networks.weights import WeightsError
    from diver.prior.base import PriorError
    from diver.sets import SetError
    from diver.students import ReplayError, StudentError
    from diver.workers import keep_freed_memory

    keep_freed_memory()
    known = (UserError, ConfigError, SetError, PriorError, ContentError, WeightsError, StudentError, ReplayError)
    try:
        app()
    except known as error:
        typer.echo(f"diver: {error}", err=True)
        raise SystemExit(2) from None
