"""The distilled set: the one value that flows from stage 1 through stage 2 to the students.

Its images always carry their value range, because mixing ranges up is silent: a standardised set read as one
in [-1, 1] trains students that look merely bad.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.nn import functional as F

from diver.config.base import first_fault
from diver.tensorfile import TensorFileError, canonical_json, read_tensors, tensors_digest, write_tensors

RangeKind = Literal["standardised", "unit", "symmetric"]
# A method that learns the rate for its students records it in its step's parameters under this name.
LEARNED_RATE = "syn_lr"
# One that learned images under ZCA whitening records {"epsilon": .., ..}, or null.
WHITENING = "zca"


class SetError(ValueError):
    """A distilled set is refused; one line that names the file and the fault."""


@dataclass(frozen=True)
class ValueRange:
    """What the numbers in an image mean.

    `unit`: [0, 1]; `symmetric`: [-1, 1]; `standardised`: [0, 1] minus `mean`, over `std`, per channel.
    Synthetic images may lie outside the nominal interval; conversions are affine and never clip.
    """

    kind: RangeKind
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(RangeKind):
            raise ValueError(f"value range {self.kind!r} is unknown; one of {', '.join(get_args(RangeKind))}")
        if self.kind != "standardised" and (self.mean or self.std):
            raise ValueError(f"value range {self.kind!r} takes no mean and std")
        if self.kind == "standardised" and not (self.mean and len(self.mean) == len(self.std)):
            raise ValueError("value range 'standardised' needs a mean and a std per channel")
        if not (np.isfinite([*self.mean, *self.std]).all() and all(s > 0 for s in self.std)):
            raise ValueError("value range 'standardised' needs finite means and positive, finite stds")

    @classmethod
    def standardised(cls, mean: Sequence[float], std: Sequence[float]) -> Self:
        return cls("standardised", tuple(map(float, mean)), tuple(map(float, std)))

    def to_unit(self, images: Tensor) -> Tensor:
        """Images [..., C, H, W] of this range to [0, 1] nominal; same shape and dtype."""
        if self.kind == "unit":
            return images
        if self.kind == "symmetric":
            return images * 0.5 + 0.5
        mean, std = self._statistics(images)
        return images * std + mean

    def from_unit(self, images: Tensor) -> Tensor:
        """Images [..., C, H, W] in [0, 1] nominal to this range; same shape and dtype."""
        if self.kind == "unit":
            return images
        if self.kind == "symmetric":
            return images * 2 - 1
        mean, std = self._statistics(images)
        return (images - mean) / std

    def convert(self, images: Tensor, target: "ValueRange") -> Tensor:
        """Images [..., C, H, W] of this range in another. Nothing is clipped; the same range changes no bit."""
        return images if target == self else target.from_unit(self.to_unit(images))

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise ValueError(f"images of shape {list(images.shape)} do not have the range's {len(self.mean)} channels")
        mean = images.new_tensor(self.mean).view(-1, 1, 1)
        return mean, images.new_tensor(self.std).view(-1, 1, 1)


UNIT = ValueRange("unit")
SYMMETRIC = ValueRange("symmetric")
# How images of ImageNet and its subsets are standardised.
IMAGENET = ValueRange.standardised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Step:
    """One link in the chain of methods that made a set; `code` is the digest of the code that ran."""

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    code: str = ""


class _Metadata(BaseModel):
    """The header of a distilled set's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["distilled set 1"]
    dataset: str
    classes: tuple[str, ...]
    ipc: int
    value_range: ValueRange
    steps: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """Synthetic images with labels and the record of how they were made.

    images: float32 [N, C, H, W] in `value_range`, class-major: N = ipc * len(classes), class 0's images first.
    labels: int64 [N]; or soft_labels: float32 [N, K] logits; or both.
    """

    images: Tensor
    dataset: str
    classes: tuple[str, ...]
    ipc: int
    value_range: ValueRange
    labels: Tensor | None
    soft_labels: Tensor | None = None
    steps: tuple[Step, ...] = ()

    def hard_labels(self) -> Tensor:
        """int64 [N]: the labels, else the largest entry of each soft label."""
        if self.labels is not None:
            return self.labels
        if self.soft_labels is None:
            raise ValueError("the set has neither labels nor soft labels")
        return self.soft_labels.argmax(1)

    def in_range(self, target: ValueRange) -> "DistilledSet":
        """The same set with its images in another value range. Nothing is clipped; the same range changes no bit."""
        return replace(self, images=self.value_range.convert(self.images, target), value_range=target)

    def with_images(self, images: Tensor, value_range: ValueRange, step: Step) -> "DistilledSet":
        """The next set of the chain: new images [N, C', H', W'] for the same labels, made by `step`."""
        return replace(self, images=images, value_range=value_range, steps=(*self.steps, step))

    def validate(self, source: str) -> None:
        """Raise SetError, naming `source` and the first fault, unless the set keeps every promise of its type.

        With soft labels alone the class-major order is a promise about positions that cannot be checked.
        """
        if found := self._image_fault():
            raise SetError(f"{source}: {found}")
        self.validate_metadata(source)

    def validate_metadata(self, source: str) -> None:
        """`validate` but for the values of the images, which need not be there."""
        for fault in (self._metadata_fault, self._label_fault, self._soft_label_fault):
            if found := fault():
                raise SetError(f"{source}: {found}")

    def _image_fault(self) -> str | None:
        images = self.images
        if images.dtype != torch.float32:
            return f"images are {images.dtype}, not torch.float32"
        if images.ndim != 4 or 0 in images.shape:
            return f"images have shape {list(images.shape)}, not [N, C, H, W] with every size positive"
        if not torch.isfinite(images).all():
            bad = int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
            return f"image {bad} has values that are not finite"
        return None

    def _metadata_fault(self) -> str | None:
        expected, found = self.ipc * len(self.classes), len(self.images)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            return "the class list is empty or names a class twice"
        if self.ipc < 1 or found != expected:
            return f"{found} images, but ipc {self.ipc} and {len(self.classes)} classes make {expected}"
        channels = len(self.value_range.mean)
        if self.value_range.kind == "standardised" and channels != self.images.shape[1]:
            return f"the value range has {channels} channels, the images {self.images.shape[1]}"
        try:
            canonical_json([step.parameters for step in self.steps])
            self.header()
        except ValidationError as error:
            return f"metadata: {first_fault(error)}"
        except (TypeError, ValueError) as error:
            return f"the parameters of a step are not JSON ({error})"
        return None

    def _label_fault(self) -> str | None:
        labels, count = self.labels, len(self.classes)
        if labels is None:
            return "neither labels nor soft labels" if self.soft_labels is None else None
        if labels.dtype != torch.int64 or labels.shape != self.images.shape[:1]:
            return f"labels are {labels.dtype} {list(labels.shape)}, not torch.int64 [{len(self.images)}]"
        outside = labels[(labels < 0) | (labels >= count)]
        if len(outside):
            return f"label {int(outside[0])} is out of range for {count} classes"
        if not torch.equal(labels.cpu(), torch.arange(count).repeat_interleave(self.ipc)):
            return f"labels are not class-major with {self.ipc} images per class"
        return None

    def _soft_label_fault(self) -> str | None:
        soft = self.soft_labels
        if soft is None:
            return None
        expected = [len(self.images), len(self.classes)]
        if soft.dtype != torch.float32 or list(soft.shape) != expected:
            return f"soft labels are {soft.dtype} {list(soft.shape)}, not torch.float32 {expected}"
        return None if torch.isfinite(soft).all() else "soft labels have values that are not finite"

    def _tensors(self) -> dict[str, Tensor]:
        named = {"images": self.images, "labels": self.labels, "soft_labels": self.soft_labels}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def header(self) -> dict[str, Any]:
        """The metadata as they stand in a file."""
        return _Metadata(
            format="distilled set 1",
            dataset=self.dataset,
            classes=self.classes,
            ipc=self.ipc,
            value_range=self.value_range,
            steps=self.steps,
        ).model_dump(mode="json")

    def write(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; the same set gives the same bytes. Raises SetError as `validate`."""
        self.validate(str(path))
        write_tensors(path, self._tensors(), self.header())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read and validate a file of `write`. Raises SetError; executes nothing that is in the file."""
        try:
            tensors, header = read_tensors(path)
        except TensorFileError as error:
            raise SetError(f"{path}: {error}") from error
        known = _metadata(header, path)
        extra = sorted(set(tensors) - {"images", "labels", "soft_labels"})
        if extra or "images" not in tensors:
            raise SetError(f"{path}: " + (f"unknown tensor {extra[0]!r}" if extra else "no tensor 'images'"))
        found = cls(
            images=tensors["images"],
            dataset=known.dataset,
            classes=known.classes,
            ipc=known.ipc,
            value_range=known.value_range,
            labels=tensors.get("labels"),
            soft_labels=tensors.get("soft_labels"),
            steps=known.steps,
        )
        found.validate(str(path))
        return found

    def digest(self) -> str:
        """SHA-256 over the tensors and the metadata, in hexadecimal; independent of file name and time."""
        return tensors_digest(self._tensors(), self.header())


def _metadata(header: dict[str, Any], path: str | Path) -> _Metadata:
    if "distilled set" not in str(header.get("format")):
        raise SetError(
            f"{path}: no distilled set, but another file of this project, as a prepared dataset or a trained network; "
            "name a set's"
        )
    try:
        return _Metadata.model_validate(header)
    except ValidationError as error:
        raise SetError(f"{path}: metadata: {first_fault(error)}") from error


def read_header(header: dict[str, Any], path: str | Path) -> DistilledSet:
    """A set of a file's metadata alone, without images and labels; raises SetError naming `path`."""
    known = _metadata(header, path)
    return DistilledSet(
        torch.empty(0), known.dataset, known.classes, known.ipc, known.value_range, labels=None, steps=known.steps
    )


def resized(images: Tensor, size: int) -> Tensor:
    """Float images [N, C, H, W] as [N, C, size, size], bilinear with anti-aliasing."""
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def learned_rate(distilled: DistilledSet) -> float | None:
    """The rate for students that the newest step that learned one recorded."""
    found = [step.parameters[LEARNED_RATE] for step in distilled.steps if LEARNED_RATE in step.parameters]
    return float(found[-1]) if found else None


def whitening_epsilon(distilled: DistilledSet) -> float | None:
    """Epsilon of the ZCA whitening under which the newest step that learned images did so; None without one."""
    found = [step.parameters[WHITENING] for step in distilled.steps if WHITENING in step.parameters]
    return float(found[-1]["epsilon"]) if found and found[-1] else None
