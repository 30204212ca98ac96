"""The noise levels that a reverse chain runs on, for diffusion and for flow matching alike."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One noise level: a state there is signal * clean + noise * (unit normal); `timestep` is what the network gets."""

    timestep: float
    signal: float
    noise: float


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a reverse chain, from nearly clean (index 0) to noisy (index K - 1).

    `timesteps`, `signals`, `noises`: float64 [K]. A diffusion keeps the variance, signal^2 + noise^2 = 1; the linear
    path of flow matching (signal = 1 - t, noise = t) does not, and has no signal at all at its top. `alpha` is the
    share of the signal in the variance, which for a diffusion is the usual cumulative alpha; `scale` is what a state
    has to be divided by to have unit variance when clean latents have, 1 for a diffusion.
    """

    timesteps: Tensor
    signals: Tensor
    noises: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def level(self, k: int) -> Level:
        """The level at index k; index -1 is the clean latent."""
        if not -1 <= k < len(self):
            raise IndexError(f"index {k} is outside the schedule's -1..{len(self) - 1}")
        return self._levels[k + 1]

    @cached_property
    def _levels(self) -> list[Level]:
        """All levels as plain numbers, the clean one first: a chain asks for them hundreds of times."""
        columns = (column.tolist() for column in (self.timesteps.double(), self.signals, self.noises))
        return [Level(0.0, 1.0, 0.0), *(Level(*values) for values in zip(*columns, strict=True))]

    def scale(self, k: int) -> float:
        level = self.level(k)
        return (level.signal**2 + level.noise**2) ** 0.5

    def alpha(self, k: int) -> float:
        """Cumulative alpha at index k; at index -1, the clean latent, 1."""
        return (self.level(k).signal / self.scale(k)) ** 2

    def beta(self, k: int) -> float:
        """Variance of one forward step of the thinned chain, from index k - 1 to k, for states of unit variance."""
        return 1 - self.alpha(k) / self.alpha(k - 1)

    def posterior_variance(self, k: int) -> float:
        """Variance of q(z_{k-1} | z_k, z_0) (Ho et al. 2020, equation 7); that of index 1 at index 0."""
        k = max(k, 1)
        return self.beta(k) * (1 - self.alpha(k - 1)) / (1 - self.alpha(k))

    def nearest(self, alpha: float) -> int:
        """Index whose share of signal is nearest to `alpha` on the scale of the log signal-to-noise ratio."""

        def log_ratio(a: Tensor) -> Tensor:
            a = a.clamp(1e-12, 1 - 1e-12)
            return (a / (1 - a)).log()

        shares = torch.tensor([self.alpha(k) for k in range(len(self))], dtype=torch.float64)
        return int((log_ratio(shares) - log_ratio(torch.tensor(alpha, dtype=torch.float64))).abs().argmin())


def levels_of(spacing: str, total: int) -> Tensor:
    """Training timesteps of a thinned chain, int64, increasing, of `total`.

    "50" spreads 50 levels over the whole range, both ends included and rounded to integers (Nichol and Dhariwal
    2021, section 4); "ddim50" takes every (total / 50)-th level from 0 (Song et al. 2021). Raises ValueError on any
    other text or more levels than there are.
    """
    strided = spacing.startswith("ddim")
    count = spacing.removeprefix("ddim")
    if not count.isdigit() or not 2 <= int(count) <= total:
        raise ValueError(f"respacing {spacing!r}: give a number from 2 to {total}, as '50', or with 'ddim' before it")
    levels = int(count)
    if strided:
        return torch.arange(levels) * (total // levels)
    stride = (total - 1) / (levels - 1)
    return torch.tensor([round(i * stride) for i in range(levels)])


def respace(alphas_cumprod: Tensor, spacing: str) -> Schedule:
    """Thin the schedule of a diffusion, given as cumulative alphas [T]. Raises ValueError as `levels_of`."""
    timesteps = levels_of(spacing, len(alphas_cumprod))
    alphas = alphas_cumprod.double()[timesteps]
    return Schedule(timesteps.double(), alphas.sqrt(), (1 - alphas).sqrt())


def linear_path(spacing: str) -> Schedule:
    """Levels of the linear path (Ma et al. 2024, SiT): K equal steps from t = 1 (noise) to t = 0.

    "50" and "ddim50" are the same here. The network is told 1 - t, as in SiT's released code, where time runs from
    noise to data. Raises ValueError unless `spacing` names at least 2 levels.
    """
    count = len(levels_of(spacing, 10**6))
    t = torch.arange(1, count + 1, dtype=torch.float64) / count
    return Schedule(1 - t, 1 - t, t)
