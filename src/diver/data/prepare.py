"""From raw files to the prepared dataset, the same whatever the source."""

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diver.data.gather import gather
from diver.data.layouts import LayoutError, Split, read_folder
from diver.data.pictures import FaultyPictures, Rows, count_faults, unreadable, write_pictures
from diver.data.prepared import ContentError, Prepared
from diver.data.sources import Attempt, Say, SourceError, SourceFailure, acquire, alone, expected, is_here, label, say
from diver.data.spec import DatasetSpec, FolderSource
from diver.progress import Progress

# Pictures that are looked at for further faults when some are missing already; of more, only the counts are told.
LOOKED_AT = 50_000


def prepare(spec: DatasetSpec, raw: str | Path, source: str = "") -> Prepared:
    """Read the raw folder, check it against the specification, pad it.

    source: how messages name where the raw files came from; the folder by default.
    Raises LayoutError (unreadable) or ContentError (readable, but not this dataset).
    """
    source = source or str(raw)
    train, test = read_folder(raw, spec.channels, spec.raw_size or spec.size)
    for split in (train, test):
        if split.labels.max(initial=0) >= len(spec.classes):
            raise ContentError(f"{source}: label {split.labels.max()} with {len(spec.classes)} classes")
    if (held := len(np.unique(train.labels))) < len(spec.classes):
        raise ContentError(
            f"{source}: images of {held} classes, and {spec.name} has {len(spec.classes)}: files of another dataset?"
        )
    there = len(train.labels), len(test.labels)
    if spec.images not in (None, there):
        raise ContentError(f"{source}: {there[0]} training and {there[1]} test images, expected {spec.images}")
    _check_batches(spec, train, test, source)
    prepared = Prepared(
        train_images=_padded(train.images, spec.padding),
        train_labels=torch.from_numpy(train.labels.astype(np.int64)),
        test_images=_padded(test.images, spec.padding),
        test_labels=torch.from_numpy(test.labels.astype(np.int64)),
        dataset=spec.name,
        classes=spec.classes,
        mean=spec.mean,
        std=spec.std,
    )
    if spec.held_out:
        prepared = hold_out(prepared, spec.held_out)
    got = prepared.digest()
    if spec.digest and got != spec.digest:
        raise ContentError(f"{source}: prepared content has digest {got}, expected {spec.digest}")
    return prepared


def hold_out(prepared: Prepared, count: int, seed: int = 0) -> Prepared:
    """The training images alone: `count` of each class, drawn by `seed`, as test images, the others for training.

    Raises ContentError if a class has no more than `count`.
    """
    labels = prepared.train_labels
    held = _held(labels, len(prepared.classes), count, seed)
    return replace(
        prepared,
        train_images=prepared.train_images[~held],
        train_labels=labels[~held],
        test_images=prepared.train_images[held],
        test_labels=labels[held],
    )


def _held(labels: Tensor, classes: int, count: int, seed: int = 0) -> Tensor:
    """Which training images are held out: bool [N]."""
    generator, held = torch.Generator().manual_seed(seed), torch.zeros(len(labels), dtype=torch.bool)
    for c in range(classes):
        members = (labels == c).nonzero().flatten()
        if len(members) <= count:
            raise ContentError(f"held_out: {count} of each class, and class {c} has {len(members)} training images")
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return held


def prepare_pictures(
    spec: DatasetSpec,
    raw: str | Path,
    out_path: str | Path,
    source: str = "",
    workers: int = 1,
    progress: Progress | None = None,
    tell: Say = say,
) -> Prepared:
    """Read a dataset of pictures from a folder or an archive, check it, and write `out_path` row by row.

    Memory does not grow with the dataset: what is returned is the written file, mapped. What was stopped goes on.
    Raises FaultyPictures, which lists everything that is missing or wrong; LayoutError, ContentError as `prepare`.
    """
    assert spec.pictures is not None
    source, out_path = source or str(raw), Path(out_path)
    short_side = spec.pictures.short_side or spec.size
    with ExitStack() as stack:
        found = gather(Path(raw), spec.classes, out_path.parent, stack)
        train, test = Rows.of(found.train, spec.classes), Rows.of(found.test, spec.classes)
        faults = [*found.faults, *count_faults(spec, found)]
        if faults:
            if len(train.labels) + len(test.labels) <= LOOKED_AT:
                faults += unreadable([*train.pictures, *test.pictures], spec.size, short_side, workers, progress)
            raise FaultyPictures(source, faults)
        if spec.held_out:
            held = _held(torch.from_numpy(train.labels), len(spec.classes), spec.held_out)
            train, test = train.where(~held.numpy()), train.where(held.numpy())
        header = {"dataset": spec.name, "classes": spec.classes, "mean": spec.mean, "std": spec.std}
        tell(f"{spec.name}: training from {found.origin['train']}, test from {found.origin['val']}")
        splits = {"train": train, "test": test}
        # Two writers of one file would take each other's unfinished rows for their own.
        with alone(out_path.with_name(f"{out_path.name}.lock"), tell):
            write_pictures(
                out_path, splits, header, spec.size, short_side, spec.digest, source, workers, progress, tell
            )
    return Prepared.read(out_path)


def _padded(images: np.ndarray, padding: int) -> Tensor:
    side = padding // 2
    return torch.from_numpy(np.pad(images, ((0, 0), (0, 0), (side, side), (side, side))))


def batch_md5s(train: Split, test: Split, train_batches: int) -> list[str]:
    """MD5 of each batch re-packed in CIFAR's binary form, which its authors publish; the test batch last."""
    parts = [*zip(*(np.array_split(a, train_batches) for a in (train.images, train.labels)), strict=True)]
    parts.append((test.images, test.labels))
    packed = (np.concatenate([labels[:, None], images.reshape(len(images), -1)], 1) for images, labels in parts)
    return [hashlib.md5(rows.tobytes()).hexdigest() for rows in packed]


def _check_batches(spec: DatasetSpec, train: Split, test: Split, source: str) -> None:
    if not spec.batches:
        return
    got = batch_md5s(train, test, len(spec.batches) - 1)
    for number, (found, wanted) in enumerate(zip(got, spec.batches, strict=True), 1):
        if found != wanted:
            name = "the test batch" if number == len(got) else f"training batch {number}"
            raise ContentError(f"{source}: {name} has md5 {found}, expected {wanted}")


def fetch_and_prepare(
    spec: DatasetSpec,
    raw_dir: str | Path,
    out_path: str | Path,
    folder: str | Path | None = None,
    tell: Say = say,
    workers: int = 1,
    progress: Progress | None = None,
) -> Prepared:
    """Bring a dataset here from the first source that gives it, check it, and write `out_path`.

    raw_dir keeps the verified raw files, so that nothing is downloaded twice; a source that is there already
    comes before the others. folder: the user's own folder, for the source of that kind. workers: processes that
    decode pictures. Raises SourceError when no source gives the dataset.
    """
    raw_dir = Path(raw_dir)
    attempts: list[Attempt] = []
    for source in sorted(spec.sources, key=lambda s: not is_here(s, raw_dir)):
        tell(f"{spec.name}: trying {label(source)}")
        try:
            raw = acquire(spec, source, raw_dir, folder, tell)
            name = f"{label(source)} {raw}" if isinstance(source, FolderSource) else label(source)
            if spec.pictures:
                prepared = prepare_pictures(spec, raw, out_path, name, workers, progress, tell)
            else:
                prepared = prepare(spec, raw, name)
                prepared.write(out_path)
        except SourceFailure as failure:
            attempts.append(Attempt(label(source), expected(source), failure))
        except FaultyPictures as error:
            attempts.append(Attempt(label(source), expected(source), SourceFailure(str(error), error.remedy)))
        except (LayoutError, ContentError) as error:
            remedy = "Check the files" if isinstance(source, FolderSource) else "Check the dataset's specification"
            attempts.append(Attempt(label(source), expected(source), SourceFailure(str(error), remedy)))
        else:
            tell(f"{spec.name}: {len(prepared.train_images)} training and {len(prepared.test_images)} test images")
            return prepared
        tell(f"{spec.name}: skipping {label(source)}: {attempts[-1].failure.happened}")
    tried = "\n".join(map(str, attempts))
    raise SourceError(f"no source gave the dataset {spec.name!r}; {len(attempts)} tried:\n{tried}")
