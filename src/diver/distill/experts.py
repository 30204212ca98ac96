"""Experts: networks trained on all images, whose weights after each epoch are what trajectory matching matches.

A folder holds one file per expert, `NNN.safetensors` with `weights` float32 [epochs + 1, P] (before the first epoch and
after each) and `test_accuracy` float32 [1] after the last, `zca.safetensors` if the images are white, and the manifest
`experts.json`, written when all are there. Files are written epoch by epoch, and training goes on where it was stopped.

Everything random of an expert comes from the seed, its number and the epoch, so it depends on nothing else: neither on
the other experts, nor on how many are trained at a time. On a CPU experts train side by side, each on one core; on a
GPU several take each step together, as one that is recorded (`expert_epochs`).
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from diver import graphs
from diver.config.distill import ExpertsConfig
from diver.data.prepared import Prepared
from diver.data.zca import Whitening, fit_whitening
from diver.distill.expert_epochs import Optimizer, RecordedEpochs, accuracy, train_epoch
from diver.distill.flat import FlatNetwork
from diver.progress import Progress, reporter
from diver.tensorfile import (
    TensorFileError,
    canonical_json,
    file_checksum,
    layout,
    opened,
    read_tensors,
    readable,
    write_tensors,
)
from diver.workers import Report, best_device, side_by_side

MANIFEST, WHITENING, FORMAT = "experts.json", "zca.safetensors", "experts 1"
# Experts that take their steps together on a GPU.
STACK = 8


class ExpertsError(ValueError):
    """A folder of experts is refused; one line that names it, the fault and the remedy."""


def _seed(*parts: int) -> int:
    """A seed of 63 bits from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


class _Growing:
    """An expert's file while it is trained: rows of weights, and beside it how many are valid and the velocity."""

    def __init__(self, path: Path, epochs: int, size: int, about: dict[str, Any]) -> None:
        self.path, self.size, self.about = path, size, about
        shapes = {"weights": (torch.float32, (epochs + 1, size)), "test_accuracy": (torch.float32, (1,))}
        self.layout = layout(shapes, about)
        self.part, self.state = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.state")
        self.key = canonical_json([about, torch.__version__])

    def complete(self) -> bool:
        try:
            with opened(self.path) as (_, found):
                return found == self.about
        except TensorFileError:
            return False

    def resume(self) -> tuple[int, Tensor, Tensor] | None:
        """Epochs done, weights and velocity [P]; None if there is nothing to go on from."""
        try:
            tensors, header = read_tensors(self.state)
        except TensorFileError:
            return None
        if header.get("key") != self.key or not self.part.is_file():
            return None
        with self.part.open("rb") as file:
            file.seek(self._place(header["done"]))
            row = bytearray(file.read(4 * self.size))
        if len(row) < 4 * self.size:
            return None
        weights = torch.frombuffer(row, dtype=torch.float32)
        return header["done"], weights, tensors.get("velocity", torch.zeros_like(weights))

    def _place(self, epoch: int) -> int:
        return self.layout.offsets["weights"] + 4 * self.size * epoch

    def _write(self, place: int, values: Tensor) -> None:
        with self.part.open("r+b") as file:
            file.seek(place)
            file.write(values.detach().cpu().contiguous().numpy().tobytes())

    def begin(self) -> None:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.part.write_bytes(self.layout.head)

    def add(self, epoch: int, weights: Tensor, velocity: Tensor | None) -> None:
        """Keep the weights [P] after an epoch; a kill between the two writes costs this epoch."""
        self._write(self._place(epoch), weights)
        tensors = {} if velocity is None else {"velocity": velocity}
        write_tensors(self.state, tensors, {"key": self.key, "done": epoch})

    def finish(self, found: float) -> None:
        self._write(self.layout.offsets["test_accuracy"], torch.tensor([found]))
        os.replace(self.part, self.path)
        self.state.unlink(missing_ok=True)


def expert_path(folder: Path, number: int) -> Path:
    return folder / f"{number:03}.safetensors"


@dataclass(frozen=True)
class _Task:
    """What every expert of a call shares."""

    data: Prepared
    config: ExpertsConfig
    folder: Path
    about: dict[str, Any]
    network: FlatNetwork
    white: tuple[Tensor, Tensor] | None
    device: torch.device

    def file(self, number: int) -> _Growing:
        about = {**self.about, "expert": number}
        return _Growing(expert_path(self.folder, number), self.config.epochs, self.network.size, about)

    def batches(self, test: bool) -> Callable[[Tensor], Tensor]:
        """Positions to images of the training or test split, as the network sees them."""
        if self.white is not None:
            white = self.white[test].to(self.device)
            return lambda positions: white[positions]
        images = (self.data.test_images if test else self.data.train_images).to(self.device)
        return lambda positions: self.data.standardised(images[positions])


def _train(task: _Task, numbers: Sequence[int], report: Report) -> None:
    """Train a stack of experts that are equally far, from where they were stopped."""
    config, files = task.config, [task.file(number) for number in numbers]
    states = [file.resume() for file in files]
    done, rows, velocities = 0, [], []
    for number, file, state in zip(numbers, files, states, strict=True):
        if state is None:
            weights = task.network.initial(_seed(config.seed, number))
            state = 0, weights, torch.zeros_like(weights)
            file.begin()
            file.add(0, weights, state[2] if config.momentum else None)
        done, row, velocity = state
        rows.append(row)
        velocities.append(velocity)
    weights, labels = torch.stack(rows).to(task.device), task.data.train_labels.to(task.device)
    optimizer, batch = Optimizer(config, torch.stack(velocities).to(task.device)), task.batches(test=False)
    recorded = RecordedEpochs(task.network, optimizer, weights, batch, labels) if graphs.records(task.device) else None
    for epoch in range(done, config.epochs):
        generators = [torch.Generator().manual_seed(_seed(config.seed, number, epoch)) for number in numbers]
        if recorded:
            recorded(generators)
        else:
            train_epoch(task.network, optimizer, weights, batch, labels, generators)
        if not torch.isfinite(weights).all():
            raise FloatingPointError(f"experts: weights are not finite after epoch {epoch + 1}; lower learning_rate")
        for file, row, velocity in zip(files, weights, optimizer.velocity, strict=True):
            file.add(epoch + 1, row, velocity if config.momentum else None)
        report((epoch + 1) * len(numbers))
    test, test_labels = task.batches(test=True), task.data.test_labels.to(task.device)
    for file, row in zip(files, weights, strict=True):
        # A copy begins where a GPU reads fastest; the rows of a stack do not.
        file.finish(accuracy(task.network, row.clone(), test, test_labels))


def _stacks(task: _Task, numbers: Sequence[int]) -> list[list[int]]:
    """Experts that are trained together: one on a CPU, several that are equally far on a GPU."""
    done: dict[int, list[int]] = {}
    for number in numbers:
        state = task.file(number).resume()
        done.setdefault(state[0] if state else 0, []).append(number)
    together = STACK if graphs.records(task.device) else 1
    return [mine[start : start + together] for mine in done.values() for start in range(0, len(mine), together)]


def _whitening(data: Prepared, config: ExpertsConfig, folder: Path, about: dict[str, Any]) -> Whitening:
    """The whitening of a folder, made if it is not there."""
    path = folder / WHITENING
    try:
        tensors, header = read_tensors(path)
        if header == about:
            return Whitening(**tensors)
    except TensorFileError:
        pass
    whitening = fit_whitening(data.train_images, config.zca_epsilon)
    write_tensors(path, whitening.tensors(), about)
    return whitening


def train_experts(
    data: Prepared,
    config: ExpertsConfig,
    folder: str | Path,
    numbers: Sequence[int] | None = None,
    code: str = "",
    progress: Progress | None = None,
    workers: int = 1,
    replace: bool = True,
) -> Path:
    """Train the experts `numbers` (all of config.count) that are not in the folder yet; the path of the manifest.

    Experts of the same settings but `count`, data and code are kept; others are made anew, or without `replace` refused
    (ExpertsError), for they may have taken hours. The manifest is written when all of config.count are there, so that
    jobs may share the work. Images are standardised, or with config.zca white.
    progress: called with (epochs done, all epochs of this call, a note). workers: experts trained at a time on a CPU.
    Raises ValueError for numbers that are no experts or an impossible network, FloatingPointError if weights stop being
    finite.
    """
    folder, classes, (channels, size) = Path(folder), len(data.classes), data.train_images.shape[1:3]
    wanted = list(range(config.count)) if numbers is None else list(numbers)
    if outside := [number for number in wanted if not 0 <= number < config.count]:
        raise ValueError(f"experts: there is no expert {outside[0]} of {config.count}; raise count or leave it out")
    network = FlatNetwork(classes, channels, size, config.width, config.depth, config.precision)
    settings = config.model_dump(mode="json", exclude={"count"})
    about = {"dataset": data.dataset, "data": data.identity(), "config": settings, "code": code}
    if not replace:
        _refuse_other(folder, about)
    _discard_other(folder / MANIFEST, about)
    white = None
    if config.zca:
        facts = {"data": about["data"], "epsilon": config.zca_epsilon}
        whitening = _whitening(data, config, folder, facts)
        white = whitening.whiten_all(data.train_images), whitening.whiten_all(data.test_images)
    task = _Task(data, config, folder, about, network, white, best_device())
    stacks = _stacks(task, [number for number in wanted if not task.file(number).complete()])
    show, total = progress or reporter("experts"), config.epochs * sum(map(len, stacks))

    def train(number: int, report: Report) -> None:
        threads = torch.get_num_threads()
        if task.device.type == "cpu":
            # Sums depend on the number of threads, and an expert's weights should not.
            torch.set_num_threads(1)
        try:
            _train(task, stacks[number], report)
        finally:
            torch.set_num_threads(threads)

    at_once = workers if task.device.type == "cpu" else 1
    if stacks:
        side_by_side(train, len(stacks), at_once, lambda done: show(done, total, "epochs"))
    if all(task.file(number).complete() for number in range(config.count)):
        _write_manifest(task)
    return folder / MANIFEST


def _refuse_other(folder: Path, about: dict[str, Any]) -> None:
    for path in sorted(folder.glob("[0-9]*.safetensors")):
        try:
            with opened(path) as (_, found):
                same = {key: value for key, value in found.items() if key != "expert"} == about
        except TensorFileError:
            continue
        if not same:
            raise ExpertsError(f"{path}: an expert of other settings or data: take another folder, or remove this one")


def _discard_other(manifest: Path, about: dict[str, Any]) -> None:
    """Remove the manifest of experts of other settings: it would vouch for those that take their places one by one."""
    try:
        found = json.loads(manifest.read_text())
        found["config"].pop("count", None)
        same = {key: found.get(key) for key in about} == about
    except FileNotFoundError:
        return
    except (ValueError, KeyError, AttributeError, TypeError):
        same = False
    if not same:
        # Another job may have seen the same.
        manifest.unlink(missing_ok=True)


def _write_manifest(task: _Task) -> None:
    files = []
    for number in range(task.config.count):
        path = expert_path(task.folder, number)
        with opened(path) as (file, _):
            found = file.get_tensor("test_accuracy").item()
        files.append({"file": path.name, "sha256": file_checksum(path), "test_accuracy": round(found, 6)})
    manifest = {
        "format": FORMAT,
        **task.about,
        "config": task.config.model_dump(mode="json"),
        "network": task.network.options,
        "parameters": task.network.size,
        "experts": files,
        "zca": file_checksum(task.folder / WHITENING) if task.config.zca else None,
    }
    part = task.folder / f".{MANIFEST}.{os.getpid()}.part"
    part.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    os.replace(part, task.folder / MANIFEST)


# --- reading


@dataclass(frozen=True)
class Experts:
    """Finished experts of a folder. zca: the whitening of the images that they were trained on, or none."""

    folder: Path
    config: ExpertsConfig
    network: FlatNetwork
    count: int
    epochs: int
    zca: Whitening | None
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Raises ExpertsError if the folder has no manifest, or one that is damaged or whose files are not there."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']!r} is not {FORMAT!r}")
            config = ExpertsConfig(**manifest["config"])
            network = FlatNetwork(**manifest["network"])
            missing = [entry["file"] for entry in manifest["experts"] if not (folder / entry["file"]).is_file()]
            zca = Whitening(**read_tensors(folder / WHITENING)[0]) if config.zca else None
        except FileNotFoundError as error:
            raise ExpertsError(f"{folder}: no {MANIFEST} in it; train experts there by `diver experts`") from error
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ExpertsError(f"{folder / MANIFEST}: damaged ({reason}); train the experts again") from error
        if missing:
            raise ExpertsError(f"{folder / missing[0]}: no such file, though {MANIFEST} names it; train it again")
        return cls(folder, config, network, len(manifest["experts"]), config.epochs, zca, manifest)

    def weights(self, expert: int, epoch: int) -> Tensor:
        """float32 [P] after an epoch, 0 being before the first; only this row of the file is read.

        Raises ExpertsError for an expert or epoch that is not there, or a damaged file.
        """
        path = expert_path(self.folder, expert)
        if not (0 <= expert < self.count and 0 <= epoch <= self.epochs):
            raise ExpertsError(
                f"{self.folder}: no expert {expert} at epoch {epoch}, but {self.count} experts of {self.epochs} epochs"
            )
        try:
            with opened(path) as (file, _), readable():
                found: Tensor = file.get_slice("weights")[epoch]
        except TensorFileError as error:
            raise ExpertsError(f"{path}: {error}; train it again") from error
        return found

    def require(self, data: Prepared, last_epoch: int, method: str) -> None:
        """Raise ExpertsError unless they were trained on `data` and have weights up to an epoch."""
        if self.manifest["data"] != data.identity():
            raise ExpertsError(
                f"{method}: experts {self.folder} were trained on other content, or another mean and std, than this "
                f"of {data.dataset}; train some on it, or give theirs"
            )
        if self.epochs < last_epoch:
            raise ExpertsError(
                f"{method}: experts {self.folder} have {self.epochs} epochs, and max_start and expert_epochs need "
                f"{last_epoch}; train longer ones or lower max_start"
            )

    def record(self) -> dict[str, Any]:
        """What a set records of them; the same wherever the folder lies."""
        found = [entry["test_accuracy"] for entry in self.manifest["experts"]]
        return {
            "count": self.count,
            "epochs": self.epochs,
            "network": self.network.options,
            "test_accuracy": sum(found) / len(found),
            "sha256": hashlib.sha256(canonical_json(self.manifest).encode()).hexdigest(),
        }
