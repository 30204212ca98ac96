"""Finding pictures by split and class: in folders, official archives, and archives of folders. Nothing is unpacked.

A split is looked for in this order, and taken from the first place that has any class that is asked for:

| training                                             | test                                                         |
|------------------------------------------------------|--------------------------------------------------------------|
| `train/<wnid>/*.JPEG`, also `train/<wnid>.tar`       | `val/<wnid>/*.JPEG`                                          |
| `ILSVRC2012_img_train.tar`, a tar of a tar per class | `val/*.JPEG`, flat, with a list of labels (`truth.py`)       |
|                                                      | `ILSVRC2012_img_val.tar`, flat, with a list of labels        |
| any tar or tgz with `.../train/<wnid>/*.JPEG`        | any tar or tgz with `.../val/<wnid>/*.JPEG`                  |

In a class's folder and in a flat `val/` the pictures may lie in a folder `images/`, as Tiny ImageNet's do.
Pictures of an archive are read from their places in it. A gzipped one has no places to jump to, so it is
decompressed once into a temporary file that no directory lists and that is gone when the process is.
"""

import gzip
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from diver.data.layouts import LayoutError, archive_errors
from diver.data.truth import ANNOTATIONS, Truth, read_truth

# ILSVRC/Data/CLS-LOC/train/ below the folder that the user names.
DEPTH = 3
SUFFIXES = (".jpeg", ".jpg", ".png")
ARCHIVES = (".tar", ".tgz", ".tar.gz")
SPLITS = {"train": "train", "val": "val", "validation": "val"}
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture's bytes are: a file of a folder, or a place in an archive that is open under a descriptor.

    name: its file's name, by which the pictures of a class are ordered. place: the folder, which its pictures share, or
    the descriptor. There may be a million of these.
    """

    name: str
    place: str | int
    offset: int
    size: int

    def content(self) -> bytes:
        """Its bytes; safe to call from several processes that share the descriptor. Raises OSError."""
        if isinstance(self.place, int):
            return os.pread(self.place, self.size, self.offset)
        return Path(self.place, self.name).read_bytes()

    def __str__(self) -> str:
        return self.name if isinstance(self.place, int) else str(Path(self.place, self.name))


Split = dict[str, list[Picture]]


@dataclass
class Gathered:
    """Pictures by class of both splits, where they were found, and what else is wrong (lines for a message)."""

    train: Split = field(default_factory=dict)
    test: Split = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass
class _Seen:
    """What lies below a folder, nearer things first."""

    splits: dict[str, list[Path]]
    archives: list[Path]
    files: list[Path]


def gather(root: Path, classes: Sequence[str], scratch: Path, stack: ExitStack) -> Gathered:
    """Pictures of `classes` below a folder, or in an archive, sorted by name.

    scratch: where gzipped archives are decompressed to; stack: what holds the archives open. Raises LayoutError if an
    archive is damaged or nothing at all was found.
    """
    seen = _look(root)
    found, wanted = Gathered(), set(classes)

    def take(split: str, pictures: Split, where: Path) -> None:
        if split not in found.origin and pictures:
            ordered = {c: sorted(pictures[c], key=lambda p: p.name) for c in classes if c in pictures}
            setattr(found, "train" if split == "train" else "test", ordered)
            found.origin[split] = str(where)

    for folder in seen.splits["train"]:
        take("train", _class_folders(folder, wanted, stack), folder)
    for folder in seen.splits["val"]:
        take("val", _class_folders(folder, wanted, stack), folder)
    flat = []
    if "val" not in found.origin:
        flat = [(folder, _held(folder)) for folder in seen.splits["val"]]
    for path in _named(seen.archives, TRAIN_TAR):
        if "train" not in found.origin:
            take("train", _tar_of_tars(path, wanted, stack), path)
    if "val" not in found.origin:
        flat += [(path, _flat_tar(path, stack)) for path in _named(seen.archives, VAL_TAR)]
    flat = [(where, pictures) for where, pictures in flat if pictures]
    if flat:
        where, pictures = flat[0]
        beside = [folder / ANNOTATIONS for folder in seen.splits["val"] if (folder / ANNOTATIONS).is_file()]
        truth = read_truth([*seen.files, *beside])
        take("val", _by_truth(pictures, truth, wanted, where, found.faults), where)
    for path in seen.archives:
        if path.name not in (TRAIN_TAR, VAL_TAR) and len(found.origin) < 2 and not found.faults:
            for split, held in _tar_of_folders(path, wanted, scratch, stack).items():
                take(split, held, path)
    if not found.origin and not found.faults:
        raise LayoutError(
            f"{root}: no pictures of any of the {len(classes)} classes, such as train/{classes[0]}/; known are folders "
            f"train/ and val/ of class folders, {TRAIN_TAR} with {VAL_TAR}, and archives (.tar, .tgz) of such folders"
        )
    return found


def _look(root: Path) -> _Seen:
    """Folders of splits, archives and files to `DEPTH` below a folder, without entering the folders of classes."""
    seen = _Seen({"train": [], "val": []}, [], [])
    if root.is_file():
        seen.archives.append(root)
        # The labels of the flat official archive lie beside it.
        seen.files = [p for p in sorted(root.parent.iterdir()) if p.is_file()]
        return seen
    level = [root]
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                path = Path(entry.path)
                if not entry.is_dir():
                    (seen.archives if path.name.lower().endswith(ARCHIVES) else seen.files).append(path)
                elif entry.name in SPLITS:
                    seen.splits[SPLITS[entry.name]].append(path)
                elif not entry.name.startswith("."):
                    below.append(path)
        level = below
    # The devkit's labels stay readable in its own archive.
    seen.files += [path for path in seen.archives if "devkit" in path.name]
    seen.archives = [path for path in seen.archives if "devkit" not in path.name]
    return seen


def _named(paths: Sequence[Path], name: str) -> list[Path]:
    return [path for path in paths if path.name == name]


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _loose(folder: Path) -> Iterator[Picture]:
    """The pictures of one folder."""
    place = str(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_picture(entry.name) and entry.is_file():
                yield Picture(entry.name, place, 0, entry.stat().st_size)


def _held(folder: Path) -> list[Picture]:
    """The pictures of a folder, or of the folder `images` in one that has none itself."""
    found, inner = list(_loose(folder)), folder / "images"
    return list(_loose(inner)) if not found and inner.is_dir() else found


def _class_folders(folder: Path, wanted: set[str], stack: ExitStack) -> Split:
    """`<wnid>/` and `<wnid>.tar` of a split's folder; an empty one is a class without pictures."""
    found: Split = {}
    for wnid in sorted(wanted):
        if (folder / wnid).is_dir():
            found[wnid] = _held(folder / wnid)
        elif (path := folder / f"{wnid}.tar").is_file():
            found[wnid] = _flat_tar(path, stack)
    return found


@dataclass(frozen=True)
class _Member:
    name: str
    offset: int
    size: int


def _members(path: Path, file: IO[bytes], start: int = 0) -> Iterator[_Member]:
    """Files of an uncompressed tar that begins at `start` of the file."""
    with archive_errors(path):
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile():
                    yield _Member(member.name, member.offset_data, member.size)


def _open(path: Path, stack: ExitStack) -> IO[bytes]:
    return stack.enter_context(path.open("rb"))


def _flat_tar(path: Path, stack: ExitStack) -> list[Picture]:
    """All pictures of a tar, whatever their folders."""
    file = _open(path, stack)
    return _pictures(_members(path, file), file.fileno())


def _pictures(members: Iterator[_Member], descriptor: int) -> list[Picture]:
    named = ((Path(member.name).name, member) for member in members)
    return [Picture(name, descriptor, member.offset, member.size) for name, member in named if _is_picture(name)]


def _tar_of_tars(path: Path, wanted: set[str], stack: ExitStack) -> Split:
    """ImageNet's training archive: `<wnid>.tar` of each class, of which only those asked for are looked into."""
    file = _open(path, stack)
    outer = [m for m in _members(path, file) if m.name.endswith(".tar") and Path(m.name).stem in wanted]
    return {Path(m.name).stem: _pictures(_members(path, file, m.offset), file.fileno()) for m in outer}


def _tar_of_folders(path: Path, wanted: set[str], scratch: Path, stack: ExitStack) -> dict[str, Split]:
    """Both splits of an archive with `.../<split>/<wnid>/<picture>`."""
    file = _open(path, stack)
    if file.read(2) == GZIP:
        file = _decompressed(path, scratch, stack)
    found: dict[str, Split] = {"train": {}, "val": {}}
    for member in _members(path, file):
        *_, split, wnid, name = ("", "", *member.name.split("/"))
        if split in SPLITS and wnid in wanted and _is_picture(name):
            pictures = found[SPLITS[split]].setdefault(wnid, [])
            pictures.append(Picture(name, file.fileno(), member.offset, member.size))
    return found


def _decompressed(path: Path, scratch: Path, stack: ExitStack) -> IO[bytes]:
    scratch.mkdir(parents=True, exist_ok=True)
    plain: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 (the stack closes it)
    with archive_errors(path), gzip.open(path) as packed:
        shutil.copyfileobj(packed, plain, 1 << 20)
    plain.flush()
    return plain


def _by_truth(pictures: list[Picture], truth: Truth | None, wanted: set[str], where: Path, faults: list[str]) -> Split:
    """A flat split by class; what has no label goes to the faults."""
    if truth is None:
        faults.append(
            f"{where}: {len(pictures)} pictures without class folders, and no list of their labels beside them: "
            "LOC_val_solution.csv, val.txt, or the devkit (ILSVRC2012_devkit_t12.tar.gz, or its "
            "ILSVRC2012_validation_ground_truth.txt with meta.mat)"
        )
        return {}
    found: Split = {}
    unknown = []
    for picture in pictures:
        wnid = truth.labels.get(Path(picture.name).stem)
        if wnid is None:
            unknown.append(picture.name)
        elif wnid in wanted:
            found.setdefault(wnid, []).append(picture)
    if unknown:
        faults.append(f"{where}: {len(unknown)} pictures have no label in {truth.path}, first {min(unknown)}")
    return found
