"""MTT: the flat network, gradients through training and updates against their equations; resuming; white images."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tinted import quiet, tinted
from torch import Tensor
from torch.nn import functional as F

from diver import graphs
from diver.config.distill import ExpertsConfig, MTTConfig
from diver.data.prepared import Prepared
from diver.distill import blocks, loop, trajectory
from diver.distill.experts import Experts, ExpertsError, train_experts
from diver.distill.flat import FlatNetwork, Passed
from diver.distill.mtt import distill_mtt, matching_loss
from diver.distill.recorded import RecordedTrajectory, at_once, recorded_trajectory
from diver.distill.trajectory import Slope, Training, Trajectory, augmented, draw_steps, parts, trajectory_gradient
from diver.networks import create
from diver.networks.augment import DSA
from diver.sets import DistilledSet

MODES = ("adjoint", "unrolled", "truncated")
TINY: dict[str, Any] = {
    "iterations": 4,
    "syn_steps": 3,
    "expert_epochs": 2,
    "max_start": 3,
    "learning_rate": 20.0,
    "syn_rate": 0.1,
    "rate_rate": 1e-3,
}


@pytest.fixture(scope="module")
def data() -> Prepared:
    return tinted(size=8)


def expert_folder(data: Prepared, folder: Path, **settings: Any) -> Path:
    tiny = {"count": 3, "epochs": 4, "batch": 16, "learning_rate": 0.1, "width": 6, "depth": 2}
    return train_experts(data, ExpertsConfig(**tiny | settings), folder, progress=quiet).parent


@pytest.fixture(scope="module")
def folder(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return expert_folder(data, tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def white_folder(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return expert_folder(data, tmp_path_factory.mktemp("white"), zca=True)


def made(data: Prepared, experts: Path, run: Path | None = None, ipc: int = 2, **settings: Any) -> DistilledSet:
    return distill_mtt(data, ipc, MTTConfig(**TINY | {"experts": str(experts)} | settings), "abc", quiet, run)


def double(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


# --- the network


@pytest.fixture(params=[(3, 8, 2), (3, 14, 3), (1, 7, 2), (6, 8, 1)], ids=str)
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FlatNetwork:
    """Colour, odd sizes, grey, more channels than an image has; with slices of two images or fewer."""
    channels, size, depth = request.param
    monkeypatch.setattr("diver.distill.blocks.CACHED", 2 * size * size * 5)
    return FlatNetwork(4, channels, size, width=5, depth=depth)


def point(network: FlatNetwork) -> Tensor:
    """Parameters whose scales and shifts are not the ones and zeros that they start as."""
    return network.initial(3).double() + 0.1 * double(network.size, seed=4)


def images_for(network: FlatNetwork, count: int = 5) -> Tensor:
    options = network.options
    return double(count, options["channels"], options["size"], options["size"], seed=5)


def test_the_flat_network_is_the_convnet(network: FlatNetwork) -> None:
    flat, images = point(network).requires_grad_(), images_for(network).requires_grad_()
    module = network.module(flat)
    assert [p.numel() for p in module.parameters()] == [p.numel() for p in network.parts(flat)]
    expected, weights = module(images), double(5, 4, seed=6)
    logits = network(flat, images)
    assert torch.allclose(logits, expected, atol=1e-12)
    of_flat, of_images = torch.autograd.grad((logits * weights).sum(), [flat, images])
    wanted = torch.autograd.grad((expected * weights).sum(), [*module.parameters(), images])
    assert torch.allclose(of_flat, torch.cat([g.flatten() for g in wanted[:-1]]), atol=1e-12)
    assert torch.allclose(of_images, wanted[-1], atol=1e-12)


def test_fresh_parameters_are_a_fresh_networks(network: FlatNetwork) -> None:
    torch.manual_seed(7)
    fresh = create("convnet", **network.options)
    before = torch.get_rng_state()
    assert torch.equal(network.initial(7), torch.cat([p.detach().flatten() for p in fresh.parameters()]))
    assert torch.equal(torch.get_rng_state(), before)
    assert network.size == sum(p.numel() for p in fresh.parameters())


def check_passes(network: FlatNetwork) -> None:
    flat, images = point(network).requires_grad_(), images_for(network).requires_grad_()
    targets, direction = double(5, 4, seed=7).exp().requires_grad_(), double(network.size, seed=8)
    loss = -(targets * network(flat, images).log_softmax(1)).sum(1).mean() * 0.7
    (gradient,) = torch.autograd.grad(loss, flat, create_graph=True)
    slope = gradient @ direction
    wanted = torch.autograd.grad(slope, [images, targets, flat])
    passed = network.passed(flat, images, targets, 0.7)
    found = network.curvature(flat, direction, passed, targets, onward=True)
    assert found.parameters is not None
    pairs = [(passed.loss, loss), (network.gradient(passed), gradient), (found.slope, slope)]
    pairs += zip((found.images, found.targets, found.parameters), wanted, strict=True)
    for ours, theirs in pairs:
        assert relative(ours, theirs) < 1e-11
        assert not ours.requires_grad
    fewer = network.curvature(flat, direction, passed, targets, onward=False)
    assert fewer.parameters is None
    assert torch.equal(fewer.images, found.images)


def test_passes_against_differentiating_twice(network: FlatNetwork) -> None:
    """Loss, gradient, its slope in a direction and that slope's gradients, of soft labels that do not add up to one."""
    check_passes(network)


def test_fused_passes_against_differentiating_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVER_COMPILE", "1")
    fused = {body: graphs.compiled(body, torch.device("cpu"), on_cpu=True) for body in blocks.BODIES}
    if any(body is made for body, made in fused.items()):
        pytest.skip("no C compiler: fused passes are not tested")
    monkeypatch.setattr(blocks, "_fused", lambda body, device: fused[body])
    check_passes(FlatNetwork(4, 1, 7, width=5, depth=2))


def test_products_in_bf16_are_near_those_in_float32(network: FlatNetwork) -> None:
    """Each direction's slope and gradients, which are float32 either way, and are not the same."""
    flat, images, direction = point(network).float(), images_for(network).float(), double(network.size, seed=8).float()
    targets, found = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])], []
    for precision in ("fp32", "bf16"):
        rounded = network.with_precision(precision)  # type: ignore[arg-type]
        passed = rounded.passed(flat, images, targets)
        curvature = rounded.curvature(flat, direction, passed, targets, onward=True)
        assert curvature.parameters is not None
        found.append([rounded(flat, images), rounded.gradient(passed), curvature.images, curvature.parameters])
    for exact, half in zip(*found, strict=True):
        assert half.dtype == torch.float32
        assert 1e-5 < relative(half, exact) < 0.3


# --- the gradient through training


def curved(theta: Tensor, leaf: Tensor, step: int) -> Tensor:
    return ((theta * leaf).sin().sum() + (step + 1) * (theta * theta.roll(1)).tanh() @ leaf.cos()) / 3


class Gradient:
    """What a step of `Curved` leaves: theta and the loss's gradient, which can be differentiated."""

    def __init__(self, theta: Tensor, loss: Tensor) -> None:
        self.theta = theta
        (self.value,) = torch.autograd.grad(loss, theta, create_graph=True)

    def bytes(self) -> int:
        return 1


class Curved:
    """Two losses added, differentiated by torch; with the leaves to be given."""

    def __init__(self, leaves: list[Tensor]) -> None:
        self.leaves = leaves

    def parts(self, theta: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return curved(theta, self.leaves[0], step), (theta * self.leaves[1]).square().sum() / 2

    def loss(self, theta: Tensor, step: int) -> Tensor:
        return sum(self.parts(theta, step), torch.zeros(()))

    def passed(self, theta: Tensor, step: int) -> Iterator[Gradient]:
        for number in range(2):
            at = theta.detach().requires_grad_()
            yield Gradient(at, self.parts(at, step)[number])

    def gradient(self, left: Gradient) -> Tensor:
        return left.value.detach()

    def slope(self, theta: Tensor, direction: Tensor, left: Gradient, leaves: Any, onward: bool) -> Slope:
        value = left.value @ direction
        *of_leaves, of_theta = torch.autograd.grad(value, [*leaves, left.theta], materialize_grads=True)
        return Slope(value.detach(), of_leaves, of_theta if onward else None)


@pytest.fixture
def problem() -> Callable[..., Trajectory]:
    """Seven parameters and two leaves; with the leaves and the step size to be given."""
    start, target = double(7, seed=1), double(7, seed=2)

    def solve(leaves: list[Tensor], rate: Tensor, mode: Any) -> Trajectory:
        return trajectory_gradient(
            start, Curved(leaves), 4, rate, leaves, lambda end: (end - target).square().sum(), mode
        )

    return solve


def leaves_and_rate() -> tuple[list[Tensor], Tensor]:
    return [double(7, seed=3).requires_grad_(), double(7, seed=4).requires_grad_()], torch.tensor(0.2).double()


@pytest.mark.parametrize("mode", ["adjoint", "unrolled"])
def test_gradients_are_finite_differences(problem: Callable[..., Trajectory], mode: str) -> None:
    leaves, rate = leaves_and_rate()
    found, small = problem(leaves, rate, mode), 1e-6

    def difference(vary: Callable[[float], tuple[list[Tensor], Tensor]]) -> float:
        up, down = (problem(*vary(sign * small), mode).loss for sign in (1, -1))
        return float(up - down) / (2 * small)

    assert found.rate.item() == pytest.approx(difference(lambda h: (leaves, rate + h)), rel=1e-6)
    for number, gradient in enumerate(found.leaves):
        for place in range(7):

            def vary(h: float, number: int = number, place: int = place) -> tuple[list[Tensor], Tensor]:
                moved = [leaf.detach().clone() for leaf in leaves]
                moved[number][place] += h
                return [leaf.requires_grad_() for leaf in moved], rate

            assert gradient[place].item() == pytest.approx(difference(vary), rel=1e-5, abs=1e-8)


def test_adjoint_equals_unrolled_and_truncated_does_not(problem: Callable[..., Trajectory]) -> None:
    adjoint, unrolled, truncated = (problem(*leaves_and_rate(), mode) for mode in MODES)
    for found, wanted in zip((adjoint.rate, *adjoint.leaves), (unrolled.rate, *unrolled.leaves), strict=True):
        assert relative(found, wanted) < 1e-10
    for found, wanted in zip((truncated.rate, *truncated.leaves), (unrolled.rate, *unrolled.leaves), strict=True):
        assert relative(found, wanted) > 1e-2
    assert adjoint.loss == truncated.loss
    assert torch.allclose(adjoint.loss, unrolled.loss, rtol=1e-12)
    assert torch.equal(adjoint.end, truncated.end)
    assert torch.allclose(adjoint.end, unrolled.end, rtol=1e-14)
    assert not any(t.requires_grad for t in (adjoint.loss, adjoint.end, adjoint.rate, *adjoint.leaves))


def test_truncated_is_teslas_formula(problem: Callable[..., Trajectory]) -> None:
    """2 (theta_N - target) times - rate times the sum of how each gradient changes with the leaf, theta_i fixed."""
    (first, second), rate = leaves_and_rate()
    theta, target, points = double(7, seed=1), double(7, seed=2), []
    for step in range(4):
        theta = theta.detach().requires_grad_()
        loss = curved(theta, first, step) + (theta * second).square().sum() / 2
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        points.append(gradient)
        theta = theta - rate * gradient
    error = 2 * (theta.detach() - target)
    wanted = torch.autograd.grad(-rate * (torch.stack(points).sum(0) @ error), [first, second])
    found = problem([first, second], rate, "truncated")
    for ours, theirs in zip(found.leaves, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10)
    assert torch.allclose(found.rate, -torch.stack(points).sum(0).detach() @ error, rtol=1e-10)


def student(
    images: Tensor, labels: Tensor, cached: int, monkeypatch: pytest.MonkeyPatch, steps: int = 3
) -> tuple[FlatNetwork, Training]:
    """A network, and its training on augmented images and soft labels; parts hold as many images as `cached` allows."""
    monkeypatch.setattr(trajectory, "CACHED", cached)
    network, augment = FlatNetwork(3, 3, 8, width=4, depth=2), DSA("color_crop_cutout_flip_scale_rotate")
    drawn = draw_steps(len(images), steps, 5, augment, torch.Generator().manual_seed(2))
    return network, augmented(network, augment, images, lambda mine: labels[mine].softmax(1), drawn)


@pytest.mark.parametrize("cached", [1, 2 * 4 * 64, 1 << 20])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kept", [0, 30_000, 2**31])
def test_a_students_gradients_against_a_plain_loop(
    cached: int, mode: Any, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no pass, some or all are kept for the way back."""
    monkeypatch.setattr(trajectory, "KEPT", kept)
    images, labels = double(7, 3, 8, 8, seed=1).requires_grad_(), double(7, 3, seed=2).requires_grad_()
    network, training = student(images, labels, cached, monkeypatch)
    start, rate = point(network), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    target = start + 0.1 * double(network.size, seed=6)
    found = trajectory_gradient(
        start, training, 3, rate, [images, labels], lambda end: matching_loss(end, start, target), mode
    )
    augment = DSA("color_crop_cutout_flip_scale_rotate")
    module, theta = network.module(start), start.clone().requires_grad_()
    names, after = [name for name, _ in module.named_parameters()], []
    for index, drawn in draw_steps(7, 3, 5, augment, torch.Generator().manual_seed(2)):
        # TESLA leaves out that theta depends on what is learned.
        at = theta.detach().requires_grad_() if mode == "truncated" else theta
        shown, weights = augment.apply(images[index], drawn), dict(zip(names, network.parts(at), strict=True))
        loss = F.cross_entropy(torch.func.functional_call(module, weights, (shown,)), labels[index].softmax(1))
        after.append(torch.autograd.grad(loss, at, create_graph=True)[0])
        theta = theta - rate * after[-1]
    loss = (theta - target).square().sum() / (start - target).square().sum()
    wanted = torch.autograd.grad(loss, [rate, images, labels])
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    for ours, theirs in zip((found.rate, *found.leaves), wanted, strict=True):
        assert relative(ours, theirs) < 1e-10


def most_held(mode: Any, steps: int, cached: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """The most bytes of passes that are there at a time, those of the largest, and how many were made."""
    images, labels = double(7, 3, 8, 8, seed=1).requires_grad_(), double(7, 3, seed=2).requires_grad_()
    network, training = student(images, labels, cached, monkeypatch, steps)
    now, most, largest, made = 0, 0, 0, 0
    original = FlatNetwork.passed

    def let_go(size: int) -> None:
        nonlocal now
        now -= size

    def watched(*arguments: Any) -> Passed:
        nonlocal now, most, largest, made
        passed = original(*arguments)
        weakref.finalize(passed, let_go, passed.bytes())
        now, made = now + passed.bytes(), made + 1
        most, largest = max(most, now), max(largest, passed.bytes())
        return passed

    start, rate = point(network), torch.tensor(0.3, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(FlatNetwork, "passed", watched)
        trajectory_gradient(start, training, steps, rate, [images, labels], lambda end: end.square().sum(), mode)
    gc.collect()
    assert now == 0
    return most, largest, made


@pytest.mark.parametrize(("mode", "cached"), [("adjoint", 1 << 20), ("truncated", 1 << 20), ("adjoint", 1)])
def test_memory_does_not_grow_with_the_steps(mode: Any, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps' images together or one by one: not above the bound, the part that is made and the one before it."""
    most, largest, made = most_held(mode, 16, cached, monkeypatch)
    assert most > 10 * largest
    for bound in (0, 3 * largest):
        with monkeypatch.context() as patch:
            patch.setattr(trajectory, "KEPT", bound)
            held, _, anew = most_held(mode, 16, cached, monkeypatch)
        assert largest <= held <= bound + 2 * largest
        assert 1.5 * made < anew <= 2 * made


def test_passes_show_every_image_once() -> None:
    augment = DSA("crop")
    found = draw_steps(7, 8, 3, augment, torch.Generator().manual_seed(1))
    index = [part for part, _ in found]
    assert [len(part) for part in index] == [1, 3, 3, 1, 3, 3, 1, 3]
    assert sorted(torch.cat(index[:3]).tolist()) == sorted(torch.cat(index[3:6]).tolist()) == list(range(7))
    assert index[0].tolist() + index[1].tolist() != index[3].tolist() + index[4].tolist()
    assert all(len(drawn.values) == len(part) for part, drawn in found)
    assert [len(part) for part, _ in draw_steps(7, 2, None, augment, torch.Generator())] == [7, 7]
    together = parts(torch.arange(10), FlatNetwork(3, 3, 8, width=4, depth=2))
    assert torch.equal(torch.cat(together), torch.arange(10))


def test_an_unknown_mode_is_refused(problem: Callable[..., Trajectory]) -> None:
    with pytest.raises(ValueError, match="gradient 'exact' is not known; choose adjoint, unrolled, truncated"):
        problem(*leaves_and_rate(), "exact")


# --- recorded steps


@pytest.mark.parametrize("mode", ["adjoint", "truncated"])
def test_recorded_steps_give_the_same_gradients(acted_graphs: None, mode: Any) -> None:
    """Of images, labels and step size, for batches of two sizes; the second trajectory replays what the first left."""
    network, augment = FlatNetwork(3, 3, 8, width=4, depth=2), DSA()
    images, labels = double(7, 3, 8, 8, seed=1).requires_grad_(), double(7, 3, seed=2).requires_grad_()
    recorded = recorded_trajectory(network, augment, images, mode)
    assert recorded

    def answers(mine: Tensor) -> Tensor:
        return labels[mine].softmax(1)

    for seed in range(3):
        start, rate = point(network), torch.tensor(0.3 + seed / 10, dtype=torch.float64)
        target = start + 0.1 * double(network.size, seed=seed)
        steps = draw_steps(7, 6 - seed, 5, augment, torch.Generator().manual_seed(seed))
        final, before = partial(matching_loss, start=start, target=target), start.clone()
        found = recorded(images, answers, steps, start, rate, [images, labels], final)
        training = augmented(network, augment, images, answers, steps)
        wanted = trajectory_gradient(start, training, len(steps), rate, [images, labels], final, mode)
        for ours, theirs in zip(
            (found.loss, found.end, found.rate, *found.leaves), (wanted.loss, wanted.end, wanted.rate, *wanted.leaves),
            strict=True,
        ):  # fmt: skip
            assert relative(ours, theirs) < 1e-10
            assert not ours.requires_grad
        assert torch.equal(start, before)
        with torch.no_grad():
            images.sub_(found.leaves[0], alpha=0.1)
    assert sorted(recorded._batches) == [2, 5]


def test_recorded_steps_of_labels_that_are_not_learned(acted_graphs: None) -> None:
    network, images = FlatNetwork(3, 3, 8, width=4, depth=2), double(6, 3, 8, 8, seed=1).requires_grad_()
    augment, hard = DSA("none"), torch.eye(3, dtype=torch.float64).repeat(2, 1)
    steps = draw_steps(6, 3, None, augment, torch.Generator().manual_seed(1))
    start, rate = point(network), torch.tensor(0.3, dtype=torch.float64)
    found = RecordedTrajectory(network, augment, images, "adjoint")(
        images, lambda at: hard[at], steps, start, rate, [images], lambda end: end.square().sum()
    )
    training = augmented(network, augment, images, lambda at: hard[at], steps)
    wanted = trajectory_gradient(start, training, 3, rate, [images], lambda end: end.square().sum())
    assert relative(found.leaves[0], wanted.leaves[0]) < 1e-10
    assert relative(found.rate, wanted.rate) < 1e-10


def test_images_of_all_steps_are_those_of_each() -> None:
    images, augment = double(7, 3, 8, 8, seed=1), DSA()
    steps = draw_steps(7, 12, 3, augment, torch.Generator().manual_seed(3))
    assert len({drawn.family for _, drawn in steps}) > 3
    shown, positions, places = at_once(augment, lambda at: images[at], steps, images.device)
    assert sorted(row for place in places for row in range(place.start, place.stop)) == list(range(len(shown)))
    for (index, drawn), place in zip(steps, places, strict=True):
        assert torch.equal(positions[place], index)
        assert torch.allclose(shown[place], augment.apply(images[index], drawn), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: trajectories on CUDA are not tested")
@pytest.mark.parametrize("mode", ["adjoint", "truncated"])
def test_a_gpu_gives_the_same_gradients(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network, augment, device = FlatNetwork(10, 3, 32, width=32), DSA(), torch.device("cuda")
    cpu = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    hard, start = torch.eye(10).repeat(2, 1), network.initial(3)
    target, recorded, found = start + 0.01 * double(network.size, seed=1).float(), None, []
    for seed in range(2):
        steps = draw_steps(20, 8, 15, augment, torch.Generator().manual_seed(seed))
        for there in (True, False):
            place = device if there else torch.device("cpu")
            images, labels = cpu.to(place).requires_grad_(), hard.to(place)
            first, rate = start.to(place), torch.tensor(0.02, device=place)
            final = partial(matching_loss, start=first, target=target.to(place))
            if there:
                recorded = recorded or recorded_trajectory(network, augment, images, mode)
                assert recorded
                found.append(recorded(images, labels.__getitem__, steps, first, rate, [images], final))
                continue
            training = augmented(network, augment, images, labels.__getitem__, steps)
            wanted = trajectory_gradient(first, training, len(steps), rate, [images], final, mode)
            assert found[-1].loss.item() == pytest.approx(wanted.loss.item(), rel=1e-2)
            assert found[-1].rate.item() == pytest.approx(wanted.rate.item(), rel=5e-2)
            assert relative(found[-1].leaves[0].cpu(), wanted.leaves[0]) < 5e-2
            assert relative(found[-1].end.cpu() - start, wanted.end - start) < 2e-2


# --- the method


def test_the_loss_is_one_before_training_and_zero_at_the_target() -> None:
    start, target = double(9, seed=1), double(9, seed=2)
    assert matching_loss(start, start, target) == 1
    assert matching_loss(target, start, target) == 0
    end = double(9, seed=3)
    expected = sum((e - t) ** 2 for e, t in zip(end.tolist(), target.tolist(), strict=True)) / sum(
        (s - t) ** 2 for s, t in zip(start.tolist(), target.tolist(), strict=True)
    )
    assert matching_loss(end, start, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch", [None, 4])
def test_updates_against_a_plain_loop(
    data: Prepared, folder: Path, batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three iterations in float64 with torch's optimisers, from what the method drew."""
    drawn: list[Any] = []

    def recorded(*arguments: Any) -> Any:
        drawn.append(draw_steps(*arguments))
        return drawn[-1]

    monkeypatch.setattr("diver.distill.mtt.draw_steps", recorded)
    chosen: list[tuple[int, int]] = []
    read = Experts.weights

    def weights(experts: Experts, expert: int, epoch: int) -> Tensor:
        chosen.append((expert, epoch))
        return read(experts, expert, epoch)

    monkeypatch.setattr(Experts, "weights", weights)
    settings = {"iterations": 3, "batch_syn": batch, "momentum": 0.6}
    found = made(data, folder, **settings)
    monkeypatch.undo()
    experts, augment = Experts.open(folder), DSA(MTTConfig().augmentation)
    first = made(data, folder, **settings | {"iterations": 1, "learning_rate": 1e-12}).images
    images, rate = (torch.nn.Parameter(t) for t in (first.double(), torch.tensor(0.1, dtype=torch.float64)))
    optimizer = torch.optim.SGD([{"params": [images], "lr": 20.0}, {"params": [rate], "lr": 1e-3}], 20.0, 0.6)
    labels = torch.arange(3).repeat_interleave(2)
    for steps, (expert, epoch), (same, later) in zip(drawn, chosen[::2], chosen[1::2], strict=True):
        assert (same, later) == (expert, epoch + 2)
        assert 0 <= epoch < 3
        start, target = (experts.weights(expert, e).double() for e in (epoch, later))
        theta = start.requires_grad_()
        for index, augmentation in steps:
            shown = augment.apply(images[index], augmentation)
            loss = F.cross_entropy(experts.network(theta, shown), labels[index])
            theta = theta - rate * torch.autograd.grad(loss, theta, create_graph=True)[0]
        optimizer.zero_grad()
        ((theta - target).square().sum() / (start - target).square().sum()).backward()
        optimizer.step()
    assert len(drawn) == 3
    moved = images.detach() - first
    assert relative(found.images - first, moved) < 1e-4
    step = found.steps[0].parameters
    assert step["syn_lr"] - 0.1 == pytest.approx(rate.item() - 0.1, rel=1e-3)
    assert step["syn_lr"] != pytest.approx(0.1, rel=1e-6)


def test_the_set_keeps_its_promises_and_repeats(data: Prepared, folder: Path) -> None:
    first, again, other = (made(data, folder, seed=seed) for seed in (1, 1, 2))
    assert first.digest() == again.digest()
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (6, 3, 8, 8)
    assert first.labels is not None
    assert first.labels.tolist() == [0, 0, 1, 1, 2, 2]
    (step,) = first.steps
    assert (step.method, step.seed, step.code) == ("mtt", 1, "abc")
    assert step.parameters["zca"] is None
    assert step.parameters["experts"] == Experts.open(folder).record()
    assert str(folder) not in str(step.parameters)


def test_modes(data: Prepared, folder: Path) -> None:
    adjoint, unrolled, truncated = (made(data, folder, gradient=mode).images for mode in MODES)
    start = made(data, folder, learning_rate=1e-12).images
    assert relative(unrolled - start, adjoint - start) < 1e-3
    assert relative(truncated - start, adjoint - start) > 1e-2


@pytest.mark.parametrize(("mode", "batch"), [("adjoint", 4), ("truncated", None), ("unrolled", 4)])
def test_runs_of_recorded_steps(
    data: Prepared, folder: Path, request: pytest.FixtureRequest, mode: str, batch: int | None
) -> None:
    settings = {"gradient": mode, "batch_syn": batch}
    start, found = made(data, folder, learning_rate=1e-12, **settings), made(data, folder, **settings)
    request.getfixturevalue("acted_graphs")
    again = made(data, folder, **settings)
    assert relative(again.images - start.images, found.images - start.images) < 1e-3
    rates = [one.steps[0].parameters["syn_lr"] for one in (again, found)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-5)


def test_students_come_closer_to_the_experts(data: Prepared, folder: Path) -> None:
    losses: list[float] = []
    config = MTTConfig(**TINY | {"experts": str(folder), "iterations": 60, "augmentation": "none", "max_start": 1})
    distill_mtt(data, 2, config, progress=lambda done, total, note: losses.append(float(note.split()[1])))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_fixed_step_size_stays(data: Prepared, folder: Path) -> None:
    found = made(data, folder, rate_rate=0.0)
    assert found.steps[0].parameters["syn_lr"] == pytest.approx(0.1, rel=1e-7)


def test_real_and_noise_starts(data: Prepared, folder: Path) -> None:
    real = made(data, folder, learning_rate=1e-12)
    distance = (real.images[:, None] - data.standardised(data.train_images)).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-6
    assert torch.equal(data.train_labels[distance.argmin(1)], real.labels)
    noise = made(data, folder, learning_rate=1e-12, init="noise")
    assert 0.8 < noise.images.std() < 1.2


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_what_was_stopped_goes_on_to_the_same_bytes(
    data: Prepared,
    folder: Path,
    white_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    white: bool,
    recorded: bool,
) -> None:
    experts = white_folder if white else folder
    if recorded:
        request.getfixturevalue("acted_graphs")
    monkeypatch.setattr(loop, "save_grid", lambda *_: None)
    whole = made(data, experts)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    calls = 0

    def stopped(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return draw_steps(*arguments)

    monkeypatch.setattr("diver.distill.mtt.draw_steps", stopped)
    with pytest.raises(KeyboardInterrupt):
        made(data, experts, tmp_path)
    assert made(data, experts, tmp_path).digest() == whole.digest()
    assert calls == 5


def test_convolutions_in_bf16_move_the_set_a_little(data: Prepared, folder: Path) -> None:
    exact, half, other = (made(data, folder, **of) for of in ({}, {"precision": "bf16"}, {"syn_steps": 2}))
    moved = (half.images - exact.images).norm()
    assert 0 < moved < 0.2 * (other.images - exact.images).norm()
    assert half.steps[0].parameters["precision"] == "bf16"


def test_white_images_are_learned_and_ordinary_ones_returned(
    data: Prepared, white_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = Experts.open(white_folder)
    assert experts.zca is not None
    still = made(data, white_folder, learning_rate=1e-12)
    distance = (still.images[:, None] - data.standardised(data.train_images)).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-4
    assert torch.equal(data.train_labels[distance.argmin(1)], still.labels)
    recorded = still.steps[0].parameters["zca"]
    assert recorded == {"epsilon": 0.1, "sha256": experts.zca.digest()}
    # The students' images are the white ones.
    seen: list[Tensor] = []
    original = FlatNetwork.passed

    def looked(network: FlatNetwork, flat: Tensor, images: Tensor, *others: Any) -> Passed:
        seen.append(images.detach())
        return original(network, flat, images, *others)

    monkeypatch.setattr(FlatNetwork, "passed", looked)
    pictures: list[Tensor] = []
    monkeypatch.setattr(loop, "save_grid", lambda path, images, *_: pictures.append(images))
    found = made(data, white_folder, tmp_path, augmentation="none", iterations=1, learning_rate=50.0)
    white = experts.zca.whiten(still.value_range.to_unit(still.images))
    order = [(seen[0] - image).abs().flatten(1).amax(1).argmin().item() for image in white]
    assert sorted(order) == list(range(6))
    assert torch.allclose(seen[0][order], white, atol=1e-3)
    assert torch.allclose(pictures[0], still.images, atol=1e-4)
    assert torch.equal(pictures[-1], found.images)
    # A step of the white images by minus rate times their gradient is one of the ordinary ones through the inverse.
    moved = experts.zca.whiten(found.value_range.to_unit(found.images)) - white
    assert moved.norm() > 1e-2


# --- bad input


def test_input_that_is_refused(data: Prepared, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpertsError, match="no experts.json in it"):
        made(data, tmp_path)
    with pytest.raises(ExpertsError, match="mtt: experts .* trained on other content"):
        made(replace(data, train_labels=data.train_labels.flip(0)), folder)
    with pytest.raises(ExpertsError, match="have 4 epochs, and max_start and expert_epochs need 5; train longer"):
        made(data, folder, max_start=4)
    with pytest.raises(ValueError, match="class .a. of [a-z]* has 20 training images, and 21 are needed"):
        made(data, folder, ipc=21)
    with pytest.raises(FloatingPointError, match="mtt: step size is -.* at iteration [0-3]; lower rate_rate"):
        made(data, folder, syn_rate=1.0, rate_rate=0.1)
    with pytest.raises(FloatingPointError, match="mtt: loss is .* at iteration"):
        made(data, folder, learning_rate=1e30, rate_rate=0.0)
    with pytest.raises(ValueError, match="augmentation 'blur' is not known"):
        made(data, folder, augmentation="blur")
