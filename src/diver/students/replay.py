"""Answers of a teacher to augmented batches, stored once and replayed to every student (FKD; Shen and Xing 2022).

SRe2L and D4M train so: for every epoch and batch, the order of the images, their crops and flips, the mix of the
batch and the teacher's logits for the mixed images are fixed beforehand. One safetensors file holds them all, the
logits in half precision: with ten classes some 40 bytes per image and epoch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from diver.networks.views import Augmenter, Mix, View, draw_mix
from diver.networks.weights import Trained
from diver.progress import Progress
from diver.students.protocol import StudentProtocol
from diver.tensorfile import TensorFileError, read_tensors, tensors_digest, write_tensors

VIEW, MIX = "view.", "mix."
# What has to be the same when answers are recorded and when they are replayed.
FIXED = ("augmentation", "patches", "mix", "mix_alpha", "mix_probability")


class ReplayError(ValueError):
    """Stored answers cannot be read or do not belong to a set or protocol; one line with the remedy."""


@dataclass(frozen=True)
class Answered:
    """One batch: which images, how they are seen and mixed, and the teacher's logits, float32 [n, K]."""

    index: Tensor
    view: View
    mix: Mix
    logits: Tensor


@dataclass(frozen=True, eq=False)
class Replay:
    """`epochs` passes over a set of `images` images in batches of `batch`; `matched` as in `student_images`."""

    tensors: dict[str, Tensor]
    set_digest: str
    teacher: dict[str, Any]
    settings: dict[str, Any]
    epochs: int
    images: int
    batch: int
    seed: int
    matched: bool

    @property
    def batches(self) -> int:
        """Batches per epoch."""
        return -(-self.images // self.batch)

    def answered(self, epoch: int, number: int) -> Answered:
        """Batch `number` of an epoch, as it was recorded."""
        start = epoch * self.images + number * self.batch
        rows = slice(start, min(start + self.batch, (epoch + 1) * self.images))
        at = epoch * self.batches + number
        view = {k.removeprefix(VIEW): v[rows] for k, v in self.tensors.items() if k.startswith(VIEW)}
        mix = {
            name: self.tensors[MIX + name][rows if name == "partner" else slice(at, at + 1)]
            for name in ("kind", "partner", "weight", "box")
        }
        logits = self.tensors["logits"][rows].float()
        return Answered(self.tensors["order"][rows].long(), View(view), Mix.from_tensors(mix), logits)

    def check(self, set_digest: str, protocol: StudentProtocol, matched: bool) -> None:
        """Raise ReplayError unless these answers are for that set, at that scale, and protocol."""
        remedy = "record the answers again (rule record_answers; `diver evaluate` records its own)"
        if set_digest != self.set_digest:
            raise ReplayError(f"stored answers are for set {self.set_digest[:12]}, not {set_digest[:12]}; {remedy}")
        if matched != self.matched:
            scale = "the test images' scale" if self.matched else "the stored scale"
            raise ReplayError(f"stored answers are for images at {scale}; {remedy}")
        wanted = {**{name: getattr(protocol, name) for name in FIXED}, "batch": min(protocol.batch, self.images)}
        stored = {**self.settings, "batch": self.batch}
        for name, value in wanted.items():
            if stored[name] != value:
                raise ReplayError(f"stored answers have {name} {stored[name]}, the protocol {value}; {remedy}")
        if protocol.passes > self.epochs:
            raise ReplayError(
                f"stored answers are for {self.epochs} epochs, the protocol has {protocol.passes}; {remedy}"
            )

    def digest(self) -> str:
        return tensors_digest(self.tensors)

    def write(self, path: str | Path) -> None:
        names = ("set_digest", "teacher", "settings", "epochs", "images", "batch", "seed", "matched")
        write_tensors(path, self.tensors, {name: getattr(self, name) for name in names})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file of `write`. Raises ReplayError."""
        try:
            tensors, header = read_tensors(path)
            found = cls(tensors, **header)
            rows = found.epochs * found.images
            fits = {"order", "logits", MIX + "box"} <= tensors.keys() and len(tensors["logits"]) == rows
        except TensorFileError as error:
            raise ReplayError(f"{path}: {error}") from error
        except TypeError as error:
            raise ReplayError(f"{path}: not stored answers of a teacher ({error})") from error
        if not fits or len(tensors["order"]) != rows:
            raise ReplayError(f"{path}: not stored answers of a teacher, or of another number of epochs or images")
        return found


def record_answers(
    images: Tensor,
    set_digest: str,
    teacher: Trained,
    augment: Augmenter,
    protocol: StudentProtocol,
    seed: int,
    progress: Progress,
    matched: bool = True,
) -> Replay:
    """The teacher's answers to all batches of a protocol on images, float32 [N, C, S, S], at the test images' scale.

    matched: that they are at that scale; as the published evaluation takes them otherwise.
    Images and teacher are on one device, the answers on the CPU. Source: FKD (Shen and Xing 2022), SRe2L (Yin et al.
    2023), relabelling. Deterministic in the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    count, size = len(images), images.shape[-1]
    batch = min(protocol.batch, count)
    found: dict[str, Tensor] = {}
    filled: dict[str, int] = {}
    for epoch in range(protocol.passes):
        for index in torch.randperm(count, generator=generator).split(batch):
            view = augment.draw(len(index), generator)
            mix = draw_mix(protocol.mix, len(index), protocol.mix_alpha, protocol.mix_probability, generator, size=size)
            seen = mix.apply(augment.apply(images[index.to(images.device)], view))
            stored = {
                "order": index.int(),
                "logits": teacher.logits(seen).half().cpu(),
                **{VIEW + name: values for name, values in view.to_tensors().items()},
                **{MIX + name: values for name, values in mix.to_tensors().items()},
            }
            for name, values in stored.items():
                if name not in found:
                    # A value of each image, or one of the batch.
                    rows = count if len(values) == len(index) else -(-count // batch)
                    found[name] = values.new_empty(protocol.passes * rows, *values.shape[1:])
                first = filled.get(name, 0)
                filled[name] = first + len(values)
                found[name][first : filled[name]] = values
        progress(epoch + 1, protocol.passes, "epochs")
    return Replay(
        found,
        set_digest,
        {"name": teacher.name, "options": teacher.options, "dataset": teacher.dataset, "accuracy": teacher.accuracy},
        {name: getattr(protocol, name) for name in FIXED},
        protocol.passes,
        count,
        batch,
        seed,
        matched,
    )
