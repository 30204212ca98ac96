"""Control: encode and decode, nothing else. Separates what the autoencoder does from what diffusion does."""

from torch import Tensor

from diver.config.recover import VAEConfig
from diver.prior.base import Prior
from diver.recover.base import LatentMap, encode
from diver.recover.sampler import KeyedNoise


def vae_map(prior: Prior, config: VAEConfig, ipc: int) -> LatentMap:
    """z = E(x)."""

    def one(images: Tensor, condition: Tensor, noise: KeyedNoise) -> Tensor:
        return encode(images, prior, config, noise)

    return one
