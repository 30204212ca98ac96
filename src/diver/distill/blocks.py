"""[Instance normalisation, ReLU, 2x2 average pooling], what a ConvNet has between convolutions, and its derivatives.

Matching trajectories takes derivatives of derivatives, where this costs as much time as the convolutions if torch's
layers are differentiated twice. So its four passes are written out, on images in channels-last order [N, H, W, C]: the
values, their gradient, their change in a direction of the parameters, and the gradient of that change. From u and its
change u', with d = u - mean(u), d' = u' - mean(u'), r = (mean(d d) + eps)^-1/2 and k = mean(d d') over the pixels,

    y  = scale r d + shift,    y' = scale r d' + (scale' r - scale r^3 k) d + shift',

and what is pooled is y where y > 0, and y' where y > 0. A pass makes what it needs from u again, which costs less than
writing it to memory and reading it. Images may be bfloat16; sums and all that is computed are float32 then.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diver import graphs

# As torch normalises by default.
EPSILON = 1e-5
# Values that are handled together on a CPU, so that they stay in a core's cache.
CACHED = 2**18


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def _sums(x: Tensor) -> Tensor:
    """Sums over the pixels, [N, H, W, C] to [N, 1, 1, C]."""
    return x.flatten(1, 2).sum(1)[:, None, None, :]


def _cells(x: Tensor) -> Tensor:
    """[N, H, W, C] as [N, H/2, 2, W/2, 2, C]; an odd last row or column belongs to no cell."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return x[:, :height, :width].unflatten(2, (-1, 2)).unflatten(1, (-1, 2))


def _pooled(x: Tensor) -> Tensor:
    cells = _cells(x)
    first, second = (cells[:, :, row, :, 0] + cells[:, :, row, :, 1] for row in (0, 1))
    return (first + second) * 0.25


def _unpooled(gradient: Tensor, y: Tensor) -> Tensor:
    """Gradient at y, before ReLU and pooling, from that after them."""
    cells = _cells(y)
    spread = (gradient * 0.25)[:, :, None, :, None].expand_as(cells)
    full = torch.ops.aten.threshold_backward(spread, cells, 0).flatten(3, 4).flatten(1, 2)
    return F.pad(full, (0, 0, 0, y.shape[2] % 2, 0, y.shape[1] % 2)) if full.shape != y.shape else full


def _normalised(u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d, r and y."""
    pixels = u.shape[1] * u.shape[2]
    d = u - _sums(u) / pixels
    r = torch.rsqrt(_sums(d * d) / pixels + EPSILON)
    return d, r, torch.addcmul(shift, d, scale * r)


def _values(u: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _pooled(_normalised(_wide(u), scale, shift)[2].relu()).to(u.dtype)


def _gradient(of_pooled: Tensor, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pixels = u.shape[1] * u.shape[2]
    d, r, y = _normalised(_wide(u), scale, shift)
    of_y, factor = _unpooled(_wide(of_pooled), y), scale * r
    total, product = _sums(of_y), _sums(of_y * d) * r
    found = torch.addcmul(factor * total / -pixels, of_y, factor).addcmul(d, factor * r * product, value=-1 / pixels)
    return found.to(u.dtype), product.sum((0, 1, 2)), total.sum((0, 1, 2))


def _change(u: Tensor, moved: Tensor, scale: Tensor, shift: Tensor, scale_moves: Tensor, shift_moves: Tensor) -> Tensor:
    pixels = u.shape[1] * u.shape[2]
    (d, r, y), v = _normalised(_wide(u), scale, shift), _wide(moved)
    # d has mean zero, so u' does in place of d' but for its mean.
    factor, k = scale * r, _sums(v * d) / pixels
    change = torch.addcmul(shift_moves - factor * _sums(v) / pixels, v, factor)
    change = change.addcmul(d, scale_moves * r - factor * r.square() * k)
    return _pooled(torch.ops.aten.threshold_backward(change, y, 0)).to(u.dtype)


def _curvature(
    of_pooled: Tensor, of_change: Tensor, u: Tensor, moved: Tensor, scale: Tensor, shift: Tensor, scale_moves: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    pixels = u.shape[1] * u.shape[2]
    (d, r, y), v = _normalised(_wide(u), scale, shift), _wide(moved)
    values, change = _unpooled(_wide(of_pooled), y), _unpooled(_wide(of_change), y)
    factor, cube = scale * r, r**3
    mean, k = _sums(v) / pixels, _sums(v * d) / pixels
    cross = scale_moves * r - scale * cube * k
    total, mixed, of_shift = _sums(change), _sums(change * d), _sums(values)
    product = _sums(change * v) - mean * total + _sums(values * d)
    of_k = -scale * cube * mixed / pixels
    of_r = scale * product + (scale_moves - 3 * factor * r * k) * mixed
    offset = (cross * total + factor * of_shift) / -pixels - of_k * mean
    found = torch.addcmul(offset, change, cross).addcmul(values, factor).addcmul(v, of_k)
    found = found.addcmul(d, cube * of_r, value=-1 / pixels)
    return found.to(u.dtype), (r * product - cube * k * mixed).sum((0, 1, 2)), of_shift.sum((0, 1, 2))


BODIES = (_values, _gradient, _change, _curvature)


@cache
def _fused(body: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    return graphs.compiled(body, device, on_cpu=True)


def _applied(body: Callable[..., Any], images: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> Any:
    """body(*images, *parameters), fused, or on a CPU for a few images at a time: results after the first are sums."""
    largest = images[-1]
    step = len(largest) if largest.is_cuda else max(1, CACHED // largest.shape[1:].numel())
    fused = _fused(body, largest.device)
    if step >= len(largest) or fused is not body:
        return fused(*images, *parameters)
    found = [body(*few, *parameters) for few in zip(*(x.split(step) for x in images), strict=True)]
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    first, *sums = zip(*found, strict=True)
    return torch.cat(first), *(torch.stack(parts).sum(0) for parts in sums)


def values(u: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """[N, H, W, C] to [N, H/2, W/2, C] of the same dtype; scale and shift [C]."""
    found: Tensor = _applied(_values, (u,), (scale, shift))
    return found


def gradient(of_pooled: Tensor, u: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to u, scale and shift, from that of `values`."""
    found: tuple[Tensor, Tensor, Tensor] = _applied(_gradient, (of_pooled, u), (scale, shift))
    return found


def change(u: Tensor, moved: Tensor, scale: Tensor, shift: Tensor, scale_moves: Tensor, shift_moves: Tensor) -> Tensor:
    """The change of `values` when u, scale and shift change by `moved`, scale_moves and shift_moves."""
    found: Tensor = _applied(_change, (u, moved), (scale, shift, scale_moves, shift_moves))
    return found


def curvature(
    of_pooled: Tensor, of_change: Tensor, u: Tensor, moved: Tensor, scale: Tensor, shift: Tensor, scale_moves: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to u, scale and shift, from those of `values` and of `change`.

    That with respect to `moved` is `gradient` of of_change.
    """
    images = (of_pooled, of_change, u, moved)
    found: tuple[Tensor, Tensor, Tensor] = _applied(_curvature, images, (scale, shift, scale_moves))
    return found
