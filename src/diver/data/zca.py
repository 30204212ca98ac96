"""ZCA whitening of images: pixels without correlation, in images as close to the originals as that allows.

With the mean m and the covariance U diag(s) U^T of the training images as vectors of values in [0, 1],

    white = (image - m) U diag(1 / sqrt(s + epsilon)) U^T,   image = white U diag(sqrt(s + epsilon)) U^T + m .
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diver.tensorfile import tensors_digest

# Images of 64 x 64 in colour: the matrices have the square of it, and their decomposition its third power.
MOST_VALUES = 3 * 64 * 64
# Images whose products enter the covariance at a time.
CHUNK = 5000


@dataclass(frozen=True, eq=False)
class Whitening:
    """mean float32 [D], matrix and inverse float32 [D, D], of images with D = C * H * W values."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def whiten(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] with values in [0, 1] to white ones, of the same shape and dtype."""
        mean, matrix = self.mean.to(images), self.matrix.to(images)
        return ((images.flatten(1) - mean) @ matrix).view_as(images)

    def whiten_all(self, images: Tensor) -> Tensor:
        """Images uint8 [N, C, H, W], N of them possibly many, to white ones, float32."""
        return torch.cat([self.whiten(part.float() / 255) for part in images.split(CHUNK)])

    def restore(self, white: Tensor) -> Tensor:
        """The images [n, C, H, W], nominally in [0, 1], that white ones are of. Nothing is clipped."""
        mean, inverse = self.mean.to(white), self.inverse.to(white)
        return (white.flatten(1) @ inverse + mean).view_as(white)

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}

    def digest(self) -> str:
        """SHA-256 in hexadecimal."""
        return tensors_digest(self.tensors())


def fit_whitening(images: Tensor, epsilon: float) -> Whitening:
    """The whitening of images uint8 [N, C, H, W]. Raises ValueError for fewer than two, or too large ones."""
    size = images.shape[1:].numel()
    if len(images) < 2 or size > MOST_VALUES:
        raise ValueError(
            f"zca: {len(images)} images of {size} values; whitening takes two images or more of at most {MOST_VALUES}"
        )
    total, products = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for part in images.cpu().split(CHUNK):
        values = part.flatten(1).double() / 255
        total += values.sum(0)
        products.addmm_(values.t(), values)
    mean = total / len(images)
    covariance = (products - torch.outer(total, mean)) / (len(images) - 1)
    spread, vectors = torch.linalg.eigh(covariance)
    deviation = (spread.clamp(min=0) + epsilon).sqrt()
    matrix, inverse = ((vectors * factor) @ vectors.t() for factor in (1 / deviation, deviation))
    return Whitening(mean.float(), matrix.float(), inverse.float())
