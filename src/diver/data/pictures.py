"""Pictures of any size to one prepared file that may be larger than memory, in parallel, to be gone on with.

The file is laid out first and its rows are written where they belong, so no process holds more than a picture. Each
chunk of rows that is complete on disk is named in a journal by a digest of what it was made of; a run that finds the
journal of a killed one makes only the other chunks. The file gets its name when it is complete and its digest known.
"""

import errno
import gc
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diver.data.gather import Gathered, Picture, Split
from diver.data.prepared import ContentError
from diver.data.sources import Say
from diver.data.spec import DatasetSpec, PictureCounts
from diver.progress import Progress
from diver.tensorfile import Layout, layout, read_tensors, tensors_digest
from diver.workers import side_by_side

# Rows that a process writes before it says that they are there.
CHUNK = 512
# Faults that are told one by one; of more the first ones, and how many there are.
TOLD = 20
CHANNELS = 3
REMEDY = (
    "Unpack or copy again what is missing or damaged, and run again; ImageNet's archives (ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz) come from image-net.org, after registration"
)


class FaultyPictures(ContentError):
    """A dataset of pictures is incomplete or damaged; the message lists every fault, `remedy` says what to do."""

    def __init__(self, source: str, faults: Sequence[str], remedy: str = REMEDY) -> None:
        self.faults, self.remedy = tuple(faults), remedy
        listed = "".join(f"\n      {fault}" for fault in faults)
        super().__init__(f"{source}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'}:{listed}")


@dataclass(frozen=True)
class Rows:
    """Pictures of a split in the order of the prepared file, with labels int64 [N]."""

    pictures: list[Picture]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, split: Split, classes: Sequence[str]) -> Self:
        """Class after class in the order of the labels, by name within a class: the same from folders and archives."""
        pictures = [picture for name in classes for picture in split.get(name, [])]
        counts = [len(split.get(name, [])) for name in classes]
        return cls(pictures, np.repeat(np.arange(len(classes), dtype=np.int64), counts))

    def where(self, chosen: NDArray[np.bool_]) -> Self:
        return type(self)([p for p, one in zip(self.pictures, chosen, strict=True) if one], self.labels[chosen])


def count_faults(spec: DatasetSpec, found: Gathered) -> list[str]:
    """What the specification's counts find missing or too much, a line for each kind of fault in each split."""
    assert spec.pictures is not None
    faults = []
    splits = (("training", "train", found.train, spec.pictures.train), ("test", "val", found.test, spec.pictures.test))
    for name, folder, split, counts in splits:
        if not split:
            # A flat split without labels is a fault of its own.
            if folder == "train" or not found.faults:
                faults.append(f"{name} pictures: none of the {len(spec.classes)} classes ({folder}/) was found")
            continue
        faults += _split_faults(f"{name} pictures", split, spec.classes, counts)
    return faults


def _split_faults(what: str, split: Split, classes: Sequence[str], counts: PictureCounts) -> Iterator[str]:
    absent = [name for name in classes if name not in split]
    few = [f"{name} has {len(split[name])}" for name in classes if name in split and len(split[name]) < counts.least]
    if absent:
        yield f"{what}: {len(absent)} of {len(classes)} classes are missing: {', '.join(absent)}"
    if few:
        yield f"{what}: {len(few)} classes have fewer than {counts.least}: {', '.join(few)}"
    most = counts.most
    many = [] if most is None else [n for n in classes if len(split.get(n, [])) > most]
    if many:
        yield f"{what}: {len(many)} classes have more than {most}: " + ", ".join(
            f"{name} has {len(split[name])}" for name in many
        )
    total = sum(map(len, split.values()))
    if counts.total is not None and total != counts.total and not absent:
        yield f"{what}: {total} in all, {counts.total} are expected"


def decoded(content: bytes, size: int, short_side: int) -> NDArray[np.uint8]:
    """A picture's bytes as uint8 [3, size, size]: RGB, short side resized (bilinear, anti-aliased), middle cut out.

    Sizes and places are rounded as torchvision's Resize and CenterCrop round them. Raises ValueError if it cannot be
    read.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = opened.convert("RGB")
    except Exception as error:  # damaged files bring many kinds out of the many decoders
        # The text may end in the name of the buffer, which says nothing.
        raise ValueError(str(error).split(" <_io")[0] or type(error).__name__) from error
    width, height = picture.size
    if (short := min(width, height)) != short_side:
        width, height = (short_side if side == short else int(short_side * side / short) for side in (width, height))
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    square = picture.crop((left, top, left + size, top + size))
    return np.asarray(square).transpose(2, 0, 1)


def unreadable(
    pictures: Sequence[Picture], size: int, short_side: int, workers: int = 1, progress: Progress | None = None
) -> list[str]:
    """The pictures that cannot be read, as a line for a message; nothing if all can."""

    def work(number: int, report: Any) -> list[str]:
        found = []
        chunk = pictures[number * CHUNK : (number + 1) * CHUNK]
        for done, picture in enumerate(chunk, 1):
            if (fault := _read(picture, size, short_side)[1]) is not None:
                found.append(fault)
            report(done)
        return found

    tasks = -(-len(pictures) // CHUNK)
    shown = _shown(progress, len(pictures))
    return _damaged([fault for found in side_by_side(work, tasks, workers, shown) for fault in found]) if tasks else []


def _read(picture: Picture, size: int, short_side: int) -> tuple[NDArray[np.uint8] | None, str | None]:
    """The decoded picture, or what is wrong with it."""
    try:
        return decoded(picture.content(), size, short_side), None
    except (ValueError, OSError) as error:
        return None, f"{picture} ({'empty' if not picture.size else ' '.join(str(error).split())})"


def _damaged(found: list[str]) -> list[str]:
    if not found:
        return []
    rest = f", and {len(found) - TOLD} more" if len(found) > TOLD else ""
    number = "1 picture" if len(found) == 1 else f"{len(found)} pictures"
    return [f"{number} cannot be read: {', '.join(found[:TOLD])}{rest}"]


def _shown(progress: Progress | None, total: int) -> Any:
    return lambda done: progress(done, total, "pictures,") if progress and done else None


def write_pictures(
    path: Path,
    splits: Mapping[str, Rows],
    header: dict[str, Any],
    size: int,
    short_side: int,
    digest: str | None,
    source: str,
    workers: int,
    progress: Progress | None,
    tell: Say,
) -> None:
    """Write the prepared file of both splits, whose bytes are those that `Prepared.write` would write.

    digest: the expected one of the content. Raises FaultyPictures if pictures cannot be read (those that can be stay
    done for the next run), ContentError if the disk is too small or the digest differs.
    """
    shapes: dict[str, tuple[torch.dtype, Sequence[int]]] = {}
    for name, rows in splits.items():
        shapes[f"{name}_images"] = (torch.uint8, (len(rows.labels), CHANNELS, size, size))
        shapes[f"{name}_labels"] = (torch.int64, (len(rows.labels),))
    # The digest is known only at the end; another of its length keeps its place.
    planned = layout(shapes, {**header, "digest": "0" * 64})
    part, journal = (path.with_name(f".{path.name}.{suffix}") for suffix in ("part", "journal"))
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = _chunks(splits, planned, size, short_side)
    done = _done(part, journal, planned)
    left = [chunk for chunk in chunks if chunk.digest not in done]
    if not done:
        journal.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        _require_space(part, planned.size)
    _lay_out(part, planned, splits)
    total = sum(len(chunk.pictures) for chunk in left)
    going_on = f"; {sum(len(c.pictures) for c in chunks) - total} pictures are there from a run that was stopped"
    tell(f"  {total} pictures to {planned.size / 1e9:.1f} GB, {workers} at a time" + (going_on if done else ""))
    if left:
        # Workers share the list of pictures; collecting garbage would make each a copy of its own.
        gc.freeze()
        found = side_by_side(
            lambda number, report: left[number].write(part, journal, size, short_side, report),
            len(left),
            workers,
            _shown(progress, total),
        )
        gc.unfreeze()
        if damaged := _damaged([fault for faults in found for fault in faults]):
            raise FaultyPictures(source, damaged)
    tell("  computing the digest")
    got = tensors_digest(read_tensors(part)[0])
    if digest and got != digest:
        journal.unlink()
        part.unlink()
        raise ContentError(f"{source}: prepared content has digest {got}, expected {digest}")
    with part.open("r+b") as file:
        file.write(layout(shapes, {**header, "digest": got}).head)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    journal.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Chunk:
    """Pictures whose rows follow each other in the file from `offset`; digest: of all that their rows hang on."""

    pictures: Sequence[Picture]
    offset: int
    digest: str

    def write(self, part: Path, journal: Path, size: int, short_side: int, report: Any) -> list[str]:
        """Write the rows and, if all could be read, the digest into the journal; the faults."""
        faults, row = [], CHANNELS * size * size
        with part.open("r+b", buffering=0) as file:
            for number, picture in enumerate(self.pictures):
                pixels, fault = _read(picture, size, short_side)
                if pixels is None:
                    faults.append(str(fault))
                elif os.pwrite(file.fileno(), pixels.tobytes(), self.offset + number * row) < row:
                    # A disk that fills up takes the beginning of a row without complaint.
                    raise OSError(errno.ENOSPC, "no space for the rest of a picture", str(part))
                report(number + 1)
            # On disk before the journal says so, whatever may happen to the machine.
            os.fsync(file.fileno())
        if not faults:
            with journal.open("a") as lines:
                lines.write(f"{self.digest}\n")
        return faults


def _chunks(splits: Mapping[str, Rows], planned: Layout, size: int, short_side: int) -> list[_Chunk]:
    found = []
    for name, rows in splits.items():
        for first in range(0, len(rows.pictures), CHUNK):
            pictures = rows.pictures[first : first + CHUNK]
            offset = planned.offsets[f"{name}_images"] + first * CHANNELS * size * size
            about = [offset, planned.size, size, short_side, *((picture.name, picture.size) for picture in pictures)]
            about += rows.labels[first : first + CHUNK].tolist()
            found.append(_Chunk(pictures, offset, hashlib.sha256(repr(about).encode()).hexdigest()))
    return found


def _done(part: Path, journal: Path, planned: Layout) -> set[str]:
    """Digests of the chunks that an earlier run has left complete in a file of the planned size."""
    if not (part.is_file() and journal.is_file()) or part.stat().st_size != planned.size:
        return set()
    return {line for line in journal.read_text().split("\n") if len(line) == 64}


def _require_space(part: Path, size: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if size > free:
        raise ContentError(
            f"{part.parent}: the prepared file takes {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room, or "
            "link the folder to a larger disk"
        )


def _lay_out(part: Path, planned: Layout, splits: Mapping[str, Rows]) -> None:
    """The file with its head and labels; rows that are there stay."""
    with part.open("r+b" if part.exists() else "w+b") as file:
        file.truncate(planned.size)
        file.write(planned.head)
        for name, rows in splits.items():
            file.seek(planned.offsets[f"{name}_labels"])
            file.write(rows.labels.astype("<i8").tobytes())
