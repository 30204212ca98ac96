"""ResNetAP of the hard-label protocol on ImageNet subsets: a residual network with average pooling for strides."""

from torch import Tensor, nn

from diver.networks.convnet import convolution, redrawn
from diver.networks.resnet import stages


class ResNetAP(nn.Module):
    """A stem that fits the size, four stages of `blocks` basic blocks that average where they halve, global average.

    The stem is a 7x7 convolution and 4x4 pooling above 128 pixels, 3x3 and 2x2 pooling above 64, and 3x3 alone up to
    there. `blocks` 1 is ResNetAP-10, 2 is ResNetAP-18. The released code has width 32 for CIFAR and 64 elsewhere.
    Input float [N, channels, size, size], output float [N, classes].
    Source: Kim et al. 2022 (IDC), as used by Gu et al. 2024 (Minimax Diffusion), with their initialisation.
    """

    def __init__(
        self, classes: int, channels: int, size: int, width: int = 64, blocks: int = 1, norm: str = "instance"
    ) -> None:
        super().__init__()
        kernel, pool = (7, 4) if size > 128 else (3, 2) if size > 64 else (3, 1)
        self.stem = nn.Sequential(*convolution(channels, width, kernel, norm), nn.AvgPool2d(pool))
        self.stages = stages(width, blocks, norm, pooled=True)
        self.classifier = nn.Linear(8 * width, classes)
        redrawn(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(self.stem(x)).mean((2, 3)))
