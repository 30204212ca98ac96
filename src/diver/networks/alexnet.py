"""AlexNet of the dataset-distillation literature: five convolutions of stride 1 and a single linear layer."""

from torch import Tensor, nn

from diver.networks.convnet import convolution

# Kernel, channels, whether 2x2 max-pooling follows.
LAYERS = ((5, 128, True), (5, 192, True), (3, 256, False), (3, 192, False), (3, 192, True))


class AlexNet(nn.Module):
    """Five convolutions with ReLU, three of them max-pooled, then one linear layer; no dropout.

    Not the network of Krizhevsky et al. 2012, which `torchvision:alexnet` is.
    Input float [N, channels, size, size], output float [N, classes].
    Source: Zhao et al. 2021 (dataset condensation), whose wider padding of grey images is left out;
    `norm` batch is their AlexNetBN.
    """

    def __init__(self, classes: int, channels: int, size: int, norm: str = "none") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = channels
        for kernel, outer, pooled in LAYERS:
            layers += convolution(inner, outer, kernel, norm, bias=True)
            layers += [nn.MaxPool2d(2)] if pooled else []
            inner = outer
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inner * (size // 8) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
