"""Commands on the file of a set: what is in it, a picture of it, other forms of it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver.cli.common import Json, UserError, completed, known, mendable, print_json, span, writable
from diver.cli.comparison import accuracy_lost
from diver.cli.evaluation import (
    ArchitectureOption,
    ArchitecturesOption,
    PreparedOption,
    QuickOption,
    SeedsOption,
    ThreadsOption,
    chosen_evaluation,
)
from diver.cli.reading import (
    RANGES,
    DatasetOption,
    RangeOption,
    SetArgument,
    dataset_facts,
    import_found,
    read_any,
    read_set,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diver.importers import Found
    from diver.sets import DistilledSet

# Names of the forms, so that completing one does not load what reads and writes them.
IMPORTED = ("dc", "mtt", "ncfm", "glad", "folder", "ddranking", "dcbench", "own")
EXPORTED = ("ddranking", "dcbench", "png", "parquet")
# Forms that round the values.
EIGHT_BIT = ("png", "parquet")
# Rows of a gallery, so that a set of a thousand classes makes a picture that can be opened.
GALLERY_ROWS = 50


def _bytes(count: int) -> str:
    """Bytes, and what they are in a larger unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit} ({count} bytes)"
    return f"{count} bytes"


def _described(path: Path, found: "DistilledSet", released: "Found | None") -> dict[str, Any]:
    from diver.sets import learned_rate

    images, soft = found.images, found.soft_labels
    unit = found.value_range.to_unit(images)
    sizes = {
        name: 0 if tensor is None else tensor.numel() * tensor.element_size()
        for name, tensor in (("images", images), ("labels", found.labels), ("soft_labels", soft))
    }
    return {
        "file": str(path),
        "form": released.form if released else "own",
        "notes": list(released.notes) if released else [],
        "dataset": found.dataset,
        "classes": list(found.classes),
        "ipc": found.ipc,
        "images": list(images.shape),
        "labels": "hard" if soft is None else "soft" if found.labels is None else "hard and soft",
        "bytes": {**sizes, "total": sum(sizes.values())},
        "value_range": found.value_range.kind,
        "mean": list(found.value_range.mean),
        "std": list(found.value_range.std),
        "min": round(float(images.min()), 4),
        "max": round(float(images.max()), 4),
        "outside": round(float(((unit < 0) | (unit > 1)).float().mean()), 4),
        "learned_rate": learned_rate(found),
        "recorded": released.recorded if released else {},
        "steps": [{"method": s.method, "seed": s.seed, "parameters": s.parameters} for s in found.steps],
        "digest": found.digest(),
    }


# Of a step's parameters, what `info` says in lines of their own.
SHOWN = ("notes", "recorded")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def info(
    set_file: SetArgument, dataset: DatasetOption = None, value_range: RangeOption = "auto", json_: Json = False
) -> None:
    """Describe a set: size, storage, value range, classes, and the chain of methods that made it.

    Examples:

    diver info results/default/distilled/cifar10/ipc10/dm.safetensors

    diver info res_DC_CIFAR10_ConvNet_1ipc.pt --json
    """
    one = _described(set_file, *read_any(set_file, dataset, value_range))
    if json_:
        print_json(one)
        return
    count, channels, height, width = one["images"]
    statistics = f", mean {one['mean']}, std {one['std']}" if one["mean"] else ""
    sizes = one["bytes"]
    shares = ", ".join(
        f"{name.replace('_', ' ')} {sizes[name]}" for name in ("images", "labels", "soft_labels") if sizes[name]
    )
    lines = [
        ("form", " ".join([one["form"], *(f"({note})" for note in one["notes"])])),
        ("dataset", f"{one['dataset']}, {len(one['classes'])} classes: {', '.join(one['classes'])}"),
        ("images", f"{count} = {one['ipc']} per class, {channels} x {height} x {width}; labels: {one['labels']}"),
        ("storage", f"{_bytes(sizes['total'])}: {shares}"),
        ("values", f"{one['value_range']}{statistics}"),
        ("", f"{one['min']} to {one['max']}; {100 * one['outside']:.1f} % of them outside of what pixels can show"),
        ("learned rate", "none" if one["learned_rate"] is None else f"{one['learned_rate']:g}"),
    ]
    lines += [
        ("recorded", f"{name} {_mean(values):.2f} % (mean of {len(values)})")
        for name, values in one["recorded"].items()
    ]
    for number, step in enumerate(one["steps"], 1):
        parameters = ", ".join(f"{k}={_short(v)}" for k, v in step["parameters"].items() if k not in SHOWN)
        seed = "" if step["seed"] is None else f", seed {step['seed']}"
        lines.append((f"step {number}", f"{step['method']}{seed}: {parameters}"))
    lines.append(("digest", one["digest"]))
    print(f"{set_file}", *(f"  {name:13} {text}" for name, text in lines), sep="\n")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rows_of(found: "DistilledSet", classes: range, per_class: int) -> "Tensor":
    """Images [len(classes) * per_class, C, H, W]: the first of each of the classes."""
    import torch

    at = torch.arange(classes.start, classes.stop)[:, None] * found.ipc + torch.arange(per_class)
    return found.images[at.flatten()]


def _spoken(name: str) -> str:
    """A class's name as it is written beside a picture: of a wnid the first of its words."""
    if not re.fullmatch(r"n\d{8}", name):
        return name.replace("_", " ")
    from diver.prior.classes import describe  # takes seconds, because it loads what priors are made of

    return describe(name).split(",")[0]


def show(
    set_file: SetArgument,
    out: Annotated[Path | None, typer.Option(help="The PNG; by default SET's name, in the current folder.")] = None,
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Images of each class; by default all, at most 10.")
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Another set, whose same images stand beside; repeatable.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Only classes FIRST:END, numbers, without END itself.")] = None,
    dataset: DatasetOption = None,
    value_range: RangeOption = "auto",
) -> None:
    """Draw a set as a PNG: a row for each class, a column for each image; several sets stand beside each other.

    Examples:

    diver show dm.safetensors --out dm.png --per-class 5

    diver show res_DC_CIFAR10_ConvNet_1ipc.pt --beside recovered.safetensors --out before-and-after.png
    """
    from diver.pictures import Block, gallery, save

    paths, target = [set_file, *(beside or [])], out or Path(f"{set_file.stem}.png")
    if target.suffix != ".png":
        raise UserError(f"--out {target}: name a .png")
    writable(target, *paths)
    sets = [read_set(path, dataset, value_range) for path in paths]
    first = sets[0]
    for path, one in zip(paths, sets, strict=True):
        if one.classes != first.classes:
            raise UserError(f"{path}: its classes are not those of {set_file}, in this order; show it alone")
    count, most = len(first.classes), min(one.ipc for one in sets)
    if per_class and per_class > most:
        raise UserError(f"--per-class {per_class}: {paths[[one.ipc for one in sets].index(most)]} has {most}")
    rows = span(classes) if classes else range(min(count, GALLERY_ROWS))
    if not 0 <= rows.start < rows.stop <= count:
        raise UserError(f"--classes {classes}: the set has classes 0:{count}")
    if len(rows) < count and not classes:
        typer.echo(f"{set_file}: the first {len(rows)} of {count} classes; --classes FIRST:END draws others", err=True)
    columns = per_class or min(most, 10)
    blocks = [
        Block(path.stem, _rows_of(one, rows, columns), one.value_range, ", then ".join(s.method for s in one.steps))
        for path, one in zip(paths, sets, strict=True)
    ]
    names = [_spoken(first.classes[i]) for i in rows]
    with mendable(set_file):
        save(target, gallery(blocks, names, columns))
    print(target)


def convert(
    set_file: SetArgument,
    out: Annotated[Path, typer.Option(help="Where to write the changed set (safetensors).")],
    value_range: Annotated[
        str | None,
        typer.Option(
            help="Bring the values to unit ([0, 1]), symmetric ([-1, 1]) or dataset (standardised).",
            autocompletion=completed(lambda: RANGES[1:]),
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Height and width: bilinear, with anti-aliasing.")
    ] = None,
    ipc: Annotated[int | None, typer.Option(min=1, help="Keep the first so many images of each class.")] = None,
    dataset: DatasetOption = None,
) -> None:
    """Change the value range, the size or the number of images of a set; nothing is clipped.

    What others released becomes a set of ours by `diver import`, and a set of ours takes their forms by `diver export`.

    Example: diver convert recovered.safetensors --out small.safetensors --value-range unit --size 32 --ipc 10
    """
    from dataclasses import replace

    import torch

    from diver.sets import SYMMETRIC, UNIT, Step, resized

    writable(out, set_file)
    if value_range is None and size is None and ipc is None:
        raise UserError("nothing to change: give --value-range, --size or --ipc")
    found = read_set(set_file, dataset)
    changes: dict[str, Any] = {}
    if ipc is not None and ipc != found.ipc:
        if ipc > found.ipc:
            raise UserError(f"--ipc {ipc}: {set_file} has {found.ipc} images per class")
        rows = (torch.arange(len(found.classes))[:, None] * found.ipc + torch.arange(ipc)).flatten()
        labels, soft = (None if t is None else t[rows] for t in (found.labels, found.soft_labels))
        found = replace(found, images=found.images[rows], labels=labels, soft_labels=soft, ipc=ipc)
        changes["ipc"] = ipc
    if size is not None and list(found.images.shape[-2:]) != [size, size]:
        found = replace(found, images=resized(found.images, size))
        changes["size"] = size
    if value_range is not None:
        if value_range == "auto":
            raise UserError("--value-range auto: is no range to bring values to; take unit, symmetric or dataset")
        known(value_range, RANGES[1:], "--value-range")
        named = {"unit": UNIT, "symmetric": SYMMETRIC}
        found = found.in_range(named.get(value_range) or dataset_facts(found.dataset)[1])
    if changes:
        found = replace(found, steps=(*found.steps, Step("convert", changes)))
    found.write(out)
    print(out)


def import_(
    path: Annotated[Path, typer.Argument(help="A file or folder in a form that others release sets in.")],
    out: Annotated[Path, typer.Option(help="Where to write it as a distilled set (safetensors).")],
    dataset: DatasetOption = None,
    value_range: RangeOption = "auto",
    form: Annotated[
        str,
        typer.Option(
            help="The form, if it is not to be detected; `diver forms` lists them.",
            autocompletion=completed(lambda: ("auto", *IMPORTED)),
        ),
    ] = "auto",
    ipc: Annotated[int | None, typer.Option(min=1, help="Images per class, where the form does not say it.")] = None,
    factor: Annotated[
        int | None, typer.Option(min=1, help="Pieces a side that an image is composed of (IDC, RDED).")
    ] = None,
    class_order: Annotated[
        str | None,
        typer.Option(
            help="The class that each of its labels means, names separated by commas, if it is another order."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Read a set that others have released. Nothing in the file is executed; what it records is printed.

    Example: diver import res_DM_imagenet-fruits_ConvNet_1ipc.pt --out fruit.safetensors
    """
    writable(out, path)
    order = [name.strip() for name in class_order.split(",")] if class_order else None
    found = import_found(path, dataset, value_range, form, ipc, factor, order)
    one = found.distilled
    one.write(out)
    if json_:
        print_json({**_described(path, one, found), "out": str(out)})
        return
    low, high = float(one.images.min()), float(one.images.max())
    print(
        f"{out}: {list(one.images.shape)}, IPC {one.ipc}, values {low:.2f} to {high:.2f} read as {one.value_range.kind}"
    )
    print(f"form: {found.form}", *found.notes, sep="; ")
    print(f"dataset: {one.dataset}{'' if dataset or found.form == 'own' else ', guessed'}")
    print(f"classes in the order of the labels: {', '.join(one.classes)}")
    for name, values in found.recorded.items():
        print(f"recorded for {name}: {_mean(values):.2f} % (mean of {len(values)})")


def export(
    set_file: SetArgument,
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    form: Annotated[
        str, typer.Option(help="In which form; `diver forms` lists them.", autocompletion=completed(lambda: EXPORTED))
    ] = "ddranking",
    method: Annotated[
        str | None, typer.Option(help="dcbench: whose loader to write for; default: the method that made the set.")
    ] = None,
    prepared: PreparedOption = None,
    architecture: ArchitectureOption = None,
    architectures: ArchitecturesOption = None,
    seeds: SeedsOption = None,
    quick: QuickOption = False,
    threads: ThreadsOption = None,
    lost: Annotated[
        bool, typer.Option("--accuracy-lost", help="Forms of 8 bits: train students before and after the rounding.")
    ] = False,
    dataset: DatasetOption = None,
) -> None:
    """Write a set in a form of others: images for a web page, a table for a hub, or what an external judge reads.

    Forms of 8 bits (png, parquet) round the values; --accuracy-lost says what that costs students.

    Examples:

    diver export dm.safetensors --form ddranking --out results/ranking/dm

    diver export dm.safetensors --form png --out dm-png --accuracy-lost --architectures convnet,resnet --seeds 3
    """
    from diver.exports import EXPORTS

    known(form, EXPORTS, "--form")
    if method and form != "dcbench":
        raise UserError(f"--method {method}: only for --form dcbench, which has a layout per method; leave it out")
    measured = lost or quick or any(one is not None for one in (prepared, architecture, architectures, seeds, threads))
    if measured and form not in EIGHT_BIT:
        raise UserError(f"--form {form}: keeps the values, so nothing is lost; measure one of {', '.join(EIGHT_BIT)}")
    distilled = read_set(set_file, dataset)
    extra: dict[str, Any] = {"method": method} if method else {}
    with mendable(set_file):
        # Before any training, so that what is refused is refused at once.
        written = EXPORTS[form](distilled, out, **extra)
    if measured:
        evaluation = chosen_evaluation(
            {str(set_file): distilled},
            prepared=prepared,
            quick=quick,
            architecture=architecture,
            architectures=architectures,
            seeds=seeds,
            threads=threads,
        )
        written = EXPORTS[form](distilled, out, **extra, accuracy=accuracy_lost(distilled, evaluation))
    print(*written, sep="\n")


def forms(json_: Json = False) -> None:
    """List the forms of others that `diver import` reads and `diver export` writes.

    Example: diver forms
    """
    from diver.exports import WRITTEN
    from diver.importers import FORMS

    if json_:
        print_json({"import": FORMS, "export": WRITTEN})
        return
    for name, line in FORMS.items():
        print(f"import  {name:10} {line}")
    for name, line in WRITTEN.items():
        print(f"export  {name:10} {line}")
