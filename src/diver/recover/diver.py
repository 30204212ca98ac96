"""DIVER (ICML 2026): dive into a distilled image with a frozen diffusion transformer.

With z0 the scaled clean latent, a_k the cumulative alpha at index k of the thinned chain, n unit normal:

    inheritance   z = sqrt(a_tf) z0 + sqrt(1 - a_tf) n, taken as the state at the top of the chain
    every step    z_{k-1} = DDIM(z_k), classifier-free guidance towards the label
    guidance      z_{k-1} -= gamma sigma_k (zhat0_k - z0), in the window sp_low <= k <= sp_high only (fusion)

The start is noised to t_f (25 of 50) although the chain begins at t_r (50): the state is nearly Gaussian, with
a faint trace of the image. The paper writes the residual with the noisy state; the authors' code that is public
uses the predicted clean latent, which is the default here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diver.config.recover import DIVERConfig
from diver.prior.load import Prior
from diver.prior.schedule import Schedule
from diver.progress import Progress
from diver.recover.base import (
    denoiser,
    encode,
    recover_batches,
    require_index,
    schedule_of,
    symmetric_images,
)
from diver.recover.sampler import Guidance, KeyedNoise, Observer, add_noise, run_chain
from diver.sets import DistilledSet


@dataclass(frozen=True)
class Chain:
    """DIVER's chain for one prior and setting; raises ValueError if an index is outside the schedule."""

    prior: Prior
    config: DIVERConfig
    schedule: Schedule

    @classmethod
    def of(cls, prior: Prior, config: DIVERConfig) -> "Chain":
        schedule = schedule_of(prior, config)
        require_index("t_f", config.t_f - config.index_base, schedule)
        require_index("t_r", config.t_r, schedule, len(schedule))
        if config.gamma:
            require_index("sp_high", config.window()[1], schedule)
        return cls(prior, config, schedule)

    def run(self, images: Tensor, labels: Tensor, noise: KeyedNoise, observe: Observer | None = None) -> Tensor:
        """Scaled latents at the end of the chain, [N, c, h, w], for images [N, C, S, S] in [-1, 1]."""
        config, schedule = self.config, self.schedule
        clean = encode(images, self.prior, config, noise)
        start = noise.draw("start", self.prior.latent_shape, clean)
        if config.start == "inherit":
            start = add_noise(clean, start, schedule.alpha(config.t_f - config.index_base))
        low, high = config.window()
        return run_chain(
            start,
            schedule,
            denoiser(self.prior, schedule, labels, config),
            config.t_r - 1,
            noise,
            stepper=config.sampler,
            eta=config.eta,
            guidance=Guidance(clean, config.gamma, low, high, config.sg_residual, config.sg_sigma, config.sg_inject),
            observe=observe,
        )


def recover_diver(
    source: DistilledSet, prior: Prior, config: DIVERConfig, code: str = "", progress: Progress | None = None
) -> DistilledSet:
    """Recover each image of a set; one output per input, in [-1, 1], at the prior's image size.

    Raises ValueError if an index is outside the schedule or sigma is to be learned and the prior does not learn it.
    """
    chain, labels = Chain.of(prior, config), source.hard_labels()
    images = symmetric_images(source, prior, config.input_range)

    def one(part: slice, noise: KeyedNoise) -> Tensor:
        return prior.decode(chain.run(images[part], labels[part], noise))

    return recover_batches(source, config, "diver", code, prior, one, progress)


@dataclass(frozen=True)
class Trace:
    """Predicted clean images along the chain, from the noisy end to the clean one.

    `indices`, `timesteps`: int64 [K]. `images`: float32 [K, N, C, S, S], decoded, nominally in [-1, 1].
    """

    indices: Tensor
    timesteps: Tensor
    images: Tensor


def trace_diver(source: DistilledSet, prior: Prior, config: DIVERConfig) -> Trace:
    """The chain of the first image of each class, seen as its predicted clean image at every step."""
    chain = Chain.of(prior, config)
    firsts = range(0, len(source.images), source.ipc)
    images = symmetric_images(source, prior, config.input_range)[list(firsts)]
    seen: list[tuple[int, Tensor]] = []
    with torch.inference_mode():
        chain.run(
            images,
            source.hard_labels()[list(firsts)],
            KeyedNoise(config.seed, firsts),
            lambda k, clean, state: seen.append((k, prior.decode(clean))),
        )
    indices = torch.tensor([k for k, _ in seen])
    return Trace(indices, chain.schedule.timesteps[indices], torch.stack([image for _, image in seen]).clone())
