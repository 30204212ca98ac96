"""The ConvNet of the dataset-distillation literature: the network that stage 1 matches, hence the 'proxy' student."""

from collections.abc import Callable

from torch import Tensor, nn


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
            layers += [*convolution(width if block else channels, width, 3, norm, bias=True), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (size >> depth) ** 2, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Flattened features before the linear layer, float [N, width * (size / 2**depth)**2]."""
        return self.features(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embed(x))
