"""What a chain looks like on its way: its predicted clean images, decoded."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diver.config.recover import DIVERConfig
from diver.config.report import CHAINS
from diver.prior.base import Prior
from diver.recover.diver import Chain
from diver.recover.run import Recovery, join
from diver.setfile import Rows
from diver.sets import DistilledSet


@dataclass(frozen=True)
class Trace:
    """Predicted clean images along the chain, from the noisy end to the clean one.

    `indices`, `timesteps`: [K]. `images`: float32 [K, N, C, S, S], decoded, nominally in [-1, 1].
    `window`: the guided indices, both ends included.
    """

    indices: Tensor
    timesteps: Tensor
    images: Tensor
    window: tuple[int, int]


def trace_diver(source: DistilledSet, prior: Prior, config: DIVERConfig) -> Trace:
    """The chains of the first image of each class, of CHAINS at most, as predicted clean images at every step."""
    firsts = range(0, len(source.images), source.ipc)[:CHAINS]
    batch = Recovery(Rows.of(source), prior, "diver", config).load(firsts)
    chain = Chain.of(prior, config)
    seen: list[tuple[int, Tensor]] = []

    def whole(images: Tensor) -> Tensor:
        return join(images, config.tiles) if config.tiles > 1 else images

    with torch.inference_mode():
        chain.run(*batch, lambda k, clean, state: seen.append((k, whole(prior.decode(clean)).cpu())))
    indices = torch.tensor([k for k, _ in seen])
    images = torch.stack([image for _, image in seen]).clone()
    return Trace(indices, chain.schedule.timesteps[indices], images, chain.window)
