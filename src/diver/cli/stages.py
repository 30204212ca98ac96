"""Commands that make and change images: stage 1, stage 2, and the prior itself."""

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from diver.cli.common import (
    RUN,
    Json,
    Settings,
    UserError,
    apart,
    at_home,
    completed,
    cores,
    known,
    mendable,
    print_json,
    settings,
    span,
    writable,
)
from diver.cli.reading import DatasetOption, RangeOption, SetArgument, own_file

if TYPE_CHECKING:
    from diver.config.prior import PriorOptions
    from diver.prior.base import Prior

PRIOR = "data/shipped/cifar10-prior"
PUBLISHED = "published"


def _distill_names() -> list[str]:
    from diver.config.distill import SETTINGS

    return [name for name in SETTINGS if name != "released"]


def _expert_names() -> list[str]:
    from diver.config.distill_presets import EXPERTS

    return list(EXPERTS)


def _native_names() -> list[str]:
    from diver.config.native import SETTINGS

    return list(SETTINGS)


def _recover_names() -> list[str]:
    from diver.config.recover import SETTINGS

    return list(SETTINGS)


def _preset_names() -> list[str]:
    from diver.config.recover import PRESETS

    return list(PRESETS)


PriorOption = Annotated[
    str,
    typer.Option(help="A directory or hub name in diffusers' layout (DiT, SiT, Stable Diffusion), or a released file."),
]


def distill(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="Stage-1 method; `diver methods` lists them.",
            autocompletion=completed(_distill_names),
        ),
    ],
    prepared: Annotated[Path, typer.Option(help="The prepared dataset, as `snakemake data` makes it.")],
    ipc: Annotated[int, typer.Option(min=1, help="Images per class.")],
    out: Annotated[Path, typer.Option(help="Where to write the set (safetensors).")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="published: the method's published settings for this dataset and IPC.",
            autocompletion=completed(lambda: [PUBLISHED]),
        ),
    ] = None,
    set_: Settings = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the state to go on from and pictures are kept; by default OUT's name with .run."),
    ] = None,
) -> None:
    """Make a set of IPC images per class from a dataset. A run that was stopped goes on from its folder.

    Examples:

    diver distill dm --prepared data/prepared/cifar10.safetensors --ipc 10 --out dm.safetensors --preset published

    diver distill dm --prepared data/prepared/cifar10.safetensors --ipc 1 --out dm.safetensors --set iterations=100
    """
    from diver.config.distill import SETTINGS

    if method in _native_names():
        raise UserError(f"METHOD {method}: a diffusion-native system; take `diver synthesize {method}`")
    if method == "released":
        raise UserError("METHOD released: a set that others made; read it with `diver import`")
    known(method, _distill_names(), "METHOD")
    writable(out, prepared)
    kept = folder or out.with_suffix(RUN)
    apart(kept, out)
    if preset is not None:
        known(preset, [PUBLISHED], "--preset")

    from diver.data.prepared import Prepared

    data, base = Prepared.read(prepared), {}
    if preset:
        from diver.config.distill_presets import published

        with mendable("--preset published"):
            base = published(method, data.dataset, ipc)
    config = settings(set_, SETTINGS[method], base)
    folder_of_experts = getattr(config, "experts", None)
    if folder_of_experts is not None and not (folder_of_experts and Path(folder_of_experts).is_dir()):
        raise UserError(
            f"{method} matches experts, and {folder_of_experts or 'nothing'!r} is no folder of them: make one with "
            "`diver experts`, and give it by --set experts=FOLDER"
        )

    from diver.distill import METHODS
    from diver.distill.loop import STATE
    from diver.progress import reporter

    with mendable():
        made = METHODS[method](data, ipc, config, progress=reporter(method, every=5), folder=kept)
    made.write(out)
    # The pictures stay; the state is of no more use.
    (kept / STATE).unlink(missing_ok=True)
    print(out)


def experts(
    prepared: Annotated[Path, typer.Option(help="The prepared dataset, as `snakemake data` makes it.")],
    folder: Annotated[Path, typer.Option(help="Where their weights after each epoch are kept.")],
    preset: Annotated[
        str,
        typer.Option(
            help="Published experts: plain and zca are MTT's, edf and edf-zca EDF's.",
            autocompletion=completed(_expert_names),
        ),
    ] = "plain",
    set_: Settings = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Experts trained at a time; all cores by default.")] = None,
) -> None:
    """Train the experts that `diver distill mtt` and `edf` match. What was stopped goes on.

    A folder with experts of other settings is refused.

    Example: diver experts --prepared data/prepared/cifar10.safetensors --folder experts --preset zca --set count=20
    """
    from diver.config.distill import ExpertsConfig
    from diver.config.distill_presets import EXPERTS, published_experts

    known(preset, EXPERTS, "--preset")

    from diver.data.prepared import Prepared
    from diver.distill.experts import train_experts
    from diver.progress import reporter

    data = Prepared.read(prepared)
    config = settings(set_, ExpertsConfig, published_experts(preset, data.dataset))
    with mendable():
        show = reporter("experts", every=5)
        train_experts(data, config, folder, progress=show, workers=threads or cores(), replace=False)
    print(folder)


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show all settings of this one.",
            autocompletion=completed(lambda: [*_distill_names(), *_native_names(), *_recover_names()]),
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """List what makes sets: stage 1 (`distill`), the diffusion-native systems (`synthesize`), stage 2 (`recover`).

    With a name, show its settings.

    Example: diver methods dm
    """
    from diver.config import distill, native, recover

    found: dict[str, tuple[str, type[Any]]] = {
        **{method: ("distill", distill.SETTINGS[method]) for method in _distill_names()},
        **{system: ("synthesize", model) for system, model in native.SETTINGS.items()},
        **{method: ("recover", model) for method, model in recover.SETTINGS.items()},
    }
    if name is not None:
        _, model = found[known(name, found)]
        fields = {
            key: {"default": model.model_construct().model_dump(mode="json")[key], "meaning": field.description}
            for key, field in model.model_fields.items()
        }
        if json_:
            print_json(fields)
            return
        for key, one in fields.items():
            print(f"{key}: {json.dumps(one['default'])}")
            print(f"    {one['meaning']}")
        return
    lines = {method: (stage, inspect.getdoc(model) or "") for method, (stage, model) in found.items()}
    if json_:
        print_json({method: {"stage": stage, "about": text} for method, (stage, text) in lines.items()})
        return
    for method, (stage, text) in lines.items():
        print(f"{stage:10}  {method:12} {text.splitlines()[0] if text else ''}")


def _loaded(prior: str, options: "PriorOptions | None" = None) -> "Prior":
    """A prior, recorded by the name that it was given, so that a set is the same from whichever folder it was made."""
    from diver.prior.load import load_prior

    loaded = load_prior(at_home(prior), options)
    loaded.name = prior
    return loaded


def recover(
    set_file: SetArgument,
    out: Annotated[Path, typer.Option(help="Where to write the recovered set.")],
    prior: PriorOption = PRIOR,
    method: Annotated[
        str | None,
        typer.Option(
            help="Stage-2 method, diver if neither it nor a preset is given; `diver methods` lists them.",
            autocompletion=completed(_recover_names),
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A published setting; `diver presets` lists them.", autocompletion=completed(_preset_names)),
    ] = None,
    set_: Settings = None,
    prior_set: Annotated[
        list[str] | None,
        typer.Option(
            "--prior-set", help="How the prior is read, KEY=VALUE: autoencoder, precision, compile, family, ..."
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Only classes FIRST:END, numbers, without END itself: a shard for `diver merge`.")
    ] = None,
    dataset: DatasetOption = None,
    value_range: RangeOption = "auto",
) -> None:
    """Recover a set with a frozen prior. A run that was stopped goes on after its last batch.

    Examples:

    diver recover res_DC_CIFAR10_ConvNet_1ipc.pt --out recovered.safetensors

    diver recover dm.safetensors --out recovered.safetensors --set gamma=0.05 --set cfg_scale=2

    diver recover fruit.safetensors --out recovered.safetensors --preset diver-paper --prior DiT-XL-2-256x256.pt

    diver recover large.safetensors --out shard-0.safetensors --classes 0:250 --prior-set precision=bf16
    """
    from diver.config.prior import PriorOptions
    from diver.config.recover import PRESETS, SETTINGS

    writable(out, set_file)
    if method is not None:
        known(method, SETTINGS, "--method")
    if preset is not None:
        own = PRESETS[known(preset, PRESETS, "--preset")].method
        if method not in (None, own):
            raise UserError(f"--method {method}: preset {preset} is of {own}; leave one of the two out")
        method = own
    method = method or "diver"
    config = settings(set_, SETTINGS[method], PRESETS[preset].settings if preset else None)
    options = settings(prior_set, PriorOptions, option="--prior-set")
    part = span(classes) if classes else None

    from diver.progress import reporter
    from diver.recover.run import recover_file

    with own_file(set_file, out, dataset, value_range) as file:
        loaded = _loaded(prior, options)
        with mendable():
            recover_file(file, out, loaded, method, config, classes=part, progress=reporter(method, every=2))
    print(out)


def presets(
    name: Annotated[
        str | None, typer.Argument(help="Show all settings of this one.", autocompletion=completed(_preset_names))
    ] = None,
    json_: Json = False,
) -> None:
    """List the published stage-2 settings, or show one as YAML.

    Example: diver presets diver-paper
    """
    from diver.config.recover import PRESETS, SETTINGS

    shown: dict[str, dict[str, Any]] = {
        one: {
            "method": found.method,
            "settings": SETTINGS[found.method](**found.settings).model_dump(mode="json"),
        }
        for one, found in PRESETS.items()
        if name is None or one == known(name, PRESETS)
    }
    if json_:
        print_json({one: {**found, "source": PRESETS[one].source} for one, found in shown.items()})
    elif name:
        print(yaml.safe_dump(shown[name], sort_keys=False), end="")
    else:
        for one, preset in PRESETS.items():
            print(f"{one:20} {preset.method:6} {preset.source}")


def merge(
    shards: Annotated[list[Path], typer.Argument(help="Shards of one recovered set, in any order.")],
    source: Annotated[Path, typer.Option(help="The set that was recovered: it gives classes and labels.")],
    out: Annotated[Path, typer.Option(help="Where to write the whole set.")],
    dataset: DatasetOption = None,
    value_range: RangeOption = "auto",
) -> None:
    """Put the shards of `diver recover --classes` together.

    Example: diver merge shard-0.safetensors shard-1.safetensors --source sre2l.safetensors --out whole.safetensors
    """
    from diver.setfile import merge as put_together

    writable(out, source, *shards)
    with own_file(source, out, dataset, value_range) as file:
        put_together(file, shards, out)
    print(out)


def judge(
    classifier: Annotated[Path, typer.Option(help="State dict of a CIFAR-10 ResNet-20 (ImageNet-standardised input).")],
    prior: PriorOption = PRIOR,
    per_class: Annotated[int, typer.Option(min=1, help="Samples per class.")] = 10,
    cfg_scale: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale; 1 is off.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    json_: Json = False,
) -> None:
    """Say how many of a prior's samples an independent classifier assigns to the class that was asked for.

    Example: diver judge --classifier resnet20.th --prior data/prior/snapshots/cifar10/2500
    """
    from diver.prior.judge import agreement, load_classifier, require_judged, sample_classes
    from diver.progress import reporter

    judge_of, progress = load_classifier(classifier), reporter("samples", every=5)
    judged = _loaded(prior)
    require_judged(judged)
    images, labels = sample_classes(judged, per_class, cfg_scale, seed, progress=progress)
    share, half = agreement(judge_of, images, labels)
    if json_:
        print_json(
            {"prior": prior, "samples": len(labels), "guidance": cfg_scale, "percent": share, "half_width": half}
        )
    else:
        print(f"{share:.1f} ± {half:.1f} % of {len(labels)} samples, guidance {cfg_scale:g}")
