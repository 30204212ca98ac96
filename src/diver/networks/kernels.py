"""What a GPU runs for `one_pass`, in Triton: a program for each image and block of channels.

Pointers end in `_from` and `_to`. Images are [N, H, W, C] of any float type, of `pixels` places, `channels` channels
and rows of `row` places; what belongs to an image's channels is float32 [N, C], scale and shift are float32 [C]. Values
between are float32. The constants: RELU and HALVE, whether there is a ReLU and 2x2 average pooling after it; PLACES, a
power of two, at least the places of the result; BLOCK, channels of a program.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
from triton import language as tl


@triton.jit
def _places(image, pixels, channels, row, HALVE: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr):
    """Positions of [PLACES, 4 or 1, BLOCK] values that are read and of [PLACES, BLOCK] that they become, which of these
    there are, and the channels."""
    place = tl.arange(0, PLACES)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if HALVE:
        of = tl.arange(0, 4)[None, :]
        half = row // 2
        pixel = (2 * (place // half) + of // 2) * row + 2 * (place % half) + of % 2
        becomes = pixels // 4
    else:
        pixel = place + tl.arange(0, 1)[None, :]
        becomes = pixels
    there = (place < becomes) & (channel < channels)[None, :]
    read = (image * pixels + pixel)[:, :, None] * channels + channel[None, None, :]
    written = (image * becomes + place) * channels + channel[None, :]
    return read, written, there, channel


@triton.jit
def normalise(
    x_from, scale_from, shift_from, y_to, mean_to, rate_to, pixels, channels, row, eps,
    RELU: tl.constexpr, HALVE: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Images to normalised ones, their means and 1 / standard deviations."""
    image = tl.program_id(0)
    read, written, there, channel = _places(image, pixels, channels, row, HALVE, PLACES, BLOCK)
    x = tl.load(x_from + read, mask=there[:, None, :], other=0).to(tl.float32)
    mean = tl.sum(tl.sum(x, 0), 0) / pixels
    x = tl.where(there[:, None, :], x - mean[None, None, :], 0)
    rate = 1 / tl.sqrt(tl.sum(tl.sum(x * x, 0), 0) / pixels + eps)
    known = channel < channels
    scale = tl.load(scale_from + channel, mask=known, other=0)
    shift = tl.load(shift_from + channel, mask=known, other=0)
    y = x * rate[None, None, :] * scale[None, None, :] + shift[None, None, :]
    if RELU:
        # What is no number stays none, which a maximum would make 0 of.
        y = tl.where(y < 0, 0, y)
    y = tl.sum(y, 1)
    if HALVE:
        y = y / 4
    tl.store(y_to + written, y.to(y_to.dtype.element_ty), mask=there)
    tl.store(mean_to + image * channels + channel, mean, mask=known)
    tl.store(rate_to + image * channels + channel, rate, mask=known)


@triton.jit
def differentiate(
    x_from, scale_from, shift_from, mean_from, rate_from, dy_from, dx_to, dscale_to, dshift_to, pixels, channels, row,
    RELU: tl.constexpr, HALVE: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient dy of the result to that of images, and to those of each image's scale and shift.

    With z normalised and g the gradient before scale and shift: scale / deviation * (g - mean(g) - z * mean(g * z)).
    """
    image = tl.program_id(0)
    read, written, there, channel = _places(image, pixels, channels, row, HALVE, PLACES, BLOCK)
    known = channel < channels
    scale = tl.load(scale_from + channel, mask=known, other=0)
    mean = tl.load(mean_from + image * channels + channel, mask=known, other=0)
    rate = tl.load(rate_from + image * channels + channel, mask=known, other=0)
    x = tl.load(x_from + read, mask=there[:, None, :], other=0).to(tl.float32)
    x = (x - mean[None, None, :]) * rate[None, None, :]
    dy = tl.load(dy_from + written, mask=there, other=0).to(tl.float32)[:, None, :]
    if HALVE:
        dy = dy / 4
    # To the shape of x, also where nothing else would.
    dy = tl.where(there[:, None, :], dy, x * 0)
    if RELU:
        shift = tl.load(shift_from + channel, mask=known, other=0)
        dy = tl.where(x * scale[None, None, :] + shift[None, None, :] > 0, dy, 0)
    dshift = tl.sum(tl.sum(dy, 0), 0)
    dscale = tl.sum(tl.sum(dy * x, 0), 0)
    dx = (dy - (dshift[None, None, :] + x * dscale[None, None, :]) / pixels) * (rate * scale)[None, None, :]
    tl.store(dx_to + read, dx.to(dx_to.dtype.element_ty), mask=there[:, None, :])
    tl.store(dscale_to + image * channels + channel, dscale, mask=known)
    tl.store(dshift_to + image * channels + channel, dshift, mask=known)
