"""D3HR's parts: inversion against the sampler, moments against scipy, group sampling against plain selection."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from diver.prior.base import Denoised
from diver.prior.schedule import Schedule, linear_path, respace
from diver.recover.groups import Weights, choose_group, chunk_seed, group_scores
from diver.recover.inversion import invert
from diver.recover.moments import ClassStatistics, RunningMoments, StatisticsError, normal_reference
from diver.recover.sampler import Denoiser, KeyedNoise, run_chain

ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
SCHEDULE = respace(ALPHAS, "ddim50")
NOISE = KeyedNoise(0, range(4))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_time(schedule: Schedule) -> Denoiser:
    """A noise estimate that depends on the time only: inversion is exact if, and only if, it is told the same time."""

    def denoise(state: Tensor, k: int) -> Denoised:
        level = schedule.level(k)
        noise = torch.full_like(state, torch.tensor(level.timestep).cos().item())
        return Denoised(noise, (state - level.noise * noise) / max(level.signal, 1e-9), None)

    return denoise


def linear(guidance: float, schedule: Schedule = SCHEDULE) -> Denoiser:
    """The exact denoiser of a class N(2, 0.5^2) guided away from all classes, N(0, 1): linear in the state."""

    def denoise(state: Tensor, k: int) -> Denoised:
        level = schedule.level(k)
        everything = level.noise * state
        spread = 0.25 * level.signal**2 + level.noise**2
        one = level.noise * (state - 2 * level.signal) / spread
        noise = everything + guidance * (one - everything)
        return Denoised(noise, (state - level.noise * noise) / level.signal, None)

    return denoise


@pytest.mark.parametrize("schedule", [SCHEDULE, linear_path("50")], ids=["diffusion", "flow"])
def test_inversion_undoes_the_sampler(schedule: Schedule) -> None:
    clean = normal(4, 2, 3, 3)
    state = invert(clean, schedule, by_time(schedule), 31, first=-1)
    back = run_chain(state, schedule, by_time(schedule), 31, NOISE)
    assert torch.allclose(back, clean, atol=1e-10)
    wrong = invert(clean, schedule, by_time(schedule), 31, first=-1, told="current")
    assert (run_chain(wrong, schedule, by_time(schedule), 31, NOISE) - clean).abs().max() > 0.01


def test_guidance_makes_inversion_inexact() -> None:
    """For a linear model the round trip is nearly the identity without guidance, and clearly not with guidance 4."""
    clean = 2 + 0.5 * normal(4, 2, 3, 3)

    def error(guidance: float, steps: int = 50) -> float:
        schedule = respace(ALPHAS, f"ddim{steps}")
        denoise, last = linear(guidance, schedule), 31 * steps // 50
        state = invert(clean, schedule, denoise, last, first=-1)
        return float((run_chain(state, schedule, denoise, last, NOISE) - clean).square().mean().sqrt())

    assert error(1) < 0.1
    assert error(1, 200) < 0.3 * error(1)
    assert error(4) > 4 * error(1)


def test_inversion_starts_where_it_is_told_and_shows_every_level() -> None:
    seen: list[int] = []
    invert(normal(4, 1, 2, 2), SCHEDULE, linear(1), 5, observe=lambda k, state: seen.append(k))
    assert seen == [1, 2, 3, 4, 5]
    for first, last in [(-2, 5), (0, 0), (0, 50)]:
        with pytest.raises(ValueError, match="inversion from index"):
            invert(normal(4, 1, 2, 2), SCHEDULE, linear(1), last, first=first)


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_moments_equal_scipy(batch: int) -> None:
    values = normal(200, 12).exp() + 50
    moments = RunningMoments.of_shape(12)
    for part in values.split(batch):
        moments.add(part)
    x = values.numpy()
    assert moments.count == 200
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance(), x.var(0, ddof=1), rtol=1e-11)
    np.testing.assert_allclose(moments.skewness(), stats.skew(x, bias=False), rtol=1e-9)
    np.testing.assert_allclose(moments.excess_kurtosis(), stats.kurtosis(x, bias=False), rtol=1e-9)
    rejected = np.mean([stats.jarque_bera(column).pvalue < 0.05 for column in x.T])
    np.testing.assert_allclose(
        moments.normality(),
        [
            np.abs(stats.skew(x, bias=False)).mean(),
            np.abs(stats.kurtosis(x, bias=False)).mean(),
            rejected,
        ],
        rtol=1e-9,
    )


def test_moments_are_accumulated_in_double_precision() -> None:
    """Half-precision latents far from zero, as sums of which half or single precision would lose the variance."""
    values = (1000 + normal(4000, 3)).half()
    moments = RunningMoments.of_shape(3)
    for part in values.split(50):
        moments.add(part)
    np.testing.assert_allclose(moments.variance(), values.double().numpy().var(0, ddof=1), rtol=1e-12)


def test_normal_values_are_as_normal_as_the_reference() -> None:
    moments = RunningMoments.of_shape(2000)
    moments.add(normal(300, 2000))
    np.testing.assert_allclose(moments.normality()[:2], normal_reference(300)[:2], rtol=0.1)
    assert 0.02 < moments.normality()[2] < 0.08
    skewed = RunningMoments.of_shape(2000)
    skewed.add(normal(300, 2000).exp())
    assert (skewed.normality() > 5 * moments.normality()).all()
    flat = RunningMoments.of_shape(2)
    flat.add(torch.ones(10, 2))
    assert flat.normality().tolist() == [0, 0, 0]


def made(classes: int = 2, dimensions: int = 8) -> ClassStatistics:
    parts = []
    for c in range(classes):
        moments = RunningMoments.of_shape(2, dimensions)
        moments.add(normal(30, 2, dimensions, seed=c))
        parts.append(moments)
    names = tuple("ab"[:classes])
    return ClassStatistics.of_classes(
        parts,
        (2, 2, 2),
        levels=(5, 31),
        timesteps=(100.0, 620.0),
        respacing="ddim50",
        classes=names,
        dataset="toy",
        facts={"prior": "toy"},
    )


def test_statistics_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    made().write(path)
    read = ClassStatistics.read(path)
    assert (read.levels, read.timesteps, read.classes, read.facts) == (
        (5, 31),
        (100.0, 620.0),
        ("a", "b"),
        {"prior": "toy"},
    )
    mean, std = read.at(31, ("a", "b"))
    assert mean.shape == (2, 2, 2, 2) and mean.dtype == torch.float32
    torch.testing.assert_close(std[1].flatten().double(), normal(30, 2, 8, seed=1)[:, 1].std(0), rtol=1e-6, atol=0)
    with pytest.raises(StatisticsError, match="level 30 was not kept, of 5, 31"):
        read.at(30, ("a", "b"))
    with pytest.raises(StatisticsError, match="other classes"):
        read.at(31, ("a", "c"))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StatisticsError, match=r"s\.safetensors: truncated"):
        ClassStatistics.read(path)


def plain_score(group: Tensor, mean: Tensor, std: Tensor, weights: Weights) -> float:
    """The score as the paper writes it, on the group itself."""
    x = group.double().flatten(1)
    score = weights.mean * (x.mean(0) - mean.flatten()).norm()
    if len(x) > 1:
        score += weights.std * (x.std(0) - std.flatten()).norm()
    if len(x) > 2:
        score += weights.skew * torch.as_tensor(stats.skew(x.numpy(), bias=False)).norm()
    return float(score)


@pytest.mark.parametrize("ipc", [1, 2, 3, 10])
def test_scores_equal_the_definition(ipc: int) -> None:
    mean, std = normal(6, seed=1), 0.5 + normal(6, seed=2).abs()
    z = normal(5, ipc, 6, seed=3)
    scores = group_scores(z.float(), std.float(), Weights())
    expected = [plain_score(mean + std * one, mean, std, Weights()) for one in z]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("ipc", [1, 2, 10])
def test_the_chosen_group_is_nearer_to_the_class_than_random_ones(ipc: int) -> None:
    mean, std = 3 * normal(2, 4, 4, seed=1), 0.5 + normal(2, 4, 4, seed=2).abs()
    chosen = choose_group(mean, std, ipc, 3000, Weights(), seed=0, label=0)
    random = [plain_score(mean + std * normal(ipc, 2, 4, 4, seed=s), mean, std, Weights()) for s in range(100)]
    mine = plain_score(chosen.group, mean, std, Weights())
    assert chosen.group.shape == (ipc, 2, 4, 4)
    assert mine == pytest.approx(chosen.score, rel=1e-4)
    assert chosen.mean_score == pytest.approx(np.mean(random), rel=0.05)
    assert mine < min(random) < np.mean(random)


def test_more_candidates_score_better() -> None:
    mean, std = torch.zeros(64), torch.ones(64)
    scores = [choose_group(mean, std, 5, m, Weights(), 0, 0).score for m in (1, 10, 1000, 20_000)]
    assert scores[0] > scores[1] > scores[2] > scores[3]
    # 20 000 groups of 5 x 64 are 25 chunks, the last of which is not whole.
    assert choose_group(mean, std, 5, 20_000, Weights(), 0, 0).candidates == 20_000


def test_seeds_tell_runs_and_classes_apart_unless_shared() -> None:
    mean, std = torch.zeros(16), torch.ones(16)

    def group(seed: int, label: int, shared: bool = False) -> Tensor:
        return choose_group(mean, std, 3, 200, Weights(), seed, label, shared).group

    assert torch.equal(group(0, 0), group(0, 0))
    assert not torch.equal(group(0, 0), group(0, 1))
    assert not torch.equal(group(0, 0), group(1, 0))
    assert torch.equal(group(0, 0, True), group(1, 1, True))
    assert [chunk_seed(5, 3, i, shared=True) for i in range(3)] == [0, 12345, 24690]
    assert len({chunk_seed(s, c, i) for s in range(3) for c in range(3) for i in range(3)}) == 27


def test_released_skewness_is_another_and_nearly_inert() -> None:
    """The code's term is a small part of the score and does not follow the skewness per dimension."""
    z, sigma = normal(400, 10, 512, dtype=torch.float32), torch.ones(512)
    none = group_scores(z, sigma, Weights(skew=0))
    true = group_scores(z, sigma, Weights(skew=0.5)) - none
    released = group_scores(z, sigma, Weights(skew=0.1, skewness="released")) - none
    expected = 0.1 * np.linalg.norm((stats.zscore(z.numpy(), axis=1, ddof=1) ** 3).mean(-1), axis=-1)
    np.testing.assert_allclose(released, expected, rtol=1e-2)
    assert released.mean() < 0.01 * none.mean() < 0.5 * true.mean()
    assert abs(np.corrcoef(true, released)[0, 1]) < 0.2
