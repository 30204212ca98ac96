"""Class activation maps: where in an image a network finds a class (SmoothGrad-CAM++; Omeiza et al. 2019).

With A_k the maps of a layer, S the score of the class, and over noisy copies of the image

    D_p = mean of (dS / dA_k(i, j))^p,

    alpha_k(i, j) = D_2 / (2 D_2 + D_3 sum over a, b of A_k(a, b)),
    w_k = sum over i, j of alpha_k(i, j) relu(D_1),    map = relu(sum over k of w_k A_k).

Powers of the first derivative stand for the higher derivatives of exp(S), which they are, but for the factor exp(S),
if what follows the layer is piecewise linear (Grad-CAM++; Chattopadhay et al. 2018). The numerator of alpha is printed
as D_1; it is taken as D_2, which makes one copy without noise Grad-CAM++. If only pooling and one linear layer follow,
as in ResNets and the ConvNet, all copies have the same derivatives, and noise has no effect.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks import memory_format

# Images per forward pass.
CHUNK = 128


@contextmanager
def _hooked(modules: Iterator[nn.Module], hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_maps(network: nn.Module, images: Tensor) -> nn.Module:
    """The last layer whose output for images [N, C, H, W] still has positions: float [N, channels, h, w], h * w > 1.

    Raises ValueError if there is none.
    """
    found: list[nn.Module] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
            found.append(module)

    with _hooked(network.modules(), note), torch.no_grad():
        network(images[:1])
    if not found:
        raise ValueError(f"{type(network).__name__} has no layer with maps at this size; give a convolutional network")
    return found[-1]


def _derivatives(network: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's maps A, and the derivatives of the classes' scores with respect to them; both [N, channels, h, w]."""
    maps: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # Nothing before the layer is differentiated; the network gets a copy, for what follows may work in place.
        maps.append(output.detach().requires_grad_())
        return maps[-1].clone()

    with _hooked(iter([layer]), cut), torch.enable_grad():
        scores = network(images.detach().to(memory_format=memory_format(network)))
        (gradient,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), maps[-1])
    return maps[-1].detach(), gradient


def weights(maps: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """w of the equation, [N, channels], from A, D_1, D_2 and D_3, each [N, channels, h, w].

    A position whose denominator is not positive, which only noise can bring about, has no weight.
    """
    below = 2 * second + third * maps.sum((2, 3), keepdim=True)
    return torch.where(below > 0, second / below * first.relu(), 0.0).sum((2, 3))


def smooth_grad_cam(
    network: nn.Module,
    layer: nn.Module,
    images: Tensor,
    classes: Tensor | None,
    samples: int,
    std: float,
    generator: torch.Generator,
) -> Tensor:
    """Maps [N, 1, H, W] in [0, 1] of images [N, C, H, W]: each scaled by its least and largest value, then enlarged.

    network: in eval mode, frozen; gives scores [N, K]. layer: a module in it whose output is [N, channels, h, w].
    classes: int64 [N], the class of each map; None: the one with the largest score.
    samples, std: noisy copies of each image, and the deviation of the noise, which a CPU `generator` draws.
    Bilinear enlargement; a map without contrast is zero.
    """
    parts = []
    for number, part in enumerate(images.detach().split(CHUNK)):
        if classes is None:
            with torch.no_grad():
                mine = network(part).argmax(1)
        else:
            mine = classes[number * CHUNK :][: len(part)].to(part.device)
        clean, _ = _derivatives(network, layer, part, mine)
        powers = [torch.zeros_like(clean) for _ in range(3)]
        for _ in range(samples):
            noise = torch.randn(part.shape, generator=generator, dtype=part.dtype).to(part.device)
            _, gradient = _derivatives(network, layer, part + std * noise, mine)
            for power, total in enumerate(powers, 1):
                total.add_(gradient**power, alpha=1 / samples)
        parts.append((weights(clean, *powers)[..., None, None] * clean).sum(1, keepdim=True).relu())
    maps = torch.cat(parts)
    maps = maps - maps.amin((2, 3), keepdim=True)
    top = maps.amax((2, 3), keepdim=True)
    maps = torch.where(top > 0, maps / top, 0.0)
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
