"""Control: encode and decode, nothing between. What it changes is the autoencoder's doing alone."""

from torch import Tensor

from diver.config.recover import VAEConfig
from diver.prior.load import Prior
from diver.progress import Progress
from diver.recover.base import encode, recover_batches, symmetric_images
from diver.recover.sampler import KeyedNoise
from diver.sets import DistilledSet


def recover_vae(
    source: DistilledSet, prior: Prior, config: VAEConfig, code: str = "", progress: Progress | None = None
) -> DistilledSet:
    """x' = D(E(x)). Returns a set in [-1, 1] at the prior's image size."""
    images = symmetric_images(source, prior, config.input_range)

    def one(part: slice, noise: KeyedNoise) -> Tensor:
        return prior.decode(encode(images[part], prior, config, noise))

    return recover_batches(source, config, "vae", code, prior, one, progress)
