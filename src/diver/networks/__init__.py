"""Networks by name. A new network is a new file and a line in REGISTRY."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diver.networks.convnet import ConvNet
from diver.networks.mobilenet import MobileNet
from diver.networks.resnet import ResNet
from diver.networks.vit import ViT

REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "convnet": ConvNet,
    "resnet": ResNet,
    "vit": ViT,
    "mobilenet": MobileNet,
}
TIMM = "timm:"


def names() -> list[str]:
    """Names of the project's own networks; `timm:<name>` reaches any other network that timm knows."""
    return sorted(REGISTRY)


def _from_timm(name: str, classes: int, channels: int, size: int, options: dict[str, Any]) -> nn.Module:
    import timm  # here, because this import takes several seconds

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        raise ValueError(f"network 'timm:{name}' is not known to timm; nearest: {', '.join(near) or 'none'}")
    # Vision transformers and the like need the image size, convolutional networks refuse it.
    try:
        return timm.create_model(name, num_classes=classes, in_chans=channels, img_size=size, **options)
    except TypeError:
        return timm.create_model(name, num_classes=classes, in_chans=channels, **options)


def memory_format(network: nn.Module) -> torch.memory_format:
    """The layout of input images in which the network measured faster on CPUs; results differ by rounding only."""
    return getattr(network, "memory_format", torch.contiguous_format)


def create(name: str, classes: int = 10, channels: int = 3, size: int = 32, **options: Any) -> nn.Module:
    """An untrained network: float images [N, channels, size, size] to float logits [N, classes].

    Weights are drawn from torch's global generator; seed it before. Nothing is downloaded.
    Raises ValueError for an unknown name (with the nearest known ones) or for options that the network does not have.
    """
    if name.startswith(TIMM):
        return _from_timm(name.removeprefix(TIMM), classes, channels, size, options)
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, names(), 2, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise ValueError(f"network {name!r} is not known; {hint}choose {', '.join(names())} or {TIMM}<name>")
    try:
        return REGISTRY[name](classes=classes, channels=channels, size=size, **options)
    except TypeError as error:
        raise ValueError(f"network {name!r}: {error}") from error
