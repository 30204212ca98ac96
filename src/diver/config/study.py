"""A whole study: one YAML file."""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from diver.config import distill, distill_presets, recover
from diver.config.base import ConfigError, Model, nearest
from diver.config.prior import PriorChoice
from diver.config.protocols import by_ipc
from diver.config.report import TABLE_NAME, UNSEEN_MEAN, Report
from diver.config.students import Students, Teacher

NONE = "none"
# Names that stand for something in paths and tables.
TAKEN = {"distill": "full", "recover": NONE}


def _checked(settings: dict[str, Any], method: str, models: dict[str, type[Any]]) -> dict[str, Any]:
    if method not in models:
        raise ValueError(f"unknown method {method!r}; {nearest(method, list(models))}")
    try:
        return models[method](**settings).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError("; ".join(_faults(error, models[method]))) from error


class DistillEntry(Model):
    """A stage-1 set of the study."""

    method: str = Field(description="Name in the registry of stage-1 methods.")
    label: str = Field(description="Name in tables and figures.")
    published: str | None = Field(None, description="Name in the file of published numbers; the label when left out.")
    preset: Literal["published"] | None = Field(
        None, description="published: start from the method's published settings for the dataset and IPC."
    )
    settings: dict[str, Any] = Field({}, description="The method's settings; what is left out takes its default.")
    by_ipc: dict[int, dict[str, Any]] = Field({}, description="Settings that differ at an IPC.")

    @model_validator(mode="after")
    def _settings(self) -> Self:
        for extra in ({}, *self.by_ipc.values()):
            _checked({**self.settings, **extra}, self.method, distill.SETTINGS)
        return self

    def at(self, dataset: str, ipc: int) -> dict[str, Any]:
        """All settings for a dataset and IPC, the published ones and defaults filled in."""
        base = distill_presets.published(self.method, dataset, ipc) if self.preset else {}
        return _checked({**base, **self.settings, **self.by_ipc.get(ipc, {})}, self.method, distill.SETTINGS)


class ExpertsEntry(Model):
    """Expert trajectories of the study, which MTT and EDF share."""

    preset: str = Field("plain", description="Published experts to start from: plain and zca (MTT), edf.")
    settings: dict[str, Any] = Field({}, description="Settings that depart from them.")

    @model_validator(mode="after")
    def _settings(self) -> Self:
        self.at("")
        return self

    def at(self, dataset: str) -> dict[str, Any]:
        """All settings for a dataset, the published ones and defaults filled in."""
        base = distill_presets.published_experts(self.preset, dataset)
        return _checked({**base, **self.settings}, "experts", {"experts": distill.ExpertsConfig})


class RecoverEntry(Model):
    """A stage-2 treatment of the study."""

    method: str = Field("", description="Name in the registry of stage-2 methods; a preset's own when left out.")
    preset: str | None = Field(None, description="A published setting to start from; `diver presets` lists them.")
    label: str = Field(description="Name in tables and figures.")
    published: str | None = Field(None, description="Name in the file of published numbers; the label when left out.")
    settings: dict[str, Any] = Field({}, description="The method's settings; what is left out takes its default.")
    applies_to: list[str] | None = Field(None, description="Stage-1 entries that it is applied to; all when left out.")
    sweep: dict[str, list[Any]] = Field(
        {},
        description="Makes an entry of each value: settings with a list of values each, which are taken side by side. "
        "The entries are called NAME-VALUE.",
    )
    swept: str | None = Field(None, description="Entry whose sweep this one is a point of; filled in by itself.")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """Take the method of the preset."""
        if isinstance(given, dict) and given.get("preset") is not None:
            name = given["preset"]
            if name not in recover.PRESETS:
                raise ValueError(f"unknown preset {name!r}; {nearest(str(name), list(recover.PRESETS))}")
            method = recover.PRESETS[name].method
            if given.get("method") not in (None, "", method):
                raise ValueError(f"preset {name!r} is one of method {method!r}, not {given['method']!r}")
            return {**given, "method": method}
        return given

    @model_validator(mode="after")
    def _settings(self) -> Self:
        self.full()
        return self

    def full(self) -> dict[str, Any]:
        """All settings, the preset's and the defaults filled in."""
        base = recover.PRESETS[self.preset].settings if self.preset else {}
        return _checked({**base, **self.settings}, self.method, recover.SETTINGS)


def sweep_points(entries: dict[str, Any]) -> dict[str, Any]:
    """Stage-2 entries with each sweep as entries of its points, in the order of its values.

    Raises ValueError if a sweep's lists differ in length or a point's name stands for two.
    """
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        sweep = entry.get("sweep") if isinstance(entry, dict) else None
        if not sweep:
            points = {name: entry}
        elif not isinstance(sweep, dict) or not all(isinstance(values, list) for values in sweep.values()):
            raise ValueError(f"recover.{name}.sweep: a setting with a list of values, as in {{gamma: [0.02, 0.1]}}")
        elif len({len(values) for values in sweep.values()}) > 1:
            raise ValueError(f"recover.{name}.sweep: the lists of {', '.join(sweep)} differ in length")
        else:
            points = {}
            for values in zip(*sweep.values(), strict=True):
                text = "-".join(map(str, values))
                points[f"{name}-{text}"] = {
                    **{key: value for key, value in entry.items() if key != "sweep"},
                    "label": f"{entry.get('label', name)} {' to '.join(map(str, values))}",
                    "settings": {**entry.get("settings", {}), **dict(zip(sweep, values, strict=True))},
                    "swept": name,
                }
        for point, made in points.items():
            if point in found:
                raise ValueError(f"recover.{name}: the name {point!r} is there twice")
            found[point] = made
    return found


class Study(Model):
    """A study: datasets x IPC x stage 1 x stage 2 x students."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Folder of the results.")
    datasets: list[str] = Field(min_length=1, description="Names of the files in config/datasets.")
    ipc: list[int] = Field(min_length=1, description="Images per class.")
    prior: PriorChoice = Field(description="The autoencoder and diffusion transformer.")
    distill: dict[str, DistillEntry] = Field(min_length=1, description="Stage-1 sets by short name.")
    recover: dict[str, RecoverEntry] = Field({}, description="Stage-2 treatments by short name.")
    shards: int = Field(
        1, ge=1, description="Jobs that a recovery is divided into, by ranges of classes: one per GPU for a large set."
    )
    experts: dict[str, ExpertsEntry] = Field(
        {}, description="Expert trajectories by short name; the published ones (plain, zca, edf) need no entry."
    )
    teacher: Teacher | None = Field(None, description="For soft-label protocols and as the encoder of coresets.")
    students: Students = Field(description="The evaluation.")
    report: Report = Field(Report(), description="Tables and figures.")

    @model_validator(mode="before")
    @classmethod
    def _sweeps(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("recover"), dict):
            return {**given, "recover": sweep_points(given["recover"])}
        return given

    def sweeps(self) -> dict[str, list[str]]:
        """Points of each sweep, in order."""
        families: dict[str, list[str]] = {}
        for name, entry in self.recover.items():
            if entry.swept:
                families.setdefault(entry.swept, []).append(name)
        return families

    @model_validator(mode="after")
    def _names(self) -> Self:
        faults: list[str] = []
        known2 = [*self.recover, NONE]

        def refer(key: str, names: list[str], valid: list[str]) -> None:
            faults.extend(f"{key}: unknown {name!r}; {nearest(name, valid)}" for name in names if name not in valid)

        for name, entry in self.recover.items():
            refer(f"recover.{name}.applies_to", entry.applies_to or [], list(self.distill))
        refer("students.as_published", list(self.students.as_published), list(self.distill))
        for stage1, names in self.students.as_published.items():
            refer(f"students.as_published.{stage1}", names, known2)
        refer("report.ladder", self.report.ladder, known2)
        refer("report.gallery", self.report.gallery, known2)
        refer("report.ladder_of", [self.report.ladder_of] if self.report.ladder_of else [], list(self.distill))
        refer("report.phases_of", [self.report.phases_of] if self.report.phases_of else [], list(self.recover))
        faults += self._table_faults()
        for section, name in TAKEN.items():
            if name in getattr(self, section):
                faults.append(f"{section}.{name}: the name stands for something else; choose another")
        for key in ("epochs", "batch"):
            for ipc in self.ipc:
                try:
                    by_ipc(getattr(self.students.protocol, key), ipc, f"students.protocol.{key}")
                except ValueError as fault:
                    faults.append(str(fault))
        faults += self._stage1_faults()
        encoded = [] if faults else [name for name in self.distill if self.uses_teacher(name)]
        wants = [*encoded, self.students.protocol.name] if self.students.protocol.needs_teacher() else encoded
        if wants and self.teacher is None:
            faults.append(
                f"{wants[0]} needs a teacher: add `teacher:` with `network:` to have it trained on the training set "
                "by the workflow, or with `source:` for a file of weights or timm:NAME"
            )
        if encoded and self.teacher is not None and self.teacher.source.startswith("timm:"):
            faults.append(f"distill.{encoded[0]}: a teacher of timm has no file; give the path of a network's file")
        if all(one.role == "proxy" for one in self.students.architectures.values()):
            faults.append(
                "students.architectures: all are proxies, and the tables' means are over unseen ones; give one without "
                "role: proxy"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _table_faults(self) -> list[str]:
        """What is wrong with the names of the report's tables and in them."""
        architectures = [UNSEEN_MEAN, *self.students.architectures]
        known = {
            "datasets": self.datasets,
            "ipc": list(map(str, self.ipc)),
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

    def _stage1_faults(self) -> list[str]:
        """What is wrong with a stage-1 entry at some dataset and IPC."""
        faults = []
        for name, entry in self.distill.items():
            for dataset in self.datasets:
                for ipc in self.ipc:
                    try:
                        settings = entry.at(dataset, ipc)
                    except ValueError as fault:
                        faults.append(f"distill.{name}: {fault}")
                        continue
                    if entry.method == "released" and not settings["path"]:
                        key = f"distill.{name}.by_ipc.{ipc}.path"
                        faults.append(f"{key}: a released set needs its file; give a path for each IPC")
                    wanted = settings.get("experts")
                    if wanted is not None and "/" not in wanted and wanted not in self.all_experts():
                        faults.append(
                            f"distill.{name}.settings.experts: unknown {wanted!r}; "
                            f"{nearest(wanted, list(self.all_experts()))}, or a folder of experts with a / in its path"
                        )
        return list(dict.fromkeys(faults))

    def departures(self, entry: DistillEntry, dataset: str, ipc: int) -> list[str]:
        """Settings of a stage-1 entry and its experts that differ from the published ones: "key value (published)"."""
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

    def uses_teacher(self, name: str) -> bool:
        """Whether a stage-1 entry asks for the study's teacher."""
        found = (self.distill[name].at(dataset, ipc) for dataset in self.datasets for ipc in self.ipc)
        return any(settings.get(key) == distill.TEACHER for settings in found for key in distill.NETWORKS)

    def all_experts(self) -> dict[str, ExpertsEntry]:
        """Experts that stage-1 entries may name: the published ones and the study's."""
        return {**{name: ExpertsEntry(preset=name) for name in distill_presets.EXPERTS}, **self.experts}


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that a validation error's location lies in, following fields and the keys of dictionaries."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        else:
            # A dictionary of models: the part is its key, the model its last type argument.
            current = (getattr(current, "__args__", None) or (None,))[-1]
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _faults(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per fault: key, what is wrong, the nearest valid name for an unknown key."""
    lines = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            owner = _model_at(model, fault["loc"][:-1])
            hint = f"; {nearest(str(fault['loc'][-1]), list(owner.model_fields))}" if owner else ""
            lines.append(f"{key}: unknown key{hint}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if fault["type"] in ("value_error", "missing") else f" (given: {fault['input']!r})"
            lines.append(f"{key}: {message}{given}" if key else message)
    return lines


def parse_study(raw: dict[str, Any], source: str) -> Study:
    """Validate a loaded configuration. Raises ConfigError that lists every fault, one a line."""
    try:
        return Study(**raw)
    except ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _faults(error, Study))
        raise ConfigError(f"{source} is refused:\n{faults}") from None


def load_study(path: str | Path) -> Study:
    """Read and validate a study's YAML. Raises ConfigError, also when the file is missing or not YAML."""
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a study is a mapping, this is a {type(raw).__name__}")
    return parse_study(raw, str(path))
