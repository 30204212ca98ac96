"""What students are given: images, labels, and whatever answers for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diver.data.prepared import standardise
from diver.networks.weights import Trained
from diver.students.protocol import StudentProtocol
from diver.students.replay import Replay
from diver.tensorfile import tensors_digest


class StudentError(ValueError):
    """The images, labels or teacher given to the trainer do not fit together or do not fit the protocol."""


@dataclass(frozen=True, eq=False)
class StudentData:
    """What students are trained and tested on, all on one device.

    images: float32 [N, C, S, S] in the value range that the study wants (nothing is converted or clipped), or uint8,
    which is standardised by `mean` and `std` as it is used; labels int64 [N]; test images likewise.
    soft_labels: logits float32 [N, K] of the set itself. teacher, replay: for the protocols that need them.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    soft_labels: Tensor | None = None
    teacher: Trained | None = None
    replay: Replay | None = None

    def floats(self, images: Tensor) -> Tensor:
        """Images as the network gets them, float32 [n, C, S, S]."""
        return standardise(images, self.mean, self.std) if images.dtype == torch.uint8 else images

    def check(self, protocol: StudentProtocol) -> None:
        """Raise StudentError unless everything fits together and the protocol's labels can be had."""
        splits = (("training", self.images, self.labels), ("test", self.test_images, self.test_labels))
        for name, x, y in splits:
            if x.ndim != 4 or x.dtype not in (torch.float32, torch.uint8):
                raise StudentError(f"{name} images are {x.dtype} {list(x.shape)}, not float32 or uint8 [N, C, H, W]")
            if y.shape != (len(x),) or y.dtype != torch.int64 or not len(y):
                raise StudentError(f"{name} labels are {y.dtype} {list(y.shape)}, not int64 [{len(x)}] with N > 0")
        shape, tested = list(self.images.shape[1:]), list(self.test_images.shape[1:])
        if shape != tested or shape[1] != shape[2]:
            raise StudentError(f"training images are {shape}, test images {tested}; both must be equal and square")
        if protocol.labels == "soft" and self.soft_labels is None:
            raise StudentError("labels 'soft' are the set's own, and this set has hard ones; set labels: hard")
        if protocol.labels == "teacher" and self.teacher is None:
            raise StudentError("labels 'teacher' need a teacher: a file of `diver teach` or timm:NAME")
        if protocol.labels == "replay" and self.replay is None:
            raise StudentError("labels 'replay' need a teacher's stored answers; record them (rule record_answers)")

    def digest(self) -> str:
        """Of all that training and testing depend on."""
        tensors = {
            name: getattr(self, name)
            for name in ("images", "labels", "test_images", "test_labels", "soft_labels")
            if getattr(self, name) is not None
        }
        # As which numbers pixels of 8 bits, and a teacher's inputs, are seen.
        tensors |= {"mean": torch.tensor(self.mean), "std": torch.tensor(self.std)}
        if self.teacher is not None:
            tensors |= {f"teacher.{name}": value for name, value in self.teacher.network.state_dict().items()}
            tensors |= {"teacher.mean": torch.tensor(self.teacher.mean), "teacher.std": torch.tensor(self.teacher.std)}
        return tensors_digest(tensors, self.replay.digest() if self.replay else None)
