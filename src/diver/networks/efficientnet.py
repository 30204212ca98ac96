"""EfficientNet-B0, with a width multiplier."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks.convnet import convolution
from diver.networks.mobilenet import InvertedResidual, rounded

# Expansion, channels, repeats, stride, kernel of each group (Tan and Le 2019, table 1).
GROUPS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class Gate(nn.Module):
    """Squeeze and excitation: each channel times a factor in (0, 1) that depends on the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class EfficientNet(nn.Module):
    """EfficientNet-B0 with channels times `width` (rounded to 8); Swish, gates of a quarter of a block's input.

    Input float [N, channels, size, size], output float [N, classes].
    Source: Tan and Le 2019, as PReDD evaluates it: neither dropout nor dropped paths, PyTorch's defaults for batch
    normalisation and initial weights.
    """

    memory_format = torch.channels_last

    def __init__(self, classes: int, channels: int, size: int, width: float = 1.0, norm: str = "batch") -> None:
        super().__init__()
        inner = rounded(32 * width)
        layers = convolution(channels, inner, 3, norm, nn.SiLU, stride=2)
        for expansion, wanted, count, stride, kernel in GROUPS:
            outer = rounded(wanted * width)
            for block in range(count):
                gate = Gate(inner * expansion, inner // 4)
                step = 1 if block else stride
                layers.append(InvertedResidual(inner, outer, step, expansion, norm, kernel, nn.SiLU, gate))
                inner = outer
        last = rounded(1280 * width)
        layers += convolution(inner, last, 1, norm, nn.SiLU)
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))
