"""Differentiable siamese augmentation (DSA; Zhao and Bilen 2021).

One family of transformations is drawn per call and every image (or group of images) gets parameters of its own.
The drawn parameters are a value: applying the same value to two batches is what makes the augmentation siamese.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT, FLIP, SCALE, ROTATE = 0.125, 0.5, 0.5, 1.2, 15.0
DEFAULT = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Augmentation:
    """A drawn transformation: its family ("none" for the identity) and float values [n, k], one row per image."""

    family: str
    values: Tensor

    def take(self, index: Tensor) -> "Augmentation":
        """Rows `index`, for example the class of each image when parameters were drawn per class."""
        return Augmentation(self.family, self.values[index])


def _column(values: Tensor, column: int, images: Tensor) -> Tensor:
    return values[:, column].to(images.dtype).view(-1, 1, 1, 1)


def _color(x: Tensor, v: Tensor) -> Tensor:
    x = x + (_column(v, 0, x) - 0.5) * BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (_column(v, 1, x) * SATURATION)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (_column(v, 2, x) + CONTRAST)


def _crop(x: Tensor, v: Tensor) -> Tensor:
    """Shift by whole pixels, at most CROP of the size; what comes in is zero."""
    n, _, height, width = x.shape
    pad_y, pad_x = int(height * CROP + 0.5), int(width * CROP + 0.5)
    dy = (v[:, 0] * (2 * pad_y + 1)).long().clamp(max=2 * pad_y)
    dx = (v[:, 1] * (2 * pad_x + 1)).long().clamp(max=2 * pad_x)
    rows = (torch.arange(height, device=x.device) + dy[:, None]).view(n, height, 1)
    columns = (torch.arange(width, device=x.device) + dx[:, None]).view(n, 1, width)
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)
    return padded[torch.arange(n, device=x.device).view(n, 1, 1), rows, columns].permute(0, 3, 1, 2)


def _cutout(x: Tensor, v: Tensor) -> Tensor:
    """A square of half the size, centred anywhere, is zero."""

    def outside(size: int, u: Tensor) -> Tensor:
        length = int(size * CUTOUT + 0.5)
        centres = size + 1 - length % 2
        start = (u * centres).long().clamp(max=centres - 1) - length // 2
        position = torch.arange(size, device=u.device)
        return (position < start[:, None]) | (position >= start[:, None] + length)

    n, _, height, width = x.shape
    keep = outside(height, v[:, 0]).view(n, 1, height, 1) | outside(width, v[:, 1]).view(n, 1, 1, width)
    return x * keep.to(x)


def _flip(x: Tensor, v: Tensor) -> Tensor:
    return torch.where(_column(v, 0, x) < FLIP, x.flip(3), x)


def _warp(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Sample at positions [[a, b], [c, d]] (x, y), bilinearly, zero outside."""
    zero = torch.zeros_like(a)
    theta = torch.stack([torch.stack([a, b, zero], 1), torch.stack([c, d, zero], 1)], 1)
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _scale(x: Tensor, v: Tensor) -> Tensor:
    """Each axis by its own factor in [1 / SCALE, SCALE]."""
    factors = v * (SCALE - 1 / SCALE) + 1 / SCALE
    zero = torch.zeros_like(factors[:, 0])
    return _warp(x, factors[:, 0], zero, zero, factors[:, 1])


def _rotate(x: Tensor, v: Tensor) -> Tensor:
    angle = (v[:, 0] - 0.5) * (2 * ROTATE * math.pi / 180)
    return _warp(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


# Family -> (how many uniform values per image, transformation).
FAMILIES: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "color": (3, _color),
    "crop": (2, _crop),
    "cutout": (2, _cutout),
    "flip": (1, _flip),
    "scale": (2, _scale),
    "rotate": (1, _rotate),
}


class DSA:
    """Draws and applies augmentations; `strategy` joins families with underscores, "none" or "" is the identity.

    Raises ValueError for an unknown family.
    """

    def __init__(self, strategy: str = DEFAULT) -> None:
        self.families = [] if strategy in ("", "none") else strategy.split("_")
        unknown = [family for family in self.families if family not in FAMILIES]
        if unknown:
            raise ValueError(f"augmentation {'_'.join(unknown)!r} is not known; families: {', '.join(FAMILIES)}")

    def draw(self, n: int, generator: torch.Generator) -> Augmentation:
        """One family and uniform values for `n` images. They do not depend on the size of the images."""
        if not self.families:
            return Augmentation("none", torch.empty(n, 0))
        family = self.families[int(torch.randint(len(self.families), (1,), generator=generator))]
        return Augmentation(family, torch.rand(n, FAMILIES[family][0], generator=generator))

    def apply(self, images: Tensor, drawn: Augmentation) -> Tensor:
        """Augmented float images [N, C, H, W], differentiable; one row of values serves all images if there is one.

        Raises ValueError if there are neither one nor N rows.
        """
        if drawn.family == "none":
            return images
        if len(drawn.values) not in (1, len(images)):
            raise ValueError(f"augmentation drawn for {len(drawn.values)} images, applied to {len(images)}")
        return FAMILIES[drawn.family][1](
            images, drawn.values.to(images.device, non_blocking=True).expand(len(images), -1)
        )
