"""The operations, jobs and bytes of each phase of a study, counted from its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diver.config import distill
from diver.config.protocols import Protocol, by_ipc
from diver.config.study import NONE, Study
from diver.cost.counting import TRAIN, TWICE, PriorCost, counts, network_cost, prior_cost, trained_prior
from diver.cost.systems import guided, preparation_macs, synthesis_passes
from diver.data.spec import DatasetSpec
from diver.study import (
    AS_PUBLISHED,
    MATCHED,
    SetCell,
    artefact_paths,
    full_cells,
    set_cells,
    student_cells,
    student_groups,
)

FLOAT = 4
# Bytes of a student's row in the tables, as CSV.
ROW = 700
# Samples of a class by which a trained prior is judged, with guidance (two passes a step) and without.
JUDGED = 50


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


def chain_passes(method: str, settings: Mapping[str, Any], ipc: int) -> int:
    """Passes of the prior's network that a stage-2 method makes for one image."""
    if method == "vae":
        return 0
    if method == "predd":
        steps = settings["by_ipc"].get(str(ipc), [0, settings["reverse_t"]])[1]
    else:
        steps = settings.get("t_r") or int(settings["respacing"].removeprefix("ddim"))
    return guided(settings) * steps


class Estimate:
    """The phases of a study, counted."""

    def __init__(self, study: Study, datasets: Mapping[str, DatasetSpec], rates: Mapping[str, Any], root: Path) -> None:
        self.study, self.datasets, self.rates, self.root = study, datasets, rates, root
        names = (
            "data",
            "prior",
            "teachers",
            "experts",
            "systems",
            "distill",
            "recover",
            "answers",
            "students",
            "report",
        )
        self.phases = {name: Phase(name) for name in names}
        self.sets = list(set_cells(study))
        self.prepared = set[Path]()
        self._data()
        self._prior()
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

    def _prior(self) -> None:
        """Count the training of each dataset's prior, and its judgement."""
        phase, choice = self.phases["prior"], self.study.prior
        if choice.source != "trained":
            return
        phase.leave_out("hours on a GPU: a prior is trained on the CPU, wherever the study runs")
        for dataset in self.study.datasets:
            cost, parameters = trained_prior(self.study, self.datasets[dataset])
            train, test = self._images(dataset, phase)
            both, samples = cost.encode + cost.decode, JUDGED * len(self.datasets[dataset].classes)
            phase.jobs += 3
            phase.add(choice.vae.steps * choice.vae.batch * TRAIN * both, choice.vae.precision)
            phase.add(choice.dit.steps * choice.dit.batch * TRAIN * cost.passes, choice.dit.precision)
            # Latents of the images and of their mirror images; test images there and back; samples of 50 steps.
            phase.add(2 * train * cost.encode + test * both)
            phase.add(samples * (3 * 50 * cost.passes + 2 * cost.decode))
            phase.stored += parameters * 2

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
            if entry.is_native():
                self._system(cell, entry.method, settings, phase)
            else:
                for precision, macs in self._stage1(cell, entry.method, settings, phase):
                    phase.add(macs, precision)
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
        phase.add(one["count"] * one["epochs"] * train * passes * macs, one["precision"])
        phase.stored += one["count"] * (one["epochs"] + 1) * parameters * FLOAT

    def _stage1(self, cell: SetCell, method: str, settings: dict[str, Any], phase: Phase) -> list[tuple[str, float]]:
        """Multiply-adds of making a stage-1 set, by precision."""
        spec, full = self.datasets[cell.dataset], "fp32"
        classes, made = len(spec.classes), cell.ipc * len(spec.classes)
        if method in ("random", "released"):
            return []
        if method in ("herding", "k_center", "k_means"):
            train = self._images(cell.dataset, phase)[0]
            return (
                [(full, train * self._teacher(cell.dataset, phase))] if settings["encoder"] == distill.TEACHER else []
            )
        if method in ("dm", "dc", "dsa"):
            macs = network_cost("convnet", {"width": settings["width"], "depth": settings["depth"]}, spec)[0]
            macs *= settings["iterations"]
            real = classes * settings["batch_real"]
            if method == "dm":
                return [(settings["precision"], real * macs), (full, made * TRAIN * macs)]
            config = distill.DCConfig(**settings)
            outer, inner = config.loops(cell.ipc)
            own = outer * made * TWICE + max(0, outer - 1) * inner * made * TRAIN
            share = 1 + config.extra_network / config.iterations
            return [(config.precision, share * outer * real * TRAIN * macs), (full, share * own * macs)]
        if method in ("mtt", "edf"):
            known = self.study.all_experts()
            if settings["experts"] not in known:
                phase.leave_out(f"{cell.stage1}: the networks of {settings['experts']} are not read")
                return []
            one = known[settings["experts"]].at(cell.dataset)
            macs = network_cost("convnet", {"width": one["width"], "depth": one["depth"]}, spec)[0]
            batch = min(made, settings["batch_syn"] or made)
            return [(settings["precision"], settings["iterations"] * settings["syn_steps"] * batch * TWICE * macs)]
        if method in ("sre2l", "rded"):
            given = settings["teacher"]
            known_name = given.startswith("timm:")
            macs = network_cost(given, {}, spec)[0] if known_name else self._teacher(cell.dataset, phase)
            if method == "rded":
                return [(full, settings["candidates"] * settings["crops"] * classes * macs)]
            return [(full, settings["iterations"] * made * TRAIN * macs)]
        phase.leave_out(f"operations of {method}: not counted")
        return []

    def _cost_of_prior(self, dataset: str, phase: Phase) -> PriorCost | None:
        cost = prior_cost(self.study, self.datasets[dataset], self.rates, self.root)
        if cost is None:
            phase.leave_out(f"prior {self.study.prior.source}: its operations are not known and it is not here")
        return cost

    def _precision(self) -> str:
        return "bf16" if self.study.prior.precision != "fp32" else "fp32"

    def _system(self, cell: SetCell, method: str, settings: dict[str, Any], phase: Phase) -> None:
        """Count a diffusion-native system's images, and in its own phase what they are made from."""
        cost = self._cost_of_prior(cell.dataset, phase)
        if cost is None:
            return
        preparing, spec, precision = self.phases["systems"], self.datasets[cell.dataset], self._precision()
        per_class = self._images(cell.dataset, preparing)[0] // len(spec.classes)
        encoded = min(per_class, self.study.preparations.latents.per_class or per_class)
        for name, path in artefact_paths(self.study, cell).items():
            if path in self.prepared:
                continue
            self.prepared.add(path)
            preparing.jobs += 1
            macs, left_out = preparation_macs(name, settings, len(spec.classes), encoded, cost)
            preparing.add(macs, precision)
            if left_out:
                preparing.leave_out(left_out)
        each = synthesis_passes(method, settings) * cost.passes + cost.decode
        phase.add(cell.ipc * len(spec.classes) * each, precision)

    def _recover(self) -> None:
        phase = self.phases["recover"]
        for cell in (cell for cell in self.sets if cell.stage2 != NONE):
            entry, spec = self.study.recover[cell.stage2], self.datasets[cell.dataset]
            settings = entry.full(cell.stage1)
            shards = min(self.study.shards_at(cell.dataset), len(spec.classes))
            phase.jobs += shards + (shards > 1)
            made = cell.ipc * len(spec.classes)
            phase.images += made
            cost = self._cost_of_prior(cell.dataset, phase)
            if cost is None:
                continue
            count = chain_passes(entry.method, settings, cell.ipc)
            each = count * cost.passes + cost.encode + cost.decode
            phase.add(made * settings["tiles"] ** 2 * each, self._precision())
            out = settings["output_size"] or cost.size
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
                    epochs = by_ipc(students.protocol.at(len(spec.classes)).epochs, ipc, "students.protocol.epochs")
                    own += epochs * images * self._teacher(dataset, phase)
                phase.add(len(students.seeds) * own, students.protocol.precision)
                phase.stored += len(students.seeds) * ROW
        for made in self.sets:
            spec, students = self.datasets[made.dataset], self.study.students_at(made.dataset)
            if students.protocol.labels != "replay":
                continue
            epochs = by_ipc(students.protocol.at(len(spec.classes)).epochs, made.ipc, "students.protocol.epochs")
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
