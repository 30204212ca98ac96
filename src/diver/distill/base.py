"""What every stage-1 method shares: drawing real images of a class, and wrapping the result."""

import torch
from torch import Tensor

from diver.config.distill import DistillConfig
from diver.data.prepared import Prepared
from diver.sets import DistilledSet, Step, ValueRange


def class_members(labels: Tensor, classes: int, needed: int) -> list[Tensor]:
    """Positions of each class's images. Raises ValueError if a class has fewer than `needed`."""
    members = [(labels == c).nonzero().flatten() for c in range(classes)]
    short = [c for c, found in enumerate(members) if len(found) < needed]
    if short:
        raise ValueError(f"class {short[0]} has {len(members[short[0]])} training images, {needed} are needed")
    return members


def draw_members(members: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Positions of `count` images of each class, class-major, without replacement."""
    return torch.cat([found[torch.randperm(len(found), generator=generator)[:count]] for found in members])


def distilled(images: Tensor, data: Prepared, ipc: int, method: str, config: DistillConfig, code: str) -> DistilledSet:
    """Standardised class-major images as a set of `data` made by `method`."""
    result = DistilledSet(
        images=images.detach().contiguous(),
        dataset=data.dataset,
        classes=data.classes,
        ipc=ipc,
        value_range=ValueRange.standardised(data.mean, data.std),
        labels=torch.arange(len(data.classes)).repeat_interleave(ipc),
        steps=(Step(method, config.model_dump(mode="json"), config.seed, code),),
    )
    result.validate(method)
    return result
