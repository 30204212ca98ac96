"""PReDD (ICASSP 2026): noise a little, denoise a little, without guidance towards the input."""

from torch import Tensor

from diver.config.recover import PReDDConfig
from diver.prior.load import Prior
from diver.progress import Progress
from diver.recover.base import (
    denoiser,
    encode,
    recover_batches,
    require_index,
    schedule_of,
    symmetric_images,
)
from diver.recover.sampler import KeyedNoise, add_noise, run_chain
from diver.sets import DistilledSet


def recover_predd(
    source: DistilledSet, prior: Prior, config: PReDDConfig, code: str = "", progress: Progress | None = None
) -> DistilledSet:
    """z = sqrt(a) E(x) + sqrt(1 - a) n at index forward_t, then reverse_t steps. Returns a set in [-1, 1].

    Raises ValueError if a level is outside the schedule.
    """
    schedule, labels = schedule_of(prior, config), source.hard_labels()
    forward_t, reverse_t = config.levels(source.ipc)
    require_index("forward_t", forward_t, schedule)
    require_index("reverse_t", reverse_t, schedule, len(schedule))
    images = symmetric_images(source, prior, config.input_range)

    def one(part: slice, noise: KeyedNoise) -> Tensor:
        clean = encode(images[part], prior, config, noise)
        start = add_noise(clean, noise.draw("start", prior.latent_shape, clean), schedule.alpha(forward_t))
        denoise = denoiser(prior, schedule, labels[part], config)
        return prior.decode(run_chain(start, schedule, denoise, reverse_t - 1, noise, stepper=config.sampler))

    return recover_batches(source, config, "predd", code, prior, one, progress)
