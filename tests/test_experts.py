"""Experts: training against torch.optim, GSAM and ZCA against their equations, files, resuming, stacks, bad input."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tinted import quiet, tinted
from torch import Tensor
from torch.nn import functional as F

from diver.config.distill import ExpertsConfig
from diver.data.prepared import Prepared
from diver.data.zca import MOST_VALUES, fit_whitening
from diver.distill import expert_epochs
from diver.distill import experts as module
from diver.distill.expert_epochs import Optimizer, RecordedEpochs, accuracy, train_epoch
from diver.distill.experts import Experts, ExpertsError, expert_path, train_experts
from diver.distill.flat import FlatNetwork
from diver.networks.augment import DSA

TINY: dict[str, Any] = {"count": 2, "epochs": 3, "batch": 16, "learning_rate": 0.1, "width": 8, "depth": 2}


@pytest.fixture(scope="module")
def data() -> Prepared:
    return tinted(tested=9)


def made(data: Prepared, folder: Path, numbers: Sequence[int] | None = None, workers: int = 1, **settings: Any) -> Path:
    return train_experts(data, ExpertsConfig(**TINY | settings), folder, numbers, "abc", quiet, workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(data, tmp_path_factory.mktemp("experts")).parent


# --- training


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.01, "augmentation": "none"}])
def test_training_is_that_of_torch(data: Prepared, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Weights after each epoch equal a plain loop with torch's own network, loss and optimiser."""
    config = ExpertsConfig(**TINY | settings)
    experts = Experts.open(made(data, tmp_path, **settings).parent)
    network = experts.network.module(experts.weights(1, 0))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, config.momentum, weight_decay=config.weight_decay)
    augment = DSA(config.augmentation)
    for epoch in range(3):
        generator = torch.Generator().manual_seed(module._seed(config.seed, 1, epoch))
        for chosen in torch.randperm(60, generator=generator).split(16):
            images = data.standardised(data.train_images[chosen])
            images = augment.apply(images, augment.draw(len(chosen), generator))
            optimizer.zero_grad()
            F.cross_entropy(network(images), data.train_labels[chosen]).backward()
            optimizer.step()
        expected = torch.cat([p.detach().flatten() for p in network.parameters()])
        assert torch.allclose(experts.weights(1, epoch + 1), expected, atol=2e-6)


def test_experts_start_as_fresh_networks_and_learn(whole: Path, data: Prepared) -> None:
    experts = Experts.open(whole)
    first = [p.detach() for p in experts.network.module(experts.weights(0, 0)).parameters()]
    assert [p.std().item() for p in first[2:4]] == [0, 0]  # scale 1, shift 0 of the first normalisation
    assert first[2].mean() == 1
    assert first[0].abs().max() <= 1 / 27**0.5
    assert not torch.equal(experts.weights(0, 0), experts.weights(1, 0))
    images = data.standardised(data.test_images)

    def tested(expert: int, epoch: int) -> float:
        network = experts.network.module(experts.weights(expert, epoch)).eval()
        return (network(images).argmax(1) == data.test_labels).float().mean().item()

    manifest = json.loads((whole / "experts.json").read_text())
    assert [entry["test_accuracy"] for entry in manifest["experts"]] == pytest.approx([tested(0, 3), tested(1, 3)])
    assert min(tested(0, 3), tested(1, 3)) > 0.9


def test_convolutions_in_bf16_move_an_expert_a_little(whole: Path, data: Prepared, tmp_path: Path) -> None:
    exact, half = Experts.open(whole), Experts.open(made(data, tmp_path, precision="bf16").parent)
    first = exact.weights(0, 0)
    assert torch.equal(half.weights(0, 0), first)
    assert 0 < (half.weights(0, 3) - exact.weights(0, 3)).norm() < 0.1 * (exact.weights(0, 3) - first).norm()
    assert half.record()["test_accuracy"] > 0.9


def plain_gsam(theta: Tensor, gradient: Any, rate: float, rho: float, alpha: float, adaptive: bool = False) -> Tensor:
    g = gradient(theta)
    move = theta**2 * g / (theta.abs() * g).norm() if adaptive else g / g.norm()
    worse = gradient(theta + rho * move)
    unit = worse / worse.norm()
    orthogonal = g - (g @ unit) * unit
    return theta - rate * (worse - alpha * orthogonal)


@pytest.mark.parametrize("adaptive", [False, True])
def test_gsam_against_its_equations(adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(7, 7, dtype=torch.float64, generator=generator)
    start = torch.randn(2, 7, dtype=torch.float64, generator=generator)

    def gradient(theta: Tensor) -> Tensor:
        return (theta.sin() @ matrix).cos()

    config = ExpertsConfig(optimizer="gsam", learning_rate=0.2, rho=0.5, alpha=0.3, adaptive=adaptive)
    weights = start.clone()
    optimizer = Optimizer(config, torch.zeros_like(weights))
    for _ in range(4):
        optimizer.step(weights, gradient)
    for row, theta in zip(weights, start, strict=True):
        for _ in range(4):
            theta = plain_gsam(theta, lambda at: gradient(at[None])[0], 0.2, 0.5, 0.3, adaptive)
        assert torch.allclose(row, theta, rtol=1e-10)


def test_gsam_experts_against_the_equations_on_the_network(data: Prepared, tmp_path: Path) -> None:
    settings = {"optimizer": "gsam", "epochs": 1, "count": 1, "rho": 0.3, "augmentation": "none", "batch": 30}
    experts = Experts.open(made(data, tmp_path, **settings).parent)
    plain = Experts.open(made(data, tmp_path / "sgd", **settings | {"optimizer": "sgd"}).parent)
    theta = experts.weights(0, 0).double()
    generator = torch.Generator().manual_seed(module._seed(1, 0, 0))
    for chosen in torch.randperm(60, generator=generator).split(30):
        images, labels = data.standardised(data.train_images[chosen]).double(), data.train_labels[chosen]

        def gradient(at: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            at = at.detach().requires_grad_()
            return torch.autograd.grad(F.cross_entropy(experts.network(at, images), labels), at)[0]

        theta = plain_gsam(theta, gradient, 0.1, 0.3, 0.3)
    found = experts.weights(0, 1).double()
    assert (found - theta).norm() < 1e-5 * (theta - experts.weights(0, 0)).norm()
    assert (found - plain.weights(0, 1)).norm() > 1e-2 * (theta - experts.weights(0, 0)).norm()


@pytest.mark.parametrize("optimizer", ["sgd", "gsam"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_stack_equals_separate_training(data: Prepared, optimizer: str, dtype: torch.dtype, tolerance: float) -> None:
    config = ExpertsConfig(**TINY | {"optimizer": optimizer, "momentum": 0.9})
    network = FlatNetwork(3, 3, 16, 8, 2)
    images = data.standardised(data.train_images).to(dtype)
    first = torch.stack([network.initial(seed) for seed in range(3)]).to(dtype)

    def trained(members: Sequence[int]) -> Tensor:
        weights = first[list(members)].clone()
        state = Optimizer(config, torch.zeros_like(weights))
        generators = [torch.Generator().manual_seed(10 + seed) for seed in members]
        for _ in range(2):
            train_epoch(network, state, weights, lambda at: images[at], data.train_labels, generators)
        return weights

    together, alone = trained(range(3)), torch.cat([trained([number]) for number in range(3)])
    assert ((together - alone).norm(dim=1) <= tolerance * (alone - first).norm(dim=1)).all()


@pytest.mark.parametrize("optimizer", ["sgd", "gsam"])
@pytest.mark.parametrize("together", [1, 3 * 2 * 16 * 3 * 256 * 8, 2**30])
def test_recorded_steps_train_the_same_experts(
    data: Prepared, optimizer: str, together: int, acted_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs with a smaller last batch; images of one, two and all steps at a time; with others and alone."""
    monkeypatch.setattr(expert_epochs, "TOGETHER", together)
    config = ExpertsConfig(**TINY | {"optimizer": optimizer, "momentum": 0.9, "weight_decay": 0.01})
    network, images = FlatNetwork(3, 3, 16, 8, 2), data.standardised(data.train_images).double()
    first = torch.stack([network.initial(seed) for seed in range(3)]).double()

    def trained(members: Sequence[int], recorded: bool) -> Tensor:
        weights = first[list(members)].clone()
        state = Optimizer(config, torch.zeros_like(weights))
        given = network, state, weights, lambda at: images[at], data.train_labels
        epoch = RecordedEpochs(*given) if recorded else partial(train_epoch, *given)
        for number in range(2):
            epoch([torch.Generator().manual_seed(10 * number + seed) for seed in members])
        return torch.cat([weights, state.velocity])

    wanted = trained(range(3), False)
    assert ((trained(range(3), True) - wanted).norm(dim=1) <= 1e-10 * wanted.norm(dim=1)).all()
    assert torch.allclose(trained([1], True), wanted[[1, 4]], rtol=1e-9, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: experts on CUDA are not tested")
@pytest.mark.parametrize("optimizer", ["sgd", "gsam"])
def test_a_gpu_trains_the_same_experts(data: Prepared, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = ExpertsConfig(**TINY | {"optimizer": optimizer, "momentum": 0.9})
    network, images, found = FlatNetwork(3, 3, 16, 8, 2), data.standardised(data.train_images), []
    first = torch.stack([network.initial(seed) for seed in range(3)])
    for make, device in ((RecordedEpochs, "cuda"), (partial, "cpu")):
        weights, there = first.to(device, copy=True), images.to(device)
        given = network, Optimizer(config, torch.zeros_like(weights)), weights, there.__getitem__
        epoch = make(*([train_epoch] if make is partial else []), *given, data.train_labels.to(device))
        for number in range(2):
            epoch([torch.Generator().manual_seed(10 * number + seed) for seed in range(3)])
        found.append(weights.cpu() - first)
    assert ((found[0] - found[1]).norm(dim=1) < 0.05 * found[1].norm(dim=1)).all()


def test_a_stack_of_experts_writes_the_same_files(data: Prepared, whole: Path, tmp_path: Path) -> None:
    """What a GPU does with several experts at a time, on this device."""
    config = ExpertsConfig(**TINY)
    settings = config.model_dump(exclude={"count"})
    about = {"dataset": "tinted", "data": data.identity(), "config": settings, "code": "abc"}
    network = FlatNetwork(3, 3, 16, 8, 2)
    task = module._Task(data, config, tmp_path, about, network, None, torch.device("cpu"))
    module._train(task, [0, 1], lambda done: None)
    module._write_manifest(task)
    stacked, alone = Experts.open(tmp_path), Experts.open(whole)
    for expert in range(2):
        assert torch.equal(stacked.weights(expert, 0), alone.weights(expert, 0))
        assert torch.allclose(stacked.weights(expert, 3), alone.weights(expert, 3), atol=1e-5)
    assert module._stacks(replace(task, device=torch.device("cuda")), range(10)) == [list(range(8)), [8, 9]]


# --- files


def test_an_expert_depends_on_seed_and_number_only(data: Prepared, whole: Path, tmp_path: Path) -> None:
    made(data, tmp_path / "side", workers=2)
    made(data, tmp_path / "other", seed=2)
    assert contents(tmp_path / "side") == contents(whole)
    other = Experts.open(tmp_path / "other")
    assert not torch.equal(other.weights(0, 0), Experts.open(whole).weights(0, 0))
    made(data, tmp_path / "second", [1])
    assert contents(tmp_path / "second") == {"001.safetensors": expert_path(whole, 1).read_bytes()}


def test_jobs_share_the_work_and_the_last_writes_the_manifest(data: Prepared, whole: Path, tmp_path: Path) -> None:
    manifest = made(data, tmp_path, [1])
    assert not manifest.exists()
    before = expert_path(tmp_path, 1).stat().st_mtime_ns
    assert made(data, tmp_path, [0]) == manifest
    assert contents(tmp_path) == contents(whole)
    made(data, tmp_path, count=3)
    assert Experts.open(tmp_path).count == 3
    assert expert_path(tmp_path, 1).stat().st_mtime_ns == before


def test_a_manifest_does_not_vouch_for_experts_that_replace_its_own(data: Prepared, tmp_path: Path) -> None:
    """One of two is trained anew with other settings: until the other one is, there are no experts."""
    made(data, tmp_path)
    made(data, tmp_path, [0], learning_rate=0.2)
    with pytest.raises(ExpertsError, match=r"no experts\.json"):
        Experts.open(tmp_path)
    assert Experts.open(made(data, tmp_path, [1], learning_rate=0.2).parent).config.learning_rate == 0.2


def test_experts_of_other_settings_are_not_lost_where_that_is_not_asked(data: Prepared, tmp_path: Path) -> None:
    made(data, tmp_path, numbers=[0])
    before = expert_path(tmp_path, 0).read_bytes()
    other = ExpertsConfig(**TINY | {"epochs": 1})
    with pytest.raises(
        ExpertsError, match=r"000\.safetensors: an expert of other settings or data: take another folder"
    ):
        train_experts(data, other, tmp_path, code="abc", progress=quiet, replace=False)
    assert expert_path(tmp_path, 0).read_bytes() == before
    # More of the same are no others.
    train_experts(data, ExpertsConfig(**TINY), tmp_path, code="abc", progress=quiet, replace=False)
    assert expert_path(tmp_path, 0).read_bytes() == before and len(Experts.open(tmp_path).manifest["experts"]) > 1


def test_other_settings_or_code_are_trained_anew(data: Prepared, tmp_path: Path) -> None:
    made(data, tmp_path, count=1)
    first = contents(tmp_path)
    made(data, tmp_path, count=1, learning_rate=0.2)
    assert contents(tmp_path)["000.safetensors"] != first["000.safetensors"]
    train_experts(data, ExpertsConfig(**TINY | {"count": 1}), tmp_path, code="new", progress=quiet)
    assert json.loads((tmp_path / "experts.json").read_text())["code"] == "new"


def test_stopped_stacks_of_recorded_steps_go_on_to_the_same_bytes(
    data: Prepared, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acted_graphs: None
) -> None:
    settings = {"momentum": 0.9, "optimizer": "gsam"}
    made(data, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(RecordedEpochs, "__call__", stopping(RecordedEpochs.__call__, 2))
        with pytest.raises(KeyboardInterrupt):
            made(data, tmp_path / "cut", **settings)
    epochs: list[int] = []
    train_experts(
        data, ExpertsConfig(**TINY | settings), tmp_path / "cut", code="abc", progress=lambda *n: epochs.append(n[0])
    )
    # Both experts together: of their six epochs two were done.
    assert epochs == [4, 6]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    made(data, tmp_path / "plain")
    recorded, eager = (Experts.open(path).weights(1, 3) for path in (tmp_path / "plain", whole))
    assert torch.allclose(recorded, eager, atol=1e-5)


def stopping(function: Any, call: int) -> Any:
    """The function, but the given call of it is interrupted."""
    calls = 0

    def stopped(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return stopped


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "optimizer": "gsam"}])
@pytest.mark.parametrize("where", ["epoch", "between"])
def test_what_was_stopped_goes_on_to_the_same_bytes(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], where: str
) -> None:
    made(data, tmp_path / "whole", **settings)
    calls, target = 0, "train_epoch" if where == "epoch" else "write_tensors"
    original = getattr(module, target)

    def stopped(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, target, stopped)
    with pytest.raises(KeyboardInterrupt):
        made(data, tmp_path / "cut", **settings)
    assert not expert_path(tmp_path / "cut", 0).exists()
    calls = 10
    epochs = []
    made_with = ExpertsConfig(**TINY | settings)
    train_experts(data, made_with, tmp_path / "cut", code="abc", progress=lambda *n: epochs.append(n[0]))
    # Two of six epochs were done, or one and the second's rows without their record.
    assert len(epochs) == (4 if where == "epoch" else 5)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_resuming_needs_the_same_settings(data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(data, tmp_path / "whole", count=1, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "accuracy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(data, tmp_path / "cut", count=1)
    made(data, tmp_path / "cut", count=1, seed=5)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_only_the_row_asked_for_is_read(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = Experts.open(whole)
    found = experts.weights(1, 2)
    assert found.shape == (experts.network.size,)
    assert found.dtype == torch.float32
    assert (experts.count, experts.epochs, experts.zca) == (2, 3, None)
    assert not torch.equal(found, experts.weights(1, 3))


# --- whitening


def test_whitening_against_its_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (40, 3, 4, 4), generator=generator).to(torch.uint8)
    images[:, :, 1:] = images[:, :, :-1] // 2  # neighbours depend on each other
    found = fit_whitening(images, 0.1)
    values = images.flatten(1).double() / 255
    covariance = torch.zeros(48, 48, dtype=torch.float64)
    for row in values - values.mean(0):
        covariance += torch.outer(row, row) / 39
    # The symmetric matrix that makes the covariance plus epsilon the identity.
    matrix = found.matrix.double()
    regular = covariance + 0.1 * torch.eye(48, dtype=torch.float64)
    assert torch.allclose(matrix @ regular @ matrix, torch.eye(48, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(matrix, matrix.t(), atol=1e-6)
    unit = images.float() / 255
    white = found.whiten(unit)
    assert torch.allclose(white.flatten(1).double(), (values - values.mean(0)) @ matrix, atol=1e-5)
    assert torch.allclose(found.restore(white), unit, atol=1e-5)
    assert torch.equal(found.whiten_all(images), white)


def test_whitening_is_that_of_the_field() -> None:
    kornia = pytest.importorskip("kornia", reason="kornia is not installed; it is part of the test environment")
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (50, 3, 4, 4), generator=generator).to(torch.uint8)
    unit = images.float() / 255
    theirs = kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=True).fit(unit)
    ours = fit_whitening(images, 0.1)
    assert torch.allclose(ours.whiten(unit), theirs(unit), atol=1e-4)
    assert torch.allclose(ours.restore(unit), theirs.inverse_transform(unit), atol=1e-4)


def test_white_experts_see_white_images(data: Prepared, tmp_path: Path) -> None:
    small = replace(data, train_images=data.train_images[:, :, ::4, ::4], test_images=data.test_images[:, :, ::4, ::4])
    settings = {"zca": True, "depth": 1, "count": 1, "augmentation": "none"}
    experts = Experts.open(made(small, tmp_path, **settings).parent)
    expected = fit_whitening(small.train_images, 0.1)
    assert experts.zca is not None
    assert torch.equal(experts.zca.matrix, expected.matrix)
    white = expected.whiten(small.test_images.float() / 255)
    tested = accuracy(experts.network, experts.weights(0, 3), lambda at: white[at], small.test_labels)
    assert experts.record()["test_accuracy"] == pytest.approx(tested, abs=1e-6)
    once = Experts.open(made(small, tmp_path / "once", **settings | {"epochs": 1, "batch": 60}).parent)
    start = once.weights(0, 0).requires_grad_()
    images = expected.whiten(small.train_images.float() / 255)
    loss = F.cross_entropy(once.network(start, images), small.train_labels)
    (gradient,) = torch.autograd.grad(loss, start)
    assert gradient.abs().max() > 1e-2
    assert torch.allclose(once.weights(0, 1), start - 0.1 * gradient, atol=1e-6)


def test_too_large_or_too_few_images_are_not_whitened() -> None:
    with pytest.raises(ValueError, match=f"at most {MOST_VALUES}"):
        fit_whitening(torch.zeros(2, 3, 128, 128, dtype=torch.uint8), 0.1)
    with pytest.raises(ValueError, match="1 images"):
        fit_whitening(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 0.1)


# --- bad input


def test_folders_that_are_refused(data: Prepared, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpertsError, match="no experts.json in it; train experts there"):
        Experts.open(tmp_path)
    manifest = json.loads((whole / "experts.json").read_text())
    for damage in ("{", "[]", json.dumps({**manifest, "format": "x"}), json.dumps({**manifest, "config": {"a": 1}})):
        (tmp_path / "experts.json").write_text(damage)
        with pytest.raises(ExpertsError, match="experts.json: damaged"):
            Experts.open(tmp_path)
    (tmp_path / "experts.json").write_text(json.dumps(manifest))
    with pytest.raises(ExpertsError, match="000.safetensors: no such file"):
        Experts.open(tmp_path)
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(
            path.read_bytes()[:1000] if path.name == "001.safetensors" else path.read_bytes()
        )
    experts = Experts.open(tmp_path)
    assert torch.isfinite(experts.weights(0, 0)).all()
    with pytest.raises(ExpertsError, match="001.safetensors: truncated.*train it again"):
        experts.weights(1, 0)
    for expert, epoch in ((2, 0), (0, 4), (-1, 0), (0, -1)):
        with pytest.raises(ExpertsError, match=f"no expert {expert} at epoch {epoch}, but 2 experts of 3 epochs"):
            experts.weights(expert, epoch)
    with pytest.raises(ExpertsError, match="trained on other content"):
        experts.require(replace(data, train_labels=data.train_labels.flip(0)), 1, "mtt")
    with pytest.raises(ExpertsError, match="or another mean and std"):
        experts.require(replace(data, mean=(0.1, 0.2, 0.3)), 1, "mtt")
    with pytest.raises(ExpertsError, match="have 3 epochs, and max_start and expert_epochs need 4"):
        experts.require(data, 4, "mtt")


def test_settings_that_are_refused(data: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no expert 2 of 2"):
        made(data, tmp_path, [2])
    with pytest.raises(ValueError, match="depth=5.*images of 16 pixels are too small, at least 32"):
        made(data, tmp_path, depth=5)
    with pytest.raises(FloatingPointError, match="not finite after epoch 1; lower learning_rate"):
        made(data, tmp_path, learning_rate=1e38)
