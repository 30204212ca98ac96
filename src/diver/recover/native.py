"""What the diffusion-native systems share: chains towards a class, images from latents batch by batch, the set.

Image i of class c draws its noise under the key "c.i", so that sets of two IPCs begin with the same images.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diver.config.native import NativeConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.prior.schedule import Schedule
from diver.progress import Progress
from diver.recover.sampler import KeyedNoise, add_noise
from diver.sets import SYMMETRIC, DistilledSet, Step

# (rows of the set, conditions [n, ...], noise of these images) to scaled latents [n, c, h, w].
Sampling = Callable[[Sequence[int], Tensor, KeyedNoise], Tensor]


def noised(clean: Tensor, schedule: Schedule, strength: float, noise: KeyedNoise) -> tuple[Tensor, int]:
    """Start of a chain that goes through `strength` of the schedule's steps, and its first index.

    `clean`: scaled latents [n, c, h, w]. 0 leaves them as they are (index -1, no step); 1 is noise alone.
    """
    first = math.floor(len(schedule) * strength + 1e-9) - 1
    if first < 0:
        return clean, -1
    drawn = noise.draw("start", tuple(clean.shape[1:]), clean)
    if first == len(schedule) - 1:
        return drawn * schedule.scale(first), first
    return add_noise(clean, drawn, schedule, first), first


def image_keys(classes: int, ipc: int) -> list[int | str]:
    """Key of each image's noise, class-major."""
    return [f"{c}.{i}" for c in range(classes) for i in range(ipc)]


def make_images(
    data: Prepared,
    ipc: int,
    prior: Prior,
    config: NativeConfig,
    sample: Sampling,
    progress: Progress | None = None,
    conditions: Tensor | None = None,
) -> Tensor:
    """Class-major images of a set, float32 [classes * ipc, C, S, S] in [-1, 1], clipped as pictures are.

    `conditions`: one for each class or each image, [classes, ...] or [classes * ipc, ...]; the class's own where left
    out. Every batch has the same size (the last is filled up with its last image), so that what is computed does not
    depend on the others. Raises PriorError if the prior has no condition for a class.
    """
    count = len(data.classes) * ipc
    if conditions is None:
        conditions = prior.class_table(data.classes, config.class_ids)
    each = count // len(conditions)
    keys, size = image_keys(len(data.classes), ipc), config.output_size or data.train_images.shape[-1]
    batch, parts = min(config.batch, count), []
    for first in range(0, count, batch):
        rows = [min(i, count - 1) for i in range(first, first + batch)]
        noise = KeyedNoise(config.seed, [keys[i] for i in rows])
        # Picked here: embedded prompts, repeated for all images of a large set, fill a GPU.
        condition = conditions[[i // each for i in rows]].to(prior.device)
        with torch.inference_mode():
            images = prior.decode(sample(rows, condition, noise)).clamp(-1, 1)
            if images.shape[-2:] != (size, size):
                images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        parts.append(images[: count - first].to("cpu", copy=True))
        if progress is not None:
            progress(min(first + batch, count), count, "images")
    return torch.cat(parts).clone()


def native_set(
    images: Tensor,
    data: Prepared,
    ipc: int,
    method: str,
    config: NativeConfig,
    prior: Prior,
    code: str = "",
    found: dict[str, Any] | None = None,
) -> DistilledSet:
    """Images of `make_images` as a set of `data` made by `method` with a prior; `found` goes into its record."""
    facts = {key: value for key, value in prior.facts.items() if key != "prior"}
    parameters = {**config.model_dump(mode="json"), "prior": prior.name, **(found or {})}
    result = DistilledSet(
        images=images,
        dataset=data.dataset,
        classes=data.classes,
        ipc=ipc,
        value_range=SYMMETRIC,
        labels=torch.arange(len(data.classes)).repeat_interleave(ipc),
        steps=(Step(method, {**parameters, "prior_facts": facts} if facts else parameters, config.seed, code),),
    )
    result.validate(method)
    return result
