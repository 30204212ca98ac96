"""A network as a function of one flat vector of its parameters, which is what trajectory matching differentiates.

Beside the plain function there are the two passes that matching trajectories is made of: the gradient of a step's loss,
and the gradient of that loss's slope in a direction of the parameters, which is the product of its Hessian with the
direction. The second uses what the first left. In units of a pass of convolutions forward they cost three and six.

A convolution's bias is not applied there: the normalisation that follows takes it away again, and its gradient is zero.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from diver.distill import blocks
from diver.networks import create
from diver.networks.convnet import ConvNet, halved

# Up to so many channels a product of matrices and a fold are several times faster than the convolution's gradient.
FEW_CHANNELS = 4

Precision = Literal["fp32", "bf16"]


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution of [N, H, W, C], to [N, H, W, C'], in the type of x."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1).contiguous()


def _conv_gradient(gradient: Tensor, x: Tensor, weight: Tensor, wanted: int) -> Tensor:
    """Gradient of `_convolved` with respect to its input (0) or the weight (1)."""
    found = torch.ops.aten.convolution_backward(
        gradient.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight, None,
        [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [wanted == 0, wanted == 1, False],
    )[wanted]  # fmt: skip
    return found.permute(0, 2, 3, 1) if wanted == 0 else found


def _input_gradient(gradients: tuple[Tensor, Tensor], x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of two gradients of `_convolved` with respect to its input."""
    n, height, width, channels = x.shape
    if channels > FEW_CHANNELS:
        return _conv_gradient(torch.cat(gradients, 3), x, torch.cat(weights), 0)
    matrices = [weight.reshape(len(weight), -1).t().expand(n, -1, -1) for weight in weights]
    rows = [gradient.reshape(n, height * width, -1).transpose(1, 2) for gradient in gradients]
    columns = torch.baddbmm(matrices[0] @ rows[0], matrices[1], rows[1])
    return F.fold(columns, (height, width), 3, padding=1).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Passed:
    """What a step's pass forward and back leaves, images in channels-last order.

    loss: 0-d, `share` times the mean over the images. For each block what its convolution is given and gives,
    [N, H, W, C], and the loss's gradients with respect to what it gives, to what is pooled from that, and to scale and
    shift [C]. features: [N, F]; logits: [N, K], with their gradient.
    """

    loss: Tensor
    share: float
    shown: list[Tensor]
    convolved: list[Tensor]
    of_convolved: list[Tensor]
    of_pooled: list[Tensor]
    of_affine: list[tuple[Tensor, Tensor]]
    features: Tensor
    logits: Tensor
    of_logits: Tensor

    def bytes(self) -> int:
        kept = [*self.shown, *self.convolved, *self.of_convolved, *self.of_pooled]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


@dataclass(frozen=True)
class Curvature:
    """The slope of a loss in a direction, 0-d, and its gradients: of images, target probabilities, parameters [P]."""

    slope: Tensor
    images: Tensor
    targets: Tensor
    parameters: Tensor | None


class FlatNetwork:
    """The ConvNet of `diver.networks` as a function of its parameters as one vector.

    The vector holds them in the order of `ConvNet.parameters()`, each flattened.
    size: number of parameters, P. precision: of the convolutions' products; what is summed and kept of parameters is of
    the vector's type either way.
    """

    def __init__(
        self, classes: int, channels: int, size: int, width: int = 128, depth: int = 3, precision: Precision = "fp32"
    ) -> None:
        """Raises ValueError, as ConvNet, if images of `size` cannot be halved `depth` times."""
        self.options = {"classes": classes, "channels": channels, "size": size, "width": width, "depth": depth}
        self.precision = precision
        self._shapes = [p.shape for p in self._created(0).parameters()]
        self._lengths = [shape.numel() for shape in self._shapes]
        self.size = sum(self._lengths)

    def _created(self, seed: int) -> ConvNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = create("convnet", **self.options)
        assert isinstance(network, ConvNet)
        return network

    def with_precision(self, precision: Precision) -> Self:
        return type(self)(**self.options, precision=precision)

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

    def _products(self, x: Tensor) -> Tensor:
        return x.bfloat16() if self.precision == "bf16" else x

    def _converted(self, parts: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """`_blocks` with weights of the products' type."""
        return [(self._products(weight), *others) for weight, *others in _blocks(parts)]

    def __call__(self, flat: Tensor, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W], differentiable in both any number of times."""
        x, parts = images, self.parts(flat)
        for weight, _, scale, shift in _blocks(parts):
            x = F.conv2d(self._products(x), self._products(weight), padding=1).to(flat.dtype)
            x = halved(F.relu(F.group_norm(x, len(scale), scale, shift, blocks.EPSILON)))
        return F.linear(x.flatten(1), *parts[-2:])

    @torch.no_grad()
    def passed(self, flat: Tensor, images: Tensor, targets: Tensor, share: float = 1.0) -> Passed:
        """Forward and back through the mean cross entropy of images [N, C, H, W] with target probabilities [N, K].

        share: what the loss is multiplied by.
        """
        parts = self.parts(flat)
        converted = self._converted(parts)
        x = self._products(images).permute(0, 2, 3, 1).contiguous()
        shown, convolved = [], []
        for weight, _, scale, shift in converted:
            shown.append(x)
            convolved.append(_convolved(x, weight))
            x = blocks.values(convolved[-1], scale, shift)
        features = x.permute(0, 3, 1, 2).flatten(1).to(flat.dtype)
        logits = F.linear(features, *parts[-2:])
        logarithms, factor = logits.log_softmax(1), share / len(images)
        loss = (targets * logarithms).sum() * -factor
        of_logits = (logarithms.exp() * targets.sum(1, keepdim=True) - targets) * factor
        of_pooled = [self._as_pooled(of_logits @ parts[-2], x)]
        of_convolved: list[Tensor] = []
        of_affine: list[tuple[Tensor, Tensor]] = []
        for number, (weight, _, scale, shift) in reversed(list(enumerate(converted))):
            found, *affine = blocks.gradient(of_pooled[0], convolved[number], scale, shift)
            of_convolved.insert(0, found)
            of_affine.insert(0, (affine[0], affine[1]))
            if number:
                of_pooled.insert(0, _conv_gradient(found, shown[number], weight, 0))
        return Passed(loss, share, shown, convolved, of_convolved, of_pooled, of_affine, features, logits, of_logits)

    @torch.no_grad()
    def gradient(self, passed: Passed) -> Tensor:
        """The loss's gradient [P]."""
        found: list[Tensor] = []
        pairs = zip(passed.of_convolved, passed.shown, strict=True)
        for (of_convolved, shown), affine, shape in zip(pairs, passed.of_affine, self._shapes[::4], strict=False):
            weight = _conv_gradient(of_convolved, shown, shown.new_empty(shape), 1)
            found += [weight, affine[0].new_zeros(shape[0]), *affine]
        found += [passed.of_logits.t() @ passed.features, passed.of_logits.sum(0)]
        return torch.cat([part.flatten().to(passed.features.dtype) for part in found])

    @torch.no_grad()
    def curvature(self, flat: Tensor, direction: Tensor, passed: Passed, targets: Tensor, onward: bool) -> Curvature:
        """The slope of a pass's loss in a direction [P], and its gradients; of parameters only if `onward`."""
        parts, moves = self.parts(flat), self.parts(direction)
        pairs = list(zip(self._converted(parts), self._converted(moves), strict=True))
        # What the convolutions are given and give changes by this much in the direction.
        given: list[Tensor] = []
        moved: list[Tensor] = []
        for (weight, _, *affine), (weight_moves, _, *affine_moves) in pairs:
            shown = passed.shown[len(moved)]
            if given:
                both = torch.cat([given[-1], shown], 3), torch.cat([weight, weight_moves], 1)
            else:
                both = shown, weight_moves
            moved.append(_convolved(*both))
            given.append(blocks.change(passed.convolved[len(given)], moved[-1], *affine, *affine_moves))
        features, change = passed.features, given[-1].permute(0, 3, 1, 2).flatten(1).to(flat.dtype)
        logits_move = F.linear(change, parts[-2]) + F.linear(features, *moves[-2:])
        slope = (passed.of_logits * logits_move).sum()
        # And back. The slope's gradients with respect to changes are the loss's with respect to the values.
        probabilities, factor = passed.logits.softmax(1), passed.share / len(features)
        relative = logits_move - (probabilities * logits_move).sum(1, keepdim=True)
        of_logits = probabilities * relative * (targets.sum(1, keepdim=True) * factor)
        found = [
            of_logits.t() @ features + passed.of_logits.t() @ change,
            of_logits.sum(0),
        ]
        of_pooled = self._as_pooled(of_logits @ parts[-2] + passed.of_logits @ moves[-2], given[-1])
        for number, ((weight, _, scale, shift), (weight_moves, _, scale_moves, _)) in reversed(list(enumerate(pairs))):
            shown, of_convolved = passed.shown[number], passed.of_convolved[number]
            of_values, *affine = blocks.curvature(
                of_pooled, passed.of_pooled[number], passed.convolved[number], moved[number], scale, shift, scale_moves
            )
            if onward:
                both = of_values, shown
                if number:
                    both = torch.cat([of_values, of_convolved]), torch.cat([shown, given[number - 1]])
                found[:0] = [_conv_gradient(*both, weight, 1), torch.zeros_like(scale), *affine]
            of_pooled = _input_gradient((of_values, of_convolved), shown, (weight, weight_moves))
        return Curvature(
            slope,
            of_pooled.permute(0, 3, 1, 2).to(flat.dtype),
            relative * -factor,
            torch.cat([part.flatten().to(flat.dtype) for part in found]) if onward else None,
        )

    def _as_pooled(self, of_features: Tensor, pooled: Tensor) -> Tensor:
        """A gradient [N, F] as one of what is pooled last, [N, H, W, C]."""
        n, height, width, channels = pooled.shape
        return of_features.view(n, channels, height, width).permute(0, 2, 3, 1).contiguous().to(pooled.dtype)


def _blocks(parts: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """(weight, bias, scale, shift) of each block."""
    return [tuple(parts[start : start + 4]) for start in range(0, len(parts) - 2, 4)]
