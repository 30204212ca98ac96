"""What every stage-2 method shares: its settings, the way into latent space and the way out."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diver.config.recover import ChainConfig, RecoverConfig
from diver.prior.load import Denoised, Prior, PriorError
from diver.prior.schedule import Schedule, respace
from diver.progress import Progress
from diver.recover.sampler import Denoiser, KeyedNoise
from diver.sets import SYMMETRIC, DistilledSet, Step


def symmetric_images(images: DistilledSet, prior: Prior, input_range: str) -> Tensor:
    """Images as the autoencoder gets them, float32 [N, C, S, S], bilinearly resized to the prior's size.

    Raises PriorError if channels or classes do not fit the prior.
    """
    if len(images.classes) > prior.classes:
        raise PriorError(f"prior {prior.name} knows {prior.classes} classes, the set has {len(images.classes)}")
    if images.images.shape[1] != prior.image_channels:
        raise PriorError(
            f"prior {prior.name} takes {prior.image_channels} channels, the set's images have {images.images.shape[1]}"
        )
    x = images.images if input_range == "raw" else images.in_range(SYMMETRIC).images
    size = (prior.image_size, prior.image_size)
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def encode(x: Tensor, prior: Prior, config: RecoverConfig, noise: KeyedNoise) -> Tensor:
    """Scaled clean latents of a batch of images in [-1, 1]."""
    drawn = noise.draw("posterior", prior.latent_shape, x) if config.vae_sample else None
    return prior.encode(x, drawn)


def denoiser(prior: Prior, schedule: Schedule, labels: Tensor, config: ChainConfig) -> Denoiser:
    """The prior as a function of state and index."""

    def denoise(state: Tensor, k: int) -> Denoised:
        return prior.denoise(state, int(schedule.timesteps[k]), labels, config.cfg_scale, config.cfg_channels)

    return denoise


def schedule_of(prior: Prior, config: ChainConfig) -> Schedule:
    return respace(prior.alphas_cumprod, config.respacing)


def require_index(key: str, value: int, schedule: Schedule, upper: int | None = None) -> None:
    """Raise ValueError unless 0 <= value <= the last index (or `upper`)."""
    limit = len(schedule) - 1 if upper is None else upper
    if not 0 <= value <= limit:
        raise ValueError(f"{key} = {value}: with this respacing it must lie in 0..{limit}")


def batches(count: int, size: int, seed: int) -> Iterator[tuple[slice, KeyedNoise]]:
    """Slices of `size` images with their noise streams."""
    for first in range(0, count, size):
        part = slice(first, min(first + size, count))
        yield part, KeyedNoise(seed, range(part.start, part.stop))


def recover_batches(
    source: DistilledSet,
    config: RecoverConfig,
    method: str,
    code: str,
    prior: Prior,
    one: Callable[[slice, KeyedNoise], Tensor],
    progress: Progress | None,
) -> DistilledSet:
    """Apply `one` to each batch and assemble the recovered set, in [-1, 1], with its step recorded."""
    parts = []
    for part, noise in batches(len(source.images), config.batch, config.seed):
        with torch.inference_mode():
            parts.append(one(part, noise).clone())
        if progress is not None:
            progress(part.stop, len(source.images), "images")
    parameters: dict[str, Any] = {**config.model_dump(mode="json"), "prior": prior.name}
    return source.with_images(torch.cat(parts), SYMMETRIC, Step(method, parameters, config.seed, code))
