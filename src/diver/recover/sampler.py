"""The one reverse chain. Raw sampling, PReDD, DIVER and its ladder are settings of it.

A chain is a schedule, a denoiser, a start, a stepping rule and, optionally, a guidance term with
its window. Indices count from clean (0) to noisy (K - 1), as in `Schedule`.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diver.prior.base import Denoised
from diver.prior.schedule import Schedule

Denoiser = Callable[[Tensor, int], Denoised]
Observer = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class KeyedNoise:
    """Unit-normal noise, one stream per (seed, image, purpose).

    What an image receives does not depend on the batch it is in, the order, or other purposes' draws.
    """

    seed: int
    images: Sequence[int | str]

    def draw(self, purpose: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """[len(images), *shape] in `like`'s dtype and on its device; drawn on the CPU, so equal on all devices."""
        rows = []
        for image in self.images:
            key = hashlib.sha256(f"{self.seed}/{image}/{purpose}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") % 2**63)
            rows.append(torch.randn(shape, generator=generator))
        return torch.stack(rows).to(like)


@dataclass(frozen=True)
class Guidance:
    """Semantic guidance of DIVER: a pull towards an anchor inside a window of the chain.

    `anchor`: clean scaled latents [N, c, h, w]. Active at indices low..high, both included. After the step,
    `scale * sigma * residual` is subtracted, where sigma is the step's standard deviation ("learned" by the
    network, or of the "posterior"; "none" is 1) and the residual is the predicted clean latent or the noisy
    state minus the anchor. With `inject="clean"` the predicted clean latent is moved before the step instead,
    by `scale * residual`, and the noise estimate follows.
    """

    anchor: Tensor
    scale: float
    low: int
    high: int
    residual: Literal["pred_x0", "x_t"] = "pred_x0"
    sigma: Literal["learned", "posterior", "none"] = "posterior"
    inject: Literal["sample", "clean"] = "sample"

    def active(self, k: int) -> bool:
        return self.scale != 0 and self.low <= k <= self.high

    def pull(self, state: Tensor, clean: Tensor, sigma: Tensor | float) -> Tensor:
        """Gradient of sigma / 2 * ||x - anchor||^2 with respect to x, times the scale, in closed form."""
        x = clean if self.residual == "pred_x0" else state
        return self.scale * sigma * (x - self.anchor)


def add_noise(clean: Tensor, noise: Tensor, schedule: Schedule, level: int, at: int | None = None) -> Tensor:
    """signal * clean + noise level * noise, as of index `level` (Ho et al. 2020, equation 4), as a state at index `at`.

    Where a path does not keep the variance, a state that is taken for one of another index gets the spread that
    states have there; for a diffusion nothing changes.
    """
    here = schedule.level(level)
    state = here.signal * clean + here.noise * noise
    return state if at is None else state * (schedule.scale(at) / schedule.scale(level))


def log_variance(schedule: Schedule, k: int, raw: Tensor | None) -> Tensor:
    """Log variance of step k: the posterior's, or interpolated between it and log beta by the network.

    `raw`: the network's output in [-1, 1] (Nichol and Dhariwal 2021, equation 15), or None.
    """
    low = math.log(schedule.posterior_variance(k))
    if raw is None:
        return torch.tensor(low, dtype=torch.float64)
    fraction = (raw + 1) / 2
    return fraction * math.log(schedule.beta(k)) + (1 - fraction) * low


def ddim_step(clean: Tensor, noise: Tensor, fresh: Tensor | None, schedule: Schedule, k: int, eta: float) -> Tensor:
    """State at index k - 1 (Song et al. 2021, equations 12 and 16); `fresh` is used when eta > 0 and k > 0.

    With eta = 0 on the linear path this is Euler's step along the velocity.
    """
    alpha, before, below = schedule.alpha(k), schedule.alpha(k - 1), schedule.level(k - 1)
    sigma = eta * ((1 - before) / (1 - alpha) * (1 - alpha / before)) ** 0.5 * schedule.scale(k - 1)
    state = below.signal * clean + max(below.noise**2 - sigma**2, 0.0) ** 0.5 * noise
    return state if fresh is None or k == 0 else state + sigma * fresh


def ddpm_step(state: Tensor, clean: Tensor, fresh: Tensor, schedule: Schedule, k: int, raw: Tensor | None) -> Tensor:
    """Ancestral state at index k - 1 (Ho et al. 2020, equation 7), with the network's variance when it has one.

    A path that does not keep the variance is brought to one that does and back.
    """
    alpha, before = schedule.alpha(k), schedule.alpha(k - 1)
    beta, scale = schedule.beta(k), schedule.scale(k - 1)
    unit = (1 - beta) ** 0.5 * (1 - before) / (1 - alpha) / schedule.scale(k)
    mean = scale * (before**0.5 * beta / (1 - alpha) * clean + unit * state)
    if k == 0:
        return mean
    return mean + scale * (0.5 * log_variance(schedule, k, raw)).exp().to(state) * fresh


def run_chain(
    start: Tensor,
    schedule: Schedule,
    denoise: Denoiser,
    first: int,
    noise: KeyedNoise,
    *,
    stepper: Literal["ddim", "ddpm"] = "ddim",
    eta: float = 0.0,
    guidance: Guidance | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """Run the reverse chain from index `first` down to clean; returns scaled latents, shape of `start`.

    `start`: [N, c, h, w], taken to be the state at `first` whatever noise it carries: DIVER starts the full
    chain from a state noised less than its index says. `observe(k, clean, state)` sees each predicted clean
    latent and the state after the step. Raises ValueError if the guidance asks for a learned sigma that the
    denoiser does not give.
    """
    state = start
    for k in range(first, -1, -1):
        said = denoise(state, k)
        clean, estimate = said.clean, said.noise
        pull: Tensor | None = None
        if guidance is not None and guidance.active(k):
            if guidance.inject == "clean":
                clean = clean - guidance.pull(state, clean, 1.0)
                here = schedule.level(k)
                estimate = (state - here.signal * clean) / here.noise
            else:
                sigma = _sigma(guidance, schedule, k, said.log_variance)
                pull = guidance.pull(state, clean, sigma * schedule.scale(k - 1))
        if stepper == "ddpm":
            fresh = noise.draw(f"step {k}", tuple(state.shape[1:]), state)
            state = ddpm_step(state, clean, fresh, schedule, k, said.log_variance)
        else:
            drawn = noise.draw(f"step {k}", tuple(state.shape[1:]), state) if eta else None
            state = ddim_step(clean, estimate, drawn, schedule, k, eta)
        if pull is not None:
            state = state - pull
        if observe is not None:
            observe(k, clean, state)
    return state


def _sigma(guidance: Guidance, schedule: Schedule, k: int, raw: Tensor | None) -> Tensor | float:
    if guidance.sigma == "none":
        return 1.0
    if guidance.sigma == "posterior":
        return schedule.posterior_variance(k) ** 0.5
    if raw is None:
        raise ValueError("sg_sigma 'learned' needs a network that predicts its variance; choose 'posterior'")
    return (0.5 * log_variance(schedule, k, raw)).exp()
