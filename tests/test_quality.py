"""Measures of images: closed forms, hand-counted cases, invariances, and the table and figure made of them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.linalg import sqrtm
from tidy import LABELS
from torch import Tensor

from diver.data.prepared import Prepared
from diver.networks import create
from diver.networks.weights import Trained, embed
from diver.report import figures, quality, tables
from diver.report.measure import Extractor, Reference
from diver.report.quality import coverage, density, frechet_distance, high_frequency_energy, neighbour_radii
from diver.sets import DistilledSet
from diver.students.evaluate import student_images

SEEDS = st.integers(0, 2**31 - 1)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(rows: int, columns: int, size: int = 32) -> Tensor:
    """A plane wave with so many periods along each side, [1, 1, size, size]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.cos(2 * math.pi * (rows * y + columns * x) / size)[None, None]


# Half of the Nyquist frequency of 32 pixels is 8 periods.
@pytest.mark.parametrize("periods", [(1, 0), (0, 8), (5, 6)])
def test_slow_waves_have_no_high_frequencies(periods: tuple[int, int]) -> None:
    assert float(high_frequency_energy(wave(*periods))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("periods", [(9, 0), (0, 16), (6, 6)])
def test_fast_waves_have_nothing_else(periods: tuple[int, int]) -> None:
    assert float(high_frequency_energy(wave(*periods))) == pytest.approx(1)


def test_energies_add_up_by_squared_amplitude_and_channels_are_averaged() -> None:
    mixed = 3 * wave(2, 1) + wave(0, 12)
    assert float(high_frequency_energy(mixed)) == pytest.approx(1 / 10)
    assert float(high_frequency_energy(torch.cat([mixed, wave(0, 12)], 1))) == pytest.approx(0.55)


def test_white_noise_has_the_share_of_frequencies() -> None:
    """All but the zero frequency have the same expected energy; the disc of radius 8 holds 197 points of a grid."""
    found = high_frequency_energy(normal(0, 400, 3, 32, 32)).mean()
    assert float(found) == pytest.approx(1 - 196 / 1023, abs=1e-3)


def test_constant_channel_counts_as_nothing() -> None:
    images = torch.full((2, 2, 8, 12), 0.1)
    assert high_frequency_energy(images).tolist() == [0, 0]
    images[1, 0] = normal(0, 8, 12).float()
    alone = high_frequency_energy(images[1:, :1])
    assert high_frequency_energy(images)[1] == pytest.approx(float(alone) / 2)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(0.01, 100), st.floats(-10, 10), st.sampled_from([-1, 1]))
def test_energy_does_not_depend_on_the_value_range(seed: int, scale: float, shift: float, sign: int) -> None:
    images = normal(seed, 3, 2, 9, 16)
    factor = torch.tensor([scale * sign, 1.0]).view(2, 1, 1)
    first = high_frequency_energy(images)
    assert torch.allclose(high_frequency_energy(images * factor + shift), first, rtol=1e-6)
    assert ((first > 0) & (first < 1)).all()


def test_energy_in_parts_is_energy_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = normal(0, 7, 3, 8, 8)
    whole = high_frequency_energy(images)
    monkeypatch.setattr(quality, "SPECTRA", 2 * 3 * 8 * 8)
    assert torch.equal(high_frequency_energy(images), whole)


def with_moments(seed: int, n: int, mean: Tensor, covariance: Tensor) -> Tensor:
    """Points [n, D] whose sample mean and covariance are exactly those given."""
    points = normal(seed, n, len(mean))
    points = points - points.mean(0)
    inverse = torch.linalg.inv(torch.linalg.cholesky(points.T @ points / (n - 1)))
    return points @ inverse.T @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_of_diagonal_covariances_is_the_closed_form() -> None:
    """|m - n|^2 + sum of (s - t)^2, deviations s and t along the axes."""
    m, n = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([3.0, 1.0, 0.0]).double()
    s, t = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 2.0, 3.0]).double()
    a, b = with_moments(0, 50, m, torch.diag(s**2)), with_moments(1, 80, n, torch.diag(t**2))
    assert frechet_distance(a, b) == pytest.approx(9 + 0 + 4 + 1 + 0 + 6.25)


def test_frechet_of_shifted_and_scaled_points() -> None:
    a = normal(0, 40, 6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 4)
    variance = float(a.var(0).sum())
    assert frechet_distance(a, 3 * a) == pytest.approx(float((2 * a.mean(0)).square().sum()) + 4 * variance)


def textbook(a: Tensor, b: Tensor) -> float:
    """With scipy's root of the product of the covariances."""
    x, y = a.numpy(), b.numpy()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(sqrtm(first @ second))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 12))
def test_frechet_is_that_of_a_matrix_root(seed: int, dimensions: int) -> None:
    mixing = normal(seed, dimensions, dimensions) + 3 * torch.eye(dimensions)
    a, b = normal(seed + 1, 60, dimensions) @ mixing, normal(seed + 2, 90, dimensions) + 0.5
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


def test_frechet_of_fewer_points_than_dimensions() -> None:
    """Against the root through eigenvalues, which is exact enough where the covariances have zero eigenvalues."""
    a, b = normal(0, 5, 20), 2 * normal(1, 200, 20) + 1
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    trace = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_is_biased_upward_by_few_points() -> None:
    many = normal(0, 4000, 16)
    found = [np.mean([frechet_distance(normal(seed, n, 16), many) for seed in range(1, 6)]) for n in (10, 100, 1000)]
    assert found[0] > 3 * found[1] > 9 * found[2] > 0


def test_frechet_refuses_a_single_point() -> None:
    with pytest.raises(ValueError, match="two or more"):
        frechet_distance(normal(0, 1, 3), normal(0, 5, 3))


LINE = torch.tensor([[0.0], [1.0], [3.0], [8.0], [16.0]])


def test_radii_counted_by_hand() -> None:
    assert neighbour_radii(LINE, 1).tolist() == pytest.approx([1, 1, 2, 5, 8])
    assert neighbour_radii(LINE, 2).tolist() == pytest.approx([3, 2, 3, 7, 13])


def test_coverage_and_density_counted_by_hand() -> None:
    """With k = 1 the balls are (-1, 1), (0, 2), (1, 5), (3, 13) and (8, 24)."""
    synthetic = torch.tensor([[0.5], [4.0], [4.5], [100.0]])
    assert coverage(LINE, synthetic, 1) == pytest.approx(4 / 5)
    # 0.5 lies in two balls, 4 and 4.5 in two each, 100 in none.
    assert density(LINE, synthetic, 1) == pytest.approx(6 / 4)
    assert density(LINE, synthetic, 1, neighbour_radii(LINE, 1)) == density(LINE, synthetic, 1)


def test_balls_are_open() -> None:
    assert coverage(LINE, torch.tensor([[24.0], [-1.0]]), 1) == 0
    assert coverage(LINE, torch.tensor([[23.9], [-0.9]]), 1) == pytest.approx(2 / 5)


@pytest.mark.parametrize("k", [0, 5])
def test_more_neighbours_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k}, but 5 real points"):
        neighbour_radii(LINE, k)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 6))
def test_properties_of_coverage_and_density(seed: int, count: int, k: int) -> None:
    real, synthetic = normal(seed, 30, 4), normal(seed + 1, count, 4)
    covered, dense = coverage(real, synthetic, k), density(real, synthetic, k)
    assert 0 <= covered <= 1 and dense >= 0
    # No ball without a point in it, and no more balls than memberships.
    assert covered * len(real) <= dense * k * count + 1e-9
    assert coverage(real, torch.cat([synthetic, normal(seed + 2, 3, 4)]), k) >= covered
    assert coverage(real, synthetic, k + 1) >= covered
    turn, _ = torch.linalg.qr(normal(seed + 3, 4, 4))
    assert coverage(2 * real @ turn + 5, 2 * synthetic @ turn + 5, k) == pytest.approx(covered)
    # Every real point is in its own ball and in those of the k - 1 nearer ones, on average.
    assert coverage(real, real, k) == 1
    assert density(real, real, k) == pytest.approx(1)
    assert coverage(real, real + 1e4, k) == density(real, real + 1e4, k) == 0


def test_expected_values_for_points_of_the_same_distribution() -> None:
    """Density 1; coverage 1 - (n - 1)...(n - k) / ((m + n - 1)...(m + n - k)) for m points beside n (Naeem et al.)."""
    n, m, k = 400, 200, 5
    pairs = [(normal(2 * seed, n, 8), normal(2 * seed + 1, m, 8)) for seed in range(20)]
    expected = 1 - math.prod((n - i) / (m + n - i) for i in range(1, k + 1))
    assert np.mean([coverage(a, b, k) for a, b in pairs]) == pytest.approx(expected, abs=0.02)
    assert np.mean([density(a, b, k) for a, b in pairs]) == pytest.approx(1, abs=0.05)


def test_distances_in_parts_are_distances_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, synthetic = normal(0, 50, 3), normal(1, 20, 3)
    whole = neighbour_radii(real), coverage(real, synthetic), density(real, synthetic)
    monkeypatch.setattr(quality, "DISTANCES", 130)
    assert torch.allclose(neighbour_radii(real), whole[0])
    assert (coverage(real, synthetic), density(real, synthetic)) == whole[1:]


CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """Three classes of 12, 9 and 7 smooth images, 3x16x16."""
    labels = torch.arange(3).repeat_interleave(torch.tensor([12, 9, 7]))
    coarse = normal(0, 28, 3, 4, 4).float() + labels.view(-1, 1, 1, 1)
    smooth = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear", align_corners=False)
    images = ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).to(torch.uint8)
    return Prepared(images, labels, images[:3], labels[:3], "tiny", CLASSES, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def reference(prepared: Prepared) -> Reference:
    return Reference.of(prepared, Extractor.of_pixels(), 8)


def test_reference_has_at_most_so_many_of_a_class_and_the_same_each_time(
    prepared: Prepared, reference: Reference
) -> None:
    assert torch.bincount(reference.labels).tolist() == [8, 8, 7]
    again, other = (Reference.of(prepared, Extractor.of_pixels(), 8, seed) for seed in (0, 1))
    assert torch.equal(again.features, reference.features)
    assert not torch.equal(other.features, reference.features)
    assert (reference.class_radii > reference.radii * (1 - 1e-9)).all()
    with pytest.raises(ValueError, match="k = 5"):
        Reference.of(prepared, Extractor.of_pixels(), 5)


def test_real_images_measure_as_themselves(prepared: Prepared) -> None:
    everything = Reference.of(prepared, Extractor.of_pixels(), 12)
    row = everything.measure(prepared.standardised(prepared.train_images), prepared.train_labels)
    assert row["high_frequency_ratio"] == pytest.approx(1, rel=1e-6)
    assert row["frechet"] == pytest.approx(0, abs=1e-9)
    assert (row["coverage"], row["coverage_by_class"]) == (1, 1)
    assert row["density"] == pytest.approx(1)
    assert (row["reference_images"], row["features"], row["extractor"]) == (28, 3 * 8 * 8, "pixels at 8 x 8")


def test_coverage_by_class_wants_the_right_class(prepared: Prepared) -> None:
    everything = Reference.of(prepared, Extractor.of_pixels(), 12)
    images = prepared.standardised(prepared.train_images)
    row = everything.measure(images, torch.zeros_like(prepared.train_labels))
    # All images are given as class a, so nothing covers the other two.
    assert row["coverage"] == 1
    assert row["coverage_by_class"] == pytest.approx(1 / 3)


def test_noise_is_told_from_smooth_images(tiny_set: DistilledSet, prepared: Prepared, reference: Reference) -> None:
    noise = reference.measure(student_images(tiny_set, prepared, matched=True), tiny_set.hard_labels())
    chosen = torch.tensor([0, 1, 12, 13, 21, 22])
    real = reference.measure(prepared.standardised(prepared.train_images[chosen]), prepared.train_labels[chosen])
    assert noise["high_frequency_ratio"] > 5 * real["high_frequency_ratio"]
    assert noise["frechet"] > real["frechet"]
    assert noise["coverage"] < real["coverage"]


def test_features_of_a_teacher_are_those_of_its_last_layer(prepared: Prepared) -> None:
    network = create("convnet", 3, 3, 16, width=8).eval()
    trained = Trained(network, "convnet", {"width": 8}, CLASSES, 3, 16, "tiny", (0.5,) * 3, (0.25,) * 3, 61.5)
    extractor, images = Extractor.of_teacher(trained), prepared.standardised(prepared.train_images)
    assert (extractor.name, extractor.accuracy) == ("teacher convnet", 61.5)
    assert torch.equal(extractor.features(images), embed(network, images))
    row = Reference.of(prepared, extractor, 8).measure(images[:6], prepared.train_labels[:6])
    assert (row["extractor"], row["extractor_accuracy"]) == ("teacher convnet", 61.5)


def measured(datasets: tuple[str, ...] = ("cifar10",), accuracy: float | str = 64.0) -> pd.DataFrame:
    """Made-up measures of a study's sets, in no order."""
    names = [("dm", "diver"), ("random", "none"), ("dm", "none"), ("dm", "vae")]
    rows = [
        {
            **{"dataset": dataset, "ipc": ipc, "stage1": stage1, "stage2": stage2, "images": 10 * ipc},
            **{"high_frequency": 0.1, "high_frequency_ratio": 0.4 + number, "frechet": 12.34 / ipc},
            **{"coverage": 0.0123, "coverage_by_class": 0.02, "density": 0.987, "neighbours": 5},
            **{"extractor": "teacher resnet", "extractor_accuracy": accuracy, "features": 128},
            **{"reference_images": 10000, "reference_seed": 0, "reference_high_frequency": 0.085},
        }
        for dataset in datasets
        for ipc in (10, 1)
        for number, (stage1, stage2) in enumerate(names)
    ]
    return pd.DataFrame(rows)


def test_table_is_ordered_and_says_what_it_rests_on() -> None:
    found = tables.quality(measured(), LABELS)
    assert found.title == "Images of the sets beside real ones, CIFAR-10"
    names = found.display[["IPC", "Stage 1", "Stage 2"]].to_numpy().tolist()
    assert names[:4] == [
        ["1", "Random", "stage-1 set"],
        ["1", "DM", "stage-1 set"],
        ["1", "DM", "VAE only"],
        ["1", "DM", "DIVER"],
    ]
    assert list(found.display.iloc[3])[3:] == ["10.0", "0.40", "12.3", "1.23", "2.00", "0.99"]
    assert list(found.data.columns) == list(measured().columns)
    said = "\n".join(found.legend)
    assert "teacher resnet (64.0 % on the test images); 10000 real training images (drawn by seed 0)" in said
    assert "k = 5" in said and "within an IPC only" in said


def test_table_of_several_datasets_without_known_accuracy() -> None:
    found = tables.quality(measured(("cifar10", "other"), accuracy=""), LABELS)
    assert list(found.display.columns)[0] == "Dataset"
    assert [line for line in found.legend if line.startswith("other: features of the teacher resnet; ")]


def test_figure_shows_every_set_and_real_images_at_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or save(figure, path))
    first, second = (figures.quality(measured(), LABELS, tmp_path / name) for name in ("first", "second.svg"))
    assert [path.name for path in first] == ["first.png", "first.svg", "first.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    (ratio, distance), below = kept[0].axes[:2], kept[0].axes[2]
    assert [ratio.get_title(), below.get_title()] == [f"IPC {ipc}: high-frequency energy" for ipc in (1, 10)]
    assert [text.get_text() for text in ratio.get_yticklabels()] == ["Random", "DM", "DM, VAE only", "DM, DIVER"]
    points = [tuple(map(float, line.get_xydata()[0])) for line in ratio.lines if line.get_linestyle() == "None"]
    assert points == [(1.4, 0), (2.4, 1), (3.4, 2), (0.4, 3)]
    assert ratio.get_xscale() == "log" and distance.get_xscale() == "linear"
    assert [line.get_xdata()[0] for line in ratio.lines if line.get_linestyle() == "--"] == [1]
