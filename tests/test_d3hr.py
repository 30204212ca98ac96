"""D3HR as a system: statistics of inverted classes, kill and resume, synthesis, switches, the figure of normality."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diver.config.native import LatentsConfig
from diver.config.native.d3hr import D3HRConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.recover import d3hr as module
from diver.recover.base import denoiser
from diver.recover.d3hr import class_statistics, synthesise_d3hr
from diver.recover.inversion import invert
from diver.recover.latents import Latents, encode_latents
from diver.recover.moments import ClassStatistics, StatisticsError
from diver.report.normality import Normality, draw_normality


@pytest.fixture(scope="module")
def data() -> Prepared:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (36, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.arange(3).repeat(12)
    return Prepared(images, labels, images[:3], labels[:3], "tiny", ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, data: Prepared, tiny_prior: Prior) -> Latents:
    path = tmp_path_factory.mktemp("latents") / "latents.npy"
    encode_latents(data, tiny_prior, LatentsConfig(), "sample", path)
    return Latents.open(path, data, tiny_prior)


def settings(**changes: Any) -> D3HRConfig:
    few = {"respacing": "ddim10", "level": 6, "kept_levels": [2, 9], "batch": 5, "candidates": 500}
    return D3HRConfig(**{**few, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, data: Prepared, latents: Latents, tiny_prior: Prior) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "statistics.safetensors"
    class_statistics(latents, data, tiny_prior, settings(kept_levels=[2, 5, 9])).write(path)
    return path


def test_statistics_are_those_of_the_inverted_classes(
    data: Prepared, latents: Latents, tiny_prior: Prior, saved: Path
) -> None:
    statistics = ClassStatistics.read(saved)
    config = settings()
    assert statistics.levels == (2, 5, 6, 9) and statistics.timesteps == (200, 500, 600, 900)
    assert statistics.counts == (12, 12, 12) and statistics.mean.shape == (3, 4, 4, 4, 4)
    schedule, seen = tiny_prior.schedule("ddim10"), {}
    for c in range(3):
        denoise = denoiser(tiny_prior, schedule, torch.full((12,), c), config)
        with torch.inference_mode():
            invert(latents.of(c), schedule, denoise, 9, observe=lambda k, state: seen.__setitem__(k, state.double()))
        for i, level in enumerate(statistics.levels):
            torch.testing.assert_close(statistics.mean[c, i].double(), seen[level].mean(0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(statistics.variance[c, i].double(), seen[level].var(0), rtol=1e-3, atol=1e-4)


def test_a_killed_inversion_goes_on_with_the_same_bytes(
    data: Prepared, latents: Latents, tiny_prior: Prior, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plain, calls = settings(kept_levels=[2, 5, 9]), module.invert, 0

    def killed(*given: Any, **named: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return plain(*given, **named)

    monkeypatch.setattr(module, "invert", killed)
    with pytest.raises(KeyboardInterrupt):
        class_statistics(latents, data, tiny_prior, config, folder=tmp_path / "state")
    done: list[tuple[int, int, str]] = []
    found = class_statistics(
        latents, data, tiny_prior, config, folder=tmp_path / "state", progress=lambda *one: done.append(one)
    )
    # Three batches of each of three classes, of which five were there.
    assert calls == 6 + 4 and done[-1][:2] == (36 - 22, 36 - 22)
    found.write(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()
    # What another setting left is not taken.
    other = class_statistics(latents, data, tiny_prior, settings(cfg_scale=1.0), folder=tmp_path / "state")
    assert not torch.equal(other.mean[:, 0], found.mean[:, 0])


def test_statistics_do_not_depend_on_what_only_the_synthesis_uses() -> None:
    same = {"candidates": 7, "lambda_skew": 0.1, "skewness": "released", "shared_seed": True}
    assert settings(**same).inversion() == settings().inversion()
    # Another level costs no new inversion where it is kept.
    kept = [2, 5, 6, 9]
    assert settings(level=5, kept_levels=kept).inversion() == settings(kept_levels=kept).inversion()
    assert settings(paper_code_offset=True, kept_levels=kept).inversion() == settings(kept_levels=kept).inversion()
    assert D3HRConfig(**settings().inversion()).levels() == settings().levels()
    assert settings(cfg_scale=1.0).inversion() != settings().inversion()
    assert D3HRConfig().levels() == list(range(24, 39)) and D3HRConfig().statistics_level() == 31


def made(data: Prepared, prior: Prior, saved: Path, ipc: int = 3, **changes: Any) -> Tensor:
    config = settings(**changes)
    return synthesise_d3hr(data, ipc, prior, config, artefacts={"statistics": saved}).images


@pytest.mark.parametrize("ipc", [1, 2, 3])
def test_a_set_of_every_ipc(data: Prepared, tiny_prior: Prior, saved: Path, ipc: int) -> None:
    images = made(data, tiny_prior, saved, ipc)
    assert images.shape == (3 * ipc, 3, 16, 16) and images.abs().max() <= 1
    assert torch.equal(images, made(data, tiny_prior, saved, ipc))


def starts_of(
    data: Prepared, prior: Prior, saved: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[Tensor, int]:
    """States that the chains start from, and the index they start at."""
    seen: list[tuple[Tensor, int]] = []
    plain = module.run_chain

    def watched(start: Tensor, schedule: Any, denoise: Any, first: int, noise: Any) -> Tensor:
        seen.append((start.clone(), first))
        return plain(start, schedule, denoise, first, noise)

    monkeypatch.setattr(module, "run_chain", watched)
    made(data, prior, saved, batch=500, **changes)
    monkeypatch.setattr(module, "run_chain", plain)
    return seen[0]


def test_sampling_starts_at_the_level_of_the_statistics(
    data: Prepared, tiny_prior: Prior, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many vectors their mean and spread are the class's at the level where the chain starts."""
    statistics = ClassStatistics.read(saved)

    def distance(starts: Tensor, level: int) -> float:
        mean, std = statistics.at(level, data.classes)
        groups = starts.view(3, -1, 4, 4, 4)
        return float((groups.mean(1) - mean).norm() + (groups.std(1) - std).norm())

    starts, first = starts_of(data, tiny_prior, saved, monkeypatch, ipc=60)
    assert first == 6 and distance(starts, 6) < min(distance(starts, k) for k in (2, 5, 9))
    starts, first = starts_of(data, tiny_prior, saved, monkeypatch, ipc=60, paper_code_offset=True)
    assert first == 6 and distance(starts, 5) < min(distance(starts, k) for k in (2, 6, 9))


def test_switches_of_the_released_code(
    data: Prepared, tiny_prior: Prior, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def normals(**changes: Any) -> Tensor:
        """The unit normals behind the chosen groups."""
        mean, std = ClassStatistics.read(saved).at(6, data.classes)
        starts, _ = starts_of(data, tiny_prior, saved, monkeypatch, **changes)
        return (starts.view(3, 3, 4, 4, 4) - mean[:, None]) / std[:, None]

    own = normals(candidates=1)
    assert (own[0] - own[1]).abs().max() > 0.1
    shared = normals(candidates=1, shared_seed=True)
    torch.testing.assert_close(shared[0], shared[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shared, normals(candidates=1, shared_seed=True, seed=5), rtol=1e-3, atol=1e-3)
    # Other candidates are best where the skewness is the released one, and where it counts for nothing.
    assert not torch.equal(normals(lambda_skew=5), normals(lambda_skew=5, skewness="released"))
    assert not torch.equal(normals(lambda_skew=5), normals(lambda_skew=0))


def test_the_time_of_the_inversion_changes_it(data: Prepared, latents: Latents, tiny_prior: Prior, saved: Path) -> None:
    current = class_statistics(latents, data, tiny_prior, settings(inversion_time="current"))
    mean, _ = current.at(6, data.classes)
    assert not torch.allclose(mean, ClassStatistics.read(saved).at(6, data.classes)[0], atol=1e-3)


def test_some_images_of_each_class(data: Prepared, latents: Latents, tiny_prior: Prior) -> None:
    found = class_statistics(latents, data, tiny_prior, settings(images_per_class=7))
    assert found.counts == (7, 7, 7)
    few = Latents(latents.rows[[0, 1, 2, *range(12, 36)]], ((0, 3), (3, 15), (15, 27)))
    with pytest.raises(StatisticsError, match="class 0 has 3 latents"):
        class_statistics(few, data, tiny_prior, settings())


def test_what_does_not_fit_is_refused(data: Prepared, latents: Latents, tiny_prior: Prior, saved: Path) -> None:
    for outside in ({"level": 10}, {"kept_levels": [10]}, {"level": 10, "paper_code_offset": True}):
        with pytest.raises(
            ValidationError, match=r"level 10 \(.* kept_levels\): with respacing 'ddim10' they lie in 1..9"
        ):
            settings(**outside)
    with pytest.raises(StatisticsError, match="level 4 was not kept"):
        made(data, tiny_prior, saved, level=4)
    with pytest.raises(StatisticsError, match=r"levels of 'ddim10'.*settings have 'ddim20'"):
        made(data, tiny_prior, saved, respacing="ddim20")
    with pytest.raises(ValidationError, match="must be 1 or more, not 0"):
        settings(level=1, paper_code_offset=True)


def test_normality_is_drawn_as_three_formats(saved: Path, tmp_path: Path) -> None:
    read = Normality.read(saved)
    assert read.values.shape == (3, 4, 3) and read.timesteps == (200, 500, 600, 900)
    np.testing.assert_allclose(read.values[..., 0], ClassStatistics.read(saved).normality[..., 0])
    written = draw_normality([("D3HR", read), ("again", read)], tmp_path / "normality.png")
    assert {path.suffix for path in written} == {".png", ".svg", ".pdf"}
    first = [path.read_bytes() for path in written]
    draw_normality([("D3HR", read), ("again", read)], tmp_path / "normality.png")
    assert [path.read_bytes() for path in written] == first
    saved_elsewhere = tmp_path / "no.safetensors"
    saved_elsewhere.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no\.safetensors: no statistics"):
        Normality.read(saved_elsewhere)
