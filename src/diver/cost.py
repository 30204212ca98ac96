"""What a study costs before anything runs: jobs, operations, hours and bytes by phase.

Operations are counted (multiply-adds of each network at its size, times the passes that a method makes) and divided by
a device's rate. Rates stand in rates.yaml, each with its source; what is assumed is marked, what has no rate is said
to have none. A training step counts as three forward passes, and one whose gradient is differentiated again as nine.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from diver.config import distill
from diver.config.protocols import Protocol, by_ipc
from diver.config.study import NONE, Study
from diver.data.spec import DatasetSpec
from diver.study import (
    AS_PUBLISHED,
    MATCHED,
    SetCell,
    full_cells,
    prepared_path,
    prior_path,
    set_cells,
    student_cells,
    student_groups,
)

RATES = Path(__file__).with_name("rates.yaml")
# Forward passes that a step counts as: with a gradient, and with a gradient of a gradient.
TRAIN, TWICE = 3, 9
FLOAT = 4
UNITS = {"GB": 1e9, "MB": 1e6}
# Bytes of a student's row in the tables, as CSV.
ROW = 700


@dataclass
class Phase:
    """What one phase takes. `macs` by arithmetic; `unknown` says what is left out, and why."""

    name: str
    jobs: int = 0
    macs: dict[str, float] = field(default_factory=dict)
    stored: float = 0.0
    images: int = 0
    unknown: list[str] = field(default_factory=list)

    def add(self, macs: float, precision: str = "fp32") -> None:
        self.macs[precision] = self.macs.get(precision, 0.0) + macs

    def leave_out(self, what: str) -> None:
        if what not in self.unknown:
            self.unknown.append(what)


def load_rates(path: Path = RATES) -> dict[str, Any]:
    """Devices and priors of rates.yaml."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


@cache
def _network(name: str, options: str, classes: int, channels: int, size: int) -> tuple[float, int]:
    """Multiply-adds of a forward pass for one image, and parameters."""
    from diver.networks import create

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = create(name, classes, channels, size, **json.loads(options)).eval()
        network(torch.empty(1, channels, size, size))
    return counter.get_total_flops() / 2, sum(one.numel() for one in network.parameters())


def network_cost(name: str, options: Mapping[str, Any], spec: DatasetSpec) -> tuple[float, int]:
    """Multiply-adds of a forward pass for one image of a dataset, and parameters."""
    return _network(name, json.dumps(options, sort_keys=True), len(spec.classes), spec.channels, spec.size)


@cache
def _prior(folder: str) -> tuple[float, float, int]:
    """Multiply-adds of one pass of a local prior's transformer and of its autoencoder, and its images' size."""
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    configs = [json.loads((Path(folder) / part / "config.json").read_text()) for part in ("transformer", "vae")]
    with torch.device("meta"), torch.no_grad():
        dit = DiTTransformer2DModel.from_config(configs[0]).eval()
        vae = AutoencoderKL.from_config(configs[1]).eval()
        side = configs[0]["sample_size"]
        size = side * 2 ** (len(configs[1]["block_out_channels"]) - 1)
        latent, number = torch.empty(1, configs[0]["in_channels"], side, side), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as passes:
            dit(latent, timestep=number, class_labels=number)
        with FlopCounterMode(display=False) as around:
            vae.encode(torch.empty(1, configs[1]["in_channels"], size, size))
            vae.decode(latent)
    return passes.get_total_flops() / 2, around.get_total_flops() / 2, size


def prior_cost(study: Study, dataset: str, rates: Mapping[str, Any], root: Path) -> tuple[float, float, int] | None:
    """Multiply-adds of a pass of a dataset's prior and of its autoencoder for one image, and its images' size.

    None for a prior that is neither known nor here.
    """
    source = prior_path(study, dataset)
    known = rates["priors"].get(source)
    if known:
        return known["pass"], known["autoencoder"], known["size"]
    path = root / source
    return _prior(str(path)) if (path / "transformer/config.json").exists() else None


def counts(spec: DatasetSpec, root: Path) -> tuple[int, int] | None:
    """Training and test images of a dataset: of its prepared file, else its specification's; None if neither says."""
    path = root / prepared_path(spec.name)
    if path.exists():
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            train, test = (file.get_slice(f"{split}_labels").get_shape()[0] for split in ("train", "test"))
        return train, test
    if spec.pictures:
        splits = (spec.pictures.train, spec.pictures.test)
        found = [split.total or (split.most or 0) * len(spec.classes) for split in splits]
        return (found[0], found[1]) if all(found) else None
    return None


def chain_passes(method: str, settings: Mapping[str, Any], ipc: int) -> int:
    """Passes of the prior's network that a stage-2 method makes for one image."""
    if method == "vae":
        return 0
    guided = 1 if settings["cfg_scale"] == 1 else 2
    if method == "predd":
        steps = settings["by_ipc"].get(str(ipc), [0, settings["reverse_t"]])[1]
    else:
        steps = settings.get("t_r") or int(settings["respacing"].removeprefix("ddim"))
    return guided * steps


class Estimate:
    """The phases of a study, counted."""

    def __init__(self, study: Study, datasets: Mapping[str, DatasetSpec], rates: Mapping[str, Any], root: Path) -> None:
        self.study, self.datasets, self.rates, self.root = study, datasets, rates, root
        names = ("data", "teachers", "experts", "distill", "recover", "answers", "students", "report")
        self.phases = {name: Phase(name) for name in names}
        self.sets = list(set_cells(study))
        self._data()
        self._distill()
        self._recover()
        self._students()
        self.phases["report"].jobs = 4 + len(study.datasets)

    def _images(self, dataset: str, phase: Phase) -> tuple[int, int]:
        found = counts(self.datasets[dataset], self.root)
        if found is None:
            phase.leave_out(f"number of images of {dataset}: not prepared, and its specification does not say")
        return found or (0, 0)

    def _pixels(self, dataset: str) -> int:
        spec = self.datasets[dataset]
        return spec.channels * spec.size**2

    def _data(self) -> None:
        phase = self.phases["data"]
        phase.leave_out("time of fetching and preparing: no measured rate")
        for dataset in self.study.datasets:
            phase.jobs += 1
            phase.stored += sum(self._images(dataset, phase)) * self._pixels(dataset)

    def _teacher(self, dataset: str, phase: Phase) -> float:
        """Multiply-adds of a pass of a dataset's teacher for one image."""
        teacher = self.study.teacher_at(dataset)
        name = None if teacher is None else teacher.network or (teacher.source if ":" in teacher.source else None)
        if teacher is None or name is None:
            phase.leave_out(f"passes of the teacher of {dataset}: its network is not said")
            return 0.0
        return network_cost(name, teacher.options, self.datasets[dataset])[0]

    def _distill(self) -> None:
        phase, experts = self.phases["distill"], set[tuple[str, str]]()
        for cell in (cell for cell in self.sets if cell.stage2 == NONE):
            entry, spec = self.study.distill[cell.stage1], self.datasets[cell.dataset]
            settings = entry.at(cell.dataset, cell.ipc)
            phase.jobs += 1
            phase.images += cell.ipc * len(spec.classes)
            phase.stored += cell.ipc * len(spec.classes) * self._pixels(cell.dataset) * FLOAT
            name = settings.get("experts") or ""
            if name and "/" not in name:
                experts.add((cell.dataset, name))
            phase.add(self._stage1(cell, entry.method, settings, phase))
        for dataset, name in sorted(experts):
            self._experts(dataset, name)
        wanted = {d for d in self.study.datasets if self._wants_teacher(d)}
        for dataset in sorted(wanted):
            self._train_teacher(dataset)

    def _wants_teacher(self, dataset: str) -> bool:
        """Whether the workflow trains a dataset's teacher: for methods, students, or the measures of the images."""
        teacher = self.study.teacher_at(dataset)
        return teacher is not None and teacher.source == "trained"

    def _train_teacher(self, dataset: str) -> None:
        phase, teacher, spec = self.phases["teachers"], self.study.teacher_at(dataset), self.datasets[dataset]
        assert teacher is not None and teacher.network is not None
        train, test = self._images(dataset, phase)
        macs, parameters = network_cost(teacher.network, teacher.options, spec)
        epochs = by_ipc(teacher.protocol.epochs, max(1, train // len(spec.classes)), "teacher.protocol.epochs")
        phase.jobs += 1
        phase.add((epochs * train * TRAIN + test) * macs, teacher.protocol.precision)
        phase.stored += parameters * FLOAT

    def _experts(self, dataset: str, name: str) -> None:
        phase, spec = self.phases["experts"], self.datasets[dataset]
        one = self.study.all_experts()[name].at(dataset)
        macs, parameters = network_cost("convnet", {"width": one["width"], "depth": one["depth"]}, spec)
        train = self._images(dataset, phase)[0]
        # GSAM takes two gradients a step.
        passes = TRAIN * (2 if one["optimizer"] == "gsam" else 1)
        phase.jobs += 1
        phase.add(one["count"] * one["epochs"] * train * passes * macs)
        phase.stored += one["count"] * (one["epochs"] + 1) * parameters * FLOAT

    def _stage1(self, cell: SetCell, method: str, settings: dict[str, Any], phase: Phase) -> float:
        """Multiply-adds of making a stage-1 set."""
        spec = self.datasets[cell.dataset]
        classes, made = len(spec.classes), cell.ipc * len(spec.classes)
        if method in ("random", "released"):
            return 0.0
        if method in ("herding", "k_center", "k_means"):
            train = self._images(cell.dataset, phase)[0]
            return train * self._teacher(cell.dataset, phase) if settings["encoder"] == distill.TEACHER else 0.0
        if method in ("dm", "dc", "dsa"):
            macs = network_cost("convnet", {"width": settings["width"], "depth": settings["depth"]}, spec)[0]
            real = classes * settings["batch_real"]
            if method == "dm":
                return float(settings["iterations"] * (real + made * TRAIN) * macs)
            outer, inner = distill.SETTINGS[method](**settings).loops(cell.ipc)  # type: ignore[attr-defined]
            trained = max(0, outer - 1) * inner * made * TRAIN
            return float(settings["iterations"] * (outer * (real * TRAIN + made * TWICE) + trained) * macs)
        if method in ("mtt", "edf"):
            known = self.study.all_experts()
            if settings["experts"] not in known:
                phase.leave_out(f"{cell.stage1}: the networks of {settings['experts']} are not read")
                return 0.0
            one = known[settings["experts"]].at(cell.dataset)
            macs = network_cost("convnet", {"width": one["width"], "depth": one["depth"]}, spec)[0]
            batch = min(made, settings["batch_syn"] or made)
            return float(settings["iterations"] * settings["syn_steps"] * batch * TWICE * macs)
        if method in ("sre2l", "rded"):
            given = settings["teacher"]
            known_name = given.startswith("timm:")
            macs = network_cost(given, {}, spec)[0] if known_name else self._teacher(cell.dataset, phase)
            if method == "rded":
                return float(settings["candidates"] * settings["crops"] * classes * macs)
            return float(settings["iterations"] * made * TRAIN * macs)
        phase.leave_out(f"operations of {method}: not counted")
        return 0.0

    def _recover(self) -> None:
        phase, precision = self.phases["recover"], self.study.prior.precision
        for cell in (cell for cell in self.sets if cell.stage2 != NONE):
            entry, spec = self.study.recover[cell.stage2], self.datasets[cell.dataset]
            settings = entry.full(cell.stage1)
            shards = min(self.study.shards_at(cell.dataset), len(spec.classes))
            phase.jobs += shards + (shards > 1)
            made = cell.ipc * len(spec.classes)
            phase.images += made
            cost = prior_cost(self.study, cell.dataset, self.rates, self.root)
            if cost is None:
                phase.leave_out(f"prior {self.study.prior.source}: its operations are not known and it is not here")
                continue
            passes, around, size = cost
            pieces = made * settings["tiles"] ** 2
            count = chain_passes(entry.method, settings, cell.ipc)
            phase.add(pieces * (count * passes + around), "bf16" if precision != "fp32" else "fp32")
            out = settings["output_size"] or size
            phase.stored += made * spec.channels * out**2 * FLOAT * (2 if shards > 1 else 1)

    def _student(self, protocol: Protocol, images: int, ipc: int, tests: int, macs: float, classes: int) -> float:
        """Multiply-adds of training and testing one student."""
        used = protocol.at(classes)
        epochs = by_ipc(used.epochs, ipc, "students.protocol.epochs") + used.extra_epoch
        looks = (
            used.evaluations
            if used.test_every is None
            else max(1, round(epochs * (1 - used.test_after)) // used.test_every)
        )
        passes = TRAIN + used.double_forward
        return (epochs * images * passes + looks * tests) * macs

    def _students(self) -> None:
        phase, answers = self.phases["students"], self.phases["answers"]
        for cell in student_cells(self.study):
            dataset, ipc = cell.set.dataset, cell.set.ipc
            spec, students = self.datasets[dataset], self.study.students_at(dataset)
            images, tests = ipc * len(spec.classes), self._images(dataset, phase)[1]
            phase.jobs += 1
            for name in student_groups(self.study, dataset)[cell.group]:
                one = students.architectures[name]
                macs = network_cost(one.network, one.options, spec)[0]
                own = self._student(students.protocol, images, ipc, tests, macs, len(spec.classes))
                if students.protocol.labels == "teacher":
                    epochs = by_ipc(students.protocol.epochs, ipc, "students.protocol.epochs")
                    own += epochs * images * self._teacher(dataset, phase)
                phase.add(len(students.seeds) * own, students.protocol.precision)
                phase.stored += len(students.seeds) * ROW
        for made in self.sets:
            spec, students = self.datasets[made.dataset], self.study.students_at(made.dataset)
            if students.protocol.labels != "replay":
                continue
            epochs = by_ipc(students.protocol.epochs, made.ipc, "students.protocol.epochs")
            seen = epochs * made.ipc * len(spec.classes)
            scales = [MATCHED] + [AS_PUBLISHED] * (made.stage2 in students.as_published.get(made.stage1, []))
            for _ in scales:
                answers.jobs += 1
                answers.add(seen * self._teacher(made.dataset, answers))
                # Logits in half precision, and each image's crop, flip and mix.
                answers.stored += seen * (len(spec.classes) * 2 + 20)
        for dataset, group in full_cells(self.study):
            students, spec = self.study.students_at(dataset), self.datasets[dataset]
            full, (train, tests) = students.full_data, self._images(dataset, phase)
            assert full is not None
            phase.jobs += 1
            for name in student_groups(self.study, dataset)[group]:
                one = students.architectures[name]
                macs = network_cost(one.network, one.options, spec)[0]
                ipc = max(1, train // len(spec.classes))
                own = self._student(full.protocol, train, ipc, tests, macs, len(spec.classes))
                phase.add(len(full.seeds or students.seeds) * own, full.protocol.precision)


RATE_KEYS = ("label", "assumed", "source", "reached", "flop_per_second", "utilisation", "parallel")
# Phases whose rate is another's.
RATE_OF = {"experts": "distill", "answers": "recover"}


def seconds(phase: Phase, device: Mapping[str, Any]) -> float | None:
    """Seconds of a phase on a device, one job after another; None where there is nothing to reckon with."""
    if not phase.macs:
        return None
    name = RATE_OF.get(phase.name, phase.name)
    if "reached" in device:
        return 2 * sum(phase.macs.values()) / device["reached"][name]
    share = device["utilisation"][name]
    return sum(2 * macs / (device["flop_per_second"][kind] * share) for kind, macs in phase.macs.items())


def published_seconds(estimate: Estimate, device: Mapping[str, Any]) -> float | None:
    """Seconds of the recovery by a published rate of a whole chain; None if there is none for the prior."""
    known = device.get("published", {}).get("seconds_per_image")
    if known is None or known["prior"] != estimate.study.prior.source:
        return None
    cost = estimate.rates["priors"][known["prior"]]
    each = 2 * known["steps"] * cost["pass"] + cost["autoencoder"]
    return known["seconds"] * sum(estimate.phases["recover"].macs.values()) / each


def reckon(estimate: Estimate, names: Iterable[str]) -> dict[str, Any]:
    """The estimate as plain data: phases with jobs, operations, bytes, and hours on each device."""
    devices = {name: estimate.rates["devices"][name] for name in names}
    rows = []
    for phase in estimate.phases.values():
        hours = {}
        for name, device in devices.items():
            found = seconds(phase, device)
            hours[name] = None if found is None else found / 3600 / device["parallel"]
        rows.append(
            {
                "phase": phase.name,
                "jobs": phase.jobs,
                "images": phase.images,
                "macs": sum(phase.macs.values()),
                "bytes": phase.stored,
                "hours": hours,
                "left_out": phase.unknown,
            }
        )
    told = {}
    for name, device in devices.items():
        told[name] = {key: device[key] for key in RATE_KEYS if key in device}
        published = published_seconds(estimate, device)
        if published is not None:
            told[name]["recover_by_published_rate_hours"] = published / 3600
            told[name]["published"] = device["published"]
    return {"study": estimate.study.name, "phases": rows, "devices": told}


def _size(count: float) -> str:
    unit = next((unit for unit in ("GB", "MB") if count >= UNITS[unit]), "MB")
    return f"{count / UNITS[unit]:,.1f} {unit}" if count else ""


def _hours(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def shown(found: Mapping[str, Any]) -> str:
    """An estimate as a table with what it rests on."""
    devices = found["devices"]
    head = ["phase", "jobs", "images", "TMAC", "disk", *(f"hours, {name}" for name in devices)]
    lines = [head]
    for row in found["phases"]:
        hours = [_hours(row["hours"][name]) for name in devices]
        numbers = [
            f"{row['jobs']:,}",
            f"{row['images'] or '':,}" if row["images"] else "",
            f"{row['macs'] / 1e12:,.0f}",
        ]
        lines.append([row["phase"], *numbers, _size(row["bytes"]), *hours])
    totals = [sum(row["hours"][name] or 0 for row in found["phases"]) for name in devices]
    jobs, macs, stored = (sum(row[key] for row in found["phases"]) for key in ("jobs", "macs", "bytes"))
    lines.append(["total", f"{jobs:,}", "", f"{macs / 1e12:,.0f}", _size(stored), *map(_hours, totals)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    cells = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    ]
    text = ["  ".join(words).rstrip() for words in cells]
    for name, device in devices.items():
        kind = "ASSUMED rate" if device["assumed"] else "rate"
        asked = "reached" if "reached" in device else "utilisation"
        shares = ", ".join(f"{phase} {share:.3g}" for phase, share in device[asked].items())
        text.append(f"{name} ({device['label']}): {kind}: {device['source']}; {asked}: {shares}")
        if "published" in device:
            whole, source = _hours(device["recover_by_published_rate_hours"]), device["published"]["source"]
            seconds_each = device["published"]["seconds_per_image"]["seconds"]
            text.append(f"{name}: recover takes {whole} hours at the published {seconds_each} s an image ({source})")
    for row in found["phases"]:
        text += [f"left out of {row['phase']}: {what}" for what in row["left_out"]]
    return "\n".join(text)
