"""Entries of a study: a stage-1 set, the experts that some of them match, a stage-2 treatment and its sweep."""

import re
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from diver.config import distill, distill_presets, native, recover
from diver.config.base import Model, nearest
from diver.config.mending import Faults, fault_lines

# A stage-1 entry is a method of stage 1 or a diffusion-native system.
STAGE1: dict[str, type[Model]] = {**distill.SETTINGS, **native.SETTINGS}


def _checked(settings: dict[str, Any], method: str, models: dict[str, type[Any]]) -> dict[str, Any]:
    if method not in models:
        raise ValueError(f"unknown method {method!r}; {nearest(method, list(models))}")
    try:
        return models[method](**settings).model_dump(mode="json")
    except ValidationError as error:
        raise Faults(fault_lines(error, models[method])) from error


class Restricted(Model):
    """An entry of a study that may be for some of its datasets and IPCs only."""

    datasets: list[str] | None = Field(None, description="Datasets that it is for; all when left out.")
    ipc: list[int] | None = Field(None, description="Images per class that it is for; all when left out.")

    def covers(self, dataset: str, ipc: int) -> bool:
        """Whether it is for a dataset at an IPC."""
        return (self.datasets is None or dataset in self.datasets) and (self.ipc is None or ipc in self.ipc)


# What a path may leave open.
_OPEN = re.compile(r"\{(\w*)\}")


def filled(path: str, dataset: str, ipc: int) -> str:
    """A path with `{dataset}` and `{ipc}` filled in. Raises ValueError for another name in braces."""
    known = {"dataset": dataset, "ipc": str(ipc)}
    for name in _OPEN.findall(path):
        if name not in known:
            raise ValueError(f"path: unknown {{{name}}}; {{dataset}} and {{ipc}} are filled in")
    return _OPEN.sub(lambda match: known[match[1]], path)


class DistillEntry(Restricted):
    """A stage-1 set of the study."""

    method: str = Field(description="Name in the registry of stage-1 methods or of diffusion-native systems.")
    label: str = Field(description="Name in tables and figures.")
    published: str | None = Field(None, description="Name in the file of published numbers; the label when left out.")
    preset: Literal["published"] | None = Field(
        None, description="published: start from the method's published settings for the dataset and IPC."
    )
    settings: dict[str, Any] = Field({}, description="The method's settings; what is left out takes its default.")
    by_dataset: dict[str, dict[str, Any]] = Field({}, description="Settings that differ for a dataset.")
    by_ipc: dict[int, dict[str, Any]] = Field({}, description="Settings that differ at an IPC.")

    @model_validator(mode="after")
    def _settings(self) -> Self:
        lines: list[str] = []
        for extra in ({}, *self.by_dataset.values(), *self.by_ipc.values()):
            try:
                _checked({**self.settings, **extra}, self.method, STAGE1)
            except Faults as faults:
                lines += faults.lines
        if lines:
            raise Faults(lines)
        return self

    def at(self, dataset: str, ipc: int) -> dict[str, Any]:
        """All settings for a dataset and IPC, the published ones and defaults filled in."""
        base = self._published(dataset, ipc) if self.preset else {}
        departures = {**self.settings, **self.by_dataset.get(dataset, {}), **self.by_ipc.get(ipc, {})}
        found = _checked({**base, **departures}, self.method, STAGE1)
        if found.get("path"):
            found["path"] = filled(found["path"], dataset, ipc)
        return found

    def _published(self, dataset: str, ipc: int) -> dict[str, Any]:
        if self.is_native():
            return native.PUBLISHED[self.method]
        return distill_presets.published(self.method, dataset, ipc)

    def is_native(self) -> bool:
        """Whether it is a diffusion-native system, which makes its set with the prior."""
        return self.method in native.SETTINGS


class ExpertsEntry(Model):
    """Expert trajectories of the study, which MTT and EDF share."""

    preset: str = Field("plain", description="Published experts to start from: plain and zca (MTT), edf and edf-zca.")
    settings: dict[str, Any] = Field({}, description="Settings that depart from them.")

    @model_validator(mode="after")
    def _settings(self) -> Self:
        self.at("")
        return self

    def at(self, dataset: str) -> dict[str, Any]:
        """All settings for a dataset, the published ones and defaults filled in."""
        base = distill_presets.published_experts(self.preset, dataset)
        return _checked({**base, **self.settings}, "experts", {"experts": distill.ExpertsConfig})


class RecoverDeparture(Model):
    """How a stage-2 treatment differs for one stage-1 entry."""

    preset: str | None = Field(None, description="A published setting of the same method, instead of the entry's.")
    settings: dict[str, Any] = Field({}, description="Settings that differ, after the entry's own.")


class RecoverEntry(Restricted):
    """A stage-2 treatment of the study."""

    method: str = Field("", description="Name in the registry of stage-2 methods; a preset's own when left out.")
    preset: str | None = Field(None, description="A published setting to start from; `diver presets` lists them.")
    label: str = Field(description="Name in tables and figures.")
    published: str | None = Field(None, description="Name in the file of published numbers; the label when left out.")
    settings: dict[str, Any] = Field({}, description="The method's settings; what is left out takes its default.")
    applies_to: list[str] | None = Field(None, description="Stage-1 entries that it is applied to; all when left out.")
    by_stage1: dict[str, RecoverDeparture] = Field({}, description="Departures by stage-1 entry.")
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
        lines: list[str] = []
        for name in ["", *self.by_stage1]:
            try:
                self.full(name)
            except Faults as faults:
                lines += faults.lines
            except ValueError as fault:
                lines.append(str(fault))
        if lines:
            raise Faults(lines)
        return self

    def full(self, stage1: str = "") -> dict[str, Any]:
        """All settings for a stage-1 entry, the preset's and the defaults filled in."""
        own = self.by_stage1.get(stage1, RecoverDeparture())
        name = own.preset or self.preset
        if own.preset and own.preset not in recover.PRESETS:
            near = nearest(str(name), list(recover.PRESETS))
            raise ValueError(f"by_stage1.{stage1}: unknown preset {name!r}; {near}")
        if own.preset and recover.PRESETS[own.preset].method != self.method:
            raise ValueError(
                f"by_stage1.{stage1}: preset {name!r} is one of method {recover.PRESETS[own.preset].method!r}, not "
                f"{self.method!r}; take another, or an entry of its own with applies_to: [{stage1}]"
            )
        base = recover.PRESETS[name].settings if name else {}
        return _checked({**base, **self.settings, **own.settings}, self.method, recover.SETTINGS)


def sweep_points(entries: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Stage-2 entries with each sweep as entries of its points, in the order of its values, and what is wrong with
    sweeps: lists that differ in length, a name that stands for two."""
    found: dict[str, Any] = {}
    faults: list[str] = []
    for name, entry in entries.items():
        sweep = entry.get("sweep") if isinstance(entry, dict) else None
        points = {}
        if not sweep:
            points = {name: entry}
        elif not isinstance(sweep, dict) or not all(isinstance(values, list) and values for values in sweep.values()):
            faults.append(f"recover.{name}.sweep: a setting with a list of values, as in {{gamma: [0.02, 0.1]}}")
        elif nested := [one for values in sweep.values() for one in values if isinstance(one, list | dict)]:
            faults.append(f"recover.{name}.sweep: {nested[0]} is no value for a name; make it an entry of its own")
        elif len({len(values) for values in sweep.values()}) > 1:
            faults.append(f"recover.{name}.sweep: the lists of {', '.join(sweep)} differ in length")
        else:
            for values in zip(*sweep.values(), strict=True):
                text = "-".join(map(str, values))
                points[f"{name}-{text}"] = {
                    **{key: value for key, value in entry.items() if key != "sweep"},
                    "label": f"{entry.get('label', name)} {' to '.join(map(str, values))}",
                    "settings": {**(entry.get("settings") or {}), **dict(zip(sweep, values, strict=True))},
                    "swept": name,
                }
        for point, made in points.items():
            if point in found:
                faults.append(f"recover.{name}: the name {point!r} is there twice")
            found[point] = made
    return found, faults
