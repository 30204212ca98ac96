"""EDF: losses, gradients, activation maps and updates against their equations; resuming; what each idea changes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from recording import record
from tinted import quiet, tinted
from torch import Tensor, nn
from torch.nn import functional as F

from diver import graphs
from diver.config.distill import EDFConfig, ExpertsConfig
from diver.config.distill_presets import published, published_experts
from diver.data.prepared import Prepared
from diver.distill import cam, edf, loop, trajectory
from diver.distill.edf import distill_edf
from diver.distill.experts import Experts, ExpertsError, train_experts
from diver.distill.flat import FlatNetwork
from diver.distill.recorded import recorded_trajectory
from diver.distill.trajectory import draw_steps
from diver.networks import create
from diver.networks.augment import DSA
from diver.networks.weights import Trained, WeightsError, write_trained
from diver.sets import DistilledSet

EPOCHS = 6
TINY: dict[str, Any] = {
    "iterations": 5,
    "syn_steps": 3,
    "expert_epochs": 2,
    "max_start": 4,
    "first_max_start": 1,
    "expansion_end": 4,
    "interval": 2,
    "learning_rate": 20.0,
    "rate_rate": 1e-3,
    "experts": "here",
    "threshold": 100.0,
    "ema_decay": 0.9,
}


open_folder = Experts.open


@pytest.fixture(scope="module")
def data() -> Prepared:
    return tinted()


@dataclass(frozen=True)
class InMemory(Experts):
    rows: list[list[Tensor]]

    def weights(self, expert: int, epoch: int) -> Tensor:
        return self.rows[expert][epoch].detach().clone()


@pytest.fixture(scope="module")
def experts(data: Prepared) -> InMemory:
    """Three experts of six epochs in memory; the last learned from wrong labels, so it is often wrong."""
    network, images = FlatNetwork(3, 3, 16, 8, 2), data.standardised(data.train_images)
    weights = []
    for expert in range(3):
        labels = data.train_labels if expert < 2 else data.train_labels.flip(0)
        mine = [network.initial(expert)]
        for _ in range(EPOCHS):
            flat = mine[-1]
            for part in torch.arange(60).split(20):
                point = flat.requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(network(point, images[part]), labels[part]), point)
                flat = flat.detach() - 0.1 * gradient
            mine.append(flat)
        weights.append(mine)
    config = ExpertsConfig(width=8, depth=2, count=3, epochs=EPOCHS)
    manifest = {"data": data.identity(), "experts": [{"test_accuracy": 0.5}] * 3}
    return InMemory(Path("here"), config, network, 3, EPOCHS, None, manifest, weights)


@pytest.fixture(scope="module", autouse=True)
def _opened(experts: InMemory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edf.Experts, "open", lambda folder: experts)
        yield


def made(data: Prepared, folder: Path | None = None, **settings: Any) -> DistilledSet:
    return distill_edf(data, 2, EDFConfig(**TINY | settings), "abc", quiet, folder)


@pytest.fixture(scope="module")
def whole(data: Prepared, _opened: None) -> DistilledSet:
    return made(data)


# --- the matching loss


@pytest.mark.parametrize("dropped", [0.0, 0.25, 0.6])
def test_common_pattern_dropout_against_the_equation(dropped: float) -> None:
    generator = torch.Generator().manual_seed(1)
    end, start, target = (torch.randn(101, dtype=torch.float64, generator=generator) for _ in range(3))
    order = sorted(range(101), key=lambda p: float((end[p] - target[p]) ** 2))
    kept = order[int(dropped * 101) :]
    above = sum((float(end[p]) - float(target[p])) ** 2 for p in kept)
    below = sum((float(start[p]) - float(target[p])) ** 2 for p in kept)
    gradient = torch.zeros(101, dtype=torch.float64)
    for p in kept:
        gradient[p] = 2 * (end[p] - target[p]) / below
    end.requires_grad_()
    loss = edf.matching_loss(end, start, target, dropped)
    assert loss.item() == pytest.approx(above / below, rel=1e-12)
    (found,) = torch.autograd.grad(loss, end)
    assert torch.allclose(found, gradient, rtol=1e-10)
    assert int((found == 0).sum()) == int(dropped * 101)


@pytest.mark.parametrize(
    ("mode", "batch", "cached", "acted"),
    [("adjoint", None, 2**20, 0), ("unrolled", 4, 512, 0), ("adjoint", 4, 512, 0), ("adjoint", 4, 512, 1)],
)
def test_gradients_against_an_unrolled_reference(
    mode: str, batch: int | None, cached: int, acted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images, labels and step size, through three steps with augmentation, written out with torch's own network.

    With 512 values near the cache, images are handled two by two. acted: by recorded steps.
    """
    monkeypatch.setattr(trajectory, "CACHED", cached)
    config = EDFConfig(**TINY | {"gradient": mode, "batch_syn": batch, "dropped": 0.3})
    generator, augment = torch.Generator().manual_seed(3), DSA("crop_scale_color")
    network = FlatNetwork(3, 3, 8, 4, 2)
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    start, target = network.initial(1).double(), network.initial(2).double()
    steps = draw_steps(6, 3, batch, augment, generator)
    if acted:
        monkeypatch.setattr(graphs, "records", lambda device: True)
        monkeypatch.setattr(graphs, "record", record)
    recorded = recorded_trajectory(network, augment, images, config.gradient)
    assert bool(recorded) == acted
    found = edf.student_gradient(
        network, augment, images, labels, rate.detach(), start, target, steps, config, recorded
    )

    module = create("convnet", **network.options).double()
    names = [name for name, _ in module.named_parameters()]
    theta = [part.clone().requires_grad_() for part in network.parts(start)]
    for index, drawn in steps:
        x, y = images[index], labels[index]
        logits = torch.func.functional_call(module, dict(zip(names, theta, strict=True)), (augment.apply(x, drawn),))
        probability = y.exp() / y.exp().sum(1, keepdim=True)
        loss = -(probability * (logits - logits.exp().sum(1, keepdim=True).log())).sum() / len(x)
        gradients = torch.autograd.grad(loss, theta, create_graph=True)
        theta = [p - rate * g for p, g in zip(theta, gradients, strict=True)]
    end = torch.cat([p.flatten() for p in theta])
    errors = (end - target) ** 2
    kept = torch.sort(errors).indices[int(0.3 * len(errors)) :]
    expected = errors[kept].sum() / ((start - target) ** 2)[kept].sum()
    want = torch.autograd.grad(expected, [images, labels, rate])
    assert torch.allclose(found.loss, expected, rtol=1e-10)
    for have, wanted in zip([*found.leaves, found.rate], want, strict=True):
        assert wanted.abs().max() > 0
        assert (have - wanted).norm() <= 1e-8 * wanted.norm()


# --- the start


def test_the_window_grows_linearly() -> None:
    config = EDFConfig(first_max_start=10, max_start=20, expansion_end=1000)
    assert [edf.start_bound(config, i) for i in (0, 99, 100, 500, 999, 1000, 9999)] == [10, 10, 11, 15, 19, 20, 20]


def test_starts_stay_in_the_window(data: Prepared, experts: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Spied(InMemory):
        def weights(self, expert: int, epoch: int) -> Tensor:
            asked.append(epoch)
            return super().weights(expert, epoch)

    monkeypatch.setattr(edf.Experts, "open", lambda folder: Spied(**vars(experts)))
    made(data, iterations=40, syn_steps=1, min_start=1, first_max_start=2, expansion_end=20, attention="none")
    starts, targets = asked[-80::2], asked[-79::2]
    assert [t - s for s, t in zip(starts, targets, strict=True)] == [2] * 40
    assert set(starts[:10]) == {1}
    assert set(starts[20:]) == {1, 2, 3}


def test_first_images_are_right_by_an_expert() -> None:
    """Expert 0 is right about even positions, expert 1 about multiples of three; class 1 begins at 5."""
    members = [torch.tensor([0, 1, 2, 3, 4]), torch.arange(5, 12)]

    def right(expert: int, positions: Tensor) -> Tensor:
        return positions % (2, 3)[expert] == 0

    first, other = (
        edf.first_positions(right, members, 3, 2, torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2)
    )
    assert set(first[:3]) == set(other[:3]) == {0, 2, 4}
    assert set(first[3:]) == set(other[3:]) == {6, 8, 10}
    assert first != other
    four = edf.first_positions(right, members, 4, 2, torch.Generator().manual_seed(1)).tolist()
    assert set(four[:3]) == {0, 2, 4}
    assert four[3] == 3
    assert set(four[4:7]) == {6, 8, 10}
    assert four[7] == 9
    with pytest.raises(ValueError, match=r"4 training images of class 0 correctly, 5 are needed; train them for more"):
        edf.first_positions(right, members, 5, 2, torch.Generator())


def test_first_labels_are_means_over_experts_that_are_right() -> None:
    answers = [
        torch.tensor([[3.0, 1.0], [2.0, 5.0]]),
        torch.tensor([[1.0, 2.0], [4.0, 7.0]]),
        torch.tensor([[5.0, 0.0], [9.0, 1.0]]),
    ]
    found = edf.first_labels(lambda expert: answers[expert], torch.tensor([0, 1]), 3)
    assert found.tolist() == [[4.0, 0.5], [3.0, 6.0]]


def test_a_run_starts_from_right_images_and_their_labels(data: Prepared, experts: InMemory) -> None:
    result = made(data, iterations=1, learning_rate=1e-12, label_rate=0.0, rate_rate=0.0)
    real = data.standardised(data.train_images)
    distance = (result.images[:, None] - real).abs().flatten(2).amax(2)
    found = distance.argmin(1)
    assert distance.amin(1).max() < 1e-5
    assert torch.equal(data.train_labels[found], result.hard_labels())
    logits = torch.stack([experts.network(experts.weights(e, EPOCHS), real[found]) for e in range(3)])
    right = logits.argmax(2) == data.train_labels[found]
    assert right[0].all()
    assert not right.all()
    for n in range(6):
        wanted = logits[right[:, n], n].mean(0)
        assert result.soft_labels is not None
        assert torch.allclose(result.soft_labels[n], wanted, atol=1e-5)


# --- activation maps


class Small(nn.Module):
    """Two maps of 3 x 4 positions, then pooling, ReLU and two linear layers; `curved` squares the maps first."""

    def __init__(self, curved: bool = False) -> None:
        super().__init__()
        self.first, self.rectified = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True)
        self.hidden, self.last, self.curved = nn.Linear(24, 6), nn.Linear(6, 3), curved

    def forward(self, x: Tensor) -> Tensor:
        maps = self.rectified(self.first(x))
        return self.last(F.relu(self.hidden((maps**2 if self.curved else maps).flatten(1))))


def small(curved: bool = False) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Small(curved).double().eval().requires_grad_(False)


def scaled(maps: Tensor) -> Tensor:
    low = maps.amin((1, 2), keepdim=True)
    return (maps - low) / (maps.amax((1, 2), keepdim=True) - low)


def reference_grad_cam(network: Small, image: Tensor, c: int) -> Tensor:
    """Grad-CAM++ of one image by autograd's first three derivatives of exp(score), position by position."""
    maps = F.relu(network.first(image[None]))[0]

    def tail(maps: Tensor) -> Tensor:
        return network.last(F.relu(network.hidden(maps.flatten()[None])))[0, c].exp()

    result = torch.zeros_like(maps[0])
    for k in range(2):
        weight = torch.zeros((), dtype=torch.float64)
        for i in range(3):
            for j in range(4):
                value = maps[k, i, j].clone().requires_grad_()
                changed = maps.clone()
                changed[k, i, j] = value
                (d1,) = torch.autograd.grad(tail(changed), value, create_graph=True)
                (d2,) = torch.autograd.grad(d1, value, create_graph=True)
                (d3,) = torch.autograd.grad(d2, value)
                alpha = d2 / (2 * d2 + maps[k].sum() * d3) if d2 > 0 else 0.0
                weight = weight + alpha * d1.detach().clamp_min(0)
        result = result + weight.detach() * maps[k]
    return result.clamp_min(0)


def test_one_copy_without_noise_is_grad_cam_plus_plus() -> None:
    network, images = small(), torch.randn(5, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    classes = torch.tensor([0, 1, 2, 0, 1])
    layer = cam.last_maps(network, images)
    assert layer is network.rectified
    found = cam.smooth_grad_cam(network, layer, images, classes, 1, 0.0, torch.Generator())
    expected = scaled(
        torch.stack([reference_grad_cam(network, x, int(c)) for x, c in zip(images, classes, strict=True)])
    )
    assert expected.std() > 0.1
    assert found.shape == (5, 1, 3, 4)
    assert torch.allclose(found[:, 0], expected, atol=1e-10)


def test_noise_averages_the_powers_of_the_derivatives() -> None:
    """Against loops over the copies; behind squares the derivatives change with the noise."""
    network, images = (
        small(True),
        torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6)),
    )
    found = cam.smooth_grad_cam(
        network, network.rectified, images, torch.tensor([2, 0]), 3, 0.2, seeded := torch.Generator()
    )
    assert seeded is not None
    generator = torch.Generator()
    noise = [torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=generator) for _ in range(3)]
    expected = []
    for n, c in enumerate((2, 0)):
        maps, powers = F.relu(network.first(images[n : n + 1]))[0], torch.zeros(3, 2, 3, 4, dtype=torch.float64)
        for copy in noise:
            noisy = F.relu(network.first((images[n] + 0.2 * copy[n])[None])).requires_grad_()
            score = network.last(F.relu(network.hidden((noisy**2).flatten(1))))[0, c]
            (g,) = torch.autograd.grad(score, noisy)
            powers += torch.stack([g[0], g[0] ** 2, g[0] ** 3]) / 3
        result = torch.zeros(3, 4, dtype=torch.float64)
        for k in range(2):
            weight = 0.0
            for i in range(3):
                for j in range(4):
                    d1, d2, d3 = powers[:, k, i, j].tolist()
                    below = 2 * d2 + d3 * float(maps[k].sum())
                    weight += d2 / below * max(d1, 0.0) if below > 0 else 0.0
            result += weight * maps[k]
        expected.append(result)
    assert torch.allclose(found[:, 0], scaled(torch.stack(expected)), atol=1e-10)
    other = cam.smooth_grad_cam(network, network.rectified, images, torch.tensor([2, 0]), 1, 0.0, torch.Generator())
    assert (found - other).abs().max() > 1e-3


def test_maps_are_enlarged_and_leave_the_network_as_it_was() -> None:
    network = create("convnet", 3, 3, 16, width=8, depth=2).eval().requires_grad_(False)
    images = torch.randn(cam.CHUNK + 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    guessed = network(images).argmax(1)
    layer = cam.last_maps(network, images)
    maps = cam.smooth_grad_cam(network, layer, images, None, 2, 0.3, torch.Generator())
    assert maps.shape == (len(images), 1, 16, 16)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert torch.equal(maps, cam.smooth_grad_cam(network, layer, images, guessed, 2, 0.3, torch.Generator()))
    assert not torch.equal(
        maps, cam.smooth_grad_cam(network, layer, images, (guessed + 1) % 3, 2, 0.3, torch.Generator())
    )
    assert not any(module._forward_hooks for module in network.modules())


def test_a_map_without_contrast_is_zero_and_maps_need_positions() -> None:
    network = small()
    network.first.bias.fill_(-100.0)
    images = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    assert cam.smooth_grad_cam(network, network.rectified, images, None, 1, 0.0, torch.Generator()).abs().max() == 0
    with pytest.raises(ValueError, match="Sequential has no layer with maps at this size"):
        cam.last_maps(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double(), images)


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_the_mask_raises_what_is_discriminative(threshold: float) -> None:
    maps = torch.tensor([[[[0.0, 0.2], [0.6, 1.0]]], [[[0.9, 0.8], [0.75, 0.0]]]])
    found = edf.emphasis(maps, 2.0, threshold)
    for n in range(2):
        least = threshold or float(maps[n].mean())
        for value, factor in zip(maps[n].flatten().tolist(), found[n].flatten().tolist(), strict=True):
            assert factor == pytest.approx(value + 2.0 if value >= least else 1.0)


# --- the whole


def test_updates_follow_sgd_on_masked_gradients(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """With known gradients, one refused iteration and a known mask, torch's own SGD gives the same variables."""
    losses = [0.5, 1.4, 1.6, 0.1, 0.2]
    seen: list[tuple[Tensor, Tensor, float]] = []

    def gradient(network, augment, images, labels, rate, *_):
        seen.append((images.detach().clone(), labels.detach().clone(), float(rate)))
        leaves = (images.detach() * 0.01 + 0.1, labels.detach() * 0.2)
        return SimpleNamespace(loss=torch.tensor(losses[len(seen) - 1]), leaves=leaves, rate=rate * 0.0 + 0.2)

    mask = torch.linspace(0.5, 2, 6 * 16 * 16).view(6, 1, 16, 16)
    monkeypatch.setattr(edf, "student_gradient", gradient)
    monkeypatch.setattr(edf, "emphasis", lambda maps, beta, threshold: mask)
    rates = {"learning_rate": 0.5, "label_rate": 0.3, "rate_rate": 1e-3}
    result = made(data, momentum=0.7, threshold=1.5, **rates)
    images, labels = (nn.Parameter(tensor.clone()) for tensor in seen[0][:2])
    rate, average, total = nn.Parameter(torch.tensor(0.01)), torch.zeros_like(images), 0.0
    optimizers = [torch.optim.SGD([v], r, m) for v, r, m in ((images, 0.5, 0.7), (labels, 0.3, 0.9), (rate, 1e-3, 0.7))]
    for i, loss in enumerate(losses):
        assert torch.allclose(seen[i][0], images, atol=1e-6)
        if loss <= 1.5:
            images.grad, labels.grad = (images.detach() * 0.01 + 0.1) * mask, labels.detach() * 0.2
            rate.grad = torch.tensor(0.2)
            for optimizer in optimizers:
                optimizer.step()
            average, total = 0.9 * average + images.detach(), 0.9 * total + 1
    assert torch.allclose(result.images, average / total, atol=1e-5)
    assert result.soft_labels is not None
    assert torch.allclose(result.soft_labels, labels, atol=1e-5)
    assert result.steps[0].parameters["syn_lr"] == pytest.approx(rate.item())
    assert result.steps[0].parameters["accepted"] == 4


def test_sets_keep_their_promises_and_repeat(data: Prepared, whole: DistilledSet) -> None:
    first, again, other = whole, made(data), made(data, seed=2)
    assert first.digest() == again.digest()
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (6, 3, 16, 16)
    assert first.hard_labels().tolist() == [0, 0, 1, 1, 2, 2]
    assert first.soft_labels is not None
    assert first.soft_labels.shape == (6, 3)
    (step,) = first.steps
    assert (step.method, step.seed, step.code) == ("edf", 1, "abc")
    assert step.parameters["attention"] == "experts"


@pytest.mark.parametrize(
    "off",
    [
        {"dropped": 0.0},
        {"attention": "none"},
        {"beta": 0.0},
        {"act_threshold": 0.9},
        {"interval": 100},
        {"label_rate": 0.0},
        {"first_max_start": 4},
        {"ema_decay": 0.0},
        {"rate_rate": 0.0},
        {"threshold": 0.935},
        {"gradient": "truncated"},
        {"batch_syn": 3},
        {"augmentation": "none"},
    ],
    ids=lambda off: next(iter(off)),
)
def test_each_idea_changes_the_images(data: Prepared, whole: DistilledSet, off: dict[str, Any]) -> None:
    assert not torch.equal(whole.images, made(data, **off).images)


def test_matching_improves(data: Prepared) -> None:
    losses: list[float] = []
    config = EDFConfig(**TINY | {"iterations": 45, "first_max_start": 4})
    distill_edf(data, 2, config, progress=lambda done, total, note: losses.append(float(note.split()[1])))
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])


@pytest.mark.parametrize("stop", [1, 4])
def test_a_killed_run_resumes_to_the_same_bytes(
    data: Prepared, whole: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    real, calls = edf.student_gradient, 0

    def dying(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(edf, "student_gradient", dying)
    with pytest.raises(KeyboardInterrupt):
        made(data, tmp_path / "killed")
    monkeypatch.setattr(edf, "student_gradient", real)
    again = made(data, tmp_path / "killed")
    whole.write(tmp_path / "a")
    again.write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_white_experts_from_a_folder(data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images start as real ones, are learned as white ones, and come out as what those are of."""
    monkeypatch.setattr(edf.Experts, "open", open_folder)
    settings = ExpertsConfig(width=8, depth=2, count=2, epochs=6, learning_rate=0.1, batch=20, zca=True)
    train_experts(data, settings, tmp_path, progress=quiet)
    still = {"learning_rate": 1e-12, "label_rate": 0.0, "rate_rate": 0.0, "iterations": 1}
    start, result = made(data, experts=str(tmp_path), **still), made(data, experts=str(tmp_path))
    real = data.standardised(data.train_images)
    distance = (start.images[:, None] - real).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-3
    assert torch.equal(data.train_labels[distance.argmin(1)], start.hard_labels())
    opened = Experts.open(tmp_path)
    assert opened.zca is not None
    white = opened.zca.whiten(data.train_images[distance.argmin(1)].float() / 255)
    right = [opened.network(opened.weights(e, 6), white).argmax(1) == start.hard_labels() for e in range(2)]
    assert torch.stack(right).any(0).all()
    assert (result.images - start.images).abs().max() > 1e-2
    assert result.steps[0].parameters["experts"] == opened.record()
    assert not torch.equal(result.images, made(data, experts=str(tmp_path), attention="none").images)


# --- networks of the maps


def test_maps_of_the_experts_are_of_the_last_epoch_and_the_images_classes(data: Prepared, experts: InMemory) -> None:
    maps, described = edf.attention_maps(EDFConfig(**TINY), data, 2, experts, torch.Generator().manual_seed(4))
    images = data.standardised(data.train_images[:6])
    network = experts.network.module(experts.weights(0, EPOCHS)).eval().requires_grad_(False)
    classes, generator = torch.tensor([0, 0, 1, 1, 2, 2]), torch.Generator().manual_seed(4)
    assert described == "experts"
    assert maps is not None
    assert torch.equal(maps(images), cam.smooth_grad_cam(network, network.features, images, classes, 4, 0.3, generator))


def trained(data: Prepared, classes: tuple[str, ...]) -> Trained:
    network = create("resnet", 3, 3, 16, width=4, blocks=1).eval().requires_grad_(False)
    return Trained(network, "resnet", {"width": 4, "blocks": 1}, classes, 3, 16, data.dataset, (0.5,) * 3, (0.25,) * 3)


def test_maps_of_a_trained_network(data: Prepared, whole: DistilledSet, tmp_path: Path) -> None:
    path, foreign = tmp_path / "teacher.safetensors", tmp_path / "foreign.safetensors"
    write_trained(path, trained(data, data.classes))
    write_trained(foreign, trained(data, ("a", "b", "d")))
    result = made(data, attention=str(path))
    assert not torch.equal(result.images, whole.images)
    described = result.steps[0].parameters["attention"]
    assert described["network"] == "resnet"
    assert len(described["sha256"]) == 64
    with pytest.raises(WeightsError, match="its classes are not those of tinted"):
        made(data, attention=str(foreign))


def test_maps_of_imagenet(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked = []

    def untrained(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return create("resnet", 1000, 3, 16, width=4, blocks=1)

    monkeypatch.setattr(timm, "create_model", untrained)
    result = made(data, attention="imagenet")
    assert asked == [("resnet18.tv_in1k", True)]
    assert result.steps[0].parameters["attention"] == "imagenet"
    assert edf._imagenet_classes(("n01440764", "n02102040")) == [0, 217]
    assert edf._imagenet_classes(("n01440764", "b")) is None

    def unreachable(*given: Any, **named: Any) -> nn.Module:
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(WeightsError, match=r"resnet18.tv_in1k .* copy the cache \(HF_HOME\), or choose attention 'exp"):
        made(data, attention="imagenet")
    grey = replace(data, train_images=data.train_images[:, :1], mean=(0.4,), std=(0.25,))
    with pytest.raises(WeightsError, match="takes images of 3 channels, not 1; choose 'experts'"):
        edf.attention_maps(EDFConfig(attention="imagenet"), grey, 2, edf.Experts.open(""), torch.Generator())


# --- bad input


def test_refusals_name_the_values(data: Prepared) -> None:
    with pytest.raises(ExpertsError, match="edf: experts here have 6 epochs, and max_start and expert_epochs need 7; "):
        made(data, max_start=6)
    with pytest.raises(ExpertsError, match="edf: experts here were trained on other content"):
        made(replace(data, train_labels=data.train_labels.flip(0)))
    with pytest.raises(ValueError, match="'teacher' stands for the study's teacher"):
        made(data, attention="teacher")
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors"):
        made(data, attention="nowhere.safetensors")
    with pytest.raises(ValueError, match=r"each of 5 losses was above threshold 1e-06, so nothing was learned"):
        made(data, threshold=1e-6)
    with pytest.raises(
        ValidationError, match="min_start = 3, first_max_start = 3, max_start = 4 make no growing window"
    ):
        EDFConfig(min_start=3, first_max_start=3, max_start=4)
    with pytest.raises(ValidationError, match="first_max_start = 10, max_start = 4"):
        EDFConfig(max_start=4)
    with pytest.raises(FloatingPointError, match="edf: loss is"):
        made(data, syn_rate=1e30)


def test_a_step_size_below_zero_ends_the_run(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def steep(network, augment, images, labels, *_):
        leaves = (torch.zeros_like(images), torch.zeros_like(labels))
        return SimpleNamespace(loss=torch.tensor(0.5), leaves=leaves, rate=torch.tensor(6.0))

    monkeypatch.setattr(edf, "student_gradient", steep)
    with pytest.raises(FloatingPointError, match=r"edf: step size is -0.005 at iteration 1; lower rate_rate"):
        made(data)


def test_parts_of_a_dataset_take_its_published_settings() -> None:
    for dataset in ("imagewoof", "imagesquawk", "imagefruit"):
        for ipc in (1, 10, 50):
            assert published("edf", f"{dataset}-held-out", ipc) == published("edf", dataset, ipc)
    assert published("edf", "imagewoof-slice", 10)["batch_syn"] == 250


def test_published_settings_are_those_of_each_subset() -> None:
    """As EDF's files have them."""
    keys = ("learning_rate", "label_rate", "syn_steps", "batch_syn", "threshold", "dropped", "interval", "ema_decay")
    for dataset, ipc, growth, *wanted in [
        ("imagenette", 1, 1000, 1e4, 2, 40, 1000, 1.5, 0, 50, 0.999),
        ("imagemeow", 1, 1000, 1e4, 3, 40, 1000, 2.0, 0, 50, 0.999),
        ("imagemeow", 10, 1000, 1e3, 2, 40, 250, 2.0, 0.25, 100, 0.9995),
        ("imagemeow", 50, 2000, 100, 5, 80, 128, 1.1, 0.375, 100, 0.999),
        ("imagesquawk", 10, 1000, 1e3, 3, 40, 250, 2.0, 0.25, 100, 0.9995),
        ("imagesquawk", 50, 1000, 100, 5, 80, 128, 1.1, 0.5, 100, 0.9995),
        ("imagewoof", 50, 2000, 100, 5, 40, 250, 1.5, 0.375, 200, 0.999),
        ("imageyellow", 50, 1000, 100, 5, 40, 200, 1.5, 0.375, 200, 0.9995),
        ("imagefruit", 50, 1000, 100, 5, 80, 128, 1.1, 0.375, 100, 0.9995),
        ("cifar10", 1, 1000, 1e4, 5, 40, 1000, 1.5, 0, 100, 0.995),
        ("tinyimagenet", 1, 2000, 1e4, 10, 40, 1000, 1.0, 0, 100, 0.9995),
    ]:
        config = EDFConfig(**published("edf", dataset, ipc))
        assert [getattr(config, key) for key in keys] == wanted and config.expansion_end == growth, (dataset, ipc)
        assert config.attention == ("imagenet" if dataset.startswith("image") else "none")
    assert EDFConfig(**published("edf", "imagesquawk", 50)).syn_rate == 0.005
    assert EDFConfig(**published("edf", "cifar10", 1)).first_max_start == 4
    depths = {name: published_experts("edf-zca", name)["depth"] for name in ("cifar10", "cifar100", "tinyimagenet")}
    assert depths == {"cifar10": 5, "cifar100": 3, "tinyimagenet": 4}
    assert published_experts("edf", "imagewoof")["depth"] == 5
    assert all(published_experts(name, "cifar10")["adaptive"] for name in ("edf", "edf-zca"))
    with pytest.raises(ValueError, match="no published settings for IPC 10"):
        published("edf", "tinyimagenet", 10)
