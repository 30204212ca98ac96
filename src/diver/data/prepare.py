"""From raw files to the prepared dataset, the same whatever the source."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diver.data.layouts import LayoutError, Split, read_folder
from diver.data.prepared import ContentError, Prepared
from diver.data.sources import Attempt, Say, SourceError, SourceFailure, acquire, expected, is_here, label, say
from diver.data.spec import DatasetSpec, FolderSource


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
    generator, labels = torch.Generator().manual_seed(seed), prepared.train_labels
    held = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(len(prepared.classes)):
        members = (labels == c).nonzero().flatten()
        if len(members) <= count:
            raise ContentError(f"held_out: {count} of each class, and class {c} has {len(members)} training images")
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return replace(
        prepared,
        train_images=prepared.train_images[~held],
        train_labels=labels[~held],
        test_images=prepared.train_images[held],
        test_labels=labels[held],
    )


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
    spec: DatasetSpec, raw_dir: str | Path, out_path: str | Path, folder: str | Path | None = None, tell: Say = say
) -> Prepared:
    """Bring a dataset here from the first source that gives it, check it, and write `out_path`.

    raw_dir keeps the verified raw files, so that nothing is downloaded twice; a source that is there already
    comes before the others. folder: the user's own folder, for the source of that kind.
    Raises SourceError when no source gives the dataset.
    """
    raw_dir = Path(raw_dir)
    attempts: list[Attempt] = []
    for source in sorted(spec.sources, key=lambda s: not is_here(s, raw_dir)):
        tell(f"{spec.name}: trying {label(source)}")
        try:
            raw = acquire(spec, source, raw_dir, folder, tell)
            name = f"{label(source)} {raw}" if isinstance(source, FolderSource) else label(source)
            prepared = prepare(spec, raw, name)
        except SourceFailure as failure:
            attempts.append(Attempt(label(source), expected(source), failure))
        except (LayoutError, ContentError) as error:
            remedy = "Check the files" if isinstance(source, FolderSource) else "Check the dataset's specification"
            attempts.append(Attempt(label(source), expected(source), SourceFailure(str(error), remedy)))
        else:
            prepared.write(out_path)
            tell(f"{spec.name}: {len(prepared.train_images)} training and {len(prepared.test_images)} test images")
            return prepared
        tell(f"{spec.name}: skipping {label(source)}: {attempts[-1].failure.happened}")
    tried = "\n".join(map(str, attempts))
    raise SourceError(f"no source gave the dataset {spec.name!r}; {len(attempts)} tried:\n{tried}")
