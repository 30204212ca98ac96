"""Stage 1: the distribution-matching loss against its equation, the sets' promises, repeatability."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diver.config.distill import SETTINGS, DMConfig, RandomConfig
from diver.data.prepared import Prepared
from diver.distill import METHODS
from diver.distill.dm import iteration_loss, random_network
from diver.networks.augment import DSA, FAMILIES
from diver.sets import ValueRange

TINY = {"iterations": 3, "batch_real": 8, "width": 8, "depth": 2}


@pytest.fixture(scope="module")
def data() -> Prepared:
    """Three classes of 16 x 16 noise, each tinted by its own colour, in shuffled order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)[torch.randperm(60, generator=generator)]
    images = torch.randint(0, 120, (60, 3, 16, 16), generator=generator)
    images[torch.arange(60), labels] += 100
    images = images.to(torch.uint8)
    return Prepared(
        images, labels, images[:6], labels[:6], "tinted", ("a", "b", "c"), (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
    )


def quiet(done: int, total: int, note: str) -> None:
    pass


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

    def quadratic(network, augment, real, synthetic, classes, generator):
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
    assert [n[:2] for n in notes] == [(10, 12), (12, 12)]
    assert all(n[2].startswith("loss ") for n in notes)


def test_failures_are_named(data: Prepared) -> None:
    for method, config in (("random", RandomConfig()), ("dm", DMConfig(**TINY, init="real"))):
        with pytest.raises(ValueError, match="20 training images, 21 are needed"):
            METHODS[method](data, 21, config)
    with pytest.raises(ValueError, match="class 2 has 0"):
        few = data.train_labels < 2
        METHODS["dm"](
            replace(data, train_images=data.train_images[few], train_labels=data.train_labels[few]), 1, DMConfig(**TINY)
        )
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        METHODS["dm"](data, 1, DMConfig(**TINY | {"iterations": 9}, learning_rate=1e38), progress=quiet)


def test_every_method_has_settings() -> None:
    assert set(METHODS) == set(SETTINGS)
