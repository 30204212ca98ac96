"""The ConvNet of the dataset-distillation literature: the network that stage 1 matches, hence the 'proxy' student."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Normalisation by name: instance (affine), batch, group (at most 8 groups) or none.

    Instance normalisation is written as GroupNorm with one group per channel, so it has no running statistics.
    Raises ValueError for another name.
    """
    if norm == "instance":
        return nn.GroupNorm(channels, channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        groups = max(g for g in range(1, 9) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm {norm!r} is not known; choose instance, batch, group or none")


def convolution(
    inner: int,
    outer: int,
    kernel: int,
    norm: str,
    activation: Callable[..., nn.Module] | None = nn.ReLU,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> list[nn.Module]:
    """The layers [convolution, normalisation, activation]; padded, so that only `stride` changes the size."""
    layers = [nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=bias), norm_layer(norm, outer)]
    return [*layers, activation(inplace=True)] if activation else layers


def redrawn(network: nn.Module) -> None:
    """Draw convolutions anew as He et al. 2015 do, by what they give out, in place of PyTorch's uniform values."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


def halved(x: Tensor) -> Tensor:
    """2x2 average pooling of [N, C, H, W].

    Where operations are fused on a GPU it is written as a mean, which then is part of what surrounds it; torch's own is
    not. On a CPU, of images in torch's usual layout, it is a sum of rows and then of columns, several times faster than
    torch's own; its sums are of another order, so rounding may differ. Half precision is left to torch, which adds in
    float32.
    """
    fused, height, width = torch.compiler.is_compiling(), x.shape[2] // 2, x.shape[3] // 2
    if fused and x.is_cuda:
        return x[:, :, : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2)).mean((3, 5))
    summed = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.is_contiguous()
    if fused or not summed:
        return F.avg_pool2d(x, 2)
    above, below = x[:, :, : 2 * height, : 2 * width].unflatten(2, (height, 2)).unbind(3)
    rows = above + below
    return (rows[..., ::2] + rows[..., 1::2]) * 0.25


class Halving(nn.AvgPool2d):
    """`halved` as a layer."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        return halved(x)


class ConvNet(nn.Module):
    """`depth` times [3x3 convolution, normalisation, ReLU, 2x2 average pooling], then one linear layer.

    Input float [N, channels, size, size], output float [N, classes].
    Source: Gidaris and Komodakis 2018, as used by Zhao et al. 2021 (dataset condensation).
    """

    def __init__(
        self, classes: int, channels: int, size: int, width: int = 128, depth: int = 3, norm: str = "instance"
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [*convolution(width if block else channels, width, 3, norm, bias=True), Halving()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (size >> depth) ** 2, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Flattened features before the linear layer, float [N, width * (size / 2**depth)**2]."""
        return self.features(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embed(x))
