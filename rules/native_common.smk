"""Helpers of the diffusion-native systems' rules."""

from diver.config.native.d3hr import D3HRConfig
from diver.config.native.edits import CLUSTERED_BY
from diver.config.native.minimax import MinimaxConfig

NATIVE = cells.native_entries(STUDY)
# Rows of figures: title and file.
INVERTED = choices.normality_rows(STUDY, DISPLAYED)


def native_cell(wildcards):
    """A set of the entry; where there is no IPC, the dataset's first."""
    ipc = int(wildcards.get("ipc", STUDY.ipcs(wildcards.dataset)[0]))
    return cells.SetCell(wildcards.dataset, ipc, wildcards.stage1)


def artefact(name):
    """Path of a preparation of the entry, by its name in `diver.config.native`, as an input function."""
    return lambda wildcards: cells.artefact_paths(STUDY, native_cell(wildcards))[name]


def native_settings(*names):
    """Settings of the entry, those of these names if any: a preparation does not depend on the others."""

    def settings(wildcards):
        cell = native_cell(wildcards)
        found = STUDY.distill[cell.stage1].at(cell.dataset, cell.ipc)
        return {name: found[name] for name in names or found if name in found}

    return settings


def inversion_settings(wildcards):
    """Settings that D3HR's statistics depend on."""
    return D3HRConfig(**native_settings()(wildcards)).inversion()


def tuning_settings(wildcards):
    """Settings that Minimax's fine-tuned prior depends on."""
    return MinimaxConfig(**native_settings()(wildcards)).tuning()


def native_method(wildcards):
    return STUDY.distill[wildcards.stage1].method


def artefacts_of_set(wildcards):
    """All preparations of a set, by name."""
    return {name: str(path) for name, path in cells.artefact_paths(STUDY, native_cell(wildcards)).items()}


def class_counts():
    return {name: len(spec.classes) for name, spec in DATASETS.items()}


PICTURED = choices.systems_rows(STUDY, class_counts())


def set_benchmarks():
    """Where the times of each set stand, as a parameter."""
    found = choices.set_benchmarks(STUDY, class_counts())
    return [
        (asdict(cell), {part: list(map(str, paths)) for part, paths in parts.items()}) for cell, parts in found.items()
    ]
