"""Kernels as Triton's interpreter runs them on a CPU; `test_one_pass.py` starts these with TRITON_INTERPRET=1."""

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.networks import create, one_pass
from diver.networks.convnet import halved
from diver.networks.one_pass import OnePass, in_one_pass, works
from diver.students import student


def reference(norm: nn.GroupNorm, x: Tensor, relu: bool, halve: bool) -> Tensor:
    """From the definition: every image's channels have mean 0 and variance 1, then scale and shift."""
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    y = (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    y = y.clamp(min=0) if relu else y
    return y.reshape(*y.shape[:2], y.shape[2] // 2, 2, -1, 2).mean((3, 5)) if halve else y


def drawn_norm(channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(channels, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("shape", "halve"),
    [((2, 16, 8, 8), True), ((2, 20, 6, 10), True), ((1, 40, 5, 7), False), ((1, 16, 32, 32), True)],
)
def test_values_and_gradients(shape: tuple[int, ...], halve: bool, relu: bool) -> None:
    torch.manual_seed(0)
    norm, x = drawn_norm(shape[1]), torch.randn(shape) * 3 + 1
    x.requires_grad_()
    y = OnePass(norm, relu, halve)(x)
    dy = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, [x, norm.weight, norm.bias], dy))
    precise = norm.double()
    x = x.detach().double().requires_grad_()
    y = reference(precise, x, relu, halve)
    wanted = (y, *torch.autograd.grad(y, [x, precise.weight, precise.bias], dy.double()))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 2e-6 * b.abs().max()


def test_bf16_stays_and_is_reckoned_in_float32() -> None:
    torch.manual_seed(0)
    norm, x = drawn_norm(8), (torch.randn(2, 8, 8, 8) + 100).bfloat16()
    y = OnePass(norm, relu=True, halve=True)(x)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    assert (y.float() - reference(norm, x.float(), True, True)).abs().max() < 2**-8 * y.abs().max()


def test_what_is_no_number_stays_none() -> None:
    x = torch.randn(2, 4, 4, 4)
    x[0, 1, 2, 3] = torch.nan
    y = OnePass(nn.GroupNorm(4, 4), relu=True, halve=True)(x)
    assert y[0, 1].isnan().all() and y.isnan().sum() == 4


def test_larger_and_odd_images_go_another_way() -> None:
    norm = drawn_norm(3)
    for x, halve in ((torch.randn(1, 3, 64, 64), True), (torch.randn(1, 3, 7, 7), True)):
        y = halved(F.relu(norm(x)))
        assert torch.equal(OnePass(norm, relu=True, halve=halve)(x), y)


@pytest.mark.parametrize(
    ("name", "options", "passes"),
    [
        ("convnet", {"width": 4, "depth": 2}, 2),
        ("convnet", {"width": 4, "depth": 2, "norm": "batch"}, 0),
        ("resnet", {"width": 4, "blocks": 1}, 12),
        ("resnet_ap", {"width": 4, "blocks": 1}, 12),
        ("vgg", {"width": 4, "norm": "instance"}, 8),
        ("vit", {"dim": 8, "depth": 1, "heads": 2}, 0),
    ],
)
def test_a_students_loss_and_gradient(
    name: str, options: dict[str, object], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    size, device = 32 if name == "vgg" else 16, torch.device("cpu")
    network, changed = (create(name, 5, 3, size, **options) for _ in range(2))
    assert in_one_pass(changed) == (passes > 0)
    assert sum(isinstance(module, OnePass) for module in changed.modules()) == passes
    x, labels = torch.randn(2, 3, size, size), torch.tensor([1, 3])
    flat = torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).requires_grad_()
    values, gone = [], []
    forward = OnePass.forward
    monkeypatch.setattr(OnePass, "forward", lambda self, x: [forward(self, x), gone.append(self)][0])
    # oneDNN's gradients of 1x1 convolutions of stride 2 with under 8 channels, channels_last, overwrite memory.
    with torch.backends.mkldnn.flags(enabled=False):
        for in_bf16 in (False, True):
            loss = student._summed_loss.__wrapped__(name, json.dumps(options), 5, 3, size, device, in_bf16)
            gone.clear()
            value = loss(flat, dict(network.named_buffers()), x, labels, 2.0)
            values.append((value, torch.autograd.grad(value, flat)[0]))
            assert len(gone) == in_bf16 * passes
    wanted = F.cross_entropy(network(x) / 2, labels, reduction="sum")
    for value, gradient in values:
        assert torch.allclose(value, wanted, rtol=1e-5)
        assert (gradient - values[0][1]).abs().max() < 1e-5 * gradient.abs().max()


def test_they_are_tried_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert works(torch.device("cpu"))
    monkeypatch.setattr(one_pass, "TOLERANCE", 0.0)
    with pytest.warns(UserWarning, match="is not used on cpu: they differ from torch's by 0.00"):
        assert not works.__wrapped__(torch.device("cpu"))
