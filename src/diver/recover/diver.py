"""DIVER (ICML 2026): dive into a distilled image with a frozen diffusion transformer.

With z0 the scaled clean latent, a_k the cumulative alpha at index k of the thinned chain, n unit normal:

    inheritance   z = sqrt(a_tf) z0 + sqrt(1 - a_tf) n, taken as the state at the top of the chain
    every step    z_{k-1} = DDIM(z_k), classifier-free guidance towards the label
    guidance      z_{k-1} -= gamma sigma_k (zhat0_k - z0), in the window sp_low <= k <= sp_high only (fusion)

The start is noised to t_f (25 of 50) although the chain begins at t_r (50): the state is nearly Gaussian, with
a faint trace of the image. The paper writes the residual with the noisy state; the authors' code that is public
uses the predicted clean latent, which is the default here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from diver.config.recover import DIVERConfig
from diver.prior.base import Prior
from diver.prior.schedule import Schedule, respace
from diver.recover.base import LatentMap, denoiser, encode
from diver.recover.sampler import Guidance, KeyedNoise, Observer, add_noise, run_chain


def _reach(blur: float) -> int:
    """Pixels to each side that a blur of this standard deviation takes in."""
    return math.ceil(3 * blur)


@dataclass(frozen=True)
class Chain:
    """DIVER's chain for one prior and setting; `t_f` and `window` are indices of the prior's schedule, from 0."""

    prior: Prior
    config: DIVERConfig
    schedule: Schedule
    t_f: int
    window: tuple[int, int]

    @classmethod
    def of(cls, prior: Prior, config: DIVERConfig) -> "Chain":
        """Raises ValueError if sigma is to be learned and the prior has none, or the blur is wider than an image."""
        if config.gamma and _reach(config.anchor_blur) >= prior.image_size:
            raise ValueError(
                f"anchor_blur = {config.anchor_blur:g}: reaches past the {prior.image_size} pixels of {prior.name}'s "
                f"images; take at most {(prior.image_size - 1) // 3}"
            )
        schedule = prior.schedule(config.respacing)
        t_f, (low, high) = config.t_f - config.index_base, config.window()
        learned = config.sg_sigma == "learned" and config.sg_inject == "sample"
        if config.gamma and learned and not prior.learns_variance:
            raise ValueError(
                f"sg_sigma 'learned' needs a network that predicts its variance, and {prior.name} has none; "
                "choose 'posterior'"
            )
        if config.level_by == "noise":
            reference = dit_schedule(config.respacing)
            # Those that are not used may lie outside.
            t_f, low, high = (schedule.nearest(reference.alpha(min(k, len(reference) - 1))) for k in (t_f, low, high))
        return cls(prior, config, schedule, t_f, (low, high))

    def _anchor(self, images: Tensor, clean: Tensor, noise: KeyedNoise) -> Tensor:
        """The clean latent, or that of an image whose artefacts were smoothed away or added to, for the controls."""
        blur, added = self.config.anchor_blur, self.config.anchor_noise
        # Without guidance an anchor of any width is not looked at.
        if not (self.config.gamma and (blur or added)):
            return clean
        if blur:
            images = gaussian_blur(images, [2 * _reach(blur) + 1] * 2, [blur, blur])
        if added:
            images = images + added * noise.draw("anchor", tuple(images.shape[1:]), images)
        return encode(images, self.prior, self.config, noise)

    def run(self, images: Tensor, condition: Tensor, noise: KeyedNoise, observe: Observer | None = None) -> Tensor:
        """Scaled latents at the end of the chain, [N, c, h, w], for images [N, C, S, S] in [-1, 1]."""
        config, schedule = self.config, self.schedule
        clean = encode(images, self.prior, config, noise)
        start = noise.draw("start", self.prior.latent_shape, clean)
        if config.start == "inherit":
            start = add_noise(clean, start, schedule, self.t_f, at=config.t_r - 1)
        else:
            start = start * schedule.scale(config.t_r - 1)
        return run_chain(
            start,
            schedule,
            denoiser(self.prior, schedule, condition, config),
            config.t_r - 1,
            noise,
            stepper=config.sampler,
            eta=config.eta,
            guidance=Guidance(
                self._anchor(images, clean, noise),
                config.gamma,
                *self.window,
                config.sg_residual,
                config.sg_sigma,
                config.sg_inject,
            ),
            observe=observe,
        )


def dit_schedule(respacing: str) -> Schedule:
    """The schedule that DIVER's indices are given on: DiT's linear betas, 1000 steps."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return respace((1 - betas).cumprod(0), respacing)


def diver_map(prior: Prior, config: DIVERConfig, ipc: int) -> LatentMap:
    """One output per input. Raises ValueError as `Chain.of`."""
    return Chain.of(prior, config).run
