"""Distilled sets in the forms in which others release them, read as one of ours.

Released files hardly say what their numbers mean. What is found is checked, what must be assumed is said in a note, and
what cannot be told is refused with the setting that tells it. Nothing in a file is executed.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional

from diver.config.base import first_fault, nearest
from diver.sets import LEARNED_RATE, SYMMETRIC, UNIT, DistilledSet, SetError, Step, ValueRange
from diver.tensorfile import TensorFileError, file_checksum, read_tensors

# What each form is; `auto` finds it from the path, and for a single file from what is in it.
FORMS = {
    "dc": "a file with a dict of `data` and `accs_all_exps` (DC, DSA, DM, GLaD)",
    "mtt": "a folder with images_best.pt or images_N.pt, labels likewise and perhaps lr_best.pt (MTT, DATM, EDF)",
    "ncfm": "a file data_N.pt with [images, labels], or a folder of them (NCFM)",
    "glad": "a folder with images_best.pt or images_00000.pt and labels likewise (GLaD)",
    "folder": "a folder of image files for each class (SRe2L, RDED, D4M, Minimax, and our png)",
    "ddranking": "a folder with images.pt, labels.pt, and perhaps soft.pt, lr.pt and meta.json (DD-Ranking)",
    "dcbench": "a file ..._images.pt beside ..._labels.pt (DC-BENCH's random and k-means sets)",
    "own": "a distilled set of ours (safetensors)",
}
RANGES = ("auto", "dataset", "unit", "symmetric")
# Forms whose codes work on standardised images and store those.
_STANDARDISED = ("dc", "mtt", "glad", "ddranking", "dcbench")
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
_LOSSY = {".jpg", ".jpeg", ".webp"}
# Where a code's list of a subset differs from that of our labels in a class: its label, and what it is there.
_OTHER_CLASSES = {("ncfm", "imagefruit"): (9, "n07760859"), ("ncfm", "imageyellow"): (8, "n01773797")}
# CIFAR-10 whitened by MTT's ZCA has a deviation of 0.26, standardised images about 1, those optimised in it more.
_SMALL = 0.5
# Of the released DM set of ImageFruit, 46 % of the values are no pixel's.
_DOUBTFUL = 0.5
# Released standardised values reach 21.
_LARGE = 60.0


@dataclass(frozen=True)
class Found:
    """A set as it was found; see `import_set`.

    `notes`: what was detected or assumed, one line each. `recorded`: network -> accuracies in percent in the file.
    """

    distilled: DistilledSet
    form: str
    notes: tuple[str, ...]
    recorded: dict[str, list[float]]


# Reading foreign pickles


def _number(dtype: np.dtype, data: Any = None) -> float:
    """Stands in for numpy's scalar reconstructor in `torch.load`: plain numbers only, never objects."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub" or not isinstance(data, bytes):
        raise ValueError("a numpy value that is not a plain number")
    return float(np.frombuffer(data, dtype, count=1)[0])


# Old and new numpy pickle scalars under different names; nothing else of numpy is let in.
_ALLOWED: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]},
]


def _load_foreign(path: Path) -> Any:
    """A foreign pickle's tensors and numbers; SetError for whatever would need any other code."""
    if not path.is_file():
        raise SetError(f"{path}: no such file")
    try:
        # torch warns of pickles of other protocols than its own, of which the caller is told below.
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise nearly anything, and all of it means the same to the caller
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise SetError(f"{path}: refused, it asks to run {wanted[1]}; only tensors and numbers are read") from error
        if "Weights only load failed" in str(error):
            reason = "a pickle of another protocol than torch's, or one that asks for code"
        else:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise SetError(f"{path}: truncated, or not a file of tensors and numbers ({reason})") from error


def _tensor(path: Path) -> Tensor:
    content = _load_foreign(path)
    if not isinstance(content, Tensor):
        raise SetError(f"{path}: holds {type(content).__name__}, not a tensor")
    return content.detach()


class _About(BaseModel):
    """What a meta.json beside the tensors may say; our own exports write all of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    steps: tuple[dict[str, Any], ...] = ()


def _about(folder: Path) -> _About:
    path = folder / "meta.json"
    if not path.is_file():
        return _About()
    try:
        return _About.model_validate(json.loads(path.read_text()))
    except (ValueError, OSError) as error:  # ValidationError is a ValueError
        reason = " ".join(str(error).split())[:120]
        raise SetError(f"{path}: not a description of a set ({reason}); mend it or take it away") from error


@dataclass
class _Source:
    """What a reader finds, as stored.

    images: [N, C, H, W] of any dtype; labels: integer [N] or float [N, K]; soft: float [N, K] beside hard labels.
    pixels: certainly in [0, 1] nominal; whitened: certainly in ZCA space. order: the class that each of the labels
    means, if the source tells. accuracies: fractions.
    """

    images: Tensor
    labels: Tensor
    files: list[Path]
    notes: list[str] = field(default_factory=list)
    soft: Tensor | None = None
    rate: float | None = None
    pixels: bool = False
    whitened: bool = False
    order: tuple[str, ...] = ()
    about: _About = field(default_factory=_About)
    accuracies: dict[str, list[float]] = field(default_factory=dict)


# One reader per form: (path, classes, channels, images per class or none, class order or none)

_Accuracies = TypeAdapter(dict[str, list[float | list[float]]])


def _fractions(values: list[float | list[float]]) -> list[float]:
    """Recorded accuracies in one list; the codes record fractions, of which a value above 1 would be percent."""
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    return [v / 100 for v in flat] if flat and max(flat) > 1 else flat


def _two_tensors(content: Any) -> bool:
    return isinstance(content, (list, tuple)) and len(content) == 2 and all(isinstance(t, Tensor) for t in content)


def _read_dc(path: Path, *_: Any) -> _Source:
    content = _load_foreign(path)
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list) or not data:
        raise SetError(f"{path}: not in the released form, a dict with a list of [images, labels] under 'data'")
    if not _two_tensors(data[-1]):
        raise SetError(f"{path}: the last entry of 'data' is not [images, labels]")
    try:
        accuracies = _Accuracies.validate_python(content.get("accs_all_exps", {}))
    except ValidationError as error:
        raise SetError(f"{path}: accs_all_exps: {first_fault(error)}") from error
    images, labels = (t.detach() for t in data[-1])
    notes = [f"the last of {len(data)} experiments is taken"] if len(data) > 1 else []
    recorded = {name: _fractions(values) for name, values in accuracies.items() if values}
    return _Source(images, labels, [path], notes, about=_about(path.parent), accuracies=recorded)


def _read_ncfm(path: Path, *_: Any) -> _Source:
    if path.is_dir():
        path = path / "distilled_data" if (path / "distilled_data").is_dir() else path
        saved = {int(m[1]): found for found in path.iterdir() if (m := re.fullmatch(r"data_(\d+)\.pt", found.name))}
        if not saved:
            raise SetError(f"{path}: no data_N.pt; name the file with [images, labels]")
        path = saved[max(saved)]
    content = _load_foreign(path)
    if not _two_tensors(content):
        raise SetError(f"{path}: not in the released form, a list of [images, labels]")
    images, labels = (t.detach() for t in content)
    return _Source(images, labels, [path], [f"{path.name} is taken"])


_IMAGES = re.compile(r"(?P<stem>.*?)images(?P<zca>_zca)?(?P<tag>|_best|_\d+)\.pt")


def _inside(path: Path) -> Path:
    """The folder with the tensors: EDF's code puts them into one named Normal."""
    return path / "Normal" if (path / "Normal").is_dir() else path


def _saves(folder: Path) -> dict[str, list[str]]:
    """The tags (nothing, `_best` or `_N`) of a folder's images{tag}.pt as 'images', of images_zca{tag}.pt as 'zca'."""
    found: dict[str, list[str]] = {"images": [], "zca": []}
    for file in folder.iterdir():
        if (match := _IMAGES.fullmatch(file.name)) and not match["stem"]:
            found["zca" if match["zca"] else "images"].append(match["tag"])
    # TinyImageNet at IPC 50 is stored in parts.
    if not found["images"] and (folder / "images_best_0.pt").is_file():
        found["images"] = ["_best"]
    return found


def _newest(tags: Sequence[str]) -> str:
    """The best of several saves if one is named so, else the last iteration's."""
    return "_best" if "_best" in tags else max(tags, key=lambda tag: int(tag[1:] or 0))


def _whole(path: Path, files: list[Path]) -> Tensor:
    """The tensor of a file, or of its parts images_best_0.pt, ... one after the other."""
    parts = [path] if path.is_file() else sorted(path.parent.glob(f"{path.stem}_[0-9].pt")) or [path]
    files += parts
    tensors = [_tensor(part) for part in parts]
    if len({t.shape[1:] for t in tensors}) > 1 or not all(t.ndim for t in tensors):
        raise SetError(f"{path}: its parts have different shapes")
    return torch.cat(tensors)


def _read_pair(path: Path, *_: Any) -> _Source:
    """images{tag}.pt with labels{tag}.pt beside it, and soft{tag}.pt and lr{tag}.pt if there are any."""
    notes, files = list[str](), list[Path]()
    saves = _saves(_inside(path) if path.is_dir() else path.parent)
    if path.is_dir():
        folder, tags = _inside(path), saves["zca"] or saves["images"]
        if not tags:
            _no_set(folder)
        stem, tag, whitened = "", _newest(tags), bool(saves["zca"])
        if len(tags) > 1 or whitened:
            notes.append(f"images{'_zca' * whitened}{tag}.pt is taken")
    else:
        match = _IMAGES.fullmatch(path.name)
        if not match:
            raise SetError(f"{path}: not named images_best.pt, images_N.pt or images.pt: give its folder, or set form")
        folder, stem, tag, whitened = path.parent, match["stem"], match["tag"], bool(match["zca"])
    if whitened:
        notes.append("made under ZCA whitening: these images are turned back to pixels, its students saw whitened ones")
    images = _whole(folder / f"{stem}images{'_zca' * whitened}{tag}.pt", files)
    found = _Source(images, _whole(folder / f"{stem}labels{tag}.pt", files), files, notes, about=_about(folder))
    found.pixels, found.whitened, found.rate = whitened, bool(saves["zca"]) and not whitened, found.about.lr
    if (soft := folder / f"{stem}soft{tag}.pt").is_file():
        found.soft = _whole(soft, files)
    if (rate := folder / f"{stem}lr{tag}.pt").is_file():
        found.rate = _rate(rate)
        files.append(rate)
    return found


def _rate(path: Path) -> float:
    content = _load_foreign(path)
    value = content.detach().flatten().tolist() if isinstance(content, Tensor) else [content]
    if len(value) != 1 or not isinstance(value[0], (int, float)) or not 0 < value[0] < float("inf"):
        raise SetError(f"{path}: not one positive learning rate; mend it or take it away")
    return float(value[0])


# Folders of images


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _class_folders(
    path: Path, classes: Sequence[str], about: _About, asked: Sequence[str] | None
) -> tuple[list[tuple[Path, int]], tuple[str, ...], str]:
    """(folder, label) of each class, the class that each label means, and a note on how that was told."""
    folders = sorted((f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")), key=_natural)
    names = [f.name for f in folders]
    numbers = [int(m[1]) if (m := re.fullmatch(r"\D*(\d+)(-.*)?", name)) else -1 for name in names]
    if asked:
        if len(folders) != len(classes):
            raise SetError(f"{path}: {len(folders)} folders, and {len(classes)} classes: leave only a folder per class")
        return [(f, i) for i, f in enumerate(folders)], tuple(asked), "sorted folders are as class_order says"
    if set(classes) <= set(names):
        left = len(names) - len(classes)
        note = "folders are named as the classes" + (f"; {left} others are left out" if left else "")
        return [(path / name, i) for i, name in enumerate(classes)], tuple(classes), note
    if sorted(numbers) == list(range(len(classes))):
        by = "meta.json" if about.classes else "the dataset"
        note = f"folders are numbers, taken as labels in the order of {by}; set class_order if they number sorted names"
        return sorted(zip(folders, numbers, strict=True), key=lambda pair: pair[1]), (), note
    shown = ", ".join(repr(name) for name in names[:3])
    raise SetError(
        f"{path}: {len(names)} folders ({shown}, ...) are neither named as the {len(classes)} classes ({classes[0]!r}, "
        f"...) nor numbers 0 to {len(classes) - 1}: rename them, or set class_order to their classes in sorted order"
    )


def _picture(path: Path, channels: int) -> tuple[Tensor, str]:
    """uint8 [C, H, W] and the mode in the file."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode.startswith(("I", "F")):
                raise SetError(f"{path}: pixels of mode {mode} are not of 8 bits: save it with 8 bits a channel")
            pixels = np.array(image.convert({1: "L", 3: "RGB"}[channels]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, SetError):
            raise
        raise SetError(f"{path}: not an image that can be read ({' '.join(str(error).split())[:100]})") from error
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1), mode


def _read_folder(
    path: Path, classes: Sequence[str], channels: int, ipc: int | None, asked: Sequence[str] | None
) -> _Source:
    if not path.is_dir():
        raise SetError(f"{path}: not a folder of image folders")
    if channels not in (1, 3):
        raise SetError(f"{path}: the dataset has {channels} channels, and image files have 1 or 3")
    about = _about(path)
    folders, order, note = _class_folders(path, classes, about, asked)
    files = [
        (file, label, i)
        for folder, label in folders
        for i, file in enumerate(sorted((f for f in folder.iterdir() if f.suffix.lower() in _PICTURES), key=_natural))
    ]
    notes = [note]
    kept = [n for n, (_, _, i) in enumerate(files) if ipc is None or i < ipc]
    if len(kept) < len(files):
        notes.append(f"the first {ipc} images of each class are taken, of {len(files)} in all")
    # Ours are numbered, and then rows and columns of soft labels are in the folders' order.
    soft = None if order and not asked else _soft_beside(path, len(files))
    images, modes = list[Tensor](), set[str]()
    for file, _, _ in (files[n] for n in kept):
        image, mode = _picture(file, channels)
        if images and image.shape != images[0].shape:
            sizes = [f"{t.shape[2]}x{t.shape[1]}" for t in (image, images[0])]
            raise SetError(f"{file}: {sizes[0]} pixels, and the first image has {sizes[1]}: resize all to one size")
        images.append(image)
        modes.add(mode)
    if not images:
        raise SetError(f"{path}: no image files ({', '.join(sorted(_PICTURES))}) in its {len(folders)} folders")
    if others := sorted(modes - {"L" if channels == 1 else "RGB"}):
        notes.append(f"images of mode {', '.join(others)} are converted to {'grey' if channels == 1 else 'RGB'}")
    if lossy := sum(files[n][0].suffix.lower() in _LOSSY for n in kept):
        notes.append(f"{lossy} of {len(kept)} images are in a format that may lose detail (JPEG, WebP)")
    return _Source(
        torch.stack(images),
        torch.tensor([files[n][1] for n in kept]),
        [files[n][0] for n in kept],
        notes,
        None if soft is None else soft[kept],
        about.lr,
        order=order,
        about=about,
    )


def _soft_beside(path: Path, count: int) -> Tensor | None:
    """The soft labels that our export of images writes beside them."""
    file = path / "soft_labels.safetensors"
    if not file.is_file():
        return None
    try:
        soft = read_tensors(file)[0].get("soft_labels")
    except TensorFileError as error:
        raise SetError(f"{file}: {error}") from error
    if soft is None or len(soft) != count:
        raise SetError(f"{file}: not a row 'soft_labels' for each of the {count} images: take it away, or add images")
    return soft


_READERS: dict[str, Callable[..., _Source]] = {
    "dc": _read_dc,
    "ncfm": _read_ncfm,
    "folder": _read_folder,
    **dict.fromkeys(["mtt", "glad", "ddranking", "dcbench"], _read_pair),
}


# Which form


def _no_set(path: Path) -> NoReturn:
    latents = sorted(f.name for f in path.iterdir() if "latent" in f.name.lower())
    if latents:
        raise SetError(
            f"{path}: holds latents ({latents[0]}) and no images, and they mean nothing without their generator: "
            "decode them with the code that made them and give the images"
        )
    raise SetError(f"{path}: holds no set in a form that is known; set form to one of {', '.join(FORMS)}")


def _tagged(tags: Sequence[str], path: Path) -> str:
    if "" in tags and len(tags) > 1:
        raise SetError(f"{path}: holds images.pt and images{_newest(tags)}.pt: give the file, or set form")
    return "ddranking" if "" in tags else "glad" if any(re.fullmatch(r"_0\d{4}", tag) for tag in tags) else "mtt"


def _detect(path: Path) -> str:
    if path.is_dir():
        saves = _saves(_inside(path))
        if tags := saves["images"] or saves["zca"]:
            return _tagged(tags, path)
        if (path / "distilled_data").is_dir() or any(re.fullmatch(r"data_\d+\.pt", f.name) for f in path.iterdir()):
            return "ncfm"
        if any(f.is_dir() and not f.name.startswith(".") for f in path.iterdir()):
            return "folder"
        _no_set(path)
    if not path.is_file():
        raise SetError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return "own"
    if match := _IMAGES.fullmatch(path.name):
        return "dcbench" if match["stem"] else _tagged([match["tag"]], path)
    content = _load_foreign(path)
    if _two_tensors(content):
        return "ncfm"
    if isinstance(content, dict) and "data" in content:
        return "dc"
    if isinstance(content, Tensor):
        raise SetError(f"{path}: a tensor alone: name the images images_best.pt, with labels_best.pt beside them")
    raise SetError(f"{path}: not in the released form of any code that is known; set form to one of {', '.join(FORMS)}")


# What the numbers mean


def _range_of(
    path: Path, images: Tensor, wanted: str, form: str, source: _Source, standard: ValueRange
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
        doubt = "; they would fit [0, 1] too: if they are, set value_range: unit" if fits_unit else ""
        return (
            images,
            standard,
            f"{span}, read as standardised with the dataset's mean and deviation, as these codes do{doubt}",
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


# What the labels mean


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


def _order(path: Path, source: _Source, classes: tuple[str, ...], asked: Sequence[str] | None) -> tuple[Tensor, str]:
    """The number of the class that each label of the source means, and who says so."""
    order = tuple(asked or source.order or source.about.classes or classes)
    says = "class_order" if asked else "meta.json"
    if sorted(order) != sorted(classes):
        odd = [f"{name!r} is none of them" for name in order if name not in classes]
        odd += [f"{name!r} is missing" for name in classes if name not in order] or ["one is twice"]
        remedy = "name each of them once" if asked else "give the dataset that the set is of"
        raise SetError(f"{path}: {says} does not fit the {len(classes)} classes of the dataset, {odd[0]}: {remedy}")
    return torch.tensor([classes.index(name) for name in order]), says


def _labels(
    path: Path, source: _Source, classes: tuple[str, ...], asked: Sequence[str] | None, notes: list[str]
) -> tuple[Tensor | None, Tensor | None]:
    """Hard labels int64 [N] and soft labels float32 [N, K], where there are any, in the order of `classes`."""
    labels, rows, count = source.labels, len(source.images), len(classes)
    meant, says = _order(path, source, classes, asked)
    if not labels.ndim or len(labels) != rows:
        raise SetError(f"{path}: {rows} images, but labels of shape {list(labels.shape)}: one for each is needed")
    hard, soft = (None, labels) if labels.is_floating_point() and labels.ndim == 2 else (labels, source.soft)
    if hard is not None:
        if hard.ndim != 1 or hard.is_floating_point():
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


def _class_major(path: Path, hard: Tensor, classes: Sequence[str], notes: list[str]) -> Tensor:
    """The order of rows that sorts hard labels stably; SetError if classes have different numbers of images."""
    counts = torch.bincount(hard, minlength=len(classes))
    few, many = int(counts.argmin()), int(counts.argmax())
    if counts[few] != counts[many]:
        raise SetError(
            f"{path}: {len(hard)} images, but class {classes[few]!r} has {int(counts[few])} and {classes[many]!r} has "
            f"{int(counts[many])}: every class needs as many; with a folder, ipc takes the first of each"
        )
    rows = torch.sort(hard, stable=True).indices
    if not torch.equal(rows, torch.arange(len(hard))):
        notes.append("images were not in the order of their classes and are put into it, stably")
    return rows


def _soft_class_major(path: Path, soft: Tensor, classes: Sequence[str], notes: list[str]) -> Tensor:
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
        return _class_major(path, guess, classes, notes)
    raise SetError(f"{path}: the largest soft labels do not say which images are of a class: give hard labels too")


# Putting it together


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
    if images.ndim != 4 or 0 in images.shape or images.dtype == torch.bool or images.is_complex():
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
    source: _Source,
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
    hard, soft = _labels(path, source, classes, asked, notes)
    if hard is not None:
        rows = _class_major(path, hard, classes, notes)
    elif soft is not None:
        rows = _soft_class_major(path, soft, classes, notes)
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
    images standardised with the dataset's mean and deviation. `value_range`: dataset (that one), unit, symmetric, or
    auto, which takes what the form stores, else what the values fit. `ipc`: images per class that the source must
    have; of a folder of images the first `ipc` of each class are taken. `factor`: cut each image into factor x factor
    tiles and enlarge them (NCFM), which makes IPC factor^2 times as large. `class_order`: names out of `classes` in
    the order of the source's labels, which for a folder is the sorted order of its class folders.

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
    form = _detect(path) if form == "auto" else form
    if form == "own":
        if (factor or 1) > 1 or class_order:
            raise SetError(f"{path}: a set of ours has its tiles and class order: leave factor and class_order out")
        return _own(path, classes, value_range, ipc)
    source = _READERS[form](path, classes, len(standard.mean), ipc, class_order)
    _check_images(path, source.images, len(standard.mean), dataset)
    chosen = _range_of(path, source.images, value_range, form, source, standard)
    found = _assemble(path, form, source, dataset, classes, chosen, ipc, factor or 1, class_order)
    unit = found.value_range.to_unit(found.images)
    outside = float(((unit < 0) | (unit > 1)).float().mean())
    if outside > _DOUBTFUL:
        source.notes.append(
            f"{100 * outside:.0f} % of the values lie outside of what pixels can show: if the numbers mean something "
            "else, give value_range"
        )
    return Found(found, form, tuple(source.notes), _percent(source.accuracies))
