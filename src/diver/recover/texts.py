"""Prototypes in words and pictures, as a file: for each image of a set its text and the real images behind it.

A line has the class and the number of the image in it, the text and what wrote it (`fault`: why not the model that was
asked), and places in the training set: of the `images` whose mean latent is the image prototype, of the `captioned`
whose captions the text stands for.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from diver.config.native.edits import EDITSConfig, VLCPConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.prior.classes import describe
from diver.progress import Progress
from diver.recover.latents import Latents
from diver.text.captions import match, read_captions
from diver.text.merge import Vocabulary
from diver.text.prepare import Embedded
from diver.text.query import Clusters, cluster, joined
from diver.text.resources import TextError
from diver.text.tokens import Counter
from diver.text.writer import Writer


@dataclass(frozen=True)
class TextPrototype:
    """A line of the file."""

    label: int
    number: int
    text: str
    by: str
    fault: str
    images: tuple[int, ...]
    captioned: tuple[int, ...]


def spoken(name: str) -> str:
    """A class's name as it is said in a text: its first name in words."""
    return describe(name).split(",")[0].strip()


def counter(prior: Prior, otherwise: str) -> Counter:
    """The tokenizer of the prior's text encoder, or another one for a prior that has none."""
    own = getattr(prior, "tokenizer", None)
    return Counter.of(otherwise) if own is None else Counter(own)


def edits_texts(
    embedded: Embedded,
    data: Prepared,
    ipc: int,
    prior: Prior,
    config: EDITSConfig,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[TextPrototype]:
    """EDITS: clusters of the joined features, their nearest images, and one text for their nearest captions.

    cache: folder of a language model's answers. Raises TextError for a class with too few captioned images, naming it.
    """
    count = counter(prior, config.merge.tokenizer)
    writer = Writer(config.merge, count, cache)
    labels = data.train_labels[embedded.positions]
    found, total = [], len(data.classes) * ipc
    for c, name in enumerate(data.classes):
        mine = (labels == c).nonzero().flatten()
        captions = [embedded.captions[i] for i in mine.tolist()]
        vocabulary = Vocabulary(tuple(captions), spoken(name))
        try:
            images, texts = embedded.images[mine], embedded.texts[mine]
            points = joined(images, texts, config.features, config.tau, config.normalise)
            clusters = cluster(points, ipc, config.seed, config.contamination)
        except TextError as error:
            raise TextError(f"class {name}: {error}") from error
        for number in range(ipc):
            places = clusters.members(number)
            told = places[: config.k_text] if config.text == "merged" else places[:1]
            said = [captions[i] for i in told.tolist()]
            if config.text == "merged":
                written = writer(said, vocabulary)
                text, by, fault = written.text, written.by, written.fault
            elif config.text == "best_caption":
                text, by, fault = count.cut(said[0], config.merge.max_tokens), "nearest caption", ""
            else:
                text, by, fault = vocabulary.name, "class name", ""
            near = embedded.positions[mine[places[: config.k_image]]].tolist()
            behind = embedded.positions[mine[told]].tolist()
            found.append(TextPrototype(c, number, text, by, fault, tuple(near), tuple(behind)))
            if progress is not None:
                progress(len(found), total, "texts")
    return found


def vlcp_texts(
    latents: Latents,
    captions: dict[int, str],
    data: Prepared,
    ipc: int,
    prior: Prior,
    config: VLCPConfig,
    progress: Progress | None = None,
) -> list[TextPrototype]:
    """VLCP: clusters of latents, and the caption of each that has most of its words.

    captions: by place in the training set; images without one, or without a latent, are left out. Raises as
    `edits_texts`.
    """
    count, found = counter(prior, config.tokenizer), []
    for c, name in enumerate(data.classes):
        places = latents.indices(c)
        kept = torch.tensor([i for i, place in enumerate(places.tolist()) if place in captions], dtype=torch.int64)
        said = [captions[place] for place in places[kept].tolist()]
        vocabulary = Vocabulary(tuple(said), spoken(name), config.released_words)
        try:
            clusters: Clusters = cluster(latents.of(c)[kept].flatten(1), ipc, config.seed, config.contamination)
        except TextError as error:
            raise TextError(f"class {name}: {error}") from error
        for number in range(ipc):
            members = clusters.members(number)
            theirs = [said[i] for i in members.tolist()]
            if config.text == "weighted":
                text = vocabulary.weighted_caption(theirs, config.top_words, config.threshold)
                chosen = members[theirs.index(text)][None]
                text, by = count.cut(text, config.max_tokens), "caption with the most weight"
            else:
                chosen, text, by = members[:0], vocabulary.name, "class name"
            behind, near = (tuple(places[kept[some]].tolist()) for some in (chosen, members))
            found.append(TextPrototype(c, number, text, by, "", near, behind))
        if progress is not None:
            progress(c + 1, len(data.classes), "classes clustered")
    return found


def captions_by_place(path: str | Path, names: Sequence[str]) -> dict[int, str]:
    """Captions of a file by place in the training set, whose images are called `names`. Raises TextError."""
    captions = read_captions(path)
    return {place: captions[names[place]] for place in match(captions, names, str(path))}


def write_texts(path: str | Path, found: Sequence[TextPrototype]) -> None:
    """Write the file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_texts(path: str | Path, data: Prepared, ipc: int) -> list[TextPrototype]:
    """Class-major prototypes of a file. Raises TextError for a file at fault, or one of another set."""
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        found = [
            TextPrototype(**{**row, "images": tuple(row["images"]), "captioned": tuple(row["captioned"])})
            for row in rows
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TextError(f"{path}: not a file of text prototypes ({error}); make it again with write_texts") from error
    wanted = [(c, i) for c in range(len(data.classes)) for i in range(ipc)]
    if [(one.label, one.number) for one in found] != wanted:
        raise TextError(
            f"{path}: {len(found)} prototypes, not {ipc} of each of {len(data.classes)} classes; make it again"
        )
    last = len(data.train_labels) - 1
    for one in found:
        if not one.images or not 0 <= min(one.images) <= max(one.images) <= last:
            raise TextError(f"{path}: prototype {one.number} of class {one.label} has images outside 0..{last}")
    return found


def mean_latent(latents: Tensor) -> Tensor:
    """The image prototype [c, h, w] of latents [n, c, h, w]."""
    return latents.double().mean(0).float()
