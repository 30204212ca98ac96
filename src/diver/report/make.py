"""All tables and figures of a study again, from its tidy results, without the workflow and without training."""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from diver.config.report import PUBLISHED
from diver.config.study import Study
from diver.data.spec import DatasetSpec
from diver.report import choices, figures, tables
from diver.report.forms import WRITERS, Table, write_table
from diver.report.labels import Labels, names_of
from diver.report.normality import Normality, draw_normality
from diver.report.paper import paper_table, plans
from diver.report.published import read_published
from diver.report.recorded import compare_recorded, recorded_accuracies
from diver.report.reproduced import compare_published
from diver.report.sweeps import sweeps
from diver.report.systems import Cost, systems, time_of
from diver.study import SetCell, native_entries, results_path, set_path


@dataclass
class Made:
    """What was written, and what was not, with the reason."""

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Report:
    study: Study
    labels: Labels
    results: pd.DataFrame
    out: Path
    root: Path
    home: Path

    def at(self, path: Path) -> Path:
        """Where a file of the study is: of its results in `home`, any other one under `root`."""
        own = results_path(self.study)
        return self.home / path.relative_to(own) if path.is_relative_to(own) else self.root / path

    def published(self) -> pd.DataFrame:
        return read_published(self.root / (self.study.report.published or PUBLISHED))

    def quality(self) -> pd.DataFrame:
        files = [results_path(self.study) / f"quality/{name}.csv" for name in self.study.datasets]
        return pd.concat([pd.read_csv(self.at(file), keep_default_na=False) for file in files], ignore_index=True)


def make_all(
    study: Study,
    datasets: Mapping[str, DatasetSpec],
    results: pd.DataFrame,
    out: str | Path,
    root: str | Path = ".",
    home: str | Path | None = None,
) -> Made:
    """Write every table (CSV, LaTeX, HTML, Markdown), figure (PNG, SVG, PDF) and metrics.json into `out`.

    `datasets`: their specifications. `results`: the tidy table, of all students or of some. `root`: the folder that
    the study's paths start from; `home`: the folder of its results, if not the one below `root`. Sets, a trajectory
    and measures of images are used where they are there. What cannot be made, for want of a file or of students, is
    skipped and named in the result; nothing is ever trained.
    """
    one = _Report(
        study,
        Labels(**names_of(study, {name: spec.shown for name, spec in datasets.items()})),
        results,
        Path(out),
        Path(root),
        Path(root) / results_path(study) if home is None else Path(home),
    )
    made = Made()
    for name, make in _products(one, datasets):
        try:
            made.files += make()
        except FileNotFoundError as error:
            made.skipped[name] = f"needs {error.filename}"
        except ValueError as error:
            made.skipped[name] = str(error)
    return made


def _products(one: _Report, datasets: Mapping[str, DatasetSpec]) -> Iterator[tuple[str, Callable[[], list[Path]]]]:
    """Name and maker of everything that the study's report has."""
    study, report, labels, results = one.study, one.study.report, one.labels, one.results

    def table(stem: str, make: Callable[[], Table]) -> tuple[str, Callable[[], list[Path]]]:
        paths = [one.out / f"tables/{stem}{form}" for form in WRITERS]

        def write() -> list[Path]:
            write_table(make(), *paths)
            return paths

        return f"tables/{stem}", write

    def figure(stem: str, draw: Callable[[Path], object]) -> tuple[str, Callable[[], list[Path]]]:
        path = one.out / f"figures/{stem}.png"

        def write() -> list[Path]:
            draw(path)
            return [path.with_suffix(suffix) for suffix in figures.FORMS]

        return f"figures/{stem}", write

    def metrics() -> list[Path]:
        cross = tables.cross_architecture(results, labels)
        text = tables.metrics_text(results, cross, report.ladder_of, report.ladder)
        one.out.mkdir(parents=True, exist_ok=True)
        (one.out / "metrics.json").write_text(text)
        return [one.out / "metrics.json"]

    yield table("cross_architecture", lambda: tables.cross_architecture(results, labels))
    yield "metrics.json", metrics
    yield figure("cross_architecture", lambda path: figures.cross_architecture(results, labels, path))
    yield figure("references", lambda path: figures.references(results, labels, path))
    stage1 = report.ladder_of
    if stage1 and report.ladder:
        yield table("ablation", lambda: tables.ablation(results, labels, stage1, report.ladder))
        yield figure("ladder", lambda path: figures.ladder(results, labels, path, stage1, report.ladder))
    published = {name: spec.published_name for name, spec in datasets.items()}
    for name, planned in plans(study, published).items():
        yield table(name, partial(_paper, one, planned))
    if report.published:
        names, differ = choices.published_names(study), choices.departures(study)
        networks = choices.published_networks(study)
        yield table(
            "reproduced",
            lambda: compare_published(results, one.published(), names, differ, labels, published, networks),
        )
    if recorded := choices.recorded_networks(study):
        yield table("recorded", lambda: compare_recorded(results, _recorded(one), recorded, labels))
    if families := study.sweeps():
        yield figure("sweeps", lambda path: sweeps(results, labels, families, path))
    classes = {name: len(spec.classes) for name, spec in datasets.items()}
    if native_entries(study):
        yield table("systems", partial(_systems, one, classes, published))
    yield table("quality", lambda: tables.quality(one.quality(), labels))
    yield figure("quality", lambda path: figures.quality(one.quality(), labels, path))
    galleries = {
        "gallery": choices.gallery_rows(study),
        "vae_gallery": choices.vae_rows(study),
        "systems": choices.systems_rows(study, classes),
    }
    for stem, rows in galleries.items():
        if rows:
            yield figure(stem, partial(_gallery, one, rows))
    if inverted := choices.normality_rows(study, labels.dataset):
        yield figure("normality", partial(_normality, one, inverted))
    if report.phases_of:
        yield figure("phases", partial(_phases, one))


def _systems(one: _Report, classes: Mapping[str, int], published: Mapping[str, str]) -> Table:
    """Without the benchmarks of the rules, costs are missing in the table."""
    costs = {
        cell: Cost(*(time_of([one.at(path) for path in parts[part]]) for part in ("making", "own", "shared")))
        for cell, parts in choices.set_benchmarks(one.study, classes).items()
    }
    methods = {name: entry.method for name, entry in one.study.distill.items()}
    natives = native_entries(one.study)
    return systems(one.results, one.labels, methods, natives, costs, classes, one.published(), published)


def _paper(one: _Report, planned: Mapping[str, Any]) -> Table:
    return paper_table(one.results, one.published(), labels=one.labels, root=one.root, **planned)


def _recorded(one: _Report) -> list[tuple[SetCell, dict[str, list[float]]]]:
    cells = choices.released_cells(one.study)
    return [(cell, recorded_accuracies(one.at(set_path(one.study, cell)))) for cell in cells]


def _gallery(one: _Report, rows: Sequence[tuple[str, Path]], path: Path) -> None:
    files = [one.at(file) for _, file in rows]
    _want(files)
    # Reading sets takes torch, which nothing else here needs.
    from diver.report.pictures import draw_sets

    draw_sets([title for title, _ in rows], files, path)


def _normality(one: _Report, rows: Sequence[tuple[str, Path]], path: Path) -> None:
    _want([one.at(file) for _, file in rows])
    draw_normality([(title, Normality.read(one.at(file))) for title, file in rows], path)


def _phases(one: _Report, path: Path) -> None:
    trace = one.at(choices.trace_path(one.study))
    _want([trace])
    from diver.report.pictures import draw_trace

    draw_trace(trace, path)


def _want(files: Sequence[Path]) -> None:
    for file in files:
        if not file.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(file))
