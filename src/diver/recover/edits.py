"""EDITS (arXiv 2509.13858) and VLCP: image prototypes noised in part and denoised towards their text prototypes.

The prototypes are those of `texts`: the mean latent of some real images, and a text. With strength s the chain of K
steps begins at index floor(K s) - 1 with the noised image prototype and goes to clean with classifier-free guidance
(Dual Prototype Guidance). On Stable Diffusion the text is the prompt, and the negative prompt is what guidance leads
away from. A class-conditional prior cannot read: there the class takes the place of the prompt, and captions act
through the clusters and the choice of images alone; the texts are made and recorded all the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diver.config.native.edits import DualConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.prior.stable_diffusion import StableDiffusionPrior
from diver.progress import Progress
from diver.recover.base import denoiser
from diver.recover.latents import require_channels, symmetric
from diver.recover.native import make_images, native_set, noised
from diver.recover.sampler import KeyedNoise, run_chain
from diver.recover.texts import TextPrototype, mean_latent, read_texts
from diver.sets import DistilledSet
from diver.tensorfile import file_checksum


def image_prototypes(found: Sequence[TextPrototype], data: Prepared, prior: Prior, config: DualConfig) -> Tensor:
    """Mean latents of the images of each prototype, float32 [len(found), c, h, w]; every image is encoded once.

    Raises PriorError if the prior takes images of other channels.
    """
    require_channels(data, prior)
    places = sorted({place for one in found for place in one.images})
    parts = []
    for first in range(0, len(places), config.batch):
        at = places[first : first + config.batch]
        images = symmetric(data.train_images[at], prior.image_size).to(prior.device)
        drawn = KeyedNoise(config.seed, at).draw("posterior", prior.latent_shape, images)
        parts.append(prior.encode(images, drawn if config.latents == "sample" else None).cpu())
    latents, where = torch.cat(parts), {place: i for i, place in enumerate(places)}
    return torch.stack([mean_latent(latents[[where[place] for place in one.images]]) for one in found])


def text_conditions(found: Sequence[TextPrototype], prior: Prior) -> Tensor | None:
    """The texts as prompts, [len(found), L, D]; None for a prior that cannot read."""
    if not isinstance(prior, StableDiffusionPrior):
        return None
    return replace(prior, prompt="{}").class_table([one.text for one in found])


def _synthesise(
    method: str,
    data: Prepared,
    ipc: int,
    prior: Prior,
    config: DualConfig,
    *,
    artefacts: Mapping[str, Path],
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """One image of each pair of prototypes. Raises TextError for a file that does not fit; `folder` is not used."""
    if isinstance(prior, StableDiffusionPrior):
        text = config.led_away(prior.negative_prompt)
        prior, config = replace(prior, negative_prompt=text), config.model_copy(update={"negative_prompt": text})
    found = read_texts(artefacts["texts"], data, ipc)
    prototypes, schedule = image_prototypes(found, data, prior, config), prior.schedule(config.respacing)

    def sample(rows: Sequence[int], condition: Tensor, noise: KeyedNoise) -> Tensor:
        start, first = noised(prototypes[list(rows)].to(prior.device), schedule, config.strength, noise)
        return run_chain(start, schedule, denoiser(prior, schedule, condition, config), first, noise)

    conditions = text_conditions(found, prior)
    images = make_images(data, ipc, prior, config, sample, progress, conditions)
    record = {
        "condition": "class" if conditions is None else "text",
        "texts": [one.text for one in found],
        "texts_by": sorted({one.by for one in found}),
        "texts_replaced": sum(bool(one.fault) for one in found),
        "texts_sha256": file_checksum(artefacts["texts"]),
    }
    return native_set(images, data, ipc, method, config, prior, code, record)


synthesise_edits = partial(_synthesise, "edits")
synthesise_vlcp = partial(_synthesise, "vlcp")
