"""Running a stage-2 method over a set: in batches, from memory or from a file, whole or some classes of it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diver.config.recover import RecoverConfig
from diver.prior.base import Prior, PriorError
from diver.progress import Progress
from diver.recover import METHODS
from diver.recover.base import LatentMap
from diver.recover.sampler import KeyedNoise
from diver.setfile import Rows, RowWriter, SetFile, origin, shard_head
from diver.sets import SYMMETRIC, DistilledSet, Step

Batch = tuple[Tensor, Tensor, KeyedNoise]


def cut(images: Tensor, tiles: int) -> Tensor:
    """[N, C, H, W] into its pieces, [N * tiles^2, C, H / tiles, W / tiles], row by row within each image.

    Raises ValueError if the pieces would not be equal.
    """
    n, c, h, w = images.shape
    if h % tiles or w % tiles:
        raise ValueError(f"tiles = {tiles}: images of {h} x {w} cannot be cut into equal pieces")
    x = images.reshape(n, c, tiles, h // tiles, tiles, w // tiles)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n * tiles**2, c, h // tiles, w // tiles)


def join(pieces: Tensor, tiles: int) -> Tensor:
    """The inverse of `cut`: [N * tiles^2, C, h, w] to [N, C, h * tiles, w * tiles]."""
    n, c, h, w = pieces.shape
    x = pieces.reshape(n // tiles**2, tiles, tiles, c, h, w)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(n // tiles**2, c, h * tiles, w * tiles)


def _resized(images: Tensor, size: int) -> Tensor:
    """Bilinear, as the public code of PReDD has it: no antialiasing, corners not aligned."""
    return images if images.shape[-2:] == (size, size) else F.interpolate(images, (size, size), mode="bilinear")


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Halving:
    """Applies a function to a batch, in smaller parts from the moment that memory runs out."""

    def __init__(self, one: Callable[[Batch], Tensor]):
        self.one = one
        self.size: int | None = None

    def __call__(self, batch: Batch) -> Tensor:
        images, condition, noise = batch
        while True:
            size = min(self.size or len(images), len(images))
            try:
                parts = [
                    self.one((images[at], condition[at], KeyedNoise(noise.seed, noise.images[at])))
                    for at in (slice(first, first + size) for first in range(0, len(images), size))
                ]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except RuntimeError as error:
                if not _out_of_memory(error) or size == 1:
                    raise
            # Outside the handler, whose traceback holds the tensors that filled the memory.
            self.size = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"out of memory with {size} images at once; going on with {self.size}", file=sys.stderr, flush=True)


class Recovery:
    """A method made for a prior, its settings and a set's rows; raises PriorError or ValueError where they do not fit.

    `batch`: images computed together. Every batch has this size (the last is filled up with its last image), so that
    what is computed does not depend on how a set is divided.
    """

    def __init__(self, rows: Rows, prior: Prior, method: str, config: RecoverConfig):
        if rows.channels != prior.image_channels:
            raise PriorError(
                f"prior {prior.name} takes {prior.image_channels} channels, the set's images have {rows.channels}"
            )
        config.require_levels(rows.ipc)
        self.rows, self.prior, self.config = rows, prior, config
        self.mapped: LatentMap = METHODS[method](prior, config, rows.ipc)
        self.table = prior.class_table(rows.classes, config.class_ids)
        self.batch = min(config.batch, rows.whole)
        self.size = config.output_size or prior.image_size

    def load(self, indices: Sequence[int]) -> Batch:
        """Images as the autoencoder gets them, conditions and noise of some rows, on the prior's device."""
        rows, config = self.rows, self.config
        images = rows.read(indices)
        if config.input_range == "denormalised":
            images = rows.value_range.convert(images, SYMMETRIC)
        numbers = [rows.numbers[i] for i in indices]
        keys: list[int | str] = list(numbers)
        labels, pieces = rows.labels[list(indices)], config.tiles**2
        if config.tiles > 1:
            images = cut(images, config.tiles)
            keys = [f"{number}.{piece}" for number in numbers for piece in range(pieces)]
        images = _resized(images, self.prior.image_size)
        condition = self.table[labels.repeat_interleave(pieces)]
        return images.to(self.prior.device), condition.to(self.prior.device), KeyedNoise(config.seed, keys)

    def images(self, first: int = 0, progress: Progress | None = None) -> Iterator[Tensor]:
        """Recovered images batch by batch, float32 [n, C, S, S] in [-1, 1] on the CPU, from row `first` on.

        `first` has to be the start of a batch. The next batch is read while one is computed.
        """
        halving, count = _Halving(self._compute), len(self.rows)
        starts = range(first, count, self.batch)

        def load(start: int) -> Batch:
            return self.load([min(i, count - 1) for i in range(start, start + self.batch)])

        with ThreadPoolExecutor(1) as reader:
            upcoming: Future[Batch] | None = reader.submit(load, starts[0]) if starts else None
            for start in starts:
                assert upcoming is not None
                batch = upcoming.result()
                upcoming = reader.submit(load, start + self.batch) if start + self.batch < count else None
                yield self._finished(halving(batch))[: count - start].to("cpu", copy=True)
                if progress is not None:
                    progress(min(start + self.batch, count), count, "images")

    def _compute(self, batch: Batch) -> Tensor:
        with torch.inference_mode():
            return self.prior.decode(self.mapped(*batch))

    def _finished(self, images: Tensor) -> Tensor:
        """Pieces put together, at the size asked for."""
        return _resized(join(images, self.config.tiles) if self.config.tiles > 1 else images, self.size)


def step_of(prior: Prior, method: str, config: RecoverConfig, code: str) -> Step:
    """The record of a recovery."""
    parameters: dict[str, Any] = {**config.model_dump(mode="json"), "prior": prior.name}
    facts = {key: value for key, value in prior.facts.items() if key != "prior"}
    return Step(method, {**parameters, "prior_facts": facts} if facts else parameters, config.seed, code)


def recover(
    source: DistilledSet,
    prior: Prior,
    method: str,
    config: RecoverConfig,
    code: str = "",
    progress: Progress | None = None,
) -> DistilledSet:
    """Recover each image of a set in memory: one output per input, in [-1, 1]. Raises as `Recovery`."""
    parts = list(Recovery(Rows.of(source), prior, method, config).images(progress=progress))
    return source.with_images(torch.cat(parts), SYMMETRIC, step_of(prior, method, config, code))


def recover_file(
    source: str | Path,
    out: str | Path,
    prior: Prior,
    method: str,
    config: RecoverConfig,
    code: str = "",
    classes: range | None = None,
    progress: Progress | None = None,
) -> None:
    """Recover a set's file into another, holding a few batches at a time; `classes` makes a shard of some classes.

    A run that was killed goes on after the last batch that is on disk, with the same result. Raises SetError for a
    file at fault and as `Recovery`.
    """
    with SetFile.open(source, classes) as opened:
        rows, head = opened.rows, opened.head if classes is None else shard_head(opened.head, classes)
        recovery = Recovery(rows, prior, method, config)
        shape = (prior.image_channels, recovery.size, recovery.size)
        images = torch.empty(len(head.images), shape[0], 0, 0)
        head = head.with_images(images, SYMMETRIC, step_of(prior, method, config, code))
        key = f"{origin(source)} {rows.numbers} {prior.files}"
        with RowWriter(out, head, shape, key) as writer, ThreadPoolExecutor(1) as disk:
            if writer.done:
                print(f"{out}: goes on after image {writer.done} of {writer.count}", flush=True)
            # A journal of another batch size may end inside one of ours.
            writer.done -= writer.done % recovery.batch if writer.done < writer.count else 0
            saving: Future[None] | None = None
            for images in recovery.images(writer.done, _from(progress, writer.done)):
                if saving is not None:
                    saving.result()
                saving = disk.submit(writer.write, images)
            if saving is not None:
                saving.result()
            writer.finish()


def _from(progress: Progress | None, resumed: int) -> Progress | None:
    """Progress whose rate and time left do not count what an earlier run did."""
    if progress is None or not resumed:
        return progress

    def report(done: int, total: int, note: str = "") -> None:
        progress(done - resumed, total - resumed, f"{note} ({resumed} were there)")

    return report
