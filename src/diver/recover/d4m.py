"""D4M (CVPR 2024): prototypes of latents, noised in part and denoised towards their class.

With p a centre of mini-batch k-means on the clean latents of a class, n unit normal and s the strength, the chain of K
steps begins at index floor(K s) - 1 with z = signal p + noise level n, and goes to clean with classifier-free guidance
towards the class: its embedding on DiT, its text on Stable Diffusion, all names of its synset in the prior's `prompt`,
away from a negative prompt.
DDIM is the stepping rule here, on whichever schedule the prior has: of Stable Diffusion's 1000 timesteps, 50 steps at
s = 0.7 run from 693 in 35 calls, where the released PNDM takes 36 from 701.

Training-time matching, the soft labels of the paper, is the students' protocol soft-fkd.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from diver.config.native.d4m import D4MConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.prior.classes import WNID, describe
from diver.prior.stable_diffusion import StableDiffusionPrior
from diver.progress import Progress
from diver.recover.base import denoiser
from diver.recover.native import make_images, native_set, noised
from diver.recover.prototypes import read_prototypes
from diver.recover.sampler import KeyedNoise, run_chain
from diver.sets import DistilledSet


def class_texts(classes: Sequence[str]) -> list[str]:
    """Each class in words; those of the same name, as the two cranes of ImageNet, with what they mean."""
    names = [describe(name) for name in classes]
    return [
        _meaning(name) if names.count(text) > 1 and WNID.fullmatch(name) else text
        for name, text in zip(classes, names, strict=True)
    ]


def _meaning(wnid: str) -> str:
    from timm.data import ImageNetInfo

    return str(ImageNetInfo().label_name_to_description(wnid, detailed=True))


def synthesise_d4m(
    data: Prepared,
    ipc: int,
    prior: Prior,
    config: D4MConfig,
    *,
    artefacts: Mapping[str, Path],
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """One image of each prototype. Raises PrototypesError for a file that does not fit; `folder` is not used."""
    prototypes, found = read_prototypes(artefacts["prototypes"], len(data.classes), ipc, prior)
    conditions: Tensor | None = None
    if isinstance(prior, StableDiffusionPrior):
        text = config.led_away(prior.negative_prompt)
        prior, config = replace(prior, negative_prompt=text), config.model_copy(update={"negative_prompt": text})
        conditions = prior.class_table(class_texts(data.classes), config.class_ids)
    schedule = prior.schedule(config.respacing)

    def sample(rows: Sequence[int], condition: Tensor, noise: KeyedNoise) -> Tensor:
        start, first = noised(prototypes[rows].to(prior.device), schedule, config.strength, noise)
        return run_chain(start, schedule, denoiser(prior, schedule, condition, config), first, noise)

    images = make_images(data, ipc, prior, config, sample, progress, conditions)
    return native_set(images, data, ipc, "d4m", config, prior, code, {"prototypes": found})
