"""`diver`: single steps on a set of your own, without the workflow."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from diver.config.base import ConfigError
from diver.config.study import Study, load_study, nearest

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False, rich_markup_mode=None)


class UserError(Exception):
    """Something that the user can mend; shown as one line."""


def _settings(pairs: list[str], model: type[Any]) -> Any:
    """Settings from KEY=VALUE texts, values read as YAML."""
    values = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found:
            raise UserError(f"--set {pair}: write KEY=VALUE; keys: {', '.join(model.model_fields)}")
        if key not in model.model_fields:
            raise UserError(f"--set {pair}: unknown key {key!r}; {nearest(key, list(model.model_fields))}")
        values[key] = yaml.safe_load(value)
    try:
        return model(**values)
    except ValidationError as error:
        raise UserError(
            "; ".join(f"--set {e['loc'][0] if e['loc'] else ''}: {e['msg']}" for e in error.errors())
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
    from diver.study import set_cells, student_cells

    loaded = load_study(study)
    sets, jobs = len(list(set_cells(loaded))), len(list(student_cells(loaded)))
    print(f"{study}: valid; {sets} sets, {jobs} student jobs, {jobs * len(loaded.students.seeds)} students")


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
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, KEY=VALUE; repeatable.")] = None,
) -> None:
    """Recover a distilled set with a frozen prior.

    Example: diver recover dm.safetensors --out recovered.safetensors --set gamma=0.05 --set cfg_scale=2
    """
    from diver.config.recover import SETTINGS
    from diver.prior.load import load_prior
    from diver.progress import reporter
    from diver.recover import METHODS
    from diver.sets import DistilledSet

    if method not in METHODS:
        raise UserError(f"--method {method}: {nearest(method, list(METHODS))}")
    config = _settings(set_ or [], SETTINGS[method])
    source = DistilledSet.read(set_file)
    METHODS[method](source, load_prior(prior), config, progress=reporter(method, every=2)).write(out)
    print(out)


@app.command()
def evaluate(
    set_file: Annotated[Path, typer.Argument(help="A distilled set (safetensors).")],
    prepared: Annotated[Path, typer.Option(help="The prepared dataset, as `snakemake data` makes it.")],
    study: Annotated[Path, typer.Option(help="Study whose protocol and architectures are used.")] = Path(
        "config/default.yaml"
    ),
    architecture: Annotated[list[str] | None, typer.Option(help="Short name in the study; repeatable.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print rows as JSON.")] = False,
) -> None:
    """Train students on a distilled set and print their accuracy on the test images.

    Example: diver evaluate recovered.safetensors --prepared data/prepared/cifar10.safetensors --architecture vit
    """
    from diver.data.prepared import Prepared
    from diver.progress import reporter
    from diver.sets import DistilledSet
    from diver.students import evaluate_set

    students = load_study(study).students
    names = architecture or list(students.architectures)
    for name in names:
        if name not in students.architectures:
            raise UserError(f"--architecture {name}: {nearest(name, list(students.architectures))}")
    data, distilled = Prepared.read(prepared), DistilledSet.read(set_file)
    for name in names:
        chosen = students.architectures[name]
        rows = evaluate_set(
            distilled, data, chosen, students.protocol, students.seeds, progress=reporter(name, every=5)
        )
        if json_:
            print(json.dumps([{"architecture": name, **row} for row in rows]))
        else:
            last = [row["accuracy_last"] for row in rows]
            print(f"{chosen.label:12} {sum(last) / len(last):6.2f} %  ({', '.join(f'{a:.2f}' for a in last)})")


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
    from diver.prior.load import PriorError
    from diver.sets import SetError
    from diver.students import StudentError

    try:
        app()
    except (UserError, ConfigError, SetError, PriorError, ContentError, StudentError) as error:
        typer.echo(f"diver: {error}", err=True)
        raise SystemExit(2) from None
