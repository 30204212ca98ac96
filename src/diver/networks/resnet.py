"""ResNet-18 with any norm; the width is free, so that it can be trained on a CPU."""

from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks.convnet import convolution, norm_layer, redrawn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016); `pooled` averages where the original has a stride."""

    def __init__(self, inner: int, outer: int, stride: int, norm: str, pooled: bool = False) -> None:
        super().__init__()
        pool = [nn.AvgPool2d(stride)] if pooled and stride != 1 else []
        step = 1 if pooled else stride
        self.conv1 = nn.Conv2d(inner, outer, 3, step, 1, bias=False)
        self.norm1 = norm_layer(norm, outer)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = norm_layer(norm, outer)
        self.pool = nn.Sequential(*pool)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            project = nn.Conv2d(inner, outer, 1, step, bias=False)
            self.shortcut = nn.Sequential(project, *pool, norm_layer(norm, outer))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.relu1(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


def stages(width: int, blocks: int, norm: str, pooled: bool = False) -> nn.Sequential:
    """Four stages of basic blocks, of 1, 2, 4 and 8 times `width` channels; each but the first halves the size."""
    layers = []
    inner = width
    for stage in range(4):
        for block in range(blocks):
            outer = width * 2**stage
            layers.append(BasicBlock(inner, outer, 2 if stage and not block else 1, norm, pooled))
            inner = outer
    return nn.Sequential(*layers)


class ResNet(nn.Module):
    """A stem, four stages of `blocks` basic blocks, global average pooling.

    `width` 64 and `blocks` 2 are ResNet-18. stem: small, 3x3 of stride 1 without max-pooling (`stem_stride` 2 quarters
    the cost), or large, the original's for ImageNet: 7x7 of stride 2 and max-pooling, with its initialisation too, as
    the codes have that take this stem (IDC, Minimax Diffusion).
    Input float [N, channels, size, size], output float [N, classes].
    Instance normalisation by default, as in GLaD (Cazenavette et al. 2023), evaluation.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        size: int,
        width: int = 64,
        blocks: int = 2,
        norm: str = "instance",
        stem_stride: int = 1,
        stem: str = "small",
    ) -> None:
        super().__init__()
        if stem == "large":
            self.stem = nn.Sequential(*convolution(channels, width, 7, norm, stride=2), nn.MaxPool2d(3, 2, 1))
        else:
            self.stem = nn.Sequential(*convolution(channels, width, 3, norm, stride=stem_stride))
        self.stages = stages(width, blocks, norm)
        self.classifier = nn.Linear(8 * width, classes)
        if stem == "large":
            redrawn(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(self.stem(x)).mean((2, 3)))
