"""A whole study: one YAML file."""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from diver.config import distill, distill_presets, native
from diver.config.base import ConfigError, Model, nearest
from diver.config.entries import DistillEntry, ExpertsEntry, RecoverDeparture, RecoverEntry, Restricted, sweep_points
from diver.config.mending import Faults, mended
from diver.config.prior import PriorChoice
from diver.config.protocols import by_ipc
from diver.config.report import TABLE_NAME, UNSEEN_MEAN, Report
from diver.config.students import Architecture, Students, StudentsDeparture, Teacher

NONE = "none"
# Names that stand for something in paths and tables.
TAKEN = {"distill": "full", "recover": NONE}
# Names are parts of paths, of the workflow's patterns and of its wildcards.
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
# Parts of the evaluation that may differ by dataset.
_DEPARTING = ("protocol", "seeds", "architectures", "as_published")


class Study(Model):
    """A study: datasets x IPC x stage 1 x stage 2 x students."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Folder of the results.")
    datasets: list[str] = Field(min_length=1, description="Names of the files in config/datasets.")
    ipc: list[int] = Field(min_length=1, description="Images per class.")
    ipc_of: dict[str, list[int]] = Field({}, description="Images per class of datasets that differ.")
    prior: PriorChoice = Field(description="The autoencoder and diffusion transformer.")
    distill: dict[str, DistillEntry] = Field(min_length=1, description="Stage-1 sets by short name.")
    preparations: native.Preparations = Field(
        native.Preparations(), description="What the diffusion-native systems share."
    )
    recover: dict[str, RecoverEntry] = Field({}, description="Stage-2 treatments by short name.")
    shards: int = Field(
        1, ge=1, description="Jobs that a recovery is divided into, by ranges of classes: one per GPU for a large set."
    )
    shards_of: dict[str, int] = Field({}, description="Jobs of a recovery for datasets that differ.")
    gpus: int = Field(
        1,
        ge=0,
        description="GPUs of each job that computes on one. With 1, a machine without any runs it on its CPU; 0 keeps "
        "every job on the CPU, and asks a cluster for none.",
    )
    experts: dict[str, ExpertsEntry] = Field(
        {},
        description="Expert trajectories by short name; the published ones (plain, zca, edf, edf-zca) need no entry.",
    )
    teacher: Teacher | None = Field(None, description="For soft-label protocols and as the encoder of coresets.")
    teacher_of: dict[str, Teacher | None] = Field(
        {}, description="Teachers of datasets that differ; null for one that has none."
    )
    students: Students = Field(description="The evaluation.")
    students_of: dict[str, StudentsDeparture] = Field({}, description="Departures of the evaluation by dataset.")
    report: Report = Field(Report(), description="Tables and figures.")

    @model_validator(mode="before")
    @classmethod
    def _sweeps(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("recover"), dict):
            points, faults = sweep_points(given["recover"])
            if faults:
                raise Faults(faults)
            return {**given, "recover": points}
        return given

    @field_validator("ipc")
    @classmethod
    def _positive(cls, value: list[int]) -> list[int]:
        if min(value) < 1:
            raise ValueError("an IPC is at least 1")
        return value

    def sweeps(self) -> dict[str, list[str]]:
        """Points of each sweep, in order."""
        families: dict[str, list[str]] = {}
        for name, entry in self.recover.items():
            if entry.swept:
                families.setdefault(entry.swept, []).append(name)
        return families

    def ipcs(self, dataset: str) -> list[int]:
        """Images per class of a dataset."""
        return self.ipc_of.get(dataset, self.ipc)

    def _all_ipcs(self) -> list[str]:
        """Images per class of any dataset, as names."""
        return list(dict.fromkeys(str(ipc) for dataset in self.datasets for ipc in self.ipcs(dataset)))

    def places(self, entry: Restricted) -> Iterator[tuple[str, int]]:
        """Datasets and IPCs that an entry is for."""
        for dataset in self.datasets:
            for ipc in self.ipcs(dataset):
                if entry.covers(dataset, ipc):
                    yield dataset, ipc

    def treats(self, stage2: str, stage1: str, dataset: str, ipc: int) -> bool:
        """Whether a stage-2 entry is applied to a stage-1 set."""
        entry = self.recover[stage2]
        return (entry.applies_to is None or stage1 in entry.applies_to) and entry.covers(dataset, ipc)

    def teacher_at(self, dataset: str) -> Teacher | None:
        """A dataset's teacher."""
        return self.teacher_of.get(dataset, self.teacher)

    def shards_at(self, dataset: str) -> int:
        """Jobs of a recovery for a dataset."""
        return self.shards_of.get(dataset, self.shards)

    @cached_property
    def _students(self) -> dict[str, Students]:
        found = {}
        for dataset in self.datasets:
            own = self.students_of.get(dataset, StudentsDeparture())
            kept = {key: value for key in _DEPARTING if (value := getattr(own, key)) is not None}
            kept |= {} if own.full_data else {"full_data": None}
            found[dataset] = self.students.model_copy(update=kept) if kept else self.students
        return found

    def students_at(self, dataset: str) -> Students:
        """A dataset's evaluation."""
        return self._students[dataset]

    def all_architectures(self) -> dict[str, Architecture]:
        """Students of all datasets by short name."""
        return {name: one for dataset in self.datasets for name, one in self.students_at(dataset).architectures.items()}

    def faults(self, known: Mapping[str, list[str]], taken: set[str]) -> list[str]:
        """What is wrong across sections, a line each.

        `known`: the names of the entries by section, with those that are refused for themselves; `taken`: keys that
        were, of which nothing more is said.
        """
        faults: list[str] = []
        known2 = [*known["recover"], NONE]

        def refer(key: str, names: list[str], valid: list[str]) -> None:
            faults.extend(f"{key}: unknown {name!r}; {nearest(name, valid)}" for name in names if name not in valid)

        for section in ("ipc_of", "teacher_of", "students_of", "shards_of"):
            refer(section, list(getattr(self, section)), self.datasets)
        for dataset, ipcs in self.ipc_of.items():
            if not ipcs or min(ipcs) < 1:
                faults.append(f"ipc_of.{dataset}: at least one IPC, each at least 1")
        lists: dict[str, list[Any]] = {"datasets": self.datasets, "ipc": self.ipc}
        lists |= {f"ipc_of.{dataset}": ipcs for dataset, ipcs in self.ipc_of.items()}
        for key, given in lists.items():
            twice = [str(one) for one in dict.fromkeys(given) if given.count(one) > 1]
            if twice:
                faults.append(f"{key}: {', '.join(twice)} is given twice; once is enough")
        for dataset, shards in self.shards_of.items():
            if shards < 1:
                faults.append(f"shards_of.{dataset}: at least 1 (given: {shards})")
        entries: dict[str, Restricted] = {f"distill.{name}": entry for name, entry in self.distill.items()}
        entries |= {f"recover.{name}": entry for name, entry in self.recover.items()}
        for key, entry in entries.items():
            refer(f"{key}.datasets", entry.datasets or [], self.datasets)
            if set(entry.datasets or self.datasets) <= set(self.datasets) and not any(self.places(entry)):
                faults.append(f"{key}.ipc: {entry.ipc} is no IPC of its datasets, so it is for nothing")
        for name, one in self.distill.items():
            refer(f"distill.{name}.by_dataset", list(one.by_dataset), self.datasets)
            if one.by_ipc and not {*map(str, one.by_ipc)} & {*self._all_ipcs()}:
                there, asked = ", ".join(map(str, one.by_ipc)), ", ".join(self._all_ipcs())
                faults.append(f"distill.{name}.by_ipc: {there} are none of the study's IPCs; give some of {asked}")
        for name, two in self.recover.items():
            refer(f"recover.{name}.applies_to", two.applies_to or [], known["distill"])
            refer(f"recover.{name}.by_stage1", list(two.by_stage1), known["distill"])
        published = {"students": self.students.as_published}
        published |= {f"students_of.{name}": own.as_published or {} for name, own in self.students_of.items()}
        for key, pairs in published.items():
            refer(f"{key}.as_published", list(pairs), known["distill"])
            for stage1, names in pairs.items():
                refer(f"{key}.as_published.{stage1}", names, known2)
        refer("report.ladder", self.report.ladder, known2)
        refer("report.gallery", self.report.gallery, known2)
        refer("report.ladder_of", [self.report.ladder_of] if self.report.ladder_of else [], known["distill"])
        refer("report.phases_of", [self.report.phases_of] if self.report.phases_of else [], known["recover"])
        phases = self.recover.get(self.report.phases_of or "")
        if phases is not None and phases.method != "diver":
            faults.append(f"report.phases_of: {self.report.phases_of} is of {phases.method}; take one of method diver")
        faults += self._table_faults()
        faults += self._name_faults()
        for section, name in TAKEN.items():
            if name in getattr(self, section):
                faults.append(f"{section}.{name}: the name stands for something else; choose another")
        faults += self._stage1_faults(known["experts"])
        faults += self._predd_faults()
        faults += self._evaluation_faults()
        if not any(key.startswith("teacher") for key in taken):
            faults += self._teacher_faults()
        if not any(key.startswith("students") for key in taken):
            faults += self._role_faults()
            rates = self.students.full_data.learning_rate if self.students.full_data is not None else {}
            refer("students.full_data.learning_rate", list(rates), list(self.all_architectures()))
        return list(dict.fromkeys(faults))

    def _evaluation_faults(self) -> list[str]:
        """Datasets and IPCs for which a protocol has no epochs or batch.

        Keys that depend on the number of classes are examined where that is known (`diver.checks`).
        """
        faults = []
        for dataset in self.datasets:
            own = self.students_of.get(dataset)
            owner = f"students_of.{dataset}" if own is not None and own.protocol is not None else "students"
            protocol = self.students_at(dataset).protocol
            changed = {key for changes in protocol.by_classes.values() for key in changes}
            for key in (key for key in ("epochs", "batch") if key not in changed):
                for ipc in self.ipcs(dataset):
                    try:
                        by_ipc(getattr(protocol, key), ipc, f"{owner}.protocol.{key}")
                    except ValueError as fault:
                        faults.append(str(fault))
        return faults

    def _role_faults(self) -> list[str]:
        """Evaluations that are left with proxies alone."""
        faults = []
        for dataset in self.datasets:
            own = self.students_of.get(dataset)
            owner = f"students_of.{dataset}" if own is not None and own.architectures is not None else "students"
            if all(one.role == "proxy" for one in self.students_at(dataset).architectures.values()):
                faults.append(
                    f"{owner}.architectures: all are proxies, and the tables' means are over unseen ones; give one "
                    "without role: proxy"
                )
        return faults

    def _teacher_faults(self) -> list[str]:
        """Protocols and stage-1 entries that want a teacher where there is none, or one that has no file."""
        faults = []
        for dataset in self.datasets:
            encoded = [name for name in self.distill if self.uses_teacher(name, dataset)]
            protocol, teacher = self.students_at(dataset).protocol, self.teacher_at(dataset)
            wants = [*encoded, protocol.name] if protocol.needs_teacher() else encoded
            of = f" for {dataset}" if self.teacher_of else ""
            key = f"teacher_of.{dataset}" if of else "teacher"
            if teacher is None:
                faults += [
                    f"{name} needs a teacher{of}: add `{key}:` with `network:` to have it trained on the training set "
                    "by the workflow, or with `source:` for a file of weights or timm:NAME"
                    for name in wants
                ]
            if encoded and teacher is not None and teacher.source.startswith("timm:"):
                faults.append(
                    f"distill.{encoded[0]}: a teacher of timm{of} has no file; give the path of a network's file"
                )
        return faults

    def _name_faults(self) -> list[str]:
        """Names of entries and architectures that no path or pattern can hold."""
        named: dict[str, Mapping[str, Any]] = {key: getattr(self, key) for key in ("distill", "recover", "experts")}
        named["students.architectures"] = self.students.architectures
        for dataset, own in self.students_of.items():
            named[f"students_of.{dataset}.architectures"] = own.architectures or {}
        return [
            f"{key}: {name!r} is no name; take letters, digits, '.', '_' and '-', a letter or digit first"
            for key, names in named.items()
            for name in names
            if not re.fullmatch(NAME, name)
        ]

    def _table_faults(self) -> list[str]:
        """What is wrong with the names of the report's tables and in them."""
        architectures = [UNSEEN_MEAN, *self.all_architectures()]
        known = {
            "datasets": self.datasets,
            "ipc": self._all_ipcs(),
            "stage1": list(self.distill),
            "stage2": [NONE, *self.recover],
            "architectures": architectures,
            "published_architectures": architectures,
        }
        faults = []
        for name, table in self.report.tables.items():
            if not re.match(TABLE_NAME, name):
                faults.append(f"report.tables.{name}: a table's name is table_ and lower-case letters, digits or _")
            faults += table.faults(f"report.tables.{name}", known)
        return faults

    def _stage1_faults(self, experts: list[str]) -> list[str]:
        """What is wrong with a stage-1 entry at some dataset and IPC."""
        faults = []
        for name, entry in self.distill.items():
            for dataset, ipc in self.places(entry):
                try:
                    settings = entry.at(dataset, ipc)
                except Faults as found:
                    faults += [f"distill.{name}: {line}" for line in found.lines]
                    continue
                except ValueError as fault:
                    faults.append(f"distill.{name}: {fault}")
                    continue
                if entry.method == "released" and not settings["path"]:
                    key = f"distill.{name}.by_ipc.{ipc}.path"
                    faults.append(f"{key}: a released set needs its file; give a path for each IPC")
                wanted = settings.get("experts")
                if wanted is not None and "/" not in wanted and wanted not in experts:
                    faults.append(
                        f"distill.{name}.settings.experts: unknown {wanted!r}; "
                        f"{nearest(wanted, experts)}, or a folder of experts with a / in its path"
                    )
        return faults

    def _predd_faults(self) -> list[str]:
        """Sets that PReDD has no noise level for."""
        faults = []
        for name, entry in self.recover.items():
            if entry.method != "predd":
                continue
            for stage1, one in self.distill.items():
                settings, own = entry.full(stage1), entry.by_stage1.get(stage1, RecoverDeparture())
                if not settings["by_ipc"] or {"forward_t", "reverse_t"} <= {*entry.settings, *own.settings}:
                    continue
                for dataset, ipc in self.places(one):
                    if self.treats(name, stage1, dataset, ipc) and str(ipc) not in settings["by_ipc"]:
                        faults.append(
                            f"recover.{name}.settings.by_ipc: no levels for IPC {ipc} ({stage1}); add "
                            f"{ipc}: [forward_t, reverse_t], or restrict the entry by `ipc:` or `datasets:` "
                            f"(known: IPC {', '.join(settings['by_ipc'])})"
                        )
        return faults

    def departures(self, entry: DistillEntry, dataset: str, ipc: int) -> list[str]:
        """Settings of a stage-1 entry and its experts that differ from the published ones: "key value (published)".

        Coresets are published without the name of the network that encodes the images.
        """
        if (encoder := self._encoder(entry, dataset, ipc)) is not None:
            return [f"encoder {encoder} (not named)"]
        if entry.method not in distill_presets.PUBLISHED:
            return []
        mine, theirs = entry.at(dataset, ipc), DistillEntry(method=entry.method, label="", preset="published")
        try:
            pairs = [("", mine, theirs.at(dataset, ipc))]
        except ValueError:
            return ["no published settings for the dataset and IPC"]
        name = mine.get("experts", "")
        if name in self.all_experts():
            wanted = ExpertsEntry(preset=pairs[0][2]["experts"])
            pairs.append(("experts' ", self.all_experts()[name].at(dataset), wanted.at(dataset)))
        return [
            f"{owner}{key} {ours[key]} ({published[key]})"
            for owner, ours, published in pairs
            for key in published
            if ours[key] != published[key] and key not in ("seed", "experts")
        ]

    def _encoder(self, entry: DistillEntry, dataset: str, ipc: int) -> str | None:
        """What a coreset's images are encoded by: the network's name where it is the study's teacher."""
        source = entry.at(dataset, ipc).get("encoder") if entry.method in distill.CORESETS else None
        teacher = self.teacher_at(dataset)
        return str(teacher.network or teacher.source) if source == distill.TEACHER and teacher else source

    def uses_teacher(self, name: str, dataset: str) -> bool:
        """Whether a stage-1 entry asks for the study's teacher on a dataset; not, if its settings are refused."""
        for place, ipc in self.places(self.distill[name]):
            if place != dataset:
                continue
            try:
                settings = self.distill[name].at(dataset, ipc)
            except ValueError:
                continue
            if any(settings.get(key) == distill.TEACHER for key in distill.NETWORKS):
                return True
        return False

    def all_experts(self) -> dict[str, ExpertsEntry]:
        """Experts that stage-1 entries may name: the published ones and the study's."""
        return {**{name: ExpertsEntry(preset=name) for name in distill_presets.EXPERTS}, **self.experts}


def examine(raw: dict[str, Any]) -> tuple[Study | None, list[str]]:
    """A study and everything that is wrong with it, a line each.

    With faults, the study is what is left of it, for whoever looks for more; None if that is too little.
    """
    content, lines = dict(raw), list[str]()
    sections = {name: raw.get(name) for name in ("distill", "recover", "experts")}
    if isinstance(sections["recover"], dict):
        content["recover"], lines = sweep_points(sections["recover"])
        sections["recover"] = {**sections["recover"], **content["recover"]}
    study, refused, taken = mended(Study, content)
    lines += refused
    if study is not None:
        known = {name: list(entries) if isinstance(entries, dict) else [] for name, entries in sections.items()}
        known["experts"] = list(dict.fromkeys([*study.all_experts(), *known["experts"]]))
        lines += study.faults(known, taken)
    return study, list(dict.fromkeys(lines))


def refusal(source: str, lines: list[str]) -> ConfigError:
    """The one message about all faults."""
    return ConfigError("\n".join([f"{source} is refused:", *(f"  {line}" for line in lines)]))


def parse_study(raw: dict[str, Any], source: str) -> Study:
    """Validate a loaded configuration. Raises ConfigError that lists every fault, one a line."""
    study, faults = examine(raw)
    if faults or study is None:
        raise refusal(source, faults)
    return study


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A study's YAML. Raises ConfigError if the file is missing, not YAML or no mapping."""
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a study is a mapping, this is a {type(raw).__name__}")
    return raw


def load_study(path: str | Path) -> Study:
    """Read and validate a study's YAML. Raises ConfigError, also when the file is missing or not YAML."""
    return parse_study(read_yaml(path), str(path))
