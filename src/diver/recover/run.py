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
from diver.setfile import Rows, RowWriter, SetFile, shard_head, with_step
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


def prepared_batch(rows: Rows, prior: Prior, config: RecoverConfig, indices: Sequence[int]) -> Batch:
    """Images as the autoencoder gets them, conditions and noise of some rows, on the prior's device.

    Raises PriorError if channels or classes do not fit the prior.
    """
    return _loaded(rows, prior, config, _table(rows, prior, config), indices)


def _table(rows: Rows, prior: Prior, config: RecoverConfig) -> Tensor:
    if rows.channels != prior.image_channels:
        raise PriorError(
            f"prior {prior.name} takes {prior.image_channels} channels, the set's images have {rows.channels}"
        )
    return prior.class_table(rows.classes, config.class_ids)


def _loaded(rows: Rows, prior: Prior, config: RecoverConfig, table: Tensor, indices: Sequence[int]) -> Batch:
    images = rows.read(indices)
    if config.input_range == "denormalised":
        images = SYMMETRIC.from_unit(rows.value_range.to_unit(images))
    numbers = [rows.numbers[i] for i in indices]
    keys: list[int | str] = list(numbers)
    labels, pieces = rows.labels[list(indices)], config.tiles**2
    if config.tiles > 1:
        images = cut(images, config.tiles)
        keys = [f"{number}.{piece}" for number in numbers for piece in range(pieces)]
    images = _resized(images, prior.image_size)
    condition = table[labels.repeat_interleave(pieces)]
    return images.to(prior.device), condition.to(prior.device), KeyedNoise(config.seed, keys)


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


def _images_of(prior: Prior, mapped: LatentMap, config: RecoverConfig) -> Callable[[Batch], Tensor]:
    def one(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return prior.decode(mapped(*batch))

    return one


def _finished(images: Tensor, prior: Prior, config: RecoverConfig) -> Tensor:
    """Pieces put together, at the size asked for."""
    if config.tiles > 1:
        images = join(images, config.tiles)
    return _resized(images, config.output_size or prior.image_size)


def recovered(
    rows: Rows, prior: Prior, method: str, config: RecoverConfig, progress: Progress | None = None, first: int = 0
) -> Iterator[Tensor]:
    """Recovered images batch by batch, float32 [n, C, S, S] in [-1, 1] on the CPU, from row `first` on.

    Every batch has the same size (the last is filled up with its last image), so that what is computed does not
    depend on how a set is divided; the next batch is read while one is computed. `first` has to be the start of a
    batch. Raises PriorError or ValueError if the settings do not fit the prior.
    """
    mapped = METHODS[method](prior, config, rows.ipc)
    table, halving = _table(rows, prior, config), _Halving(_images_of(prior, mapped, config))
    size, count = min(config.batch, rows.whole), len(rows)
    starts = range(first, count, size)

    def load(start: int) -> Batch:
        return _loaded(rows, prior, config, table, [min(i, count - 1) for i in range(start, start + size)])

    with ThreadPoolExecutor(1) as reader:
        upcoming: Future[Batch] | None = reader.submit(load, starts[0]) if starts else None
        for start in starts:
            assert upcoming is not None
            batch = upcoming.result()
            upcoming = reader.submit(load, start + size) if start + size < count else None
            images = _finished(halving(batch), prior, config)[: count - start]
            yield images.to("cpu", copy=True)
            if progress is not None:
                progress(min(start + size, count), count, "images")


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
    """Recover each image of a set in memory: one output per input, in [-1, 1]. Raises as `recovered`."""
    parts = list(recovered(Rows.of(source), prior, method, config, progress))
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
    file at fault and as `recovered`.
    """
    stat = Path(source).stat() if Path(source).exists() else None
    with SetFile.open(source, classes) as opened:
        rows, head = opened.rows, opened.head
        if classes is not None:
            head = shard_head(head, classes)
        size = config.output_size or prior.image_size
        shape = (prior.image_channels, size, size)
        head = with_step(head, shape[0], SYMMETRIC, step_of(prior, method, config, code))
        # What does not fit is refused before a file is begun.
        METHODS[method](prior, config, rows.ipc)
        _table(rows, prior, config)
        origin = f"{Path(source).resolve()} {stat.st_size} {stat.st_mtime_ns} {rows.numbers}" if stat else ""
        writer = RowWriter(out, head, shape, key=origin)
        try:
            if writer.done:
                print(f"{out}: goes on after image {writer.done} of {writer.count}", flush=True)
            batch = min(config.batch, rows.whole)
            # A journal of another batch size may end inside one of ours.
            writer.done -= writer.done % batch if writer.done < writer.count else 0
            with ThreadPoolExecutor(1) as disk:
                saving: Future[None] | None = None
                for images in recovered(rows, prior, method, config, _from(progress, writer.done), writer.done):
                    if saving is not None:
                        saving.result()
                    saving = disk.submit(writer.write, images)
                if saving is not None:
                    saving.result()
            writer.finish()
        finally:
            writer.close()


def _from(progress: Progress | None, resumed: int) -> Progress | None:
    """Progress whose rate and time left do not count what an earlier run did."""
    if progress is None or not resumed:
        return progress

    def report(done: int, total: int, note: str = "") -> None:
        progress(done - resumed, total - resumed, f"{note} ({resumed} were there)")

    return report
