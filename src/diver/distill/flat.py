"""A network as a function of one flat vector of its parameters, which is what trajectory matching differentiates.

Matching trajectories takes derivatives of derivatives, where what lies between the convolutions of a ConvNet costs as
much time as they do. So each block is one operation with its backward pass written out, on images in channels-last
order [N, H, W, C]. It comes in two forms: for values, and for values with their derivative in a direction of the
parameters. Backward through the latter is the product of a Hessian with that direction, for eight passes of
convolutions where three give the gradient.

A convolution's bias is not applied: the normalisation that follows takes it away again, and its gradient is zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from diver.networks import create
from diver.networks.convnet import ConvNet

# As torch normalises by default.
EPSILON = 1e-5
# Up to so many channels a product of matrices and a fold are several times faster than the convolution's gradient.
FEW_CHANNELS = 4
# Values that are normalised together on a CPU, so that they stay in a core's cache.
CACHED = 2**18


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution of [N, H, W, C], to [N, H, W, C']."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1).contiguous()


def _conv_gradient(gradient: Tensor, x: Tensor, weight: Tensor, wanted: int) -> Tensor:
    """Gradient of `_convolved` with respect to its input (0) or the weight (1)."""
    found = torch.ops.aten.convolution_backward(
        gradient.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight, None,
        [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [wanted == 0, wanted == 1, False],
    )[wanted]  # fmt: skip
    return found.permute(0, 2, 3, 1) if wanted == 0 else found


def _input_gradient(gradients: Sequence[Tensor], x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Sum over (gradient, weight) of the gradient of `_convolved` with respect to its input, which is like x."""
    n, height, width, channels = x.shape
    if channels > FEW_CHANNELS:
        parts = [_conv_gradient(gradient, x, weight, 0) for gradient, weight in zip(gradients, weights, strict=True)]
        return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
    columns = x.new_zeros(n, 9 * channels, height * width)
    for gradient, weight in zip(gradients, weights, strict=True):
        matrix = weight.reshape(len(weight), -1).t().expand(n, -1, -1)
        columns.baddbmm_(matrix, gradient.reshape(n, height * width, -1).transpose(1, 2))
    return F.fold(columns, (height, width), 3, padding=1).permute(0, 2, 3, 1)


def _slices(x: Tensor) -> list[slice]:
    """Images of [..., N, H, W, C] whose values fit the cache of a CPU's core together; all of them elsewhere."""
    images = x.shape[-4]
    step = images if x.is_cuda else max(1, CACHED // x.shape[-3:].numel())
    return [slice(start, start + step) for start in range(0, images, step)]


def _cells(x: Tensor) -> Tensor:
    """[..., H, W, C] as [..., H/2, 2, W/2, 2, C]; an odd last row or column belongs to no cell."""
    height, width = x.shape[-3] // 2 * 2, x.shape[-2] // 2 * 2
    return x[..., :height, :width, :].unflatten(-2, (-1, 2)).unflatten(-4, (-1, 2))


def _pool(x: Tensor, out: Tensor) -> None:
    """2x2 average pooling."""
    cells = _cells(x)
    torch.add(cells[..., 0, :, 0, :], cells[..., 0, :, 1, :], out=out)
    out.add_(cells[..., 1, :, 0, :]).add_(cells[..., 1, :, 1, :]).mul_(0.25)


def _unpooled(gradient: Tensor, active: Tensor) -> Tensor:
    """Gradient at the input of [ReLU, pooling] from that at its output; `active` are the values between the two."""
    full = gradient.new_empty(*gradient.shape[:-3], *active.shape[-3:])
    if active.shape[-3] % 2 or active.shape[-2] % 2:
        full.zero_()
    spread, cells = (gradient * 0.25).unsqueeze(-2).unsqueeze(-4), _cells(full)
    torch.ops.aten.threshold_backward.grad_input(spread, _cells(active), 0, grad_input=cells)
    return full


def _sums(x: Tensor) -> Tensor:
    """Sums over the pixels, [..., H, W, C] to [..., 1, 1, C]."""
    return x.flatten(-3, -2).sum(-2)[..., None, None, :]


def _halved(x: Tensor) -> Tensor:
    """An empty tensor for the pooled images."""
    *first, height, width, channels = x.shape
    return x.new_empty(*first, height // 2, width // 2, channels)


def _normalised(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d, r and y of `_PairBlock` from a slice of u, [n, H, W, C]."""
    pixels = x.shape[1] * x.shape[2]
    d = x - _sums(x) / pixels
    r = torch.rsqrt(_sums(d * d) / pixels + EPSILON)
    return d, r, torch.addcmul(shift, d, scale * r)


def _change(
    d: Tensor, r: Tensor, y: Tensor, moved: Tensor, scale: Tensor, scale_moves: Tensor, shift_moves: Tensor
) -> Tensor:
    """y' where y > 0, else 0, from a slice of u'. d has mean zero, so u' does in place of d' but for its mean."""
    pixels, factor = d.shape[1] * d.shape[2], scale * r
    k = _sums(moved * d) / pixels
    change = torch.addcmul(shift_moves - factor * _sums(moved) / pixels, moved, factor)
    change.addcmul_(d, scale_moves * r - factor * r.square() * k)
    return torch.ops.aten.threshold_backward(change, y, 0)


def _curvature(
    d: Tensor,
    r: Tensor,
    moved: Tensor,
    of_change: Tensor,
    of_values: Tensor | None,
    scale: Tensor,
    scale_moves: Tensor,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient with respect to u, into `out`, from those at y' and y; also those of scale [C] and of k / pixels."""
    pixels, factor, cube = d.shape[1] * d.shape[2], scale * r, r**3
    mean, k = _sums(moved) / pixels, _sums(moved * d) / pixels
    cross = scale_moves * r - scale * cube * k
    total, mixed = _sums(of_change), _sums(of_change * d)
    offset, product = cross * total, _sums(of_change * moved) - mean * total
    if of_values is not None:
        offset, product = offset + factor * _sums(of_values), product + _sums(of_values * d)
    of_k = -scale * cube * mixed / pixels
    of_r = scale * product + (scale_moves - 3 * factor * r * k) * mixed
    torch.addcmul(offset / -pixels - of_k * mean, of_change, cross, out=out)
    if of_values is not None:
        out.addcmul_(of_values, factor)
    out.addcmul_(d, cube * of_r, value=-1 / pixels).addcmul_(moved, of_k)
    return (r * product - cube * k * mixed).sum((0, 1, 2)), of_k


class _Block(torch.autograd.Function):
    """[Instance normalisation, ReLU, 2x2 average pooling] of x [N, H, W, C] with scale and shift [C].

    Backward makes what it needs from x again, which costs less than writing it to memory and reading it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        pooled = _halved(x)
        for part in _slices(x):
            _pool(_normalised(x[part], scale, shift)[2].relu_(), pooled[part])
        return pooled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _BlockGradient.apply(gradient, *ctx.saved_tensors)
        return found


class _BlockGradient(torch.autograd.Function):
    """The gradients of `_Block` with respect to x, scale and shift, from that of what it returns.

    Their product with (u', scale', shift') is the product of that gradient with the block's derivative in this
    direction, so backward is forward and backward of `_PairBlock` in one.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(gradient, x, scale, shift)
        pixels = x.shape[1] * x.shape[2]
        found, scales, shifts = torch.empty_like(x), torch.zeros_like(scale), torch.zeros_like(shift)
        for part in _slices(x):
            d, r, y = _normalised(x[part], scale, shift)
            of_y, factor = _unpooled(gradient[part], y), scale * r
            total, product = _sums(of_y), _sums(of_y * d) * r
            torch.addcmul(factor * total / -pixels, of_y, factor, out=found[part])
            found[part].addcmul_(d, factor * r * product, value=-1 / pixels)
            scales += product.sum((0, 1, 2))
            shifts += total.sum((0, 1, 2))
        return found, scales, shifts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, moved: Tensor, scale_moves: Tensor, shift_moves: Tensor) -> tuple[Tensor | None, ...]:
        gradient, x, scale, shift = ctx.saved_tensors
        found, pooled, scales = torch.empty_like(x), _halved(x), torch.zeros_like(scale)
        for part in _slices(x):
            d, r, y = _normalised(x[part], scale, shift)
            _pool(_change(d, r, y, moved[part], scale, scale_moves, shift_moves), pooled[part])
            of_change = _unpooled(gradient[part], y)
            scales += _curvature(d, r, moved[part], of_change, None, scale, scale_moves, found[part])[0]
        return pooled, found, scales, None


class _PairBlock(torch.autograd.Function):
    """`_Block` of values and their derivatives, x [2, N, H, W, C], in a constant direction of scale and shift.

    With d = u - mean(u), d' = u' - mean(u'), r = (mean(d d) + eps)^-1/2 and k = mean(d d') over the pixels,

        y  = scale r d + shift,    y' = scale r d' + (scale' r - scale r^3 k) d + shift'.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, scale_moves: Tensor, shift_moves: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, shift, scale_moves)
        pooled = _halved(x)
        for part in _slices(x):
            d, r, y = _normalised(x[0, part], scale, shift)
            _pool(_change(d, r, y, x[1, part], scale, scale_moves, shift_moves), pooled[1, part])
            _pool(y.relu_(), pooled[0, part])
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, scale_moves = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        found, scales, shifts = x.new_empty(x.shape), torch.zeros_like(scale), torch.zeros_like(shift)
        for part in _slices(x):
            d, r, y = _normalised(x[0, part], scale, shift)
            values, change = _unpooled(gradient[:, part], y)
            of_scale, of_k = _curvature(d, r, x[1, part], change, values, scale, scale_moves, found[0, part])
            factor = scale * r
            torch.addcmul(factor * _sums(change) / -pixels, change, factor, out=found[1, part]).addcmul_(d, of_k)
            scales += of_scale
            shifts += _sums(values).sum((0, 1, 2))
        return found, scales, shifts, None, None


class _FirstPair(torch.autograd.Function):
    """Convolution of images [N, H, W, C] and its derivative in a constant direction of the weight, [2, N, H, W, C']."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, moves: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, moves)
        return _convolved(x, torch.cat([weight, moves])).unflatten(-1, (2, -1)).movedim(-2, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, moves = ctx.saved_tensors
        images, weights = ctx.needs_input_grad[:2]
        return (
            _input_gradient(gradient.unbind(), x, [weight, moves]) if images else None,
            _conv_gradient(gradient[0], x, weight, 1) if weights else None,
            None,
        )


class _Pair(torch.autograd.Function):
    """Convolution of values with derivatives, x [2, N, H, W, C], in a constant direction of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, moves: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, moves)
        y = _convolved(x.flatten(0, 1), weight).unflatten(0, x.shape[:2])
        y[1].add_(_convolved(x[0], moves))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, moves = ctx.saved_tensors
        inputs, weights = ctx.needs_input_grad[:2]
        both, values = gradient.flatten(0, 1), x.flatten(0, 1)
        found = None
        if inputs:
            found = _conv_gradient(both, values, weight, 0).unflatten(0, x.shape[:2])
            found[0].add_(_conv_gradient(gradient[1], x[0], moves, 0))
        return found, _conv_gradient(both, values, weight, 1) if weights else None, None


class FlatNetwork:
    """The ConvNet of `diver.networks` as a function of its parameters as one vector.

    The vector holds them in the order of `ConvNet.parameters()`, each flattened.
    size: number of parameters, P.
    """

    def __init__(self, classes: int, channels: int, size: int, width: int = 128, depth: int = 3) -> None:
        """Raises ValueError, as ConvNet, if images of `size` cannot be halved `depth` times."""
        self.options = {"classes": classes, "channels": channels, "size": size, "width": width, "depth": depth}
        self.depth = depth
        self._shapes = [p.shape for p in self._created(0).parameters()]
        self._lengths = [shape.numel() for shape in self._shapes]
        self.size = sum(self._lengths)

    def _created(self, seed: int) -> ConvNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = create("convnet", **self.options)
        assert isinstance(network, ConvNet)
        return network

    def initial(self, seed: int) -> Tensor:
        """Random parameters float32 [P] that depend on `seed` only, distributed as those of a fresh network."""
        return torch.cat([p.detach().flatten() for p in self._created(seed).parameters()])

    def parts(self, flat: Tensor) -> list[Tensor]:
        """The network's parameters as views of a vector [P]."""
        return [part.view(shape) for part, shape in zip(flat.split(self._lengths), self._shapes, strict=True)]

    def module(self, flat: Tensor) -> ConvNet:
        """A network with a copy of these parameters."""
        network = self._created(0).to(flat)
        with torch.no_grad():
            for parameter, part in zip(network.parameters(), self.parts(flat), strict=True):
                parameter.copy_(part)
        return network

    def plain(self, flat: Tensor, images: Tensor) -> Tensor:
        """The same logits out of torch's own layers: faster on a GPU, where nothing is gained by slices."""
        x, parts = images, self.parts(flat)
        for weight, _, scale, shift in _blocks(parts):
            x = F.group_norm(F.conv2d(x, weight, padding=1), len(scale), scale, shift, EPSILON)
            x = F.avg_pool2d(F.relu(x), 2)
        return F.linear(x.flatten(1), *parts[-2:])

    def __call__(self, flat: Tensor, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W], differentiable in both any number of times."""
        parts, x = self.parts(flat), images.permute(0, 2, 3, 1).contiguous()
        for weight, _, scale, shift in _blocks(parts):
            x = _Block.apply(_convolved(x, weight), scale, shift)
        return F.linear(x.permute(0, 3, 1, 2).flatten(1), *parts[-2:])

    def directional(self, flat: Tensor, direction: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, classes] and their derivative when the parameters move in a constant direction [P].

        Both are differentiable once, in the parameters and the images.
        """
        parts, moves = self.parts(flat), self.parts(direction.detach())
        x, convolution = images.permute(0, 2, 3, 1).contiguous(), _FirstPair.apply
        for (weight, _, *affine), (weight_moves, _, *affine_moves) in zip(_blocks(parts), _blocks(moves), strict=True):
            x = _PairBlock.apply(convolution(x, weight, weight_moves), *affine, *affine_moves)
            convolution = _Pair.apply
        features, change = x.permute(0, 1, 4, 2, 3).flatten(2)
        return F.linear(features, *parts[-2:]), F.linear(change, parts[-2]) + F.linear(features, *moves[-2:])


def _blocks(parts: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """(weight, bias, scale, shift) of each block."""
    return [tuple(parts[start : start + 4]) for start in range(0, len(parts) - 2, 4)]
