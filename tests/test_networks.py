"""Networks: sizes known from the literature, forward passes against plain formulas, refusals."""

import inspect
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.config.networks import OPTIONS, PRESETS, check_network
from diver.networks import REGISTRY, create, memory_format, names
from diver.networks.convnet import Halving, halved
from diver.networks.efficientnet import Gate
from diver.networks.resnet import BasicBlock
from diver.networks.shufflenet import ShuffleUnit, shuffle
from diver.networks.vit import Block

# Options that make a network small.
SMALL: dict[str, dict[str, Any]] = {
    "convnet": {"width": 8},
    "resnet": {"width": 4},
    "resnet_ap": {"width": 4},
    "resnet_cifar": {"depth": 8, "width": 4},
    "vgg": {"width": 4},
    "alexnet": {},
    "mobilenet": {"width": 0.25},
    "efficientnet": {"width": 0.25},
    "shufflenet": {"width": 0.5},
    "vit": {"dim": 24},
}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [
        # Counted by building the networks of the released code of DC (VICO-UoE/DatasetCondensation).
        ("convnet-3", 32, 320_010),
        ("convnet-5", 128, 615_690),
        ("resnet18-dd", 32, 11_173_962),
        ("vgg-11", 32, 9_231_114),
        ("alexnet", 32, 1_872_202),
        # The same of GLaD (georgecazenavette/glad).
        ("alexnet", 128, 2_333_002),
        ("vgg-11-glad", 128, 9_476_874),
        ("vit-glad", 128, 16_176_650),
        # The same of Minimax Diffusion (vimar-gu/MinimaxDiffusion).
        ("convnet-6", 224, 754_570),
        ("resnet18-idc", 224, 11_181_642),
        ("resnetap-10", 224, 4_910_922),
        ("resnetap-10", 128, 4_903_242),
        ("resnetap-10-cifar", 32, 1_228_970),
        # The same of PReDD; the first two are also those of torchvision's documentation, see below.
        ("mobilenetv2", 128, 2_236_682),
        ("efficientnet-b0", 128, 4_020_358),
        ("shufflenetv2", 128, 2_758_862),
        # torchvision's documentation, for 1000 classes, less what 990 of them have in the linear layer.
        ("shufflenetv2-depthwise", 128, 2_278_604 - 990 * 1025),
        ("mobilenetv2", 224, 3_504_872 - 990 * 1281),
        ("efficientnet-b0", 224, 5_288_548 - 990 * 1281),
        # He et al. 2016, table 6, has 0.27 million; layers by hand: stem, 6 convolutions a stage, norms, linear.
        ("resnet20", 32, 432 + 6 * 2304 + 4608 + 5 * 9216 + 18432 + 5 * 36864 + 2 * 7 * 16 + 2 * 6 * 96 + 650),
        ("resnet18", 224, 11_689_512 - 990 * 513),
        ("vit-b16", 224, 86_567_656 - 990 * 769),
    ],
)
def test_published_parameter_counts(name: str, size: int, parameters: int) -> None:
    with torch.device("meta"):
        network = create(name, 10, 3, size)
        assert count(network) == parameters
        assert network(torch.empty(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet18-idc", "resnetap-10"])
def test_initial_weights_of_idc(name: str) -> None:
    """Normal of variance 2 / (height width channels out), as IDC's released code draws all its residual networks."""
    torch.manual_seed(0)
    convolutions = [m.weight for m in create(name, 10, 3, 224).modules() if isinstance(m, nn.Conv2d)]
    for weight in convolutions:
        wanted = (2 / (weight.numel() / weight.shape[1])) ** 0.5
        assert weight.std().item() == pytest.approx(wanted, rel=0.05) and abs(weight.mean()) < 0.1 * wanted


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("size", [64, 128, 224])
def test_shapes_at_larger_sizes(name: str, size: int) -> None:
    with torch.device("meta"):
        assert create(name, 7, 1, size, **SMALL[name])(torch.empty(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 40, 4)])
def test_shapes_and_gradients(name: str, channels: int, size: int, classes: int) -> None:
    network = create(name, classes, channels, size, **SMALL[name])
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


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("mobilenetv2", "torchvision:mobilenet_v2"),
        ("efficientnet-b0", "torchvision:efficientnet_b0"),
        ("shufflenetv2-depthwise", "torchvision:shufflenet_v2_x1_0"),
    ],
)
def test_originals_equal_torchvision(name: str, reference: str) -> None:
    torch.manual_seed(0)
    network, other = create(name, size=64).double().eval(), create(reference, size=64).double().eval()
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
    network.load_state_dict(dict(zip(network.state_dict(), other.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.allclose(network(x), other(x), rtol=1e-10)


def test_pooled_block_against_plain_formula() -> None:
    torch.manual_seed(0)
    block = BasicBlock(4, 6, 2, "instance", pooled=True).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    y = F.avg_pool2d(F.relu(F.group_norm(F.conv2d(x, block.conv1.weight, padding=1), 6)), 2)
    y = F.group_norm(F.conv2d(y, block.conv2.weight, padding=1), 6)
    short = F.group_norm(F.conv2d(F.avg_pool2d(x, 2), block.shortcut[0].weight), 6)
    assert torch.allclose(block(x), F.relu(y + short))
    # Without a stride there is nothing to average.
    plain, pooled = (BasicBlock(4, 4, 1, "instance", pooled).double() for pooled in (False, True))
    pooled.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x), pooled(x))


def test_resnet_ap_stem_fits_the_size() -> None:
    for size, kernel, expected in ((32, 3, 32), (64, 3, 64), (128, 3, 64), (224, 7, 56)):
        network = create("resnet_ap", size=size, width=4)
        assert network.stem[0].kernel_size == (kernel, kernel)
        assert network.stem(torch.randn(1, 3, size, size)).shape == (1, 4, expected, expected)
    assert count(create("resnet_ap", width=8, blocks=2)) == count(create("resnet", width=8))


def test_vgg_grid() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    network, same = create("vgg", size=64, width=4), create("vgg", size=64, width=4, grid=2)
    same.load_state_dict(network.state_dict())
    assert torch.equal(network(x), same(x))
    repeated = create("vgg-11-glad", size=32, width=4).features(x[..., :32, :32])
    assert torch.equal(repeated, repeated[..., :1, :1].expand(2, 32, 7, 7))


def test_mobilenet_strides() -> None:
    x = torch.randn(1, 3, 64, 64)
    for options, expected in (({}, 8), ({"stem_stride": 2}, 4), ({"stem_stride": 2, "second_stride": 2}, 2)):
        network = create("mobilenet", size=64, width=0.25, repeats=1, **options)
        assert network.layers(x).shape[2:] == (expected, expected)


def test_gate_scales_channels_by_their_means() -> None:
    torch.manual_seed(0)
    gate, x = Gate(6, 2), torch.rand(2, 6, 4, 4) + 1
    factors = gate(x) / x
    assert torch.allclose(factors, factors[..., :1, :1].expand_as(factors))
    assert ((factors > 0) & (factors < 1)).all()
    shuffled = x.flatten(2)[..., torch.randperm(16)].view_as(x)
    assert torch.allclose(gate(shuffled) / shuffled, factors)


def test_shuffle_is_a_permutation_and_half_of_a_unit_passes() -> None:
    torch.manual_seed(0)
    assert shuffle(torch.arange(6).view(1, 6, 1, 1)).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(ShuffleUnit(8, 8, 1, 2, "batch")(x)[:, ::2], x[:, :4])
    assert ShuffleUnit(8, 20, 2, 2, "batch")(x).shape == (2, 20, 3, 3)
    grouped, depthwise = (create("shufflenet", groups=groups, width=0.5) for groups in (2, 0))
    assert {m.groups for m in depthwise.modules() if isinstance(m, nn.Conv2d)} == {1, 24, 48, 96}
    assert {m.groups for m in grouped.modules() if isinstance(m, nn.Conv2d)} == {1, 2, 24, 48, 96}


def test_vit_options() -> None:
    def vit(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        return create("vit", **{"dim": 24, "depth": 2, **options})

    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = vit()(x)
    assert torch.equal(vit(head_dim=8)(x), expected)
    assert count(vit(head_dim=16)) == count(vit()) + 2 * 4 * 24 * 24 + 2 * 3 * 24
    assert count(vit(qkv_bias=False)) == count(vit()) - 2 * 3 * 24
    dropping = vit(dropout=0.5)
    assert not torch.allclose(dropping(x), expected)
    assert torch.equal(dropping.eval()(x), expected)
    assert not any(isinstance(module, nn.LayerNorm) for module in vit(norm="none").modules())
    unit = vit(init="unit")
    assert 0.9 < unit.positions.std() < 1.1
    assert 0.9 / 3**0.5 < unit.blocks[0].proj.weight.std() * 24**0.5 < 1.1 / 3**0.5


def test_resnet20_takes_the_weights_in_circulation() -> None:
    """The names that files of akamaster/pytorch_resnet_cifar10 have, by which they are told apart from others."""
    names = list(create("resnet20").state_dict())
    assert names[:2] == ["conv1.weight", "bn1.weight"] and names[-2:] == ["linear.weight", "linear.bias"]
    assert [name for name in names if name.startswith("layer2.0") and name.endswith("weight")] == [
        f"layer2.0.{part}.weight" for part in ("conv1", "bn1", "conv2", "bn2")
    ]
    with pytest.raises(ValueError, match=r"depth: 21 is not 6 n \+ 2"):
        create("resnet_cifar", depth=21)


def test_names() -> None:
    assert set(OPTIONS) == set(REGISTRY)
    assert set(SMALL) == set(REGISTRY)
    for preset, (network, options) in PRESETS.items():
        check_network(preset)
        check_network(network)
        # A name that is both means the same.
        assert preset not in OPTIONS or (network, options) == (preset, {})


@pytest.mark.parametrize("name", REGISTRY)
def test_options_are_those_of_the_constructor(name: str) -> None:
    taken = {key: one.default for key, one in inspect.signature(REGISTRY[name]).parameters.items()}
    described = {key: field.default for key, field in OPTIONS[name].model_fields.items()}
    assert {**taken} == {**dict.fromkeys(("classes", "channels", "size"), inspect.Parameter.empty), **described}


def test_options_override_those_of_a_preset() -> None:
    assert count(create("convnet-3", depth=2, width=8)) == count(create("convnet", depth=2, width=8))
    assert create("vit-glad", dim=24, depth=1, head_dim=8).patches.kernel_size == (16, 16)
    assert PRESETS["vit-glad"][1]["dim"] == 512


def test_timm_networks_by_prefix() -> None:
    network = create("timm:vit_tiny_patch16_224", 7, 3, 32)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert create("timm:resnet10t", 7, 1, 64)(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    with pytest.raises(ValueError, match="resnet18"):
        create("timm:resnt18")
    with pytest.raises(ValueError, match="widht"):
        create("timm:resnet18", widht=3)


def test_torchvision_networks_by_prefix() -> None:
    x = torch.randn(2, 3, 64, 64)
    assert create("torchvision:squeezenet1_1", 7, 3, 64)(x).shape == (2, 7)
    with torch.device("meta"):
        assert create("torchvision:vit_b_16", 7, 3, 64)(x.to("meta")).shape == (2, 7)
    with pytest.raises(ValueError, match="not known to torchvision; nearest: shufflenet_v2_x1_0"):
        create("torchvision:shuflenet_v2_x1_0")
    with pytest.raises(ValueError, match="takes 3 channels, not 1"):
        create("torchvision:alexnet", channels=1)
    with pytest.raises(ValueError, match="multiple values for keyword argument .weights"):
        create("torchvision:alexnet", weights="DEFAULT")


def test_check_of_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="needs timm"):
        check_network("timm:resnet18")


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="nearest: resnet"):
        create("resnt")
    with pytest.raises(ValueError, match="widht: unknown key; did you mean .width"):
        create("convnet", widht=3)
    with pytest.raises(ValueError, match=r"convnet. \(depth=6\): images of 32 pixels are too small, at least 64"):
        create("convnet", size=32, depth=6)
    with pytest.raises(ValueError, match="patch 5"):
        create("vit", patch=5)
    with pytest.raises(ValueError, match="norm: Input should be .instance., .batch., .group. or .none"):
        create("convnet", norm="layer")
    with pytest.raises(ValueError, match="nearest: resnet18-dd"):
        create("resnet18_dd")
    with pytest.raises(ValueError, match="torchvision:NAME"):
        check_network("qqq")


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("vgg", 16, {}, "at least 32"),
        ("vgg", 32, {"depth": 12}, "depth: Input should be 11, 13, 16 or 19"),
        ("alexnet", 7, {}, "at least 8"),
        ("resnet_ap", 7, {}, "at least 8"),
        ("mobilenetv2", 16, {}, "at least 32"),
        ("efficientnet", 16, {}, "at least 32"),
        ("shufflenet", 16, {}, "at least 32"),
        ("shufflenet", 32, {"width": 0.7}, "width: 0.7 is not known; choose 0.5, 1.0, 1.5, 2.0"),
        ("vit", 32, {"norm": "batch"}, "norm: Input should be .layer. or .none"),
        ("vit", 32, {"init": "zero"}, "init: Input should be .small. or .unit"),
        ("convnet", 32, {"width": "64"}, "width: Input should be a valid integer"),
        ("vit", 32, {"dim": 25}, "heads 3 must divide dim 25"),
    ],
)
def test_options_and_sizes_that_do_not_fit(name: str, size: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, size=size, **options)


class OnGPU(Tensor):
    is_cuda = True  # type: ignore[assignment]


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (5, 7)])
def test_pooling_is_the_same_where_it_is_fused(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    fused = halved(x.as_subclass(OnGPU)).as_subclass(Tensor)
    assert torch.allclose(fused, F.avg_pool2d(x, 2), rtol=0, atol=1e-15)
    assert Halving()(x).shape == fused.shape


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (5, 7), (4, 66)])
def test_pooling_on_a_cpu_is_torchs_with_its_gradients(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for own, wanted in zip(*(_derived(pool(x), x) for pool in (halved, lambda x: F.avg_pool2d(x, 2))), strict=True):
        assert torch.allclose(own, wanted, rtol=1e-14, atol=1e-15)


def _derived(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, its gradient of a sum of cubes and the gradient of that one's squares, with respect to x."""
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    return y, first, *torch.autograd.grad(first.square().sum(), x)


def test_pooling_of_other_layouts_is_torchs() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    lasting = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(halved(lasting), F.avg_pool2d(lasting, 2))
    assert torch.equal(torch.func.vmap(lambda one: halved(one[None]))(x)[:, 0], halved(x))


def test_pooling_keeps_its_type_under_autocast() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert halved(x).dtype == torch.float32
        assert torch.allclose(halved(x), F.avg_pool2d(x, 2), rtol=0, atol=1e-6)
        assert torch.equal(halved(x.bfloat16()), F.avg_pool2d(x.bfloat16(), 2))
