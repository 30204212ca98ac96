"""Instance normalisation, ReLU and 2x2 average pooling in one pass over memory on a GPU, each way.

On small images these are most of a step of a convolutional network in bf16, and nearly all of their time is reading
and writing: torch's own take several passes, and so do its fused ones.
"""

import functools
import warnings
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks.convnet import Halving, halved
from diver.networks.kernels import differentiate, normalise
from diver.networks.resnet import BasicBlock

# A program holds all places of an image for as many channels as this allows, from 16, which are 32 bytes of bf16 in a
# row, to 32: images of up to 1024 places. Values of a warp, and warps.
TILE, CHANNELS = 16384, (16, 32)
OF_A_WARP, WARPS = 1024, (4, 16)
# Of bf16, which has 8 bits, against float32, as a share of the largest value.
TOLERANCE = 0.02


def _launch(kernel: Any, relu: bool, halve: bool, x: Tensor, *tensors: Tensor, **more: float) -> None:
    """Run a kernel for each image and block of channels of x [N, C, H, W], which is channels_last."""
    images, channels, height, width = x.shape
    averaged = 4 if halve else 1
    places = triton.next_power_of_2(height * width // averaged)
    block = min(max(TILE // (places * averaged), CHANNELS[0]), CHANNELS[1], triton.next_power_of_2(channels))
    warps = min(max(places * averaged * block // OF_A_WARP, WARPS[0]), WARPS[1])
    sizes, constants = (height * width, channels, width), {"PLACES": places, "BLOCK": block}
    torch.library.wrap_triton(kernel)[(images, triton.cdiv(channels, block))](
        x, *tensors, *sizes, **more, RELU=relu, HALVE=halve, **constants, num_warps=warps
    )


@torch.library.triton_op("diver::one_pass", mutates_args={})
def _forward(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, relu: bool, halve: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, as `OnePass` describes it, and mean and 1 / standard deviation of each image and channel."""
    images, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    size = (height // 2, width // 2) if halve else (height, width)
    y = torch.empty((images, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean, rate = (x.new_empty((images, channels), dtype=torch.float32) for _ in range(2))
    _launch(normalise, relu, halve, x, scale, shift, y, mean, rate, eps=eps)
    return y, mean, rate


@torch.library.triton_op("diver::one_pass_backward", mutates_args={})
def _backward(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rate: Tensor, dy: Tensor, relu: bool, halve: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, and to scale and shift of each image."""
    x, dy = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, dy))
    dx, dscale, dshift = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    _launch(differentiate, relu, halve, x, scale, shift, mean, rate, dy, dx, dscale, dshift)
    return dx, dscale, dshift


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scale, shift, _, ctx.relu, ctx.halve = inputs
    ctx.save_for_backward(x, scale, shift, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    dx, dscale, dshift = _backward(*ctx.saved_tensors, dy, ctx.relu, ctx.halve)
    return dx, dscale.sum(0), dshift.sum(0), None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)


class OnePass(nn.Module):
    """An instance normalisation, with its weights, and what follows it: ReLU, and after that 2x2 average pooling.

    Float input [N, C, H, W] of any layout; output of its dtype, channels_last, [N, C, H // 2, W // 2] where it is
    pooled. Values between are float32, whatever the dtype of the input. Images of more than 1024 places or an odd
    size that is to be halved go the way they would have gone.
    """

    def __init__(self, norm: nn.GroupNorm, relu: bool, halve: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.relu, self.halve = relu, halve

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height * width * CHANNELS[0] <= TILE and not (self.halve and (height % 2 or width % 2)):
            return _forward(x, self.weight, self.bias, self.eps, self.relu, self.halve)[0]
        y = F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
        y = F.relu(y) if self.relu else y
        return halved(y) if self.halve else y


def in_one_pass(network: nn.Module) -> bool:
    """Make instance normalisations of a network, and ReLU and halving that follow at once, passes of that kind.

    Names and values of its weights stay, but for biases of convolutions before them: what is added to all of a channel,
    its normalisation takes away. Returns whether there was any: images are best channels_last then.
    """
    found = False
    for module in list(network.modules()):
        # In these, layers are registered in the order in which they are called.
        if not isinstance(module, nn.Sequential | BasicBlock):
            continue
        names, layers = list(module._modules), [*module._modules.values(), None, None]
        for number, (name, norm) in enumerate(zip(names, layers, strict=False)):
            if not (isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels):
                continue
            relu = isinstance(layers[number + 1], nn.ReLU)
            halve = relu and isinstance(layers[number + 2], Halving)
            setattr(module, name, OnePass(norm, relu, halve))
            before = layers[number - 1] if number else None
            if isinstance(before, nn.Conv2d):
                before.bias = None
            for done in names[number + 1 : number + 1 + relu + halve]:
                setattr(module, done, nn.Identity())
            found = True
    return found


def _errors(device: torch.device, halve: bool) -> list[float]:
    """How far result and gradients are from those of torch's operations, as shares of the largest value of each."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(24, 24).to(device)
    x = torch.randn((2, 24, 8, 8), generator=generator).to(device, torch.bfloat16).requires_grad_()
    leaves = [x, norm.weight, norm.bias]
    wanted = F.relu(norm(x.float()))
    wanted = F.avg_pool2d(wanted, 2) if halve else wanted
    found = OnePass(norm, relu=True, halve=halve)(x)
    dy = torch.randn(wanted.shape, generator=generator).to(device, torch.bfloat16)
    pairs = zip(
        (found, *torch.autograd.grad(found, leaves, dy)),
        (wanted, *torch.autograd.grad(wanted, leaves, dy.float())),
        strict=True,
    )
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]


@functools.cache
def works(device: torch.device) -> bool:
    """Whether the kernels compile for a GPU and give what torch's operations give there; says so where they do not."""
    try:
        errors = [*_errors(device, halve=False), *_errors(device, halve=True)]
        wrong = [error for error in errors if not error < TOLERANCE]
        problem = f"they differ from torch's by {wrong[0]:.3g}" if wrong else ""
    except Exception as exception:  # whatever a compiler or a driver raises, there is another way
        problem = f"{type(exception).__name__}: {exception}"
    if problem:
        warnings.warn(f"instance normalisation in one pass is not used on {device}: {problem}", stacklevel=2)
    return not problem
