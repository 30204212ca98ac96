"""MobileNetV2 with ImageNet's weights from torchvision's file: image features, tags and class activation maps."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.text.attributes import Seen
from diver.text.resources import TextError, resolve

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHUNK = 64


@cache
def load(source: str) -> nn.Module:
    """The network in eval mode. Raises TextError if the file is missing or is not a state dict of it."""
    from torchvision.models import mobilenet_v2

    path = Path(resolve(source))
    network = mobilenet_v2(weights=None)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises errors of no common kind
        raise TextError(
            f"{source}: not torchvision's weights of MobileNetV2 ({' '.join(str(error).split())[:150]})"
        ) from error
    return network.eval().requires_grad_(False)


def _maps(source: str, images: Tensor, size: int) -> Tensor:
    """The last feature maps [n, 1280, h, w] of images uint8 [n, C, H, W], brought to `size` pixels."""
    x = images.expand(-1, 3, -1, -1).float() / 255
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    centre, spread = (x.new_tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    maps: Tensor = load(source).get_submodule("features")((x - centre) / spread)
    return maps


@torch.inference_mode()
def features(source: str, images: Tensor, size: int) -> Tensor:
    """float32 [n, 1280] of images uint8 [n, C, H, W]: the maps' mean."""
    return torch.cat([_maps(source, part, size).mean((2, 3)) for part in images.split(CHUNK)])


@torch.inference_mode()
def look(source: str, images: Tensor, size: int) -> list[Seen]:
    """The likeliest class of ImageNet of each image, and the share of it where that class's map is above half."""
    from timm.data import ImageNetInfo

    words, found = ImageNetInfo(), []
    last: nn.Linear = load(source).get_submodule("classifier.1")  # type: ignore[assignment]
    for part in images.split(CHUNK):
        maps = _maps(source, part, size)
        tops = last(maps.mean((2, 3))).argmax(1)
        heat = torch.einsum("nchw,nc->nhw", maps, last.weight[tops])
        heat = F.interpolate(heat[:, None], (32, 32), mode="bilinear")[:, 0].clamp(min=0)
        shares = (heat > heat.amax((1, 2), keepdim=True) / 2).float().mean((1, 2))
        for top, share in zip(tops.tolist(), shares.tolist(), strict=True):
            found.append(Seen(str(words.index_to_description(top)).split(",")[0], share))
    return found
