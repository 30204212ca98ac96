"""The residual networks for CIFAR: three stages of thin blocks, of which many trained weights are public."""

from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks.convnet import norm_layer


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut without parameters: it skips pixels, and pads channels with zeros."""

    def __init__(self, inner: int, outer: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(norm, outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(norm, outer)
        self.stride, self.extra = stride, outer - inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        before = self.extra // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))
        return F.relu(y + shortcut)


class ResNetCIFAR(nn.Module):
    """A network of 6 n + 2 layers: a 3x3 convolution, three stages of n blocks, global average pooling, a linear layer.

    `depth` 20 and `width` 16 are ResNet-20. Input float [N, channels, size, size], output float [N, classes].
    Source: He et al. 2016, section 4.2. Weights are named as in akamaster/pytorch_resnet_cifar10; files of networks
    whose shortcuts have parameters, as those of chenyaofo/pytorch-cifar-models, do not fit.
    """

    def __init__(
        self, classes: int, channels: int, size: int, depth: int = 20, width: int = 16, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False), norm_layer(norm, width)
        stages, inner = [], width
        for outer in (width, 2 * width, 4 * width):
            blocks = [PaddedBlock(inner, outer, outer // inner, norm)]
            blocks += [PaddedBlock(outer, outer, 1, norm) for _ in range((depth - 2) // 6 - 1)]
            stages.append(nn.Sequential(*blocks))
            inner = outer
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))
