"""MGD3 (ICML 2025): samples from noise, each pulled towards a mode of its class in the first steps.

With m a centre of k-means on the latents of a class, every index k > stop of the chain ends with

    z_{k-1} -= scale sigma_k (zhat0_k - m),

which is DIVER's guidance (`Guidance`) with the mode as its anchor, a Gaussian start and the ancestral step. On a set
whose images are the modes' the stage-2 preset `mgd3` does the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from diver.config.native.mgd3 import MGD3Config
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.progress import Progress
from diver.recover.base import denoiser
from diver.recover.native import make_images, native_set
from diver.recover.prototypes import read_prototypes
from diver.recover.sampler import Guidance, KeyedNoise, run_chain
from diver.sets import DistilledSet


def synthesise_mgd3(
    data: Prepared,
    ipc: int,
    prior: Prior,
    config: MGD3Config,
    *,
    artefacts: Mapping[str, Path],
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """One image of each mode. Raises PrototypesError for a file that does not fit, ValueError for a learned sigma
    that the prior does not have; `folder` is not used.
    """
    modes, found = read_prototypes(artefacts["prototypes"], len(data.classes), ipc, prior)
    schedule = prior.schedule(config.respacing)
    top = len(schedule) - 1
    learned = prior.learns_variance if config.sigma == "auto" else config.sigma == "learned"
    if learned and not prior.learns_variance:
        raise ValueError(f"sigma 'learned': {prior.name} predicts no variance; choose 'auto' or 'posterior'")

    def sample(rows: Sequence[int], condition: Tensor, noise: KeyedNoise) -> Tensor:
        anchor = modes[rows].to(prior.device)
        return run_chain(
            noise.draw("start", prior.latent_shape, anchor) * schedule.scale(top),
            schedule,
            denoiser(prior, schedule, condition, config),
            top,
            noise,
            stepper=config.sampler,
            eta=config.eta if config.sampler == "ddim" else 0.0,
            guidance=Guidance(
                anchor,
                config.scale,
                config.stop + 1,
                top,
                config.residual,
                "learned" if learned else "posterior",
                config.inject,
            ),
        )

    images = make_images(data, ipc, prior, config, sample, progress)
    return native_set(images, data, ipc, "mgd3", config, prior, code, {"modes": found})
