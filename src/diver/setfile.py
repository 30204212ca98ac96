"""Distilled sets that need not fit memory: read by rows, written by rows, put together from shards.

A file written by rows is byte for byte the file that `DistilledSet.write` makes of the same set. While it grows it
lies beside its final name with a journal of the rows that are safe, so that a killed job goes on after them.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from diver.sets import DistilledSet, SetError, ValueRange, read_header
from diver.tensorfile import Layout, TensorFileError, canonical_json, layout, opened, readable


@dataclass(frozen=True)
class Rows:
    """Images of a set, read on demand.

    `read(indices)`: float32 [n, C, H, W] in `value_range`. `labels`: int64, one per row. `numbers`: each row's number
    in the whole set, which differs from its place when the rows are some classes of it; `whole` rows are there in all.
    `classes` are always those of the whole set.
    """

    read: Callable[[Sequence[int]], Tensor]
    labels: Tensor
    numbers: range
    whole: int
    classes: tuple[str, ...]
    ipc: int
    value_range: ValueRange
    channels: int

    @classmethod
    def of(cls, source: DistilledSet) -> "Rows":
        """A set that is in memory."""
        count = len(source.images)
        return cls(
            lambda indices: source.images[list(indices)],
            source.hard_labels(),
            range(count),
            count,
            source.classes,
            source.ipc,
            source.value_range,
            int(source.images.shape[1]),
        )

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class SetFile:
    """A set's file, open: everything but its images, which `rows` reads on demand."""

    head: DistilledSet
    rows: Rows

    @staticmethod
    @contextmanager
    def open(path: str | Path, classes: range | None = None) -> Iterator["SetFile"]:
        """Open a file of `DistilledSet.write`; only the rows of `classes` (numbers of classes) if they are given.

        `head` has images of shape [N, C, 0, 0]. Raises SetError naming the file and the fault; values of images are
        checked as they are read.
        """
        with ExitStack() as open_files:
            try:
                file, metadata = open_files.enter_context(opened(path))
                head = read_header(metadata, path)
                names = set(file.keys())
                if "images" not in names:
                    raise SetError(f"{path}: no tensor 'images'")
                with readable():
                    images = file.get_slice("images")
                    kind, shape = images.get_dtype(), images.get_shape()
                    small = {name: file.get_tensor(name) for name in ("labels", "soft_labels") if name in names}
            except TensorFileError as error:
                raise SetError(f"{path}: {error}") from error
            if kind != "F32" or len(shape) != 4:
                raise SetError(f"{path}: images are {kind} {shape}, not float32 [N, C, H, W]")
            head = replace(
                head,
                images=torch.empty(shape[0], shape[1], 0, 0),
                labels=small.get("labels"),
                soft_labels=small.get("soft_labels"),
            )
            head.validate_metadata(str(path))
            count = len(head.classes)
            chosen = classes if classes is not None else range(count)
            if not (len(chosen) and 0 <= chosen.start < chosen.stop <= count):
                asked = f"classes {chosen.start}:{chosen.stop}"
                raise SetError(f"{path}: {asked}: the set has 0:{count}, and FIRST lies before END")
            numbers = range(chosen.start * head.ipc, chosen.stop * head.ipc)

            def read(indices: Sequence[int]) -> Tensor:
                # One read of the span: indices are consecutive but for repetitions at the end of a set.
                low = numbers.start + min(indices)
                span = images[low : numbers.start + max(indices) + 1]
                found = span[[numbers.start + i - low for i in indices]]
                if not torch.isfinite(found).all():
                    raise SetError(f"{path}: an image of rows {low}.. has values that are not finite")
                return found

            labels = head.hard_labels()[numbers.start : numbers.stop]
            rows = Rows(read, labels, numbers, shape[0], head.classes, head.ipc, head.value_range, int(shape[1]))
            yield SetFile(head, rows)


def origin(path: str | Path) -> str:
    """What tells a file from another one at the same place, without reading it."""
    stat = Path(path).stat()
    return f"{Path(path).resolve()} {stat.st_size} {stat.st_mtime_ns}"


class RowWriter:
    """Writes a set's images row by row; what is written before a kill is kept.

    `like`: the set without its images ([N, C, 0, 0]); `shape`: of one image; `key`: what the rows are made from, so
    that rows of another origin are not continued.
    """

    def __init__(self, path: str | Path, like: DistilledSet, shape: Sequence[int], key: str = ""):
        self.path = Path(path)
        self.part = self.path.with_name(f".{self.path.name}.part")
        self.journal = self.path.with_name(f".{self.path.name}.rows")
        like.validate_metadata(str(path))
        named = {"labels": like.labels, "soft_labels": like.soft_labels}
        self._small = {name: tensor for name, tensor in named.items() if tensor is not None}
        shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self._small.items()}
        self.count = len(like.images)
        shapes["images"] = (torch.float32, (self.count, *shape))
        self.layout: Layout = layout(shapes, like.header())
        self.row_bytes = 4 * shape[0] * shape[1] * shape[2]
        self._key = hashlib.sha256(self.layout.head + key.encode()).hexdigest()
        self.done = self._resumed()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.done:
            with self.part.open("wb") as file:
                file.truncate(self.layout.size)
                file.write(self.layout.head)
                for name, tensor in self._small.items():
                    file.seek(self.layout.offsets[name])
                    file.write(tensor.contiguous().numpy().data)
        self._file = self.part.open("r+b")

    def _resumed(self) -> int:
        """Rows that an earlier writer of the same set has made safe."""
        try:
            state = json.loads(self.journal.read_text())
            fits = state["key"] == self._key and self.part.stat().st_size == self.layout.size
            return int(state["rows"]) if fits else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def write(self, images: Tensor) -> None:
        """The next rows, float32 [n, C, H, W]; raises SetError if a value is not finite."""
        if not torch.isfinite(images).all():
            bad = self.done + int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
            raise SetError(
                f"{self.path}: image {bad} has values that are not finite; half precision overflows, fp32 may not"
            )
        self._file.seek(self.layout.offsets["images"] + self.done * self.row_bytes)
        self._file.write(images.contiguous().numpy().data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done += len(images)
        fresh = self.journal.with_suffix(".new")
        fresh.write_text(canonical_json({"key": self._key, "rows": self.done}))
        os.replace(fresh, self.journal)

    def finish(self) -> None:
        """Give the file its name; raises SetError if rows are missing."""
        self._file.close()
        if self.done != self.count:
            raise SetError(f"{self.path}: {self.done} of {self.count} images are written")
        os.replace(self.part, self.path)
        self.journal.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *stopped_by: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; rows of an unfinished file, if there are any, stay for the next writer."""
        self._file.close()
        if not self.done:
            self.part.unlink(missing_ok=True)


def shard_head(head: DistilledSet, classes: range) -> DistilledSet:
    """A set's head for some of its classes: hard labels from 0, no soft labels, which the whole set gives again."""
    count = len(classes)
    return replace(
        head,
        images=head.images[: count * head.ipc],
        classes=head.classes[classes.start : classes.stop],
        labels=torch.arange(count).repeat_interleave(head.ipc),
        soft_labels=None,
    )


def merge(source: str | Path, shards: Sequence[str | Path], out: str | Path, chunk: int = 64) -> None:
    """Put the shards of a recovered set together, in the order of its classes; memory holds `chunk` images.

    `source`: the set that was recovered, which gives labels and soft labels. Raises SetError if shards are missing,
    overlap, or were made differently.
    """
    with SetFile.open(source) as whole:
        heads = []
        for shard in shards:
            with SetFile.open(shard) as opened_shard:
                heads.append((opened_shard.head, shard))
        place = {name: i for i, name in enumerate(whole.head.classes)}
        heads.sort(key=lambda one: place.get(one[0].classes[0], -1))
        found = tuple(name for head, _ in heads for name in head.classes)
        if found != whole.head.classes:
            missing = [name for name in whole.head.classes if name not in found]
            what = f"class {missing[0]!r} is missing" if missing else "classes overlap or are not the set's"
            raise SetError(f"{out}: the shards do not make up {source}: {what}")
        first, name = heads[0]
        if first.ipc != whole.head.ipc:
            raise SetError(
                f"{source}: IPC {whole.head.ipc}, and {name} has IPC {first.ipc}: give as source what was recovered"
            )
        for head, shard in heads[1:]:
            if (head.steps, head.value_range, head.ipc) != (first.steps, first.value_range, first.ipc):
                raise SetError(f"{shard}: made by other settings, code or from another set than {name}")
        with SetFile.open(heads[0][1]) as shard_file:
            shape = shard_file.rows.read([0]).shape[1:]
        like = replace(whole.head, value_range=first.value_range, steps=first.steps)
        like = replace(like, images=torch.empty(len(whole.head.images), shape[0], 0, 0))
        with RowWriter(out, like, shape, key=" ".join(origin(shard) for _, shard in heads)) as writer:
            before = 0
            for head, shard in heads:
                with SetFile.open(shard) as shard_file:
                    for at in range(max(0, writer.done - before), len(shard_file.rows), chunk):
                        writer.write(shard_file.rows.read(range(at, min(at + chunk, len(shard_file.rows)))))
                before += len(head.images)
            writer.finish()
