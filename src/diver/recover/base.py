"""What every stage-2 method shares: a map from images to latents, and the pieces that such maps are made of.

A method is made once for a prior and its settings and then applied to batches: (images [N, C, S, S] as the
autoencoder gets them, conditions [N, ...], the noise of these images) to scaled latents [N, c, h, w].
"""

from collections.abc import Callable

from torch import Tensor

from diver.config.native import NativeConfig
from diver.config.recover import ChainConfig, RecoverConfig
from diver.prior.base import Denoised, Prior
from diver.prior.schedule import Schedule
from diver.recover.sampler import Denoiser, KeyedNoise

LatentMap = Callable[[Tensor, Tensor, KeyedNoise], Tensor]


def encode(x: Tensor, prior: Prior, config: RecoverConfig, noise: KeyedNoise) -> Tensor:
    """Scaled clean latents of a batch of images in [-1, 1]."""
    drawn = noise.draw("posterior", prior.latent_shape, x) if config.vae_sample else None
    return prior.encode(x, drawn)


def denoiser(prior: Prior, schedule: Schedule, condition: Tensor, config: ChainConfig | NativeConfig) -> Denoiser:
    """The prior as a function of state and index, with guidance towards the conditions.

    Raises ValueError for more guided channels than latents have.
    """
    if config.cfg_channels is not None and config.cfg_channels > prior.latent_shape[0]:
        raise ValueError(
            f"cfg_channels = {config.cfg_channels}: latents of prior {prior.name} have {prior.latent_shape[0]} channels"
            "; lower it, or leave it out to guide all"
        )

    def denoise(state: Tensor, k: int) -> Denoised:
        return prior.denoise(state, schedule.level(k), condition, config.cfg_scale, config.cfg_channels)

    return denoise
