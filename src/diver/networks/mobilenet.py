"""MobileNetV2 for small images, with a width multiplier.

Written on `torch.nn` because importing torchvision or timm takes longer than training this network on ten images.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks.convnet import norm_layer

# Expansion, channels, repeats, stride of each group (Sandler et al. 2018, table 2). The first two
# strides of 2 of the original (stem and second group) are 1: images of 32 pixels would vanish otherwise.
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _rounded(channels: float) -> int:
    return max(8, int(channels + 4) // 8 * 8)


class InvertedResidual(nn.Module):
    """Expand 1x1, depth-wise 3x3, project 1x1 without activation; shortcut where shapes agree."""

    def __init__(self, inner: int, outer: int, stride: int, expansion: int, norm: str) -> None:
        super().__init__()
        hidden = inner * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(inner, hidden, 1, bias=False), norm_layer(norm, hidden), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            norm_layer(norm, hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outer, 1, bias=False),
            norm_layer(norm, outer),
        ]
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNet(nn.Module):
    """MobileNetV2 with channels times `width` (rounded to 8) and every group of blocks at most `repeats` long.

    Input float [N, channels, size, size], output float [N, classes]. `stem_stride` 2 quarters the cost.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        classes: int,
        channels: int,
        size: int,
        width: float = 1.0,
        repeats: int = 4,
        norm: str = "batch",
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if size < 8 * stem_stride:
            raise ValueError(f"mobilenet: images of {size} pixels are too small, at least {8 * stem_stride} are needed")
        inner = _rounded(32 * width)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, inner, 3, stem_stride, 1, bias=False),
            norm_layer(norm, inner),
            nn.ReLU6(inplace=True),
        ]
        for expansion, wanted, count, stride in GROUPS:
            outer = _rounded(wanted * width)
            for block in range(min(count, repeats)):
                layers.append(InvertedResidual(inner, outer, 1 if block else stride, expansion, norm))
                inner = outer
        last = max(_rounded(1280 * width), 8)
        layers += [nn.Conv2d(inner, last, 1, bias=False), norm_layer(norm, last), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))
