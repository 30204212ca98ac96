"""What the numbers and the labels of a released set mean, as far as that can be told."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diver.importers.source import Source
from diver.sets import SYMMETRIC, UNIT, SetError, ValueRange

# Forms whose codes work on standardised images and store those.
_STANDARDISED = ("dc", "mtt", "glad", "ddranking", "dcbench")
# CIFAR-10 whitened by MTT's ZCA has a deviation of 0.26, standardised images about 1, those optimised in it more.
_SMALL = 0.5
# Released standardised values reach 21.
_LARGE = 60.0


def range_of(
    path: Path, images: Tensor, wanted: str, form: str, source: Source, standard: ValueRange
) -> tuple[Tensor, ValueRange, str]:
    """float32 images, their value range, and a note on how it was told."""
    low, high = float(images.min()), float(images.max())
    span = f"values {low:.2f} to {high:.2f}"
    if not images.is_floating_point():
        if low < 0 or high > 255:
            raise SetError(f"{path}: integers {low:.0f} to {high:.0f} are not pixels of 8 bits")
        if wanted not in ("auto", "unit"):
            raise SetError(f"{path}: pixels of 8 bits, which are not {wanted!r}: leave value_range at auto")
        return images.float() / 255, UNIT, "pixels of 8 bits, read as [0, 1]"
    images = images.float()
    if wanted != "auto":
        asked = {"dataset": standard, "unit": UNIT, "symmetric": SYMMETRIC}[wanted]
        return images, asked, f"{span}, read as {asked.kind} as asked"
    if source.pixels:
        return images, UNIT, f"{span}, read as unit"
    if source.about.mean:
        try:
            stated = ValueRange.standardised(source.about.mean, source.about.std)
        except ValueError as error:
            raise SetError(f"{path}: meta.json: {error}; mend it or take it away") from error
        return images, stated, f"{span}, standardised with the mean and deviation in meta.json"
    bytes_like = low >= 0 and _LARGE < high <= 255
    if bytes_like and torch.equal(images, images.round()):
        return images / 255, UNIT, f"{span}, all whole: pixels of 8 bits stored as floats, read as [0, 1]"
    if bytes_like:
        raise SetError(f"{path}: {span} look like pixels from 0 to 255: divide them by 255")
    spread = float(images.std()) if images.numel() > 1 else 0.0
    fits_unit = low >= 0 and high <= 1
    if form in _STANDARDISED:
        if source.whitened or (form == "mtt" and low < 0 and 0 < spread < _SMALL):
            raise SetError(
                f"{path}: {span} with a deviation of {spread:.2f} (standardised images: about 1) look ZCA-whitened: "
                "give images_zca_N.pt, which MTT's code saves beside them, or set value_range to dataset to keep these"
            )
        if max(-low, high) > _LARGE:
            raise SetError(
                f"{path}: {span} are too far out for standardised images: set value_range to dataset to keep them"
            )
        if fits_unit and low < high:
            raise SetError(
                f"{path}: {span} may be standardised, as {form} stores images, or lie in [0, 1]: set value_range to "
                "dataset or unit"
            )
        doubt = "; all are equal, which fits [0, 1] too: if they are, set value_range: unit" if fits_unit else ""
        return (
            images,
            standard,
            f"{span}, read as standardised, as these codes store images{doubt}",
        )
    if fits_unit:
        doubt = "; all are equal, which fits every range" if low == high else ""
        return images, UNIT, f"{span}, assumed to be unit because all lie in [0, 1]{doubt}"
    if low >= -1 and high <= 1:
        doubt = "; standardised images of little contrast would lie there too (value_range: dataset)"
        return images, SYMMETRIC, f"{span}, assumed to be symmetric because all lie in [-1, 1], some below 0{doubt}"
    if low < 0 and max(-low, high) <= _LARGE:
        doubt = "; with so small a deviation they may be unit or symmetric and overshoot" if spread < _SMALL else ""
        return images, standard, f"{span}, assumed to be standardised because they go beyond [-1, 1]{doubt}"
    raise SetError(f"{path}: {span} fit no value range: set value_range to dataset, unit or symmetric")


def _logits(path: Path, soft: Tensor, count: int, rows: int, notes: list[str]) -> Tensor:
    """Soft labels as float32 logits [N, K]."""
    if list(soft.shape) != [rows, count] or not soft.is_floating_point():
        raise SetError(f"{path}: soft labels are {soft.dtype} {list(soft.shape)}, not float [{rows}, {count}]")
    soft = soft.float()
    if (soft >= 0).all() and torch.allclose(soft.sum(1), torch.ones(rows), atol=1e-3):
        notes.append("soft labels are probabilities; their logarithms are kept, as soft labels here are logits")
        return soft.clamp_min(1e-12).log()
    notes.append("soft labels are logits")
    return soft


def _order(path: Path, source: Source, classes: tuple[str, ...], asked: Sequence[str] | None) -> tuple[Tensor, str]:
    """The number of the class that each label of the source means, and who says so."""
    order = tuple(asked or source.order or source.about.classes or classes)
    says = "class_order" if asked else "meta.json"
    if sorted(order) != sorted(classes):
        odd = [f"{name!r} is none of them" for name in order if name not in classes]
        odd += [f"{name!r} is missing" for name in classes if name not in order] or ["one is twice"]
        remedy = "name each of them once" if asked else "give the dataset that the set is of"
        raise SetError(f"{path}: {says} does not fit the {len(classes)} classes of the dataset, {odd[0]}: {remedy}")
    return torch.tensor([classes.index(name) for name in order]), says


def labels_of(
    path: Path, source: Source, classes: tuple[str, ...], asked: Sequence[str] | None, notes: list[str]
) -> tuple[Tensor | None, Tensor | None]:
    """Hard labels int64 [N] and soft labels float32 [N, K], where there are any, in the order of `classes`."""
    labels, rows, count = source.labels, len(source.images), len(classes)
    meant, says = _order(path, source, classes, asked)
    if not labels.ndim or len(labels) != rows:
        raise SetError(f"{path}: {rows} images, but labels of shape {list(labels.shape)}: one for each is needed")
    hard, soft = (None, labels) if labels.is_floating_point() and labels.ndim == 2 else (labels, source.soft)
    if hard is not None:
        if hard.ndim != 1 or hard.is_floating_point() or hard.is_complex():
            raise SetError(
                f"{path}: labels are {hard.dtype} {list(hard.shape)}, not integers [N] or soft labels [N, K]"
            )
        hard = hard.long()
        if len(outside := hard[(hard < 0) | (hard >= count)]):
            raise SetError(f"{path}: label {int(outside[0])} is out of range for {count} classes")
    if soft is not None:
        soft = _logits(path, soft, count, rows, notes)
    if torch.equal(meant, torch.arange(count)):
        return hard, soft
    notes.append(f"labels are in the order of {says} and are renumbered to the dataset's")
    return None if hard is None else meant[hard], None if soft is None else soft[:, meant.argsort()]


def class_major(path: Path, hard: Tensor, classes: Sequence[str], notes: list[str], form: str = "") -> Tensor:
    """The order of rows that sorts hard labels stably; SetError if classes have different numbers of images."""
    counts = torch.bincount(hard, minlength=len(classes))
    few, many = int(counts.argmin()), int(counts.argmax())
    if counts[few] != counts[many]:
        cut = "; ipc takes the first of each" if form == "folder" and counts[few] else ""
        raise SetError(
            f"{path}: {len(hard)} images, but class {classes[few]!r} has {int(counts[few])} and {classes[many]!r} has "
            f"{int(counts[many])}: every class needs as many{cut}"
        )
    rows = torch.sort(hard, stable=True).indices
    if not torch.equal(rows, torch.arange(len(hard))):
        notes.append("images were not in the order of their classes and are put into it, stably")
    return rows


def soft_class_major(path: Path, soft: Tensor, classes: Sequence[str], notes: list[str]) -> Tensor:
    """The order of rows for soft labels alone, whose largest entries may have left the class they began in."""
    guess, count, rows = soft.argmax(1), len(classes), len(soft)
    other = int((guess != torch.arange(rows) * count // rows).sum())
    if rows % count == 0 and 2 * other < rows:
        if other:
            notes.append(
                f"{other} images have their largest soft label outside the class of their place; the order is kept"
            )
        return torch.arange(rows)
    if len(torch.bincount(guess, minlength=count).unique()) == 1:
        return class_major(path, guess, classes, notes)
    raise SetError(f"{path}: the largest soft labels do not say which images are of a class: give hard labels too")
