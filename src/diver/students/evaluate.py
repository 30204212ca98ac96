"""Evaluation of one distilled set, or of the whole training set, with one architecture: rows of the study's table."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diver.config.augment import COLOURED, VIEWS
from diver.config.protocols import Protocol
from diver.config.students import Architecture
from diver.data.prepared import Prepared
from diver.data.zca import Whitening, fit_whitening
from diver.networks.weights import BATCH, Trained, load_teacher
from diver.progress import Progress, reporter
from diver.sets import DistilledSet, ValueRange, learned_rate, resized, whitening_epsilon
from diver.students.inputs import StudentData, StudentError
from diver.students.protocol import StudentProtocol, StudentResult, student_protocol
from diver.students.replay import Replay, record_answers
from diver.students.student import augmenter
from diver.students.train import train_students
from diver.students.trial import smallest_batch, try_network


def student_images(distilled: DistilledSet, data: Prepared, matched: bool) -> Tensor:
    """The set's images as students get them, float32 [N, C, S, S] at the dataset's size.

    matched: brought to the test images' standardised range; otherwise the stored values, as the published
    evaluation does (which gives images in [-1, 1] beside standardised test images). Neither clips.
    Larger images are resized bilinearly with anti-aliasing. Raises StudentError if channels or classes differ, or if
    images are smaller than the dataset's or not square.
    """
    size = _check_images(distilled, data)
    target = ValueRange.standardised(data.mean, data.std)
    images = distilled.in_range(target).images if matched else distilled.images
    if images.shape[-1] == size:
        return images
    return resized(images, size)


def _check_images(distilled: DistilledSet, data: Prepared) -> int:
    """Height and width of the dataset's images. Raises as `student_images`."""
    if distilled.classes != data.classes or distilled.images.shape[1] != data.test_images.shape[1]:
        raise StudentError(
            f"the set ({len(distilled.classes)} classes, {distilled.images.shape[1]} channels) does not belong to "
            f"{data.dataset} ({len(data.classes)} classes, {data.test_images.shape[1]} channels); its classes must be "
            f"{', '.join(data.classes[:3])}, ..., in this order"
        )
    height, width = distilled.images.shape[-2:]
    size = int(data.test_images.shape[-1])
    if height != width or height < size:
        raise StudentError(
            f"the set's images are {height} x {width}; {data.dataset} takes {size} x {size}, or larger square images, "
            "which are resized: recover or convert (`diver convert --size`) the set to that size"
        )
    return size


def check_set(distilled: DistilledSet, data: Prepared, protocol: Protocol) -> None:
    """Raise StudentError if students cannot be trained on the set by the protocol, saying what would fit."""
    size = _check_images(distilled, data)
    check_labels(distilled, protocol)
    patches = protocol.at(len(data.classes)).patches
    if protocol.augmentation == "rded" and patches is not None and patches > size:
        raise StudentError(
            f"patches {patches} of {protocol.name} is more than the {size} pixels of an image's side; set "
            "protocol.patches to a divisor, as 2"
        )
    if protocol.augmentation in COLOURED and data.test_images.shape[1] != 3:
        raise StudentError(
            f"augmentation {protocol.augmentation!r} of {protocol.name} is for 3 channels, and {data.dataset} has "
            f"{data.test_images.shape[1]}; set protocol.augmentation to another, as crop_flip"
        )


def check_labels(distilled: DistilledSet, protocol: Protocol) -> None:
    """Raise StudentError if the protocol is not for labels of the set's kind, saying what would fit.

    A set that has both kinds is trained on with either, as EDF's is on hard ones by its paper.
    """
    if protocol.labels == "soft" and distilled.soft_labels is None:
        raise StudentError(f"the set has hard labels, {protocol.name} is set to labels: soft; set labels: hard")
    if protocol.labels == "hard" and distilled.labels is None:
        raise StudentError(
            f"the set has soft labels alone, {protocol.name} takes hard ones; set protocol.labels to soft, or to own "
            "where sets differ (a departure, named in the output)"
        )


@lru_cache(maxsize=1)
def _whitening(data: Prepared, epsilon: float) -> Whitening:
    """Kept for the other networks of a job, because fitting takes up to a minute."""
    return fit_whitening(data.train_images, epsilon)


def white_epsilon(distilled: DistilledSet, protocol: Protocol, matched: bool = True) -> float | None:
    """Epsilon of the whitening of the images that students of the set see; None if they see ordinary ones."""
    return whitening_epsilon(distilled) if protocol.zca and matched else None


def set_data(
    distilled: DistilledSet,
    data: Prepared,
    protocol: Protocol,
    matched: bool = True,
    teacher: Trained | None = None,
    replay: Replay | None = None,
    device: str | torch.device = "cpu",
) -> StudentData:
    """A set and the dataset's test images as the trainer takes them, white ones where the protocol has them so.

    Raises StudentError if they do not fit.
    """
    check_labels(distilled, protocol)
    if teacher is not None:
        teacher.network.to(device)
    images, tests = student_images(distilled, data, matched), data.test_images
    if (epsilon := white_epsilon(distilled, protocol, matched)) is not None:
        try:
            zca = _whitening(data, epsilon)
        except ValueError as error:
            raise StudentError(f"{error}; set protocol.zca: false") from error
        images = zca.whiten(ValueRange.standardised(data.mean, data.std).to_unit(images))
        tests = zca.whiten_all(tests)
    return StudentData(
        images.to(device),
        distilled.hard_labels().to(device),
        tests.to(device),
        data.test_labels.to(device),
        len(data.classes),
        data.mean,
        data.std,
        None if distilled.soft_labels is None else distilled.soft_labels.to(device),
        teacher,
        replay,
    )


def full_data(data: Prepared, device: str | torch.device = "cpu") -> StudentData:
    """The whole training set as the trainer takes it."""
    return StudentData(
        data.train_images.to(device),
        data.train_labels.to(device),
        data.test_images.to(device),
        data.test_labels.to(device),
        len(data.classes),
        data.mean,
        data.std,
    )


def _rows(
    results: Sequence[StudentResult],
    protocol: Protocol,
    used: StudentProtocol,
    rate: float | None,
    classes: int,
    **common: Any,
) -> list[dict[str, Any]]:
    departed = [protocol.departures(classes), "" if rate is None else f"learning_rate={rate}"]
    return [
        {
            "protocol": protocol.name,
            "departures": "; ".join(filter(None, departed)),
            "quirks": protocol.quirks(),
            "reported": protocol.reported,
            "seed": r.seed,
            "epochs": r.epochs,
            "steps": r.steps,
            "learning_rate": used.learning_rate,
            "accuracy_last": r.accuracy_last,
            "accuracy_best": r.accuracy_best,
            "tests": len(used.tested_epochs()),
            "diverged": r.diverged,
            "train_loss_last": r.train_loss_last,
            "parameters": r.parameters,
            "seconds": round(r.seconds, 3),
            **common,
        }
        for r in results
    ]


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of `evaluate_set` as CSV; all have the same keys."""
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def evaluate_set(
    distilled: DistilledSet,
    data: Prepared,
    architecture: Architecture,
    protocol: Protocol,
    seeds: Sequence[int],
    matched: bool = True,
    progress: Progress | None = None,
    teacher: Trained | None = None,
    replay: Replay | None = None,
    workers: int = 1,
    memory_gb: float = 8.0,
    checkpoints: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> list[dict[str, Any]]:
    """Train and test one student per seed on `distilled`; one row of results per student, in the order of the seeds.

    The row says which protocol was used, where it was departed from, its quirks, the best and last accuracy, and
    whether students saw white images (`white`). `bytes` counts the set's images and labels in memory, and stored
    answers of a teacher if they are replayed. Raises StudentError if the set is not one of this dataset or not one for
    the protocol, ReplayError if the stored answers are others'.
    """
    given = protocol
    if protocol.labels == "own":
        protocol = protocol.model_copy(update={"labels": "hard" if distilled.soft_labels is None else "soft"})
    rate = architecture.learning_rate
    if rate is None and protocol.learned_rate:
        rate = learned_rate(distilled)
    used = student_protocol(protocol, architecture.network, distilled.ipc, len(data.classes), rate)
    inputs = set_data(distilled, data, protocol, matched, teacher, replay, device)
    if replay is not None and used.labels == "replay":
        replay.check(distilled.digest(), used, matched)
    results = train_students(
        architecture.network, architecture.options, inputs, used, seeds, progress, workers, memory_gb, checkpoints
    )
    kept = [distilled.images, distilled.hard_labels()]
    kept += [] if distilled.soft_labels is None else [distilled.soft_labels]
    kept += list(replay.tensors.values()) if replay is not None and used.labels == "replay" else []
    return _rows(
        results,
        given,
        used,
        architecture.learning_rate,
        len(data.classes),
        white=white_epsilon(distilled, protocol, matched) is not None,
        images=len(inputs.images),
        bytes=sum(t.numel() * t.element_size() for t in kept),
        set_digest=distilled.digest(),
    )


def answer_set(
    distilled: DistilledSet,
    data: Prepared,
    teacher: Trained,
    protocol: Protocol,
    seed: int,
    matched: bool = True,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> Replay:
    """A teacher's answers to a set under a protocol, for `evaluate_set`; the same for all networks.

    The teacher is moved to `device`, where it answers.

    Raises StudentError if the set is not one of this dataset or the protocol's augmentation cannot be stored.
    """
    if protocol.augmentation not in VIEWS:
        raise StudentError(f"{protocol.augmentation}: only views of {', '.join(VIEWS)} can be stored with answers")
    used = student_protocol(protocol, "other", distilled.ipc, len(data.classes))
    images = student_images(distilled, data, matched).to(device)
    augment = augmenter(used, images.shape[-1], data.mean, data.std)
    teacher.network.to(device)
    show = progress or reporter("answers")
    return record_answers(images, distilled.digest(), teacher, augment, used, seed, show, matched)


def evaluate_full(
    data: Prepared,
    architecture: Architecture,
    protocol: Protocol,
    seeds: Sequence[int],
    rate: float | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    memory_gb: float = 8.0,
    checkpoints: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> list[dict[str, Any]]:
    """The same for the whole training set: the ceiling. `rate`: peak learning rate instead of the protocol's."""
    ipc = int(torch.bincount(data.train_labels).max())
    used = student_protocol(protocol, architecture.network, ipc, len(data.classes), rate)
    results = train_students(
        architecture.network,
        architecture.options,
        full_data(data, device),
        used,
        seeds,
        progress,
        workers,
        memory_gb,
        checkpoints,
    )
    kept = (data.train_images, data.train_labels)
    return _rows(
        results,
        protocol,
        used,
        rate,
        len(data.classes),
        white=False,
        images=len(data.train_images),
        bytes=sum(t.numel() * t.element_size() for t in kept),
        set_digest=data.digest(),
    )


def train_teacher(
    data: Prepared,
    network: str,
    options: dict[str, Any],
    protocol: Protocol,
    seed: int,
    progress: Progress | None = None,
    checkpoints: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Trained:
    """A network trained on the whole training set, with its test accuracy; for soft labels and as an encoder.

    Raises StudentError for a network that does not take such images, and where the training diverges.
    """
    ipc = int(torch.bincount(data.train_labels).max())
    used = student_protocol(protocol, network, ipc, len(data.classes))
    smallest = smallest_batch(len(data.train_images), used.batch)
    try_network(network, options, len(data.classes), data.train_images.shape[1:], smallest)
    found: list[Any] = []
    (result,) = train_students(
        network,
        options,
        full_data(data, device),
        used,
        [seed],
        progress,
        checkpoints=checkpoints,
        keep=lambda student: found.append(student.tested_network),
    )
    if result.diverged:
        raise StudentError(f"the teacher diverged; lower its learning_rate ({used.learning_rate:g})")
    return Trained(
        found[0].cpu().eval().requires_grad_(False),
        network,
        options,
        data.classes,
        int(data.train_images.shape[1]),
        int(data.train_images.shape[-1]),
        data.dataset,
        data.mean,
        data.std,
        result.accuracy_last,
        {
            "protocol": protocol.name,
            "departures": protocol.departures(len(data.classes)),
            "epochs": used.epochs,
            "seed": seed,
        },
    )


def adopt_teacher(
    data: Prepared,
    source: str,
    network: str | None = None,
    options: dict[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
) -> Trained:
    """A network that was trained elsewhere, with its test accuracy, for what one of `train_teacher` is for.

    As `load_teacher` reads it; the accuracy tells whether its classes and its standardisation are what they are taken
    for. Raises WeightsError, and StudentError for a network that does not take such images.
    """
    if network is not None:
        try_network(network, options or {}, len(data.classes), data.test_images.shape[1:], 2)
    found = load_teacher(source, data, network, options, mean=mean, std=std)
    found.network.to(device)
    right = 0
    for images, labels in zip(data.test_images.split(BATCH), data.test_labels.split(BATCH), strict=True):
        right += int((found.logits(data.standardised(images.to(device))).argmax(1).cpu() == labels).sum())
    return replace(found, network=found.network.cpu(), accuracy=100.0 * right / len(data.test_labels))
