"""Boxes of images brought to a size, as two small matrices; and the 8-bit JPEG of released sets."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diver.sets import ValueRange


def taps(start: Tensor, length: Tensor, count: int, size: int) -> Tensor:
    """Weights float64 [N, count, size] that resize spans of a line of `size` pixels to `count` pixels each.

    start, length: float64 [N], the spans' first pixels and numbers of pixels. Bilinear, with the anti-aliasing of
    torchvision's `resize` where a span shrinks; pixels outside the span have no weight.
    """
    start, length = start[:, None, None], length[:, None, None]
    step = length / count
    pixels, targets = (torch.arange(n, dtype=torch.float64, device=start.device) + 0.5 for n in (size, count))
    centres = start + targets[:, None] * step
    weights = (1 - (pixels - centres).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixels > start) & (pixels < start + length))
    return weights / weights.sum(2, keepdim=True)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images [N, C, H, W] as [N, C, h, w] by weights of rows [n, h, H] and of columns [n, w, W], n being N or 1.

    A product of matrices, whose gradient is one too: unlike that of a sampled grid, it repeats bit for bit on GPUs.
    """
    return rows[:, None].to(images.dtype) @ images @ columns[:, None].to(images.dtype).mT


def as_jpeg(images: Tensor, value_range: ValueRange) -> Tensor:
    """Float images [N, C, H, W] as they come back from the released codes' files, in the same range and dtype.

    Pixels are cut, not rounded, to 8 bits and coded as JPEG with Pillow's settings. Raises ValueError for another
    number of channels than 1 or 3.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images of {images.shape[1]} channels cannot be coded as JPEG; set rounding: none")
    cut = (value_range.to_unit(images).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found = []
    for pixels in cut:
        file = BytesIO()
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG")
        found.append(torch.from_numpy(np.array(Image.open(file))).view(pixels.shape).permute(2, 0, 1))
    return value_range.from_unit(torch.stack(found).to(images) / 255)
