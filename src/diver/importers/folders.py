"""Folders of image files, one for each class."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diver.importers.source import About, Source, read_about
from diver.sets import SetError
from diver.tensorfile import TensorFileError, read_tensors

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
_LOSSY = {".jpg", ".jpeg", ".webp"}


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _pictures(folder: Path) -> list[Path]:
    """Image files in the order of the numbers in their names; what is hidden is other programs'."""
    found = (f for f in folder.iterdir() if f.suffix.lower() in _PICTURES and not f.name.startswith("."))
    return sorted((f for f in found if f.is_file()), key=_natural)


def _class_folders(
    path: Path, classes: Sequence[str], about: About, asked: Sequence[str] | None
) -> tuple[list[tuple[Path, int]], tuple[str, ...], str]:
    """(folder, label) of each class, the class that each label means, and a note on how that was told."""
    folders = sorted((f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")), key=_natural)
    names = [f.name for f in folders]
    numbers = [int(m[1]) if (m := re.fullmatch(r"\D*(\d+)(-.*)?", name)) else -1 for name in names]
    if asked:
        if set(names) == set(classes) and names != list(asked):
            raise SetError(
                f"{path}: its sorted folders are named as the classes ({', '.join(names[:3])}, ...), in another order "
                f"than class_order ({', '.join(asked[:3])}, ...): leave class_order out"
            )
        if len(folders) != len(classes):
            raise SetError(f"{path}: {len(folders)} folders, and {len(classes)} classes: leave only a folder per class")
        return [(f, i) for i, f in enumerate(folders)], tuple(asked), "sorted folders are as class_order says"
    if set(classes) <= set(names):
        left = len(names) - len(classes)
        note = "folders are named as the classes" + (f"; {left} others are left out" if left else "")
        return [(path / name, i) for i, name in enumerate(classes)], tuple(classes), note
    if sorted(numbers) == list(range(len(classes))):
        in_turn = sorted(classes)
        if not about.classes and list(classes) != in_turn:
            # Codes on image folders number sorted wnids, others the classes of their own list.
            raise SetError(
                f"{path}: folders are numbers ({names[0]!r}, ...), of the classes in the dataset's order "
                f"({', '.join(classes[:3])}, ...) or of their sorted names ({', '.join(in_turn[:3])}, ...): set "
                "class_order to all of them in the one that its code uses"
            )
        note = f"folders are numbers, taken as labels in the order of {'meta.json' if about.classes else 'the dataset'}"
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


def read_folder(
    path: Path, classes: Sequence[str], channels: int, ipc: int | None, asked: Sequence[str] | None
) -> Source:
    if not path.is_dir():
        raise SetError(f"{path}: not a folder of image folders")
    if channels not in (1, 3):
        raise SetError(f"{path}: the dataset has {channels} channels, and image files have 1 or 3")
    if not any(file.suffix.lower() in _PICTURES for file in path.glob("*/*")):
        kinds = ", ".join(sorted(_PICTURES))
        raise SetError(f"{path}: no image files ({kinds}) in its folders: give the folder or file of one set")
    about = read_about(path)
    folders, order, note = _class_folders(path, classes, about, asked)
    files = [(file, label, i) for folder, label in folders for i, file in enumerate(_pictures(folder))]
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
    return Source(
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
