"""Distilled sets in the forms in which others release them, read as one of ours.

Released files hardly say what their numbers mean. What is found is checked, what must be assumed is said in a note, and
what cannot be told is refused with the setting that tells it. Nothing in a file is executed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from diver.config.base import nearest
from diver.importers.forms import READERS, detect, refuse_unread
from diver.importers.meaning import class_major, labels_of, range_of, soft_class_major
from diver.importers.source import FORMS, Source
from diver.sets import LEARNED_RATE, WHITENING, DistilledSet, SetError, Step, ValueRange
from diver.tensorfile import file_checksum

__all__ = ["FORMS", "RANGES", "Found", "import_set", "refuse_unread", "split_tiles"]

RANGES = ("auto", "dataset", "unit", "symmetric")
# Where a code's list of a subset differs from that of our labels in a class: its label, and what it is there.
_OTHER_CLASSES = {("ncfm", "imagefruit"): (9, "n07760859"), ("ncfm", "imageyellow"): (8, "n01773797")}
# MTT, GLaD, EDF and DD-Ranking standardise CIFAR-100 by CIFAR-10's mean and deviation.
_BY_CIFAR10 = [(form, "cifar100") for form in ("mtt", "glad", "ddranking")]
_CIFAR10 = ValueRange.standardised((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_NUMBERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_NUMBERS |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# Of MTT's whitening, which its sets do not say.
_ZCA_EPSILON = 0.1
# Of the released DM set of ImageFruit, 46 % of the values are no pixel's.
_DOUBTFUL = 0.5


@dataclass(frozen=True)
class Found:
    """A set as it was found; see `import_set`.

    `notes`: what was detected or assumed, one line each. `recorded`: network -> accuracies in percent in the file.
    """

    distilled: DistilledSet
    form: str
    notes: tuple[str, ...]
    recorded: dict[str, list[float]]


def split_tiles(images: Tensor, factor: int, filling: Tensor) -> Tensor:
    """[N, C, H, W] -> [N * factor^2, C, H, W]: the tiles of each image, row by row, each at full size.

    As NCFM's code decodes: `filling` [C, 1, 1] at the right and below where the size is no multiple, and tiles
    upsampled bilinearly.
    """
    n, c, h, w = images.shape
    tall, wide = -(-h // factor), -(-w // factor)
    whole = filling.expand(n, c, tall * factor, wide * factor).clone()
    whole[..., :h, :w] = images
    tiles = whole.view(n, c, factor, tall, factor, wide).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, tall, wide)
    return functional.interpolate(tiles, (h, w), mode="bilinear", align_corners=False)


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file, or over the names and checksums of several."""
    if len(files) == 1:
        return file_checksum(files[0])
    lines = "".join(f"{file.parent.name}/{file.name} {file_checksum(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _check_images(path: Path, images: Tensor, channels: int, dataset: str) -> None:
    if images.ndim != 4 or 0 in images.shape or images.dtype not in _NUMBERS:
        raise SetError(f"{path}: images are {images.dtype} {list(images.shape)}, not numbers [N, C, H, W]")
    if images.shape[1] != channels:
        raise SetError(
            f"{path}: images have shape {list(images.shape)}, and {dataset} has {channels} channels: give its images, "
            "not latents, as [N, C, H, W]"
        )
    if not (good := images.isfinite().flatten(1).all(1)).all():
        raise SetError(f"{path}: image {int((~good).nonzero()[0])} has values that are not finite")


def _assemble(
    path: Path,
    form: str,
    source: Source,
    dataset: str,
    classes: tuple[str, ...],
    chosen: tuple[Tensor, ValueRange, str],
    ipc: int | None,
    factor: int,
    asked: Sequence[str] | None,
) -> DistilledSet:
    """The set of a source whose images have been read in a range; notes of what is done go to `source.notes`."""
    images, value_range, note = chosen
    notes = source.notes
    notes.append(note)
    hard, soft = labels_of(path, source, classes, asked, notes)
    if hard is not None:
        rows = class_major(path, hard, classes, notes, form)
    elif soft is not None:
        rows = soft_class_major(path, soft, classes, notes)
    each, repeat = len(images) // len(classes), factor**2
    if ipc is not None and each != ipc:
        raise SetError(f"{path}: {each} images per class, and IPC {ipc} is asked for")
    parameters: dict[str, Any] = {"form": form, "sha256": _digest(source.files)}
    images = images[rows]
    if factor > 1:
        if factor > min(images.shape[2:]):
            raise SetError(f"{path}: factor {factor}, but images of {list(images.shape[2:])}: set a smaller one")
        images = split_tiles(images, factor, value_range.from_unit(torch.full((images.shape[1], 1, 1), 0.5)))
        parameters["factor"] = factor
        notes.append(
            f"images are cut into {factor}x{factor} tiles, enlarged bilinearly: IPC {each} is {each * repeat} now"
        )
    elif form == "ncfm":
        notes.append(
            "images are kept whole; NCFM's hold 2x2 tiles as a rule: factor 2, or `tiles: 2` in stage 2, cuts them"
        )
    if other := _OTHER_CLASSES.get((form, dataset)):
        label, wnid = other
        notes.append(f"NCFM's list has {wnid} where {dataset} here has {classes[label]}: class {label} is another one")
    if source.rate is not None:
        parameters[LEARNED_RATE] = source.rate
        notes.append(f"learned rate for students: {source.rate:.6g}")
    if (epsilon := _ZCA_EPSILON if source.pixels else source.about.zca) is not None:
        parameters[WHITENING] = {"epsilon": epsilon}
    if source.accuracies:
        parameters["recorded"] = source.accuracies
    if source.about.steps:
        parameters["made_by"] = list(source.about.steps)
    found = DistilledSet(
        images=images.contiguous(),
        dataset=dataset,
        classes=classes,
        ipc=each * repeat,
        value_range=value_range,
        labels=None if hard is None else hard[rows].repeat_interleave(repeat),
        soft_labels=None if soft is None else soft[rows].repeat_interleave(repeat, 0).contiguous(),
        steps=(Step("released", {**parameters, "notes": notes}),),
    )
    found.validate(str(path))
    return found


def _own(path: Path, classes: tuple[str, ...], value_range: str, ipc: int | None) -> Found:
    found = DistilledSet.read(path)
    if found.classes != classes:
        raise SetError(f"{path}: a set of {found.dataset!r} with other classes: give the dataset that it is of")
    if value_range != "auto":
        raise SetError(f"{path}: the file says that its values are {found.value_range.kind}: leave value_range at auto")
    if ipc is not None and found.ipc != ipc:
        raise SetError(f"{path}: {found.ipc} images per class, and IPC {ipc} is asked for")
    made = " + ".join(step.method for step in found.steps) or "no recorded method"
    recorded: dict[str, list[float]] = next(
        (s.parameters["recorded"] for s in found.steps if "recorded" in s.parameters), {}
    )
    return Found(found, "own", (f"a set of ours of {found.dataset}, by {made}",), _percent(recorded))


def _percent(fractions: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [100 * value for value in values] for name, values in fractions.items()}


def import_set(
    path: str | Path,
    dataset: str,
    classes: Sequence[str],
    standard: ValueRange,
    form: str = "auto",
    value_range: str = "auto",
    ipc: int | None = None,
    factor: int | None = None,
    class_order: Sequence[str] | None = None,
) -> Found:
    """Read a set as others release it: `form` is one of FORMS, or auto, which tells it from the path.

    `dataset`, `classes`: what the set is of, and its classes in the order of our labels. `standard`: the range of
    images standardised with the dataset's mean and deviation, where the form's codes have none of their own.
    `value_range`: dataset (that one), unit, symmetric, or auto, which takes what the form stores, else what the values
    fit. `ipc`: images per class that the source must have; of a folder of images the first `ipc` of each class are
    taken. `factor`: cut each image into factor x factor tiles and enlarge them (NCFM), which makes IPC factor^2 times
    as large. `class_order`: names out of `classes` in the order of the source's labels, which for a folder is the
    sorted order of its class folders.

    The set has float32 images, class-major, and one step "released" with the form, checksum, notes, learned rate, tiles
    and recorded accuracies (as fractions). A file of ours comes back as it is. Raises SetError in one line: file,
    fault, remedy. Pickles are loaded with tensors and plain numbers allowed and nothing else; no code in them runs.
    """
    path, classes = Path(path), tuple(classes)
    for name, value, known in (("form", form, ("auto", *FORMS)), ("value_range", value_range, RANGES)):
        if value not in known:
            raise SetError(f"{path}: {name} {value!r} is unknown; {nearest(value, list(known))}")
    if factor is not None and factor < 1:
        raise SetError(f"{path}: factor {factor} is not 1 or more")
    refuse_unread(path)
    form = detect(path) if form == "auto" else form
    if form == "own":
        if (factor or 1) > 1 or class_order:
            raise SetError(f"{path}: a set of ours has its tiles and class order: leave factor and class_order out")
        return _own(path, classes, value_range, ipc)
    source = READERS[form](path, classes, len(standard.mean), ipc, class_order)
    _check_images(path, source.images, len(standard.mean), dataset)
    standard = _CIFAR10 if (form, dataset) in _BY_CIFAR10 else standard
    chosen = range_of(path, source.images, value_range, form, source, standard)
    if standard is _CIFAR10 and chosen[1] is standard:
        source.notes.append("the mean and deviation are CIFAR-10's, by which these codes standardise CIFAR-100")
    found = _assemble(path, form, source, dataset, classes, chosen, ipc, factor or 1, class_order)
    unit = found.value_range.to_unit(found.images)
    outside = float(((unit < 0) | (unit > 1)).float().mean())
    if outside > _DOUBTFUL:
        source.notes.append(
            f"{100 * outside:.0f} % of the values lie outside of what pixels can show: if the numbers mean something "
            "else, give value_range"
        )
    return Found(found, form, tuple(source.notes), _percent(source.accuracies))
