"""ShuffleNetV2."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks.convnet import convolution

# Channels of the three stages by width multiplier (Ma et al. 2018, table 5), and units of each stage.
STAGES = {0.5: (48, 96, 192), 1.0: (116, 232, 464), 1.5: (176, 352, 704), 2.0: (244, 488, 976)}
UNITS = (4, 8, 4)


def shuffle(x: Tensor) -> Tensor:
    """Channels of the two halves in turn: a0, b0, a1, b1, ..."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """Half of the channels are convolved, the other half passes; with stride 2 both are made of all channels."""

    def __init__(self, inner: int, outer: int, stride: int, groups: int, norm: str) -> None:
        super().__init__()
        half = outer // 2
        self.side = nn.Sequential()
        if stride == 2:
            self.side.extend(convolution(inner, inner, 3, norm, None, stride=2, groups=inner))
            self.side.extend(convolution(inner, half, 1, norm))
        self.main = nn.Sequential(
            *convolution(inner if stride == 2 else half, half, 1, norm),
            *convolution(half, half, 3, norm, None, stride=stride, groups=groups or half),
            *convolution(half, half, 1, norm),
        )
        self.split = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1) if self.split else (x, x)
        return shuffle(torch.cat([self.side(a), self.main(b)], 1))


class ShuffleNet(nn.Module):
    """Stem with max-pooling, three stages of units, a 1x1 convolution, global average pooling.

    `groups` are those of the 3x3 convolutions of the main branch: 0 is one per channel, as Ma et al. 2018 have it
    (their table 5), and 2 what PReDD evaluates. `width` is 0.5, 1.0, 1.5 or 2.0.
    Input float [N, channels, size, size], output float [N, classes].
    """

    memory_format = torch.channels_last

    def __init__(
        self, classes: int, channels: int, size: int, width: float = 1.0, groups: int = 2, norm: str = "batch"
    ) -> None:
        super().__init__()
        inner = 24
        layers = [*convolution(channels, inner, 3, norm, stride=2), nn.MaxPool2d(3, 2, 1)]
        for outer, units in zip(STAGES[width], UNITS, strict=True):
            for unit in range(units):
                layers.append(ShuffleUnit(inner, outer, 1 if unit else 2, groups, norm))
                inner = outer
        last = 2048 if width == 2.0 else 1024
        self.layers = nn.Sequential(*layers, *convolution(inner, last, 1, norm))
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))
