"""MobileNetV2 for small and large images, with a width multiplier.

Written on `torch.nn` because importing torchvision or timm takes longer than training this network on ten images.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks.convnet import convolution, redrawn

# Expansion, channels, repeats, stride of each group (Sandler et al. 2018, table 2). The first two
# strides of 2 of the original (stem and second group) are options: images of 32 pixels would vanish otherwise.
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def rounded(channels: float) -> int:
    """The nearest multiple of 8, at least 8."""
    return max(8, int(channels + 4) // 8 * 8)


class InvertedResidual(nn.Module):
    """Expand 1x1, depth-wise, gate if there is one, project 1x1 without activation; shortcut where shapes agree."""

    def __init__(
        self,
        inner: int,
        outer: int,
        stride: int,
        expansion: int,
        norm: str,
        kernel: int = 3,
        activation: Callable[..., nn.Module] = nn.ReLU6,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = inner * expansion
        layers = convolution(inner, hidden, 1, norm, activation) if expansion != 1 else []
        layers += convolution(hidden, hidden, kernel, norm, activation, stride=stride, groups=hidden)
        layers += [gate] if gate else []
        layers += convolution(hidden, outer, 1, norm, None)
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNet(nn.Module):
    """MobileNetV2 with channels times `width` (rounded to 8) and every group of blocks at most `repeats` long.

    Input float [N, channels, size, size], output float [N, classes]. `stem_stride` 2 quarters the cost.
    With `stem_stride` and `second_stride` (of the second group) 2 it is the original for large images, and
    PReDD's but for the linear layer, which the released code draws with deviation 0.01 and zero bias.
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
        second_stride: int = 1,
    ) -> None:
        super().__init__()
        inner = rounded(32 * width)
        layers = convolution(channels, inner, 3, norm, nn.ReLU6, stride=stem_stride)
        for group, (expansion, wanted, count, stride) in enumerate(GROUPS):
            outer = rounded(wanted * width)
            for block in range(min(count, repeats)):
                first = second_stride if group == 1 else stride
                layers.append(InvertedResidual(inner, outer, 1 if block else first, expansion, norm))
                inner = outer
        last = rounded(1280 * width)
        layers += convolution(inner, last, 1, norm, nn.ReLU6)
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, classes)
        redrawn(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))
