"""Control: class-conditional samples from Gaussian noise; only the labels of the set are used."""

from torch import Tensor

from diver.config.recover import RawConfig
from diver.prior.base import Prior
from diver.recover.base import LatentMap, denoiser
from diver.recover.sampler import KeyedNoise, run_chain


def raw_map(prior: Prior, config: RawConfig, ipc: int) -> LatentMap:
    """z_T ~ N(0, I), then the whole DDIM chain with classifier-free guidance."""
    schedule = prior.schedule(config.respacing)

    def one(images: Tensor, condition: Tensor, noise: KeyedNoise) -> Tensor:
        start = noise.draw("start", prior.latent_shape, images)
        denoise = denoiser(prior, schedule, condition, config)
        return run_chain(start, schedule, denoise, len(schedule) - 1, noise, eta=config.eta)

    return one
