"""Stage 1: the distribution-matching loss against its equation, the sets' promises, repeatability."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tinted import quiet, tinted
from torch import Tensor, nn

from diver import graphs
from diver.config.distill import SETTINGS, CoresetConfig, DMConfig, RandomConfig
from diver.data.prepared import Prepared
from diver.distill import METHODS, loop
from diver.distill.base import draw_members, redraw
from diver.distill.coresets import herding, k_center, k_means
from diver.distill.dm import iteration_loss, random_network
from diver.networks import create
from diver.networks.augment import DEFAULT, DSA, FAMILIES
from diver.networks.weights import Trained, WeightsError, embed, for_input, write_trained
from diver.sets import ValueRange

TINY = {"iterations": 3, "batch_real": 8, "width": 8, "depth": 2}
CORESETS = ("herding", "k_center", "k_means")
SELECTIONS = [herding, k_center, lambda features, k: k_means(features, k, 1)]


@pytest.fixture(scope="module")
def data() -> Prepared:
    return tinted()


@pytest.mark.parametrize("family", ["none", *FAMILIES])
def test_loss_and_gradient_against_the_equation(family: str) -> None:
    generator = torch.Generator().manual_seed(4)
    network = random_network(DMConfig(width=4, depth=2), 3, 8, 1).double()
    real = torch.randn(3 * 5, 3, 8, 8, dtype=torch.float64, generator=generator)
    synthetic = torch.randn(3 * 2, 3, 8, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    drawn = DSA(family).draw(3, torch.Generator().manual_seed(9))
    expected = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        mine = drawn.take(torch.tensor([c]))

        def phi(x: Tensor, mine=mine) -> Tensor:
            return torch.stack([network.embed(DSA(family).apply(image[None], mine))[0] for image in x]).mean(0)

        difference = phi(real[5 * c : 5 * c + 5]) - phi(synthetic[2 * c : 2 * c + 2])
        expected = expected + (difference * difference).sum()
    got = iteration_loss(network, DSA(family), real, synthetic, 3, torch.Generator().manual_seed(9))
    assert torch.allclose(got, expected, rtol=1e-10)
    (want,), (have,) = torch.autograd.grad(expected, synthetic), torch.autograd.grad(got, synthetic)
    assert want.abs().max() > 0
    assert torch.allclose(have, want, rtol=1e-8, atol=1e-12)


def test_updates_are_sgd_on_the_loss(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss of known gradient the images follow torch's own SGD with momentum."""
    target = torch.linspace(-1, 1, 3 * 2 * 3 * 16 * 16).view(6, 3, 16, 16)
    starts = []

    def quadratic(network, augment, real, synthetic, *_):
        starts.append(synthetic.detach().clone())
        return (synthetic - target).square().sum()

    monkeypatch.setattr("diver.distill.dm.iteration_loss", quadratic)
    config = DMConfig(**TINY | {"iterations": 5}, learning_rate=0.1, momentum=0.7)
    result = METHODS["dm"](data, 2, config, progress=quiet)
    expected = nn.Parameter(starts[0])
    optimizer = torch.optim.SGD([expected], 0.1, 0.7)
    for _ in range(5):
        optimizer.zero_grad()
        (expected - target).square().sum().backward()
        optimizer.step()
    assert torch.allclose(result.images, expected, atol=1e-6)


@pytest.mark.parametrize("augmentation", ["none", DEFAULT])
def test_recorded_iterations_are_the_called_ones(
    data: Prepared, acted_graphs: None, monkeypatch: pytest.MonkeyPatch, augmentation: str
) -> None:
    config = DMConfig(**TINY | {"iterations": 12}, augmentation=augmentation, learning_rate=0.1)

    def redraw(network: nn.Module, seed: int) -> None:
        network.load_state_dict(random_network(config, 3, 16, seed).state_dict())

    monkeypatch.setattr("diver.distill.dm.redraw", redraw)
    recorded = METHODS["dm"](data, 2, config, progress=quiet)
    monkeypatch.undo()
    called = METHODS["dm"](data, 2, config, progress=quiet)
    assert torch.allclose(recorded.images, called.images, atol=1e-5)


def test_what_is_fused_takes_the_weights_of_every_iteration(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, calls, weights = [], [], set()

    def compiled(function: Callable[[Tensor], Tensor], device: torch.device, on_cpu: bool) -> Callable[..., Tensor]:
        fused.append(on_cpu)

        def embed(images: Tensor) -> Tensor:
            calls.append(len(images))
            weights.add(float(next(function.__self__.parameters()).sum()))  # type: ignore[attr-defined]
            return function(images)

        return embed

    usual = METHODS["dm"](data, 2, DMConfig(**TINY), progress=quiet)
    monkeypatch.setattr(graphs, "compiled", compiled)
    again = METHODS["dm"](data, 2, DMConfig(**TINY), progress=quiet)
    assert fused == [True] and calls == 3 * [3 * 8, 3 * 2] and len(weights) == 3
    assert torch.equal(again.images, usual.images)


def test_redrawn_weights_are_distributed_as_new_ones() -> None:
    network, new = (random_network(DMConfig(width=64, depth=2), 3, 16, seed) for seed in (1, 2))
    redraw(network, 5)
    for own, other in zip(network.parameters(), new.parameters(), strict=True):
        if own.numel() == 1:
            continue
        if own.std() > 0:
            assert own.std().item() == pytest.approx(other.std().item(), rel=0.3)
            assert own.abs().max() <= 1.001 * own[0].numel() ** -0.5 or own.ndim == 1
        else:
            assert torch.equal(own, other)
    again = random_network(DMConfig(width=64, depth=2), 3, 16, 3)
    with torch.no_grad():
        # As a network is that was trained, its scales and shifts too.
        for parameter in again.parameters():
            parameter.add_(1.0)
    redraw(again, 5)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_images_of_small_classes_come_again_equally_often() -> None:
    members = [torch.arange(3), torch.arange(10, 18)]
    drawn = draw_members(members, 8, torch.Generator().manual_seed(0))
    assert sorted(torch.bincount(drawn[:8]).tolist()) == [2, 3, 3]
    assert sorted(drawn[8:].tolist()) == list(range(10, 18))


def test_dm_brings_the_class_means_together(data: Prepared) -> None:
    config = DMConfig(iterations=60, batch_real=20, width=16, depth=2, augmentation="none")
    result = METHODS["dm"](data, 2, config, progress=quiet)
    start = METHODS["dm"](data, 2, config.model_copy(update={"learning_rate": 1e-12}), progress=quiet)
    order = data.train_labels.argsort(stable=True)
    real = data.standardised(data.train_images[order])
    unseen = random_network(config, 3, 16, 999)
    before, after = (iteration_loss(unseen, DSA("none"), real, s.images, 3, torch.Generator()) for s in (start, result))
    assert after < 0.6 * before


@pytest.mark.parametrize(
    ("method", "config"), [("random", RandomConfig()), ("dm", DMConfig(**TINY)), ("dm", DMConfig(**TINY, init="real"))]
)
def test_sets_keep_their_promises_and_repeat(data: Prepared, method: str, config: RandomConfig | DMConfig) -> None:
    first, again = (METHODS[method](data, 4, config, code="abc", progress=quiet) for _ in range(2))
    other = METHODS[method](data, 4, config.model_copy(update={"seed": 2}), code="abc", progress=quiet)
    assert first.digest() == again.digest()
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (12, 3, 16, 16)
    assert first.labels is not None
    assert first.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (first.dataset, first.classes, first.ipc) == ("tinted", ("a", "b", "c"), 4)
    assert first.value_range == ValueRange.standardised(data.mean, data.std)
    (step,) = first.steps
    assert (step.method, step.seed, step.code) == (method, 1, "abc")
    assert step.parameters == config.model_dump(mode="json")


def test_random_images_are_training_images_of_their_class(data: Prepared) -> None:
    chosen = METHODS["random"](data, 20, RandomConfig())
    real = data.standardised(data.train_images)
    found = [(real == image).flatten(1).all(1).nonzero().item() for image in chosen.images]
    assert len(set(found)) == 60
    assert torch.equal(data.train_labels[found], chosen.labels)


def test_dm_from_real_images_starts_at_images_of_the_class(data: Prepared) -> None:
    config = DMConfig(**TINY | {"iterations": 1}, init="real", learning_rate=1e-12)
    result = METHODS["dm"](data, 2, config, progress=quiet)
    distance = (result.images[:, None] - data.standardised(data.train_images)).abs().flatten(2).amax(2)
    assert distance.amin(1).max() < 1e-5
    assert torch.equal(data.train_labels[distance.argmin(1)], result.labels)


def test_dm_never_clips_and_reports_progress(data: Prepared) -> None:
    notes = []
    config = DMConfig(**TINY | {"iterations": 12}, learning_rate=300.0)
    result = METHODS["dm"](data, 1, config, progress=lambda *n: notes.append(n))
    unit = result.value_range.to_unit(result.images)
    assert unit.min() < 0
    assert unit.max() > 1
    assert [n[:2] for n in notes] == [(i, 12) for i in range(1, 13)]
    assert all(n[2].startswith("loss ") for n in notes)


def test_failures_are_named(data: Prepared) -> None:
    for method, config in (("random", RandomConfig()), ("dm", DMConfig(**TINY, init="real"))):
        with pytest.raises(
            ValueError, match="class .a. of tinted has 20 training images, and 21 are needed: lower the IPC"
        ):
            METHODS[method](data, 21, config)
    with pytest.raises(ValueError, match="class .c. of [a-z]* has 0 training images"):
        few = data.train_labels < 2
        METHODS["dm"](
            replace(data, train_images=data.train_images[few], train_labels=data.train_labels[few]), 1, DMConfig(**TINY)
        )
    with pytest.raises(FloatingPointError, match="dm: loss is .* lower the learning rate"):
        METHODS["dm"](data, 1, DMConfig(**TINY | {"iterations": 9}, learning_rate=1e38), progress=quiet)


def test_a_killed_run_goes_on_to_the_same_bytes(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = DMConfig(**TINY | {"iterations": 6})
    whole = METHODS["dm"](data, 2, config, code="abc", progress=quiet)

    def killed(done: int, total: int, note: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        METHODS["dm"](data, 2, config, code="abc", progress=killed, folder=tmp_path)
    again = METHODS["dm"](data, 2, config, code="abc", progress=quiet, folder=tmp_path)
    assert "dm: goes on after iteration 3" in capsys.readouterr().out
    assert again.digest() == whole.digest()
    assert sorted(p.name for p in tmp_path.glob("*.png"))[::6] == ["iteration-000000.png", "iteration-000006.png"]
    # What is finished is not done again, and the state of other settings or code is not taken.
    others = "holds 6 iterations of other settings, data, code"
    for code, given, told in (
        ("abc", data, "goes on after iteration 6"),
        ("other", data, others),
        ("other", replace(data, mean=(0.1, 0.2, 0.3)), others),
    ):
        METHODS["dm"](given, 2, config, code=code, progress=quiet, folder=tmp_path)
        assert told in capsys.readouterr().out


def test_dm_in_half_precision_has_nearly_the_same_gradient(data: Prepared) -> None:
    network = random_network(DMConfig(width=16, depth=2), 3, 16, 1)
    real = data.standardised(data.train_images[data.train_labels.argsort(stable=True)])
    synthetic = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def gradient(precision: str) -> Tensor:
        drawn = torch.Generator().manual_seed(2)
        loss = iteration_loss(network, DSA("color"), real, synthetic, 3, drawn, precision)
        return torch.autograd.grad(loss, synthetic)[0]

    full, half = gradient("fp32"), gradient("bf16")
    assert 0 < (full - half).norm() < 0.02 * full.norm()


def test_every_method_has_settings() -> None:
    assert set(METHODS) == set(SETTINGS)


def brute_herding(features: Tensor, k: int) -> list[int]:
    mean, chosen = features.mean(0), []
    for _ in range(k):
        left = [i for i in range(len(features)) if i not in chosen]
        chosen.append(min(left, key=lambda i: (mean - features[[*chosen, i]].sum(0) / (len(chosen) + 1)).norm()))
    return chosen


def brute_k_center(features: Tensor, k: int) -> list[int]:
    chosen = [min(range(len(features)), key=lambda i: (features[i] - features.mean(0)).norm())]
    while len(chosen) < k:
        left = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(left, key=lambda i: min((features[i] - features[s]).norm() for s in chosen)))
    return chosen


@pytest.mark.parametrize(("select", "brute"), [(herding, brute_herding), (k_center, brute_k_center)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_selections_against_brute_force(select: Callable, brute: Callable, offset: float, seed: int) -> None:
    """Also far from the origin, where expanded distances in float32 would be noise."""
    features = torch.randn(40, 7, generator=torch.Generator().manual_seed(seed)).relu() + offset
    expected = brute(features.double(), 40)
    assert sorted(expected) == list(range(40))
    assert select(features, 40).tolist() == expected
    assert select(features, 9).tolist() == expected[:9]


def test_k_center_starts_nearest_to_the_mean_and_goes_to_the_farthest() -> None:
    features = torch.tensor([[0.0], [1.0], [2.1], [9.0], [3.0]])
    assert k_center(features, 3).tolist() == [4, 3, 0]


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5])
def test_k_means_takes_one_of_each_blob(seed: int) -> None:
    centres = 100 * torch.eye(6)
    blob = torch.arange(6).repeat(15)
    features = centres[blob] + torch.randn(90, 6, generator=torch.Generator().manual_seed(seed))
    chosen = k_means(features, 6, seed)
    assert sorted(blob[chosen].tolist()) == list(range(6))
    for i in chosen.tolist():
        mine = features[blob == blob[i]]
        assert (features[i] - mine.mean(0)).norm() == (mine - mine.mean(0)).norm(dim=1).min()
    assert torch.equal(chosen, k_means(features, 6, seed))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("select", SELECTIONS)
def test_images_that_are_equal_are_selected_once_each(select: Callable) -> None:
    features = torch.ones(6, 3)
    features[4:] = 2
    assert sorted(select(features, 6).tolist()) == list(range(6))


@pytest.mark.parametrize("select", SELECTIONS)
def test_features_that_cannot_be_selected_from(select: Callable) -> None:
    features = torch.randn(5, 3)
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"{k} of 5 images"):
            select(features, k)
    with pytest.raises(ValueError, match="not finite"):
        select(features / torch.zeros(5, 1), 2)
    for wrong in (features[0], features.long()):
        with pytest.raises(ValueError, match="not float"):
            select(wrong, 2)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """A network of another dataset and standardisation, in its file."""
    torch.manual_seed(0)
    network = create("convnet", 4, 3, 16, width=4, depth=2).eval()
    trained = Trained(
        network, "convnet", {"width": 4, "depth": 2}, tuple("wxyz"), 3, 16, "other", (0.5,) * 3, (0.5,) * 3, 61.5
    )
    path = tmp_path_factory.mktemp("encoder") / "trained.safetensors"
    write_trained(path, trained)
    return path, trained


@pytest.mark.parametrize("method", CORESETS)
@pytest.mark.parametrize("pixels", [True, False], ids=["pixels", "network"])
def test_coresets_are_training_images_in_the_order_of_selection(
    data: Prepared, encoder: tuple[Path, Trained], method: str, pixels: bool
) -> None:
    path, trained = encoder
    config, notes = CoresetConfig(seed=3, encoder="pixels" if pixels else str(path)), []
    first = METHODS[method](data, 4, config, code="abc", progress=lambda *n: notes.append(n))
    assert first.digest() == METHODS[method](data, 4, config, code="abc", progress=quiet).digest()
    assert [n[:2] for n in notes] == [(20, 60), (40, 60), (60, 60)]

    real = data.standardised(data.train_images)
    members = [(data.train_labels == c).nonzero().flatten() for c in range(3)]
    if pixels:
        features = [real[mine].flatten(1) for mine in members]
    else:
        # By class, as the methods do: k-means of images without clusters hangs on the last digits.
        features = [embed(for_input(trained, data.mean, data.std).network, real[mine]) for mine in members]
        unit = data.train_images[members[0]] / 255
        assert torch.allclose(features[0], embed(trained.network, (unit - 0.5) / 0.5), atol=1e-4)
    select = {"herding": herding, "k_center": k_center, "k_means": lambda f, k: k_means(f, k, 3)}[method]
    expected = torch.cat([mine[select(found, 4)] for mine, found in zip(members, features, strict=True)])
    assert torch.equal(first.images, real[expected])
    assert len(set(expected.tolist())) == 12
    assert first.labels is not None
    assert torch.equal(data.train_labels[expected], first.labels)
    (step,) = first.steps
    assert (step.method, step.seed, step.code) == (method, 3, "abc")


def test_coresets_record_the_encoder_as_on_any_machine(
    data: Prepared, encoder: tuple[Path, Trained], tmp_path: Path
) -> None:
    path, _ = encoder
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    sets = [
        METHODS["herding"](data, 2, CoresetConfig(encoder=str(p)), progress=quiet)
        for p in (path, tmp_path / "elsewhere")
    ]
    assert sets[0].digest() == sets[1].digest()
    recorded = sets[0].steps[0].parameters["encoder"]
    assert len(recorded.pop("sha256")) == 64
    assert recorded == {
        "network": "convnet",
        "options": {"width": 4, "depth": 2},
        "dataset": "other",
        "accuracy": 61.5,
    }
    pixels = METHODS["herding"](data, 2, CoresetConfig(), progress=quiet)
    assert pixels.steps[0].parameters == {"seed": 1, "encoder": "pixels"}


@pytest.mark.parametrize("method", CORESETS)
def test_coresets_name_their_failures(data: Prepared, encoder: tuple[Path, Trained], method: str) -> None:
    with pytest.raises(
        ValueError, match="class .a. of tinted has 20 training images, and 21 are needed: lower the IPC"
    ):
        METHODS[method](data, 21, CoresetConfig(), progress=quiet)
    with pytest.raises(ValueError, match="the workflow puts its path here"):
        METHODS[method](data, 1, CoresetConfig(encoder="teacher"), progress=quiet)
    with pytest.raises(WeightsError, match="no such file"):
        METHODS[method](data, 1, CoresetConfig(encoder="nowhere.safetensors"), progress=quiet)
    small = replace(data, train_images=data.train_images[..., :8, :8])
    with pytest.raises(ValueError, match=r"takes images \[3, 16, 16\], those of tinted are \[3, 8, 8\]"):
        METHODS[method](small, 1, CoresetConfig(encoder=str(encoder[0])), progress=quiet)
