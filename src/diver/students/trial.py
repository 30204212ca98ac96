"""Whether a network can be trained and tested at all, found out before any other is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diver.networks import create
from diver.students.inputs import StudentError


def smallest_batch(images: int, batch: int) -> int:
    """Images of the smallest batch of an epoch: the last one, unless it is full."""
    return (images % batch or batch) if images > batch else images


def try_network(
    network: str, options: dict[str, Any], classes: int, shape: Sequence[int], batch: int, label: str = ""
) -> None:
    """Pass a few images [C, S, S] through an untrained network in training and in testing, on the CPU.

    batch: the smallest that will occur; of more than two images two are tried, as batch statistics differ with one
    alone. The global generator is left as it was. Raises StudentError that names the network (or `label`).
    """
    images = min(batch, 2)
    what = "made"
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            made = create(network, classes, *shape[:2], **options)
            for training in (True, False):
                what = f"{'trained' if training else 'tested'} on {images} image{'s' * (images > 1)} at a time"
                answer = made.train(training)(torch.zeros(images, *shape))
                found = list(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
                if found != [images, classes]:
                    raise TypeError(f"its answer is {found}, not [{images}, {classes}]")
    except (TypeError, ValueError, RuntimeError, IndexError, AssertionError) as error:
        told = str(error).partition("\n")[0]
        fewer = "another batch, so that no step is left with one image, or " if what.startswith("trained") else ""
        raise StudentError(
            f"network {label or network} cannot be {what}, of {' x '.join(map(str, shape))}: {told}; take "
            f"{fewer if images == 1 else ''}another network"
        ) from error
