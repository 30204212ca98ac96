"""The noise schedule that a reverse chain runs on: training timesteps thinned to a few levels."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a reverse chain, from clean (index 0) to noisy (index K - 1).

    `timesteps`: int64 [K], increasing, what the network is told. `alphas_cumprod`: float64 [K], decreasing.
    """

    timesteps: Tensor
    alphas_cumprod: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def alpha(self, k: int) -> float:
        """Cumulative alpha at index k; index -1 is the clean latent, 1."""
        if not -1 <= k < len(self):
            raise IndexError(f"index {k} is outside the schedule's -1..{len(self) - 1}")
        return 1.0 if k == -1 else float(self.alphas_cumprod[k])

    def beta(self, k: int) -> float:
        """Variance of one forward step of the thinned chain, from index k - 1 to k."""
        return 1 - self.alpha(k) / self.alpha(k - 1)

    def posterior_variance(self, k: int) -> float:
        """Variance of q(z_{k-1} | z_k, z_0) (Ho et al. 2020, equation 7); that of index 1 at index 0."""
        k = max(k, 1)
        return self.beta(k) * (1 - self.alpha(k - 1)) / (1 - self.alpha(k))


def respace(alphas_cumprod: Tensor, spacing: str) -> Schedule:
    """Thin a training schedule.

    `alphas_cumprod`: [T]. `spacing`: "50" spreads 50 levels over the whole range, both ends included and
    rounded to integers (Nichol and Dhariwal 2021, section 4); "ddim50" takes every (T / 50)-th level from 0
    (Song et al. 2021). Raises ValueError on any other text or more levels than T.
    """
    total = len(alphas_cumprod)
    strided = spacing.startswith("ddim")
    count = spacing.removeprefix("ddim")
    if not count.isdigit() or not 2 <= int(count) <= total:
        raise ValueError(f"respacing {spacing!r}: give a number from 2 to {total}, as '50', or with 'ddim' before it")
    levels = int(count)
    if strided:
        timesteps = torch.arange(levels) * (total // levels)
    else:
        stride = (total - 1) / (levels - 1)
        timesteps = torch.tensor([round(i * stride) for i in range(levels)])
    return Schedule(timesteps, alphas_cumprod.double()[timesteps])
