"""Baseline: real training images, drawn uniformly per class without replacement."""

from pathlib import Path

import torch

from diver.config.distill import RandomConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, draw_members
from diver.progress import Progress
from diver.sets import DistilledSet


def distill_random(
    data: Prepared,
    ipc: int,
    config: RandomConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """`ipc` training images of each class, standardised. Raises ValueError if a class has fewer.

    `progress` and `folder` are not used: it takes no time.
    """
    generator = torch.Generator().manual_seed(config.seed)
    chosen = draw_members(class_members(data, ipc), ipc, generator)
    return distilled(data.standardised(data.train_images[chosen]), data, ipc, "random", config, code)
