"""Figures: all formats, deterministic bytes, and that they show what they are given."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from tidy import LABELS, LADDER, make_table

from diver.report import figures, galleries, sweeps
from diver.report import pictures as report_pictures
from diver.report.labels import Labels
from diver.sets import UNIT, DistilledSet

CLASSES = ("airplane", "automobile", "bird")
Draw = Callable[[Path], tuple[Path, Path, Path]]


def pictures(seed: int, n: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.2, 1.2, (n, 3, 8, 8)).astype(np.float32)


def draw_gallery(path: Path) -> tuple[Path, Path, Path]:
    labels = np.repeat(range(3), 2)
    return galleries.gallery([("stage-1 set", pictures(0), labels), ("DIVER", pictures(1), labels)], CLASSES, path)


def draw_phases(path: Path) -> tuple[Path, Path, Path]:
    k = np.arange(49, -1, -1)
    return galleries.phases(pictures(2, 50), list(k), list(k * 20), (25, 40), path)


def test_gallery_of_many_classes_shows_the_first_image_of_some(
    tmp_path: Path, tiny_set: DistilledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_set.write(tmp_path / "set.safetensors")
    drawn = []
    monkeypatch.setattr(report_pictures, "gallery", lambda rows, classes, path: drawn.append((rows, classes)))
    monkeypatch.setattr(report_pictures, "CLASSES", 2)
    report_pictures.draw_sets(["mine", "mine"], [tmp_path / "set.safetensors"] * 2, tmp_path / "g.png")
    ((rows, classes),) = drawn
    # A row for each set, also where two have the same title.
    assert classes == ("a", "b") and [(title, list(labels)) for title, _, labels in rows] == [("mine", [0, 1])] * 2
    assert np.allclose(rows[0][1], tiny_set.in_range(UNIT).images[[0, 2]])


def with_ceiling(table: pd.DataFrame) -> pd.DataFrame:
    """The table and students of the whole training set, all 60 %."""
    full = table[(table.stage2 == "none") & (table.ipc == 10) & (table.stage1 == "dm")]
    return pd.concat([table, full.assign(stage1="full", ipc=5000, accuracy_last=60.0)], ignore_index=True)


DRAWINGS: dict[str, Draw] = {
    "gallery": draw_gallery,
    "phases": draw_phases,
    "cross": lambda path: figures.cross_architecture(make_table(ipcs=(10,)), LABELS, path),
    "references": lambda path: figures.references(with_ceiling(make_table()), LABELS, path),
    "ladder": lambda path: figures.ladder(make_table(ipcs=(10,)), LABELS, path, "dm", LADDER),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_writes_all_formats_with_the_same_bytes_each_time(name: str, tmp_path: Path) -> None:
    first = DRAWINGS[name](tmp_path / "first.svg")
    second = DRAWINGS[name](tmp_path / "second")
    assert [path.name for path in first] == ["first.png", "first.svg", "first.pdf"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert b"<dc:date>" not in first[1].read_bytes()
    assert first[2].read_bytes().startswith(b"%PDF") and b"CreationDate" not in first[2].read_bytes()
    image = imread(first[0])
    assert min(image.shape[:2]) > 150 and image[..., :3].std() > 0.05


def test_gallery_shows_the_first_image_of_each_class_enlarged_without_smoothing(tmp_path: Path) -> None:
    images = np.zeros((4, 3, 2, 2), dtype=np.float32)
    images[0, 0], images[2, 1], images[1], images[3] = 1, 1, 0.5, 0.5
    png, *_ = galleries.gallery([("row", images, [0, 0, 1, 1])], ("a", "b"), tmp_path / "g.png")
    shown = (imread(png)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    counts = [int((shown == colour).all(axis=1).sum()) for colour in ([255, 0, 0], [0, 255, 0], [128, 128, 128])]
    assert counts[:2] == [galleries.IMAGE_PIXELS**2] * 2
    # Grey also occurs in the smoothed edges of letters, but not as a whole image.
    assert counts[2] < galleries.IMAGE_PIXELS


def test_gallery_refuses_a_class_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image of class b"):
        galleries.gallery([("row", pictures(0), [0] * 6)], ("a", "b"), tmp_path / "g.png")


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_phases_names_each_phase_over_its_own_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(galleries, "save", lambda figure, path: kept.append(figure) or (path, path))
    k = [49, 41, 40, 25, 24, 0]
    galleries.phases(pictures(3), k, [i * 20 for i in k], (25, 40), tmp_path / "p.png")
    assert texts_of(kept[0])[:6] == [f"k={i}\nt={i * 20}" for i in k]
    assert texts_of(kept[0])[6:] == ["chaotic", "semantic", "refinement"]
    bars = [tuple(line.get_xdata()) for line in kept[0].axes[0].lines]
    step = galleries.IMAGE_PIXELS + galleries.GAP
    assert bars == [(i * step, (i + 1) * step + galleries.IMAGE_PIXELS) for i in (0, 2, 4)]


def test_ladder_points_are_the_means_in_the_ladders_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or (path, path))
    table = make_table()
    figures.ladder(table, LABELS, tmp_path / "l.png", "dm", LADDER)
    assert [axes.get_title() for axes in kept[0].axes] == ["IPC 1", "IPC 10"]
    mine = table[(table.stage1 == "dm") & (table.ipc == 10) & (table.scale == "matched") & (table.role == "unseen")]
    expected = [mine[mine.stage2 == name].accuracy_last.mean() for name in LADDER]
    assert kept[0].axes[1].containers[0].lines[0].get_ydata() == pytest.approx(expected)


def test_references_show_sets_by_themselves_and_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or (path, path))
    table = with_ceiling(make_table())
    figures.references(table, LABELS, tmp_path / "r")
    (axes,) = kept[0].axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["IPC 1", "IPC 10"]
    assert texts_of(kept[0]) == ["full: 60.0"]
    figures.cross_architecture(table, LABELS, tmp_path / "c")
    assert not any("5000" in one.get_title() or "full" in one.get_title() for one in kept[1].axes)
    random = table[(table.stage1 == "random") & (table.stage2 == "none") & (table.role == "unseen") & (table.ipc == 1)]
    # Points are drawn in the order of the labels: Random first.
    assert axes.lines[0].get_ydata()[0] == pytest.approx(random.accuracy_last.mean())


def test_a_treatment_keeps_its_colour_when_others_are_left_out() -> None:
    labels = Labels(stage2={"none": "none", "a": "A", "b": "B"})
    assert figures._colours(labels, ["b"])["b"] == figures._colours(labels, ["none", "a", "b"])["b"]


def test_single_seed_is_drawn_without_interval(tmp_path: Path) -> None:
    table = make_table(seeds=1, ipcs=(1,))
    assert figures.cross_architecture(table, LABELS, tmp_path / "c")[0].stat().st_size > 1000
    assert figures.ladder(table, LABELS, tmp_path / "l", "dm", LADDER)[0].stat().st_size > 1000


def panels_of(table: pd.DataFrame, labels: Labels, path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Axes]:
    """The panels of the figure of all architectures, by title."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or (path, path))
    figures.cross_architecture(table, labels, path)
    return {axes.get_title(): axes for axes in kept[0].axes}


def test_a_set_that_is_not_at_every_ipc_leaves_the_other_panels_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table()
    panels = panels_of(table[(table.stage1 != "dm") | (table.ipc == 1)], LABELS, tmp_path / "c", monkeypatch)
    assert panels["DM, IPC 10"].get_xlim() == panels["Random, IPC 1"].get_xlim() == (-0.5, 4.5)


def test_datasets_with_other_students_have_their_own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(ipcs=(10,))
    other = table.assign(dataset="other", architecture=table["architecture"].replace("resnet", "swin"))
    other["role"] = np.where(other["architecture"] == "vit", "proxy", "unseen")
    panels = panels_of(pd.concat([table, other], ignore_index=True), LABELS, tmp_path / "c", monkeypatch)
    ticks = {
        title: [tick.get_text() for tick in axes.get_xticklabels() if tick.get_visible()]
        for title, axes in panels.items()
    }
    assert ticks["CIFAR-10: DM, IPC 10"] == ["ConvNet\n(proxy)", "ResNet", "ViT", "MobileNet", "unseen\nmean"]
    assert ticks["other: DM, IPC 10"] == ["ConvNet", "ViT\n(proxy)", "MobileNet", "swin", "unseen\nmean"]


def test_a_legend_has_no_more_columns_than_fit() -> None:
    handles = [Line2D([], [], label=f"inheritance + guidance everywhere {i}") for i in range(4)]
    for width, columns in ((14.0, 4), (7.0, 2), (2.0, 1)):
        figure = Figure(figsize=(width, 3), layout="constrained")
        figures.legend_below(figure, handles, 4)
        (legend,) = figure.legends
        assert legend._ncols == columns


def test_sweeps_on_several_datasets_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(sweeps, "save", lambda figure, path: kept.append(figure) or (path, path))
    table = make_table(ipcs=(10,))
    for several in (table, pd.concat([table, table.assign(dataset="other")])):
        sweeps.sweeps(several, LABELS, {"x": ["raw", "inheritance"]}, tmp_path / "s")
    one, two = ([axes.get_title() for axes in figure.axes] for figure in kept)
    assert [title.partition(",")[0] for title in one] == ["DM"]
    assert [title.partition(",")[0] for title in two] == ["CIFAR-10: DM", "other: DM"]
