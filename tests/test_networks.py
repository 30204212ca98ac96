"""Networks: sizes known from the literature, forward passes against plain formulas, refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diver.networks import create, memory_format, names
from diver.networks.vit import Block


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        # ConvNet-3 of width 128, ResNet-18 with the small stem, MobileNetV2: ten classes, as published.
        ("convnet", {}, 320_010),
        ("resnet", {"norm": "batch"}, 11_173_962),
        ("mobilenet", {}, 2_236_682),
    ],
)
def test_published_parameter_counts(name: str, options: dict, parameters: int) -> None:
    assert count(create(name, **options)) == parameters


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 16, 4)])
def test_shapes_and_gradients(name: str, channels: int, size: int, classes: int) -> None:
    small = {"convnet": 8, "resnet": 4, "mobilenet": 0.25}
    network = create(name, classes, channels, size, **({"width": small[name]} if name in small else {"dim": 24}))
    x = torch.randn(3, channels, size, size)
    logits = network(x.to(memory_format=memory_format(network)))
    assert logits.shape == (3, classes)
    logits.square().sum().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert torch.allclose(network.eval()(x), network(x.to(memory_format=torch.channels_last)), atol=1e-4)


def test_convnet_against_plain_formula() -> None:
    torch.manual_seed(0)
    network = create("convnet", 5, 3, 16, width=6, depth=2).double()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    state = network.state_dict()
    y = x
    for block in (0, 4):
        y = F.conv2d(y, state[f"features.{block}.weight"], state[f"features.{block}.bias"], padding=1)
        mean, variance = y.mean((2, 3), keepdim=True), y.var((2, 3), keepdim=True, unbiased=False)
        scale, shift = state[f"features.{block + 1}.weight"], state[f"features.{block + 1}.bias"]
        y = (y - mean) / (variance + 1e-5).sqrt() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        y = y.clamp(min=0)
        y = (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
    assert torch.allclose(network.embed(x), y.flatten(1))
    assert torch.allclose(network(x), y.flatten(1) @ state["classifier.weight"].T + state["classifier.bias"])


def test_attention_against_plain_formula() -> None:
    torch.manual_seed(0)
    block = Block(dim=8, heads=2, mlp_ratio=2.0).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = block.qkv(block.norm1(x)).split(8, -1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 4**0.5).softmax(-1)
        heads.append(weights @ v[..., part])
    y = x + block.proj(torch.cat(heads, -1))
    assert torch.allclose(block(x), y + block.mlp(block.norm2(y)))


def test_resnet_halves_three_times_and_stem_stride_once_more() -> None:
    x = torch.randn(2, 3, 32, 32)
    for stride, expected in ((1, 4), (2, 2)):
        network = create("resnet", width=4, stem_stride=stride)
        assert network.stages(network.stem(x)).shape == (2, 32, expected, expected)


def test_timm_networks_by_prefix() -> None:
    network = create("timm:vit_tiny_patch16_224", 7, 3, 32)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert create("timm:resnet10t", 7, 1, 64)(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    with pytest.raises(ValueError, match="resnet18"):
        create("timm:resnt18")


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="nearest: resnet"):
        create("resnt")
    with pytest.raises(ValueError, match="widht"):
        create("convnet", widht=3)
    with pytest.raises(ValueError, match="depth 6"):
        create("convnet", size=32, depth=6)
    with pytest.raises(ValueError, match="patch 5"):
        create("vit", patch=5)
    with pytest.raises(ValueError, match="layer"):
        create("convnet", norm="layer")
