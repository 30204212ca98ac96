"""Pictures of images in memory, as PNG: plain grids, and galleries of whole sets beside each other.

Only Pillow is needed, so that a step that writes a picture now and then does not load a plotting library.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diver.sets import UNIT, ValueRange

# Pixels: the side that small images are magnified towards, the width that a picture keeps to if it can, the gaps.
CELL, WIDTH, GAP, BLOCK_GAP, MARGIN = 96, 1600, 2, 20, 8
TITLE, NOTE, NAME = 15, 12, 14
# A block of few images is no narrower than this, for its title.
BLOCK_WIDTH = 150


def to_pixels(images: Tensor, value_range: ValueRange = UNIT) -> NDArray[np.uint8]:
    """Images [N, C, H, W] of a value range as uint8 [N, H, W, 3], clipped to [0, 1] and rounded; grey is repeated.

    Raises ValueError for another number of channels than 1 or 3, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images of shape {list(images.shape)} make no picture: [N, 1 or 3, H, W] is needed")
    if not torch.isfinite(images).all():
        raise ValueError("images with values that are not finite make no picture")
    unit = value_range.to_unit(images.detach().float().cpu()).clamp(0, 1)
    array = (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(np.repeat(array, 3, axis=3) if array.shape[3] == 1 else array)


def magnification(side: int, columns: int) -> int:
    """The integer factor, at least 1, that brings images of a side near CELL, and `columns` of them within WIDTH."""
    return max(1, min(CELL // side, WIDTH // (columns * side)))


def grid(images: Tensor, columns: int, value_range: ValueRange = UNIT, factor: int | None = None) -> Image.Image:
    """Images [N, C, H, W] of a value range row by row, `columns` in a row, with white gaps.

    factor: how much larger each is drawn; by default `magnification`. Raises ValueError as `to_pixels`, and for no
    columns.
    """
    if columns < 1:
        raise ValueError(f"{columns} columns make no picture")
    array = to_pixels(images, value_range)
    times = factor or magnification(max(array.shape[1:3]), min(columns, len(array)))
    return Image.fromarray(_mosaic(array, columns, array.shape[1] * times, array.shape[2] * times))


def _mosaic(array: NDArray[np.uint8], columns: int, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3] as one canvas of cells of a size, each image drawn by its nearest pixels."""
    down, across = (np.arange(n) * size // n for n, size in ((height, array.shape[1]), (width, array.shape[2])))
    columns = min(columns, len(array))
    rows = -(-len(array) // columns)
    canvas = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, image in enumerate(array):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image[down][:, across]
    return canvas


def save(path: str | Path, image: Image.Image) -> None:
    """Write a PNG; the path holds either the old picture or all of the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(part, "PNG")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_grid(path: str | Path, images: Tensor, value_range: ValueRange, columns: int) -> None:
    """Write a PNG of class-major images, float [N, C, H, W]; with `columns` images of each class, a class a row.

    Values are clipped to [0, 1] and small images magnified by an integer. Raises ValueError as `grid`.
    """
    save(path, grid(images, columns, value_range))


@dataclass(frozen=True)
class Block:
    """A set's part of a gallery: class-major images [rows * columns, C, H, W] with a title and a note below it."""

    title: str
    images: Tensor
    value_range: ValueRange
    note: str = ""


def gallery(blocks: Sequence[Block], rows: Sequence[str], columns: int) -> Image.Image:
    """Blocks side by side under their titles, a row for each class with its name, `columns` images in a row.

    Sets of other image sizes are drawn at the size of the largest. Raises ValueError as `grid`, and if a block does
    not have `columns` images for each row.
    """
    arrays = [to_pixels(block.images, block.value_range) for block in blocks]
    for block, array in zip(blocks, arrays, strict=True):
        if len(array) != len(rows) * columns:
            raise ValueError(f"{block.title}: {len(array)} images for {len(rows)} rows of {columns}")
    height, width = (max(array.shape[axis] for array in arrays) for axis in (1, 2))
    times = magnification(max(height, width), columns * len(blocks))
    height, width = height * times, width * times
    mosaics = [Image.fromarray(_mosaic(array, columns, height, width)) for array in arrays]
    title, note, name = (ImageFont.load_default(size) for size in (TITLE, NOTE, NAME))

    pitch = max(mosaics[0].width, BLOCK_WIDTH)
    heads = [[(line, title, "black") for line in _wrapped(block.title, title, pitch)] for block in blocks]
    for head, block in zip(heads, blocks, strict=True):
        head += [(line, note, "dimgrey") for line in _wrapped(block.note, note, pitch)]
    top = MARGIN + max(sum(_line(font) for _, font, _ in head) for head in heads) + GAP
    left = 2 * MARGIN + int(max(name.getlength(text) for text in rows))

    size = (left + len(blocks) * (pitch + BLOCK_GAP) - BLOCK_GAP + MARGIN, top + mosaics[0].height + MARGIN)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(rows):
        middle = top + number * (height + GAP) + height // 2
        draw.text((left - MARGIN, middle), text, "black", name, anchor="rm")
    for number, (head, mosaic) in enumerate(zip(heads, mosaics, strict=True)):
        across, down = left + number * (pitch + BLOCK_GAP), MARGIN
        for text, font, colour in head:
            draw.text((across, down), text, colour, font)
            down += _line(font)
        canvas.paste(mosaic, (across, top))
    return canvas


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _line(font: Font) -> int:
    """Height of a line of text."""
    return round(1.35 * (font.getbbox("Ag")[3]))


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines of a text that fit a width in pixels, broken after spaces and signs, else inside a word."""
    lines = [""]
    for word in re.findall(r"[^\s_.-]+[\s_.-]*|[\s_.-]+", text):
        if lines[-1] and font.getlength((lines[-1] + word).rstrip()) > width:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter.strip()) > width:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines if line.strip()]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, float64 [N]: 10 log10(1 / mean squared difference).

    a, b: [N, C, H, W] in [0, 1] nominally, whose peak is 1; nothing is clipped. Equal images have infinity. Raises
    ValueError if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of {list(a.shape)} and {list(b.shape)} have no PSNR")
    return -10 * torch.log10((a.double() - b.double()).square().flatten(1).mean(1))
