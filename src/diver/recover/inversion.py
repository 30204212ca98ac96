"""The chain run backwards (DDIM inversion): from clean latents up to a noise level, as D3HR maps a class to noise."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from diver.prior.schedule import Schedule
from diver.recover.sampler import Denoiser


def inversion_step(state: Tensor, noise: Tensor, schedule: Schedule, k: int) -> Tensor:
    """State at index k + 1 of one at index k along the estimated noise: `ddim_step` with eta 0 solved for its input."""
    here, above = schedule.level(k), schedule.level(k + 1)
    return above.signal / here.signal * (state - here.noise * noise) + above.noise * noise


def invert(
    clean: Tensor,
    schedule: Schedule,
    denoise: Denoiser,
    last: int,
    *,
    first: int = 0,
    told: Literal["target", "current"] = "target",
    observe: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Run clean scaled latents [N, c, h, w] up to index `last`; returns the states there.

    The clean latent is taken as the state at index `first`: 0, the least noisy level, as D3HR's code has it, or -1,
    which undoes the sampler's last step too. The step down from k + 1 asked the network about the state there, which
    is not known yet; it is asked about the state at k, and told the `target` time k + 1 or the `current` one.
    `observe(k, state)` sees the state at every index above `first`. Raises ValueError if `last` is outside the
    schedule or not above `first`.
    """
    if not -1 <= first < last < len(schedule):
        raise ValueError(
            f"inversion from index {first} to {last}: indices must rise and lie in -1..{len(schedule) - 1}"
        )
    state = clean
    for k in range(first, last):
        said = denoise(state, k + 1 if told == "target" else max(k, 0))
        state = inversion_step(state, said.noise, schedule, k)
        if observe is not None:
            observe(k + 1, state)
    return state
