"""DC and DSA: loss and gradient against their equations, the loops against plain ones, resuming, bad input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tinted import quiet, tinted
from torch import Tensor, nn
from torch.nn import functional as F

from diver.config.distill import DCConfig, DSAConfig
from diver.data.prepared import Prepared
from diver.distill import dc, loop
from diver.distill.dc import distill_dc, distill_dsa, fresh_network, matched_weights, matching, mean_gradients
from diver.networks import create
from diver.networks.augment import DSA, FAMILIES
from diver.networks.convnet import ConvNet
from diver.sets import DistilledSet, ValueRange

TINY: dict[str, Any] = {"iterations": 2, "outer": 3, "inner": 2, "batch_real": 8, "batch_train": 4, "width": 8}
TINY |= {"depth": 2, "network_rate": 0.1}


@pytest.fixture(scope="module")
def data() -> Prepared:
    return tinted()


def trained(dtype: torch.dtype = torch.float64) -> ConvNet:
    """A tiny network whose vectors are not the ones and zeros that they start as."""
    network = fresh_network(DCConfig(width=4, depth=2), 3, 3, 8, 1).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, dtype=dtype, generator=generator)
    return network


def batches(sizes: tuple[int, ...] = (5, 5, 5), ipc: int = 2) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(4)
    real = [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for n in sizes]
    return real, torch.randn(3, ipc, 3, 8, 8, dtype=torch.float64, generator=generator, requires_grad=True)


def channels(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Rows of weights one by one; 1-dimensional parameters do not count."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(found, wanted, strict=True):
        if a.ndim > 1:
            for row, other in zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True):
                lengths = (row * row).sum().sqrt() * (other * other).sum().sqrt()
                total = total + 1 - (row * other).sum() / (lengths + 1e-6)
    return total


def mse(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    return torch.stack([((a - b) ** 2).sum() for a, b in zip(found, wanted, strict=True)]).sum()


def cos(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    products = [
        torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
        for left, right in ((found, wanted), (found, found), (wanted, wanted))
    ]
    return 1 - products[0] / (products[1].sqrt() * products[2].sqrt() + 1e-6)


DISTANCES: dict[str, Callable[[list[Tensor], list[Tensor]], Tensor]] = {"channels": channels, "mse": mse, "cos": cos}


def plain_loss(network: ConvNet, family: str, real: list[Tensor], images: Tensor, distance: str, seed: int) -> Tensor:
    """L class by class and image by image."""
    generator, parameters = torch.Generator().manual_seed(seed), list(network.parameters())
    drawn = [DSA(family).draw(1, generator) for _ in real]
    total = torch.zeros((), dtype=torch.float64)
    for c, (batch, own) in enumerate(zip(real, images, strict=True)):
        sides = []
        for x in (batch, own):
            losses = [-network(DSA(family).apply(image[None], drawn[c])).log_softmax(1)[0, c] / len(x) for image in x]
            sides.append(list(torch.autograd.grad(torch.stack(losses).sum(), parameters, create_graph=True)))
        total = total + DISTANCES[distance](sides[1], [g.detach() for g in sides[0]])
    return total


@pytest.mark.parametrize(
    ("family", "distance", "sizes"),
    [*((family, "channels", (5, 5, 5)) for family in ["none", *FAMILIES])]
    + [("none", "mse", (5, 5, 5)), ("flip", "cos", (5, 5, 5)), ("color", "channels", (1, 7, 4))],
)
def test_loss_and_gradient_against_the_equation(family: str, distance: str, sizes: tuple[int, ...]) -> None:
    network, (real, images) = trained(), batches(sizes)
    expected = plain_loss(network, family, real, images, distance, 9)
    (want,) = torch.autograd.grad(expected, images)
    got, have = matching(network, DSA(family), real, images, distance, torch.Generator().manual_seed(9))
    assert want.abs().max() > 1e-4
    assert torch.allclose(got, expected, rtol=1e-9)
    assert torch.allclose(have, want, rtol=1e-7, atol=1e-9 * float(want.abs().max()))
    assert not have.requires_grad and not got.requires_grad


def test_gradient_is_the_slope_of_the_loss() -> None:
    network, (real, images) = trained(), batches()

    def value(at: Tensor) -> tuple[Tensor, Tensor]:
        return matching(network, DSA("none"), real, at, "channels", torch.Generator())

    direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    step = 1e-6
    slope = (value(images + step * direction)[0] - value(images - step * direction)[0]) / (2 * step)
    assert slope.item() == pytest.approx((value(images)[1] * direction).sum().item(), rel=1e-6)


@pytest.mark.parametrize("size", [8, 14])
def test_the_network_is_the_convnet(size: int) -> None:
    """Odd sizes (14, 7, 3) lose a row and a column."""
    network = fresh_network(DCConfig(width=4), 3, 2, size, 7).double()
    torch.manual_seed(7)
    plain = create("convnet", 3, 2, size, width=4).double()
    images = torch.randn(3, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs = []
    for net in (network, plain):
        x = images.clone().requires_grad_()
        logits = net(x)
        outputs.append((logits, *torch.autograd.grad(logits.square().sum(), [x, *net.parameters()])))
    for a, b in zip(*outputs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pixels", [1, 64, 3 * 64, 4 * 64])
def test_parts_and_groups_do_not_change_the_result(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, (real, images) = trained(), batches((5, 3, 4))
    whole = matching(network, DSA("color_scale"), real, images, "channels", torch.Generator().manual_seed(1))
    monkeypatch.setattr(dc, "PIXELS", {"cpu": pixels})
    parted = matching(network, DSA("color_scale"), real, images, "channels", torch.Generator().manual_seed(1))
    for a, b in zip(whole, parted, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_bf16_is_of_the_real_images_and_close() -> None:
    """Gradients are float32 and near: at published sizes within 4 %, where batches of 128 images differ by 13 to 79."""
    real, images = batches((64, 64, 64))
    network, images = trained(torch.float32), images.detach().float()
    weights = list(matched_weights(network, "channels").values())
    full, half = (
        mean_gradients(network, weights, real[0].float(), torch.zeros(64).long(), p) for p in ("fp32", "bf16")
    )
    errors = [((a - b).norm() / a.norm()).item() for a, b in zip(full, half, strict=True)]
    assert all(b.dtype == torch.float32 for b in half) and 0 < max(errors) < 0.2
    drawn = torch.Generator().manual_seed(1)
    found = [
        matching(network, DSA("none"), iter([r.float() for r in real]), images, "channels", drawn, precision)[1]
        for precision in ("fp32", "bf16")
    ]
    assert 0 < (found[0] - found[1]).norm() / found[0].norm() < 0.2


def test_what_is_matched_already_has_no_distance() -> None:
    network, (real, _) = trained(), batches((2, 2, 2))
    for distance in DISTANCES:
        loss, _ = matching(network, DSA("rotate"), real, torch.stack(real), distance, torch.Generator())
        assert abs(loss.item()) < 0.01
    assert all(p.ndim > 1 for p in matched_weights(network, "channels").values())
    assert len(matched_weights(network, "channels")) == 3
    assert len(matched_weights(network, "cos")) == len(list(network.parameters()))


def test_classes_of_the_real_images_get_the_same_transformation_as_their_synthetic_ones() -> None:
    """With equal images on both sides an augmentation of their own would leave a distance."""
    network, (real, _) = trained(), batches((2, 2, 2))
    weights = list(matched_weights(network, "channels").values())
    loss, _ = matching(network, DSA("color"), real, torch.stack(real), "channels", torch.Generator().manual_seed(3))
    shown = [DSA("color").apply(x, DSA("color").draw(1, torch.Generator().manual_seed(c))) for c, x in enumerate(real)]
    labels = torch.arange(3).repeat_interleave(2).view(3, 2)
    apart = sum(
        channels(*(mean_gradients(network, weights, side, y) for side in pair)).item()
        for *pair, y in zip(shown, real, labels, strict=True)
    )
    assert loss.item() < 0.01 < apart


@pytest.fixture(params=["called", "recorded"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as on a CPU, or recorded as on a GPU, with the weights that a CPU draws."""
    if request.param == "recorded":
        request.getfixturevalue("acted_graphs")

        def redraw(network: ConvNet, seed: int) -> None:
            width, depth = TINY["width"], TINY["depth"]
            network.load_state_dict(fresh_network(DCConfig(width=width, depth=depth), 3, 3, 16, seed).state_dict())

        monkeypatch.setattr(dc, "redraw", redraw)


@pytest.mark.parametrize(("augmentation", "init"), [("none", "noise"), ("color_crop_flip", "real")])
def test_the_whole_run_against_plain_loops(data: Prepared, steps: None, augmentation: str, init: str) -> None:
    """The loops of the method with torch's own optimisers and the whole of each batch in one graph."""
    config = DCConfig(**TINY, augmentation=augmentation, init=init, learning_rate=1.0)
    generator, augment = torch.Generator().manual_seed(config.seed), DSA(augmentation)
    members = [(data.train_labels == c).nonzero().flatten() for c in range(3)]
    start = dc.first_images(data, 2, init, members, generator)
    images, labels = nn.Parameter(start.clone()), torch.tensor([0, 0, 1, 1, 2, 2])
    optimizer = torch.optim.SGD([images], 1.0, 0.5)
    for number in range(2):
        network = fresh_network(config, 3, 3, 16, config.seed * 1_000_003 + number)
        steps = torch.optim.SGD(network.parameters(), config.network_rate)
        for turn in range(3):
            real = [data.train_images[own[torch.randperm(20, generator=generator)[:8]]] for own in members]
            total = torch.zeros(())
            for c, drawn in enumerate([augment.draw(1, generator) for _ in range(3)]):
                sides = []
                for x in (data.standardised(real[c]), images[2 * c : 2 * c + 2]):
                    loss = F.cross_entropy(network(augment.apply(x, drawn)), torch.full((len(x),), c))
                    sides.append(list(torch.autograd.grad(loss, list(network.parameters()), create_graph=True)))
                total = total + channels(sides[1], [g.detach() for g in sides[0]])
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if turn < 2:
                for _ in range(2):
                    for part in torch.randperm(6, generator=generator).split(4):
                        shown = augment.apply(images[part].detach(), augment.draw(len(part), generator))
                        steps.zero_grad()
                        F.cross_entropy(network(shown), labels[part]).backward()
                        steps.step()
    found = distill_dc(data, 2, config, progress=quiet).images
    moved = (images.detach() - start).norm()
    assert moved > 0.1
    assert (found - images.detach()).norm() < 1e-3 * moved


def test_the_released_codes_extra_network_is_one_more(data: Prepared) -> None:
    config = DCConfig(**TINY)
    extra = distill_dc(data, 1, config.model_copy(update={"extra_network": True}), progress=quiet)
    more = distill_dc(data, 1, config.model_copy(update={"iterations": config.iterations + 1}), progress=quiet)
    assert torch.equal(extra.images, more.images)
    assert not torch.equal(extra.images, distill_dc(data, 1, config, progress=quiet).images)


def test_distance_to_unseen_networks_falls(data: Prepared) -> None:
    config = DCConfig(iterations=40, batch_real=20, width=16, depth=2, learning_rate=1.0)
    result = distill_dc(data, 1, config, progress=quiet)
    start = distill_dc(data, 1, config.model_copy(update={"learning_rate": 1e-12}), progress=quiet)
    real = [data.standardised(data.train_images[data.train_labels == c]) for c in range(3)]
    unseen = fresh_network(config, 3, 3, 16, 999)
    before, after = (
        matching(unseen, DSA("none"), real, made.images.unflatten(0, (3, 1)), "channels", torch.Generator())[0]
        for made in (start, result)
    )
    assert after < 0.8 * before


METHODS: list[tuple[str, Callable[..., DistilledSet], DCConfig]] = [
    ("dc", distill_dc, DCConfig(**TINY)),
    ("dsa", distill_dsa, DSAConfig(**TINY)),
]


@pytest.mark.parametrize(("method", "distill", "config"), METHODS, ids=["dc", "dsa"])
def test_sets_keep_their_promises_and_repeat(
    data: Prepared, method: str, distill: Callable[..., DistilledSet], config: DCConfig
) -> None:
    before = torch.get_rng_state()
    first, again = (distill(data, 4, config, code="abc", progress=quiet) for _ in range(2))
    other = distill(data, 4, config.model_copy(update={"seed": 2}), code="abc", progress=quiet)
    assert first.digest() == again.digest()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (12, 3, 16, 16)
    assert first.labels is not None
    assert first.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert first.value_range == ValueRange.standardised(data.mean, data.std)
    (step,) = first.steps
    assert (step.method, step.seed, step.code) == (method, 1, "abc")
    assert step.parameters == config.model_dump(mode="json")


@pytest.mark.parametrize(("method", "distill", "config"), METHODS, ids=["dc", "dsa"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    data: Prepared,
    method: str,
    distill: Callable[..., DistilledSet],
    config: DCConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is killed in the middle of the second network's rounds, so its weights have to come back too."""
    whole = distill(data, 2, config, code="abc", progress=quiet)

    def killed(done: int, total: int, note: str) -> None:
        assert total == 6
        if done == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        distill(data, 2, config, code="abc", progress=killed, folder=tmp_path)
    again = distill(data, 2, config, code="abc", progress=quiet, folder=tmp_path)
    assert f"{method}: goes on after iteration 5" in capsys.readouterr().out
    assert again.digest() == whole.digest()


def test_dsa_is_dc_with_augmentation(data: Prepared) -> None:
    plain = DCConfig(**TINY, init="real")
    same = distill_dsa(data, 2, DSAConfig(**TINY, augmentation="none"), progress=quiet)
    other = distill_dsa(data, 2, DSAConfig(**TINY), progress=quiet)
    result = distill_dc(data, 2, plain, progress=quiet)
    assert torch.equal(result.images, same.images)
    assert not torch.equal(result.images, other.images)


def test_from_real_images_it_starts_at_images_of_the_class(data: Prepared) -> None:
    result = distill_dsa(data, 2, DSAConfig(**TINY, learning_rate=1e-12), progress=quiet)
    distance = (result.images[:, None] - data.standardised(data.train_images)).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-5
    assert result.labels is not None
    assert torch.equal(data.train_labels[distance.argmin(1)], result.labels)


def test_rounds_by_ipc() -> None:
    published = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {ipc: DCConfig().loops(ipc) for ipc in published} == published
    assert (DCConfig().loops(5), DCConfig().loops(15), DCConfig().loops(100)) == ((1, 1), (10, 50), (50, 10))
    assert DCConfig(outer=2, inner=0).loops(10) == (2, 0)


def test_failures_are_named(data: Prepared) -> None:
    with pytest.raises(ValueError, match="20 training images, and 21 are needed"):
        distill_dsa(data, 21, DSAConfig(**TINY))
    few = data.train_labels < 2
    with pytest.raises(ValueError, match="class .c. of [a-z]* has 0 training images"):
        short = replace(data, train_images=data.train_images[few], train_labels=data.train_labels[few])
        distill_dc(short, 1, DCConfig(**TINY))
    with pytest.raises(ValueError, match="augmentation 'twist' is not known"):
        distill_dc(data, 1, DCConfig(**TINY, augmentation="twist"))
    with pytest.raises(FloatingPointError, match="dc: loss is .* lower the learning rate"):
        distill_dc(data, 1, DCConfig(**TINY, learning_rate=1e38), progress=quiet)
