"""PReDD (ICASSP 2026): noise a little, denoise a little, without guidance towards the input."""

from torch import Tensor

from diver.config.recover import PReDDConfig
from diver.prior.base import Prior
from diver.recover.base import LatentMap, denoiser, encode
from diver.recover.sampler import KeyedNoise, add_noise, run_chain


def predd_map(prior: Prior, config: PReDDConfig, ipc: int) -> LatentMap:
    """z = signal E(x) + noise level n at index forward_t, then reverse_t steps."""
    schedule = prior.schedule(config.respacing)
    forward_t, reverse_t = config.levels(ipc)

    def one(images: Tensor, condition: Tensor, noise: KeyedNoise) -> Tensor:
        clean = encode(images, prior, config, noise)
        fresh = noise.draw("start", prior.latent_shape, clean)
        start = add_noise(clean, fresh, schedule, forward_t, at=reverse_t - 1)
        denoise = denoiser(prior, schedule, condition, config)
        return run_chain(start, schedule, denoise, reverse_t - 1, noise, stepper=config.sampler)

    return one
