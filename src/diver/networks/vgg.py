"""VGG of the dataset-distillation literature: normalised, with a single linear layer."""

from torch import Tensor, nn

from diver.networks.convnet import convolution

# Convolutions of each of the five stages (Simonyan and Zisserman 2015, table 1), by depth.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five stages of [3x3 convolution, normalisation, ReLU] that end in 2x2 max-pooling, then one linear layer.

    The stages have 1, 2, 4, 8 and 8 times `width` channels. With `grid` the last map is brought to grid x grid by
    adaptive max-pooling, which repeats values where it enlarges: GLaD has 7 (Cazenavette et al. 2023).
    Input float [N, channels, size, size], output float [N, classes].
    Source: Zhao et al. 2021 (dataset condensation), whose wider padding of grey images is left out.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        size: int,
        width: int = 64,
        depth: int = 11,
        norm: str = "instance",
        grid: int | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = channels
        for stage, count in enumerate(STAGES[depth]):
            for _ in range(count):
                outer = width * min(2**stage, 8)
                layers += convolution(inner, outer, 3, norm, bias=True)
                inner = outer
            layers.append(nn.MaxPool2d(2))
        if grid:
            layers.append(nn.AdaptiveMaxPool2d(grid))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inner * (grid or size // 32) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
