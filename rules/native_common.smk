"""Helpers of the diffusion-native systems' rules."""

from diver.config.native.d3hr import D3HRConfig
from diver.config.native.edits import CLUSTERED_BY
from diver.config.native.minimax import MinimaxConfig

NATIVE = cells.native_entries(STUDY)
INVERTED = [
    (dataset, stage1) for dataset in STUDY.datasets for stage1 in NATIVE if STUDY.distill[stage1].method == "d3hr"
]


def native_cell(wildcards):
    """A set of the entry; where there is no IPC, the study's first."""
    ipc = int(wildcards.get("ipc", STUDY.ipc[0]))
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


def set_benchmarks():
    """Where the times of each set stand: of making it, and of its own and the shared preparations."""
    found = []
    for cell in SETS:
        name = f"{cell.dataset}-ipc{cell.ipc}-{cell.stage1}"
        prepared = native_preparations(cell) if cell.stage2 == NONE and cell.stage1 in NATIVE else []
        if cell.stage2 == NONE:
            making = [f"{BENCHMARKS}/distill/{name}.tsv"]
        elif STUDY.shards == 1:
            making = [f"{BENCHMARKS}/recover/{name}/{cell.stage2}.tsv"]
        else:
            shards = cells.shard_paths(STUDY, cell, len(DATASETS[cell.dataset].classes))
            making = [f"{BENCHMARKS}/recover/{name}/{cell.stage2}/{path.stem}.tsv" for path in shards]
        parts = {
            "making": making,
            "own": [str(path) for one, path in prepared if one.per != "dataset"],
            "shared": [str(path) for one, path in prepared if one.per == "dataset"],
        }
        found.append((asdict(cell), parts))
    return found


def native_preparations(cell):
    """What a set's system prepares, each with its benchmark."""
    found = PREPARATIONS[STUDY.distill[cell.stage1].method]
    return [(one, cells.benchmark_path(STUDY, one, cell)) for one in found]


def pictured():
    """Sets that are pictured together: all at the largest IPC of the first dataset, under the gallery's treatments."""
    treatments = [name for name in STUDY.report.gallery if name != NONE]
    return [
        cell
        for cell in SETS
        if (cell.dataset, cell.ipc) == (SHOWN.dataset, SHOWN.ipc) and cell.stage2 in (NONE, *treatments)
    ]


def pictured_labels():
    stage2 = display_names()["stage2"]
    names = [(STUDY.distill[cell.stage1].label, cell.stage2) for cell in pictured()]
    return [label if name == NONE else f"{label} + {stage2[name]}" for label, name in names]
