"""Sets as the commands take them: a file of ours, or whatever others have released; and the data that belong to one."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver.cli.common import CHECKOUT, UserError, at_home, completed, known, mendable

if TYPE_CHECKING:
    from diver.data.prepared import Prepared
    from diver.importers import Found
    from diver.sets import DistilledSet, ValueRange

RANGES = ("auto", "dataset", "unit", "symmetric")
# What the subsets of ImageNet are called in names of released files, where it is not their own name.
SPOKEN = re.compile(r"imagenet[-_ ]?(nette|woof|meow|squawk|fruit|yellow)s?")
TINY = re.compile(r"tiny[-_ ]?imagenet")

# How messages of an import name the settings that only `diver import` has options for.
IMPORT_SETTINGS = re.compile(r"\b(class_order|factor|ipc|value_range|(?<=set )form)\b")


def dataset_names() -> list[str]:
    """Datasets of config/datasets and the subsets of ImageNet."""
    from diver.data.subsets import subsets

    folders = {Path("config/datasets"), CHECKOUT / "config/datasets"}
    return sorted({*subsets(), *(found.stem for folder in folders for found in folder.glob("*.yaml"))})


SetArgument = Annotated[
    Path, typer.Argument(metavar="SET", help="A set: a file of this project, or one that others released.")
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        help="Of a released set: a dataset of config/datasets or a subset of ImageNet (imagefruit, ...); guessed "
        "where an export's meta.json or the file's name says it.",
        autocompletion=completed(dataset_names),
    ),
]
RangeOption = Annotated[
    str,
    typer.Option(
        help="Of a released set, what its numbers mean: auto, dataset (standardised as the form's codes do it), unit "
        "([0, 1]) or symmetric ([-1, 1]).",
        autocompletion=completed(lambda: RANGES),
    ),
]


def dataset_facts(name: str) -> "tuple[tuple[str, ...], ValueRange, int | None]":
    """A dataset's classes in the order of the labels, how its images are standardised, and their size, if it has one.

    A subset of ImageNet has none: the datasets of its classes differ in it.
    """
    from diver.data.spec import load_dataset_spec
    from diver.data.subsets import subsets
    from diver.sets import IMAGENET, ValueRange

    known(name, dataset_names(), "--dataset")
    if name in subsets():
        return subsets()[name], IMAGENET, None
    spec = load_dataset_spec(at_home(Path("config/datasets") / f"{name}.yaml"))
    return spec.classes, ValueRange.standardised(spec.mean, spec.std), spec.size


def guessed_dataset(path: Path) -> str:
    """The dataset that an export of ours says, or that a file's name, or that of a folder above it, speaks of.

    Raises UserError if none does, or the export was stopped.
    """
    from diver.importers.source import StoppedError, read_about
    from diver.sets import SetError

    # A meta.json of others need not be read for a dataset; where it is part of the set, the import refuses it.
    try:
        about = read_about(path if path.is_dir() else path.parent)
        if (said := about.source_dataset or about.dataset) in dataset_names():
            return str(said)
    except StoppedError as error:
        raise UserError(str(error)) from error
    except SetError:
        pass
    # Longer names first: cifar10-slice is not cifar10.
    names = sorted(dataset_names(), key=len, reverse=True)
    for part in reversed(path.resolve().parts):
        text = TINY.sub("tinyimagenet", SPOKEN.sub(r"image\1", part.lower()))
        for name in names:
            spelt = re.sub(r"[-_]|(?<=[a-z])(?=[0-9])", "[-_ ]?", name)
            # imagenette2 is ImageNette; imagenet_d4m is not ImageNet-D.
            last = "[0-9]" if name[-1].isdigit() else "[a-z0-9]" if name[-2:-1] == "-" else "[a-z]"
            if re.search(rf"(?<![a-z]){spelt}(?!{last})", text):
                return name
    raise UserError(
        f"{path}: its name does not say which dataset it is of; give --dataset, after describing it in "
        f"config/datasets/NAME.yaml if it is none of {', '.join(sorted(names))}"
    )


def is_ours(path: Path) -> bool:
    """Whether a file is one of `DistilledSet.write`, or a safetensors file too damaged to tell. UserError for none."""
    from safetensors import SafetensorError, safe_open

    from diver.tensorfile import KEY

    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        return False
    try:
        with safe_open(str(path), framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return path.suffix == ".safetensors"


def import_found(
    path: Path,
    dataset: str | None = None,
    value_range: str = "auto",
    form: str = "auto",
    ipc: int | None = None,
    factor: int | None = None,
    class_order: Sequence[str] | None = None,
) -> "Found":
    """A set that others have released, with what was found out about it."""
    from diver.importers import FORMS, import_set, refuse_unread

    known(value_range, RANGES, "--value-range")
    known(form, ["auto", *FORMS], "--form")
    if is_ours(path) and dataset is None:
        from diver.sets import DistilledSet

        with mendable():
            dataset = DistilledSet.read(path).dataset
    with mendable():
        refuse_unread(path)  # before its dataset is asked for
    name = dataset or guessed_dataset(path)
    classes, standard, size = dataset_facts(name)
    with mendable():
        found = import_set(path, name, classes, standard, form, value_range, ipc, factor, class_order)
    height, width = found.distilled.images.shape[-2:]
    if size is None or height == width == size:
        return found
    note = f"its images are {height} x {width} pixels, and those of {name} are {size} x {size}"
    return replace(found, notes=(*found.notes, note))


def _import_command(message: str, path: Path, has_range: bool) -> str:
    """The `diver import` with the options for the settings that a message asks for, or "" where it names none."""
    named = dict.fromkeys(IMPORT_SETTINGS.findall(message.replace(str(path), "")))
    options = [f"--{name.replace('_', '-')} ..." for name in named if not (has_range and name == "value_range")]
    return f"; by `diver import {path} --out SET.safetensors {' '.join(options)}`" if options else ""


def read_any(
    path: Path, dataset: str | None = None, value_range: str | None = None
) -> "tuple[DistilledSet, Found | None]":
    """A set of ours, or one that others have released, with what was found out about it.

    `value_range`: what --value-range says, None in a command that has no such option.
    """
    from diver.sets import DistilledSet

    if is_ours(path):
        found = DistilledSet.read(path)
        _refuse_options(path, found, dataset, value_range)
        return found, None
    try:
        released = import_found(path, dataset, value_range or "auto")
    except UserError as error:
        raise UserError(f"{error}{_import_command(str(error), path, value_range is not None)}") from None
    return released.distilled, released


def _refuse_options(path: Path, ours: "DistilledSet", dataset: str | None, value_range: str | None) -> None:
    """Refuse what options say of a set of ours otherwise than the set itself."""
    if value_range not in (None, "auto"):
        raise UserError(f"--value-range {value_range}: {path} says itself what its values are; leave it out")
    if dataset not in (None, ours.dataset):
        raise UserError(f"--dataset {dataset}: {path} says itself that it is of {ours.dataset}; leave it out")


def read_set(path: Path, dataset: str | None = None, value_range: str | None = None) -> "DistilledSet":
    """`read_any`, saying on stderr how a released set is read."""
    distilled, found = read_any(path, dataset, value_range)
    if found:
        print(f"{path}: read as {found.form}, {distilled.dataset}", *found.notes, sep="; ", file=sys.stderr)
    return distilled


@contextmanager
def own_file(path: Path, beside: Path, dataset: str | None = None, value_range: str = "auto") -> Iterator[Path]:
    """The file of a set of ours; for a released one a hidden copy in our form beside `beside`, gone at the end.

    The copy stays when the work on it is killed, so that what goes on then finds the same file.
    """
    from diver.setfile import SetFile
    from diver.sets import DistilledSet, SetError

    if is_ours(path):
        with SetFile.open(path) as file:
            _refuse_options(path, file.head, dataset, value_range)
        yield path
        return
    released = read_set(path, dataset, value_range)
    copy = beside.with_name(f".{beside.name}.source")
    try:
        there = DistilledSet.read(copy).digest() if copy.exists() else None
    except SetError:
        there = None
    if there != released.digest():
        released.write(copy)
    try:
        yield copy
    except Exception as error:
        copy.unlink()
        if isinstance(error, (UserError, SetError)):
            # The user knows nothing of the copy.
            raise UserError(str(error).replace(str(copy), str(path))) from None
        raise
    copy.unlink()


def prepared_data(path: Path | None, dataset: str) -> "Prepared":
    """The prepared dataset at a path, by default where the workflow puts it."""
    from diver.data.prepared import Prepared
    from diver.study import prepared_path

    file = path or at_home(prepared_path(dataset))
    if not file.exists():
        made = f"make it with `snakemake --cores all {prepared_path(dataset)}`, or "
        remedy = made if at_home(f"config/datasets/{dataset}.yaml").exists() and not path else ""
        raise UserError(f"{file}: no prepared dataset {dataset}; {remedy}give another file by --prepared")
    return Prepared.read(file)
