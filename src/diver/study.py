"""Expands a study into its cells and gives each its path; the only place that knows the layout of `results/`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver.config.native import PREPARATIONS, Artefact
from diver.config.study import NONE, Study

MATCHED, AS_PUBLISHED = "matched", "as-published"
# Stands as stage 1 for the whole training set.
FULL = "full"


@dataclass(frozen=True)
class SetCell:
    """A distilled or recovered set."""

    dataset: str
    ipc: int
    stage1: str
    stage2: str = NONE


@dataclass(frozen=True)
class StudentCell:
    """The students of one job: a group of architectures on one set."""

    set: SetCell
    scale: str
    group: str


def set_cells(study: Study) -> Iterator[SetCell]:
    """All sets of the study, each stage-1 set before what is made of it."""
    for dataset in study.datasets:
        for ipc in study.ipcs(dataset):
            for stage1, entry in study.distill.items():
                if not entry.covers(dataset, ipc):
                    continue
                yield SetCell(dataset, ipc, stage1)
                for stage2 in study.recover:
                    if study.treats(stage2, stage1, dataset, ipc):
                        yield SetCell(dataset, ipc, stage1, stage2)


def student_groups(study: Study, dataset: str) -> dict[str, list[str]]:
    """Architectures by job of a set of a dataset: all in one, or one each."""
    students = study.students_at(dataset)
    names = list(students.architectures)
    return {"all": names} if students.together else {name: [name] for name in names}


def student_cells(study: Study) -> Iterator[StudentCell]:
    """All student jobs of the study."""
    for cell in set_cells(study):
        twice = cell.stage2 in study.students_at(cell.dataset).as_published.get(cell.stage1, [])
        for scale in [MATCHED, AS_PUBLISHED] if twice else [MATCHED]:
            for group in student_groups(study, cell.dataset):
                yield StudentCell(cell, scale, group)


def full_cells(study: Study) -> Iterator[tuple[str, str]]:
    """Datasets and groups of the students that are trained on all training images."""
    for dataset in study.datasets:
        if study.students_at(dataset).full_data is not None:
            for group in student_groups(study, dataset):
                yield dataset, group


def count_students(study: Study) -> int:
    """Students of all sets, and those of all training images."""
    count = 0
    for job in student_cells(study):
        dataset = job.set.dataset
        count += len(student_groups(study, dataset)[job.group]) * len(study.students_at(dataset).seeds)
    for dataset, group in full_cells(study):
        students = study.students_at(dataset)
        assert students.full_data is not None
        count += len(student_groups(study, dataset)[group]) * len(students.full_data.seeds or students.seeds)
    return count


def shown_cell(study: Study) -> SetCell:
    """The stage-1 set that galleries and trajectories are of: the report's, at its first dataset's largest IPC."""
    stage1 = study.report.ladder_of or next(iter(study.distill))
    dataset = next(study.places(study.distill[stage1]))[0]
    return SetCell(dataset, max(ipc for place, ipc in study.places(study.distill[stage1]) if place == dataset), stage1)


def prepared_path(dataset: str) -> Path:
    return Path("data/prepared") / f"{dataset}.safetensors"


def results_path(study: Study) -> Path:
    return Path("results") / study.name


def set_path(study: Study, cell: SetCell) -> Path:
    root = results_path(study)
    if cell.stage2 == NONE:
        return root / "distilled" / cell.dataset / f"ipc{cell.ipc}" / f"{cell.stage1}.safetensors"
    return root / "recovered" / cell.dataset / f"ipc{cell.ipc}" / cell.stage1 / f"{cell.stage2}.safetensors"


def shard_paths(study: Study, cell: SetCell, count: int) -> list[Path]:
    """The shards of a recovered set of `count` classes."""
    whole = set_path(study, cell)
    shards = min(study.shards_at(cell.dataset), count)
    return [whole.with_suffix("") / f"shard-{i}-of-{shards}.safetensors" for i in range(shards)]


def shard_classes(shards: int, number: int, count: int) -> tuple[int, int]:
    """First class and end of a shard of so many; sizes differ by at most one."""
    shards = min(shards, count)
    return round(number * count / shards), round((number + 1) * count / shards)


def experts_path(study: Study, dataset: str, name: str) -> Path:
    """Folder of a dataset's expert trajectories."""
    return results_path(study) / "experts" / dataset / name


def native_entries(study: Study) -> list[str]:
    """Stage-1 entries that are diffusion-native systems."""
    return [name for name, entry in study.distill.items() if entry.is_native()]


def artefact_name(artefact: Artefact, settings: dict[str, Any]) -> str:
    """File name of an artefact of an entry with these settings, without the suffix."""
    return artefact.name if artefact.by is None else f"{artefact.name}-{settings[artefact.by]}"


def artefact_path(study: Study, artefact: Artefact, cell: SetCell) -> Path:
    """Where a preparation of a set lies; sets share what depends on less than all of them."""
    folder = results_path(study) / "native" / cell.dataset
    if artefact.per == "set":
        folder = folder / f"ipc{cell.ipc}"
    if artefact.per != "dataset":
        folder = folder / cell.stage1
    settings = study.distill[cell.stage1].at(cell.dataset, cell.ipc)
    return folder / f"{artefact_name(artefact, settings)}{artefact.suffix}"


def artefact_paths(study: Study, cell: SetCell) -> dict[str, Path]:
    """What a diffusion-native system's set is made from, by name."""
    found = PREPARATIONS[study.distill[cell.stage1].method]
    return {artefact.name: artefact_path(study, artefact, cell) for artefact in found}


def benchmark_path(study: Study, artefact: Artefact, cell: SetCell) -> Path:
    """The benchmark of the rule that makes an artefact: the artefact's path below `benchmarks`."""
    root = results_path(study)
    return (root / "benchmarks" / artefact_path(study, artefact, cell).relative_to(root)).with_suffix(".tsv")


def students_path(study: Study, cell: StudentCell) -> Path:
    one = cell.set
    parts = (one.dataset, f"ipc{one.ipc}", one.stage1, one.stage2, cell.scale)
    return results_path(study).joinpath("students", *parts, f"{cell.group}.csv")


def answers_path(study: Study, cell: SetCell, scale: str) -> Path:
    """A teacher's stored answers to a set."""
    parts = (cell.dataset, f"ipc{cell.ipc}", cell.stage1, cell.stage2)
    return results_path(study).joinpath("answers", *parts, f"{scale}.safetensors")


def full_path(study: Study, dataset: str, group: str) -> Path:
    """Students of the whole training set."""
    return results_path(study) / "students" / dataset / FULL / f"{group}.csv"


def teacher_path(study: Study, dataset: str) -> str | None:
    """File or timm name of a dataset's teacher; None if the study has none."""
    teacher = study.teacher_at(dataset)
    if teacher is None:
        return None
    trained = teacher.source == "trained"
    return str(results_path(study) / "teachers" / f"{dataset}.safetensors") if trained else teacher.source


def prior_path(study: Study, dataset: str) -> str:
    """Directory or hub name of the prior for a dataset."""
    source = study.prior.source
    if source == "shipped":
        return f"data/shipped/{dataset}-prior"
    return f"data/prior/{dataset}" if source == "trained" else source


PRIOR_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


def prior_files(study: Study, dataset: str) -> list[Path]:
    """Files of the prior for a dataset and of another autoencoder; none for a hub name."""
    path = Path(prior_path(study, dataset))
    made = study.prior.source in ("shipped", "trained")
    files = [path / name for name in PRIOR_FILES] if made else _local_files(path)
    return files + (_local_files(Path(study.prior.autoencoder)) if study.prior.autoencoder else [])


def released_files(path: str) -> list[Path]:
    """Files that a released set is read from: those of its folder that are not hidden, or one and what is beside it."""
    given = Path(path)
    if given.is_dir():
        parts = ((file, file.relative_to(given).parts) for file in given.rglob("*") if file.is_file())
        return sorted(file for file, names in parts if not any(name.startswith(".") for name in names))
    beside = [re.sub(r"images(_zca)?", part, given.name) for part in ("labels", "soft", "lr")] + ["meta.json"]
    found = map(given.with_name, beside) if "images" in given.name else ()
    return [given, *(file for file in found if file.is_file())]


def _local_files(path: Path) -> list[Path]:
    """A file itself, or what a directory in diffusers' layout holds."""
    if path.is_file():
        return [path]
    kinds = {".json", ".txt", ".safetensors", ".bin"}
    return sorted(file for file in path.rglob("*") if file.suffix in kinds)
