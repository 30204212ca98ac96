"""What a study's report shows, from its configuration alone: the sets of galleries, comparisons, and their paths."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diver.config.native import PREPARATIONS
from diver.config.native.d3hr import STATISTICS
from diver.config.networks import RECORDED
from diver.config.study import NONE, Study
from diver.report.labels import names_of
from diver.study import (
    SetCell,
    artefact_path,
    benchmark_path,
    native_entries,
    results_path,
    set_cells,
    set_path,
    shard_paths,
    shown_cell,
)

AUTOENCODER_ONLY = "vae"


def gallery_rows(study: Study) -> list[tuple[str, Path]]:
    """Title and file of each row of the gallery: the same images under each treatment."""
    shown, first, second = shown_cell(study), *_titles(study)
    return [
        (first[shown.stage1] if name == NONE else second[name], _set(study, shown, name))
        for name in study.report.gallery
    ]


def vae_rows(study: Study) -> list[tuple[str, Path]]:
    """Title and file of each row of the gallery of the autoencoder alone: stage-1 sets, each above its own images
    after encoding and decoding; no row if the study has no such entry."""
    shown, first, second = shown_cell(study), *_titles(study)
    rows = []
    for cell in set_cells(study):
        treated = cell.stage2 != NONE and study.recover[cell.stage2].method == AUTOENCODER_ONLY
        if treated and (cell.dataset, cell.ipc) == (shown.dataset, shown.ipc):
            title = first[cell.stage1]
            rows += [
                (title, _set(study, cell, NONE)),
                (f"{title}, {second[cell.stage2]}", _set(study, cell, cell.stage2)),
            ]
    return rows


def systems_rows(study: Study, classes: Mapping[str, int]) -> list[tuple[str, Path]]:
    """Title and file of each row of the gallery of diffusion-native systems: all sets of a dataset at its largest IPC,
    under the gallery's treatments; of the dataset that galleries are of, or else of the one with a system that has the
    fewest classes. `classes`: how many each dataset has."""
    natives = native_entries(study)
    datasets = list(dict.fromkeys(cell.dataset for cell in set_cells(study) if cell.stage1 in natives))
    if not datasets:
        return []
    shown = shown_cell(study).dataset
    dataset = shown if shown in datasets else min(datasets, key=lambda name: classes[name])
    place, rows = (dataset, max(study.ipcs(dataset))), []
    first, second = _titles(study)
    for cell in set_cells(study):
        if (cell.dataset, cell.ipc) == place and cell.stage2 in (NONE, *study.report.gallery):
            title = first[cell.stage1]
            own = title if cell.stage2 == NONE else f"{title} + {second[cell.stage2]}"
            rows.append((own, set_path(study, cell)))
    return rows


def normality_rows(study: Study, datasets: Mapping[str, str]) -> list[tuple[str, Path]]:
    """Title and file of the statistics of each entry whose classes are inverted (D3HR). `datasets`: displayed names."""
    rows, titles = dict[Path, str](), _titles(study)[0]
    for name in native_entries(study):
        entry = study.distill[name]
        for artefact in PREPARATIONS[entry.method]:
            for dataset, ipc in study.places(entry) if artefact.name == STATISTICS.name else ():
                title = f"{datasets[dataset]}: {titles[name]}" if len(study.datasets) > 1 else titles[name]
                rows[artefact_path(study, artefact, SetCell(dataset, ipc, name))] = title
    return [(title, path) for path, title in rows.items()]


def trace_path(study: Study) -> Path:
    """The trajectory that is pictured, at the largest IPC."""
    shown = shown_cell(study)
    folder = results_path(study) / "traces" / shown.dataset / f"ipc{shown.ipc}" / shown.stage1
    return folder / f"{study.report.phases_of}.npz"


def released_cells(study: Study) -> list[SetCell]:
    """The stage-1 sets that others have released."""
    return [one for one in set_cells(study) if one.stage2 == NONE and study.distill[one.stage1].method == "released"]


def recorded_networks(study: Study) -> dict[str, str]:
    """Architectures that are, as they stand, networks of which released files record accuracies."""
    plain = {name: one.network for name, one in study.all_architectures().items() if not one.options}
    known = {name: network for name, network in plain.items() if network in RECORDED.values()}
    return known if released_cells(study) else {}


def departures(study: Study) -> dict[SetCell, str]:
    """How the settings of each stage-1 set differ from the published ones."""
    return {
        cell: "; ".join(study.departures(study.distill[cell.stage1], cell.dataset, cell.ipc))
        for cell in set_cells(study)
        if cell.stage2 == NONE
    }


def published_names(study: Study) -> dict[str, str]:
    """Published name of each stage-1 entry."""
    return {name: entry.published or entry.label for name, entry in study.distill.items()}


def published_networks(study: Study) -> dict[str, str]:
    """Published name of each architecture: the study's label, without what tables tell two by."""
    return {name: one.label for name, one in study.all_architectures().items()}


def _titles(study: Study) -> tuple[dict[str, str], dict[str, str]]:
    """Displayed names of the stage-1 and stage-2 entries."""
    names = names_of(study, {})
    return names["stage1"], names["stage2"]


def _set(study: Study, cell: SetCell, stage2: str) -> Path:
    return set_path(study, replace(cell, stage2=stage2))


def set_benchmarks(study: Study, classes: Mapping[str, int]) -> dict[SetCell, dict[str, list[Path]]]:
    """Where the times of each set stand: of making it, and of its own and the shared preparations (TSV of Snakemake).

    `classes`: how many each dataset has.
    """
    folder, natives = results_path(study) / "benchmarks", native_entries(study)
    found = {}
    for cell in set_cells(study):
        name = f"{cell.dataset}-ipc{cell.ipc}-{cell.stage1}"
        parts: dict[str, list[Path]] = {"making": [], "own": [], "shared": []}
        if cell.stage2 == NONE:
            parts["making"] = [folder / f"distill/{name}.tsv"]
        elif study.shards_at(cell.dataset) == 1:
            parts["making"] = [folder / f"recover/{name}/{cell.stage2}.tsv"]
        else:
            shards = shard_paths(study, cell, classes[cell.dataset])
            parts["making"] = [folder / f"recover/{name}/{cell.stage2}/{path.stem}.tsv" for path in shards]
        if cell.stage2 == NONE and cell.stage1 in natives:
            for one in PREPARATIONS[study.distill[cell.stage1].method]:
                parts["shared" if one.per == "dataset" else "own"].append(benchmark_path(study, one, cell))
        found[cell] = parts
    return found
