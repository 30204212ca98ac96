"""Control: class-conditional samples from Gaussian noise; only the labels of the set are used."""

from torch import Tensor

from diver.config.recover import RawConfig
from diver.prior.load import Prior
from diver.progress import Progress
from diver.recover.base import denoiser, recover_batches, schedule_of
from diver.recover.sampler import KeyedNoise, run_chain
from diver.sets import DistilledSet


def recover_raw(
    source: DistilledSet, prior: Prior, config: RawConfig, code: str = "", progress: Progress | None = None
) -> DistilledSet:
    """z_T ~ N(0, I), then the whole DDIM chain with classifier-free guidance. Returns a set in [-1, 1]."""
    schedule, labels = schedule_of(prior, config), source.hard_labels()

    def one(part: slice, noise: KeyedNoise) -> Tensor:
        start = noise.draw("start", prior.latent_shape, source.images)
        denoise = denoiser(prior, schedule, labels[part], config)
        return prior.decode(run_chain(start, schedule, denoise, len(schedule) - 1, noise, eta=config.eta))

    return recover_batches(source, config, "raw", code, prior, one, progress)
