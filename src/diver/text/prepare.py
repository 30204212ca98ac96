"""From training images to captions and features: the two artefacts that the text-guided systems start from."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from diver.config.text import ATTRIBUTES, MODEL, CaptionConfig, FeatureConfig
from diver.data.prepared import Prepared
from diver.progress import Progress
from diver.tensorfile import TensorFileError, canonical_json, file_checksum, read_tensors, write_tensors
from diver.text import mobilenet
from diver.text.attributes import describe_images
from diver.text.captions import (
    append_captions,
    image_names,
    match,
    read_captions,
    read_journal,
    read_names,
    write_captions,
)
from diver.text.features import EXTRACTORS, Images, Pair
from diver.text.resources import TextError
from diver.text.tokens import Counter

# Images embedded together, and lost when a run is killed.
CHUNK = 64
FORMAT = "image and caption features 1"


def names_of(data: Prepared, config: CaptionConfig) -> list[str]:
    """What a captions file calls the training images."""
    if config.names is None:
        return image_names(data.train_labels, data.classes)
    return read_names(config.names, len(data.train_labels))


def _captioner(config: CaptionConfig) -> Callable[[Images, Sequence[str]], list[str]]:
    """Images uint8 [C, H, W] and the names of their classes to captions."""
    if config.source == ATTRIBUTES:
        mobilenet.load(config.pictures)
        return partial(describe_images, look=partial(mobilenet.look, config.pictures, size=config.size))
    from diver.text.vlm import Captioner

    captioner = Captioner(config, Counter.of(config.tokenizer))
    return lambda images, names: captioner(list(images), names)


def caption_images(
    images: Images,
    names: Sequence[str],
    labels: Tensor,
    spoken: Sequence[str],
    config: CaptionConfig,
    out: str | Path,
    progress: Progress,
    wanted: Sequence[int] | None = None,
) -> str:
    """Write the captions of training images to `out`, in the images' order; returns how many have one, in words.

    images: uint8 [C, H, W] each; names: what they are called in the file; labels: int64 [N]; spoken: the classes'
    names in words; wanted: positions of the images that a model is to caption, all when left out. A run that was killed
    goes on after the last batch that is in the journal beside `out`. Raises TextError for a file or a model at fault,
    or a class without a captioned image.
    """
    out = Path(out)
    if config.source not in (ATTRIBUTES, MODEL):
        given = read_captions(config.source)
        positions = match(given, names, config.source)
        captions = {names[position]: given[names[position]] for position in positions}
    else:
        wanted = range(len(names)) if wanted is None else sorted(wanted)
        captions = _captions(images, names, labels, spoken, config, out.with_suffix(".part.jsonl"), progress, wanted)
        positions = match(captions, names, str(out))
    covered = labels[positions].bincount(minlength=len(spoken))
    if not covered.all():
        raise TextError(
            f"{config.source}: no image of class {spoken[int(covered.argmin())]} has a caption; add some, or take the "
            "class out of the dataset"
        )
    write_captions(out, captions)
    out.with_suffix(".part.jsonl").unlink(missing_ok=True)
    return f"{len(positions)} of {len(names)} training images have a caption, {len(names) - len(positions)} have none"


def _captions(
    images: Images,
    names: Sequence[str],
    labels: Tensor,
    spoken: Sequence[str],
    config: CaptionConfig,
    journal: Path,
    progress: Progress,
    wanted: Sequence[int],
) -> dict[str, str]:
    # A journal of other settings is of no use.
    mark = journal.with_suffix(".settings.json")
    journal.parent.mkdir(parents=True, exist_ok=True)
    settings = config.model_dump_json()
    if not mark.exists() or mark.read_text() != settings:
        journal.unlink(missing_ok=True)
        mark.write_text(settings)
    done = read_journal(journal)
    left = [p for p in wanted if names[p] not in done]
    if done:
        print(f"{journal}: goes on after {len(wanted) - len(left)} of {len(wanted)} images", flush=True)
    caption = _captioner(config) if left else None
    for first in range(0, len(left), config.batch):
        assert caption is not None
        part = left[first : first + config.batch]
        chosen = images[part] if isinstance(images, Tensor) else [images[p] for p in part]
        texts = caption(chosen, [spoken[int(labels[p])] for p in part])
        rows = list(zip((names[p] for p in part), texts, strict=True))
        append_captions(journal, rows)
        done.update(rows)
        progress(first + len(part), len(left), "images captioned")
    mark.unlink()
    return {names[p]: done[names[p]] for p in wanted}


@dataclass(frozen=True, eq=False)
class Embedded:
    """The captioned images: `positions` int64 [M] among the training images, features float32 [M, d], `captions` [M].

    `facts`: the settings of captions and features and the digests of what they were made from.
    """

    positions: Tensor
    images: Tensor
    texts: Tensor
    captions: tuple[str, ...]
    facts: dict[str, Any]

    def write(self, path: str | Path) -> None:
        tensors = {"positions": self.positions, "images": self.images, "texts": self.texts}
        write_tensors(path, tensors, {"format": FORMAT, "captions": list(self.captions), "facts": self.facts})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Raises TextError naming the file and the fault."""
        try:
            tensors, header = read_tensors(path)
            if header.get("format") != FORMAT:
                raise TensorFileError("not a file of image and caption features")
            found = cls(
                **{name: tensors[name] for name in ("positions", "images", "texts")},
                captions=tuple(header["captions"]),
                facts=header["facts"],
            )
        except (TensorFileError, KeyError, TypeError) as error:
            raise TextError(f"{path}: {error}; make it again with the rule embed_captions") from error
        if not len(found.positions) == len(found.images) == len(found.texts) == len(found.captions):
            raise TextError(f"{path}: its captions and features differ in number; make it again")
        return found


def embed_captions(
    images: Images,
    names: Sequence[str],
    captions_path: str | Path,
    config: FeatureConfig,
    out: str | Path,
    progress: Progress,
) -> Embedded:
    """Write the features of the captioned images and of their captions to `out`.

    A run that was killed goes on after the last images that are in the file beside `out`. Raises TextError.
    """
    captions = read_captions(captions_path)
    positions = match(captions, names, str(captions_path))
    texts = tuple(captions[names[p]] for p in positions)
    facts = {"features": config.model_dump(mode="json"), "captions_sha256": file_checksum(captions_path)}
    journal = _Rows(Path(out).with_suffix(".part"), canonical_json(facts))
    done = journal.read()
    if done is not None:
        print(f"{out}: goes on after {len(done.images)} of {len(positions)} images", flush=True)
    extractor, first = EXTRACTORS[config.source](config), 0 if done is None else len(done.images)
    for start in range(first, len(positions), CHUNK):
        at = positions[start : start + CHUNK]
        chosen = images[at] if isinstance(images, Tensor) else [images[p] for p in at]
        journal.add(extractor(chosen, texts[start : start + CHUNK]))
        progress(start + len(at) - first, len(positions) - first, "captioned images embedded")
    whole = journal.read(partial_chunk=True)
    assert whole is not None
    pair = extractor.together(whole)
    made = Embedded(torch.tensor(positions), pair.images, pair.texts, texts, facts)
    made.write(out)
    journal.path.unlink()
    return made


class _Rows:
    """A file of rows of both features, float32, behind a line that says what they are of and how wide."""

    def __init__(self, path: Path, facts: str):
        self.path, self.facts = path, facts

    def add(self, pair: Pair) -> None:
        rows = torch.cat([pair.images, pair.texts], 1).float().contiguous()
        with self.path.open("ab") as file:
            if not file.tell():
                head = {"facts": self.facts, "widths": [pair.images.shape[1], pair.texts.shape[1]]}
                file.write(f"{canonical_json(head)}\n".encode())
            file.write(rows.numpy().tobytes())

    def read(self, partial_chunk: bool = False) -> Pair | None:
        """All whole chunks (a kill may have cut the last), or what there is; None, and no file, if of other facts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return None
        head, _, content = self.path.read_bytes().partition(b"\n")
        try:
            found = json.loads(head)
            (a, b), facts = found["widths"], found["facts"]
        except (ValueError, TypeError, KeyError):
            facts, a, b = None, 1, 1
        count = len(content) // (4 * (a + b))
        count -= 0 if partial_chunk else count % CHUNK
        if facts != self.facts or not count:
            self.path.unlink()
            return None
        with self.path.open("r+b") as file:
            file.truncate(len(head) + 1 + 4 * (a + b) * count)
        rows = torch.frombuffer(bytearray(content[: 4 * (a + b) * count]), dtype=torch.float32).reshape(count, a + b)
        return Pair(rows[:, :a].contiguous(), rows[:, a:].contiguous())
