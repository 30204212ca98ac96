"""The command that makes sets with the diffusion-native systems."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver.cli.common import (
    RUN,
    Settings,
    UserError,
    apart,
    completed,
    faults,
    known,
    mendable,
    options_of,
    settings,
    writable,
)
from diver.cli.stages import PRIOR, PUBLISHED, PriorOption, _loaded, _native_names

if TYPE_CHECKING:
    from diver.config.native import Preparations
    from diver.prior.base import Prior


def _shared(pairs: list[str] | None) -> "Preparations":
    """Settings of what systems share, from PART.KEY=VALUE."""
    from pydantic import ValidationError

    from diver.config.native import Preparations

    found: dict[str, dict[str, Any]] = {}
    for key, value in options_of(pairs, "--share").items():
        part, dot, name = key.partition(".")
        if not dot:
            raise UserError(f"--share {key}: write PART.KEY=VALUE, as in latents.per_class=500")
        known(part, Preparations.model_fields, "--share")
        found.setdefault(part, {})[name] = value
    try:
        return Preparations.model_validate(found)
    except ValidationError as error:
        raise UserError(faults(error, "--share")) from None


def synthesize(
    system: Annotated[
        str,
        typer.Argument(
            metavar="SYSTEM",
            help="Diffusion-native system; `diver methods` lists them.",
            autocompletion=completed(_native_names),
        ),
    ],
    prepared: Annotated[Path, typer.Option(help="The prepared dataset, as `snakemake data` makes it.")],
    ipc: Annotated[int, typer.Option(min=1, help="Images per class.")],
    out: Annotated[Path, typer.Option(help="Where to write the set (safetensors).")],
    prior: PriorOption = PRIOR,
    preset: Annotated[
        str | None,
        typer.Option(
            help="published: the system's published settings, where the defaults are not.",
            autocompletion=completed(lambda: [PUBLISHED]),
        ),
    ] = None,
    set_: Settings = None,
    share: Annotated[
        list[str] | None,
        typer.Option(help="A setting of what systems share, PART.KEY=VALUE: latents.per_class, captions.source, ..."),
    ] = None,
    prior_set: Annotated[
        list[str] | None,
        typer.Option("--prior-set", help="How the prior is read, KEY=VALUE: autoencoder, precision, prompt, ..."),
    ] = None,
    artefact: Annotated[
        list[str] | None,
        typer.Option(help="A file that is prepared already, NAME=PATH, such as latents=latents.npy; repeatable."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Stop when this is prepared (latents, prototypes, ...), and print its path.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where what is prepared is kept and found again; by default OUT's name with .run."),
    ] = None,
) -> None:
    """Make a set of IPC images per class from a dataset with a prior, by a diffusion-native system.

    What the system needs beside the prior is prepared first: latents of the training images, prototypes, class
    statistics, a fine-tuned prior, captions.

    Examples:

    diver synthesize d4m --prepared data/prepared/cifar10.safetensors --ipc 10 --out d4m.safetensors

    diver synthesize mgd3 --prepared data/prepared/cifar10.safetensors --ipc 1 --out mgd3.safetensors --set scale=0.2
    --share latents.per_class=500
    """
    from diver.config.native import PREPARATIONS, SETTINGS
    from diver.config.native import PUBLISHED as PUBLISHED_SETTINGS
    from diver.config.prior import PriorOptions

    known(system, _native_names(), "SYSTEM")
    if preset is not None:
        known(preset, [PUBLISHED], "--preset")
    config = settings(set_, SETTINGS[system], PUBLISHED_SETTINGS[system] if preset else None)
    options, shared = settings(prior_set, PriorOptions, option="--prior-set"), _shared(share)
    names = [one.name for one in PREPARATIONS[system]]
    given = {name: Path(str(path)) for name, path in options_of(artefact, "--artefact", names).items()}
    for name, path in given.items():
        if not path.is_file():
            raise UserError(f"--artefact {name}={path}: no such file")
    if until is not None:
        known(until, names, "--until")

    from diver.data.prepared import Prepared
    from diver.progress import reporter
    from diver.recover.preparing import prepare
    from diver.recover.systems import SYSTEMS

    if until is None:
        writable(out, prepared, *given.values())
    kept = folder or out.with_suffix(RUN)
    apart(kept, out)
    data = Prepared.read(prepared)

    def load(**changed: Any) -> "Prior":
        return _loaded(prior, options.model_copy(update=changed))

    with mendable():
        loaded, made = prepare(system, data, ipc, load, config, shared, kept, given, until)
        if until is None:
            progress = reporter(system, every=5)
            SYSTEMS[system](data, ipc, loaded, config, artefacts=made, progress=progress, folder=kept).write(out)
    print(out if until is None else made[until])
