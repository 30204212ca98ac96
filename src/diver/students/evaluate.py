"""Evaluation of one distilled set with one architecture: the rows of the study's table."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from diver.config.students import Architecture, Protocol
from diver.data.prepared import Prepared
from diver.progress import Progress
from diver.sets import DistilledSet, ValueRange
from diver.students.protocol import StudentProtocol
from diver.students.train import StudentError, train_students


def student_images(distilled: DistilledSet, data: Prepared, matched: bool) -> Tensor:
    """The set's images as students get them, float32 [N, C, S, S] at the dataset's size.

    matched: brought to the test images' standardised range; otherwise the stored values, as the published
    evaluation does (which gives images in [-1, 1] beside standardised test images). Neither clips.
    Another size is resized bilinearly with anti-aliasing. Raises StudentError if channels or classes differ.
    """
    if distilled.classes != data.classes or distilled.images.shape[1] != data.test_images.shape[1]:
        raise StudentError(
            f"the set ({len(distilled.classes)} classes, {distilled.images.shape[1]} channels) does not belong to "
            f"{data.dataset} ({len(data.classes)} classes, {data.test_images.shape[1]} channels)"
        )
    target = ValueRange.standardised(data.mean, data.std)
    images = distilled.in_range(target).images if matched else distilled.images
    size = tuple(data.test_images.shape[-2:])
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def student_protocol(protocol: Protocol, architecture: Architecture, ipc: int) -> StudentProtocol:
    """The study's protocol for one architecture and IPC."""
    shared = protocol.model_dump(exclude={"name", "epochs"})
    return StudentProtocol(**shared, epochs=protocol.epochs_at(ipc), learning_rate=architecture.learning_rate)


def evaluate_set(
    distilled: DistilledSet,
    data: Prepared,
    architecture: Architecture,
    protocol: Protocol,
    seeds: Sequence[int],
    matched: bool = True,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train and test one student per seed on `distilled`; one row of results per student, in the order of the seeds.

    Raises StudentError if the set is not one of this dataset. `bytes` counts the set's images and labels in memory.
    """
    images, labels = student_images(distilled, data, matched), distilled.hard_labels()
    results = train_students(
        architecture.network,
        architecture.options,
        images,
        labels,
        data.standardised(data.test_images),
        data.test_labels,
        student_protocol(protocol, architecture, distilled.ipc),
        seeds,
        classes=len(data.classes),
        progress=progress,
    )
    kept = [distilled.images, labels]
    common = {
        "images": len(images),
        "bytes": sum(t.numel() * t.element_size() for t in kept),
        "set_digest": distilled.digest(),
    }
    return [
        {
            "protocol": protocol.name,
            "seed": r.seed,
            "epochs": r.epochs,
            "accuracy_last": r.accuracy_last,
            "accuracy_best": r.accuracy_best,
            "diverged": r.diverged,
            "train_loss_last": r.train_loss_last,
            "parameters": r.parameters,
            "seconds": round(r.seconds, 3),
            **common,
        }
        for r in results
    ]
