"""Networks by name. A new network is a new file, a line in REGISTRY and its options in `diver.config.networks`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from diver.config.networks import PRESETS, check_network, check_options
from diver.networks.alexnet import AlexNet
from diver.networks.convnet import ConvNet
from diver.networks.efficientnet import EfficientNet
from diver.networks.mobilenet import MobileNet
from diver.networks.resnet import ResNet
from diver.networks.resnet_ap import ResNetAP
from diver.networks.resnet_cifar import ResNetCIFAR
from diver.networks.shufflenet import ShuffleNet
from diver.networks.vgg import VGG
from diver.networks.vit import ViT

REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "convnet": ConvNet,
    "resnet": ResNet,
    "resnet_ap": ResNetAP,
    "resnet_cifar": ResNetCIFAR,
    "vgg": VGG,
    "alexnet": AlexNet,
    "mobilenet": MobileNet,
    "efficientnet": EfficientNet,
    "shufflenet": ShuffleNet,
    "vit": ViT,
}


def names() -> list[str]:
    """Names of the project's own networks; `timm:NAME` and `torchvision:NAME` reach those of these libraries."""
    return sorted(REGISTRY)


def _sized(build: Callable[..., nn.Module], options: dict[str, Any], **size: int) -> nn.Module:
    """Vision transformers and the like need the image size, convolutional networks refuse it."""
    try:
        return build(**size, **options)
    except TypeError:
        pass
    return build(**options)


def _from_timm(name: str, classes: int, channels: int, size: int, **options: Any) -> nn.Module:
    import timm  # here, because this import takes several seconds

    def build(**given: Any) -> nn.Module:
        return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **given)

    return _sized(build, options, img_size=size)


def _from_torchvision(name: str, classes: int, channels: int, size: int, **options: Any) -> nn.Module:
    from torchvision import models

    def build(**given: Any) -> nn.Module:
        return models.get_model(name, weights=None, num_classes=classes, **given)

    if channels != 3:
        raise ValueError(f"network 'torchvision:{name}' takes 3 channels, not {channels}; choose another, as of timm")
    return _sized(build, options, image_size=size)


FROM_LIBRARY: dict[str, Callable[..., nn.Module]] = {"timm": _from_timm, "torchvision": _from_torchvision}


def memory_format(network: nn.Module) -> torch.memory_format:
    """The layout of input images in which the network measured faster on CPUs; results differ by rounding only."""
    return getattr(network, "memory_format", torch.contiguous_format)


def create(name: str, classes: int = 10, channels: int = 3, size: int = 32, **options: Any) -> nn.Module:
    """An untrained network: float images [N, channels, size, size] to float logits [N, classes].

    name: as `check_network` accepts it; `options` override those of a preset.
    Weights are drawn from torch's global generator; seed it before. Nothing is downloaded.
    Raises ValueError for an unknown name (with the nearest known ones), for options that the network does not have and
    for images that it does not take.
    """
    check_network(name)
    network, preset = PRESETS.get(name, (name, {}))
    options = {**preset, **options}
    library, colon, model = network.partition(":")
    build = partial(FROM_LIBRARY[library], model) if colon else REGISTRY[network]
    try:
        check_options(network, options, size)
    except ValueError as error:
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ValueError(f"network {name!r}{f' ({shown})' if shown else ''}: {error}") from None
    try:
        return build(classes=classes, channels=channels, size=size, **options)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"network {name!r}: {error}") from error
