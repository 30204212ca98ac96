"""Helpers of the diffusion-native systems' rules."""

from diver.config.native.d3hr import D3HRConfig
from diver.config.native.edits import CLUSTERED_BY
from diver.config.native.minimax import MinimaxConfig

NATIVE = cells.native_entries(STUDY)
INVERTED = list(
    dict.fromkeys(
        (dataset, stage1)
        for stage1 in NATIVE
        if STUDY.distill[stage1].method == "d3hr"
        for dataset, _ in STUDY.places(STUDY.distill[stage1])
    )
)


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


def inverted_labels():
    """Labels of the entries whose classes are inverted, with their dataset where there are several."""
    names, several = display_names(), len(STUDY.datasets) > 1
    labels = [(names["dataset"][dataset], names["stage1"][stage1]) for dataset, stage1 in INVERTED]
    return [f"{dataset}: {label}" if several else label for dataset, label in labels]


def native_method(wildcards):
    return STUDY.distill[wildcards.stage1].method


def artefacts_of_set(wildcards):
    """All preparations of a set, by name."""
    return {name: str(path) for name, path in cells.artefact_paths(STUDY, native_cell(wildcards)).items()}


def class_counts():
    return {name: len(spec.classes) for name, spec in DATASETS.items()}


def set_benchmarks():
    """Where the times of each set stand, as a parameter."""
    found = choices.set_benchmarks(STUDY, class_counts())
    return [
        (asdict(cell), {part: list(map(str, paths)) for part, paths in parts.items()}) for cell, parts in found.items()
    ]


def pictured():
    """Sets that are pictured together: all of the dataset that the gallery is of, or of the first that has a system, at
    its largest IPC, under the gallery's treatments."""
    treatments = [name for name in STUDY.report.gallery if name != NONE]
    native = list(dict.fromkeys(cell.dataset for cell in SETS if cell.stage1 in NATIVE))
    dataset = SHOWN.dataset if SHOWN.dataset in native else native[0]
    ipc = max(STUDY.ipcs(dataset))
    return [cell for cell in SETS if (cell.dataset, cell.ipc) == (dataset, ipc) and cell.stage2 in (NONE, *treatments)]


def pictured_labels():
    stage2 = display_names()["stage2"]
    names = [(STUDY.distill[cell.stage1].label, cell.stage2) for cell in pictured()]
    return [label if name == NONE else f"{label} + {stage2[name]}" for label, name in names]
