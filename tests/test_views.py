"""Views against torchvision and per-image references in float64, their draws, storage and replay; mixing."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.functional import resized_crop

from diver.config.augment import DSA_FAMILIES, VIEWS, check_augmentation
from diver.networks.augment import DSA, FAMILIES
from diver.networks.views import (
    EIGENVALUES,
    EIGENVECTORS,
    LUMA,
    MIXES,
    RECIPES,
    ColorJitter,
    Flip,
    Lighting,
    Mix,
    Operation,
    PatchShuffle,
    RandomResizedCrop,
    View,
    Views,
    apply_each,
    augmentation,
    draw_mix,
)
from diver.tensorfile import read_tensors, write_tensors

MEAN, STD = (0.48, 0.45, 0.40), (0.22, 0.23, 0.25)
DRAWS = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 12, size: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=seeded(seed))


def views(name: str, size: int | None = None, factor: int = 2) -> Views:
    made = augmentation(name, size=size, mean=MEAN, std=STD, factor=factor)
    assert isinstance(made, Views)
    return made


def standardise(x: Tensor) -> Tensor:
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


def restore(x: Tensor) -> Tensor:
    return x * x.new_tensor(STD).view(3, 1, 1) + x.new_tensor(MEAN).view(3, 1, 1)


# Each transformation alone


@pytest.mark.parametrize(("size", "out"), [(16, 16), (17, 17), (12, 21)])
def test_crop_equals_torchvision(size: int, out: int) -> None:
    crop, images = RandomResizedCrop((0.08, 1), size=out), random_images(40, size)
    values = crop.draw(40, seeded())
    boxes = crop.boxes(values, size, size).int().tolist()
    expected = torch.stack([resized_crop(x, *box, [out, out]) for x, box in zip(images, boxes, strict=True)])
    assert torch.allclose(crop.apply(images, values), expected, rtol=0, atol=1e-9)
    assert torch.allclose(crop.apply(images.float(), values), expected.float(), rtol=0, atol=1e-5)
    other_layout = images.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(crop.apply(other_layout, values), expected, rtol=0, atol=1e-9)


def test_crop_of_oblong_images() -> None:
    crop, images = RandomResizedCrop((0.3, 1)), random_images(20, 18)[..., :11]
    values = crop.draw(20, seeded())
    boxes = crop.boxes(values, 18, 11).int().tolist()
    expected = torch.stack([resized_crop(x, *box, [18, 11]) for x, box in zip(images, boxes, strict=True)])
    assert torch.allclose(crop.apply(images, values), expected, rtol=0, atol=1e-9)


def test_crop_refusals() -> None:
    with pytest.raises(ValueError, match="larger than the crop's size 8"):
        RandomResizedCrop((0.5, 1), size=8).apply(random_images(2), torch.tensor([[0, 0, 1, 1.0]] * 2))
    for scale, ratio in (((0, 1), (0.75, 1.3)), ((0.5, 2), (0.75, 1.3)), ((0.5, 1), (1.1, 1.3))):
        with pytest.raises(ValueError, match="must lie in"):
            RandomResizedCrop(scale, ratio)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
def test_crop_is_drawn_as_torchvision_draws(scale: tuple[float, float]) -> None:
    """On a large image, where rounding is no matter: moments of area, ratio and place."""
    size, canvas = 2000, torch.empty(1, 2000, 2000)
    torch.manual_seed(0)
    theirs = torch.tensor([TorchvisionCrop.get_params(canvas, scale, [3 / 4, 4 / 3]) for _ in range(DRAWS // 4)])
    crop = RandomResizedCrop(scale)
    ours = crop.boxes(crop.draw(DRAWS, seeded()), size, size)
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= size).all()
    area = ours[:, 2] * ours[:, 3] / size**2
    assert scale[0] - 1e-3 < area.min() and area.max() <= 1
    for statistic in (
        lambda b: b[:, 2] * b[:, 3] / size**2,
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0] / size,
        lambda b: b[:, 1] / size,
    ):
        a, b = statistic(ours), statistic(theirs.double())
        assert abs(a.mean() - b.mean()) < 4 * b.std() * (5 / DRAWS) ** 0.5
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.05)


def test_crop_that_never_fits_is_the_whole_image() -> None:
    values = RandomResizedCrop((1, 1)).draw(50, seeded())
    assert (values[:, 2:] == 1).all()
    images = random_images(50)
    assert torch.allclose(RandomResizedCrop((1, 1)).apply(images, values), images, rtol=0, atol=1e-12)


def test_flip() -> None:
    images, values = random_images(), Flip().draw(12, seeded())
    expected = torch.stack([x.flip(2) if f else x for x, f in zip(images, values, strict=True)])
    assert torch.equal(Flip().apply(images, values), expected)
    assert 0.48 < Flip().draw(DRAWS, seeded()).double().mean() < 0.52


def jittered(x: Tensor, alphas: list[float], order: tuple[int, ...]) -> Tensor:
    """One image [3, H, W] in [0, 1]; steps in the given order, each with the luma of what came before."""
    for step in order:
        luma = sum(weight * channel for weight, channel in zip(LUMA, x, strict=True))
        target = (torch.zeros_like(x), torch.full_like(x, float(luma.mean())), luma.expand_as(x))[step]
        x = (1 - alphas[step]) * x + alphas[step] * target
    return x


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_jitter_equals_the_steps_in_any_order(order: tuple[int, ...]) -> None:
    jitter, images = ColorJitter(MEAN, STD), random_images()
    values = jitter.draw(12, seeded())
    expected = [standardise(jittered(restore(x), v, order)) for x, v in zip(images, values.tolist(), strict=True)]
    assert torch.allclose(jitter.apply(images, values), torch.stack(expected), rtol=0, atol=1e-12)
    many = jitter.draw(DRAWS, seeded())
    assert many.abs().max() <= 0.4 and many.std().item() == pytest.approx(0.4 / math.sqrt(3), rel=0.02)


def test_lighting() -> None:
    lighting, images = Lighting(STD), random_images()
    values = lighting.draw(12, seeded())
    for image, got, alphas in zip(images, lighting.apply(images, values), values.tolist(), strict=True):
        weights = [a * e for a, e in zip(alphas, EIGENVALUES, strict=True)]
        color = [sum(w * v for w, v in zip(weights, row, strict=True)) for row in EIGENVECTORS]
        expected = standardise(restore(image) + image.new_tensor(color).view(3, 1, 1))
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    vectors = torch.tensor(EIGENVECTORS)
    assert torch.allclose(vectors.T @ vectors, torch.eye(3), atol=2e-4)
    assert lighting.draw(DRAWS, seeded()).std().item() == pytest.approx(0.1, rel=0.02)
    with pytest.raises(ValueError, match="3 channels, not 1"):
        Lighting((0.5,))


def shuffled(image: Tensor, across: list[int], down: list[int]) -> Tensor:
    for axis, order in ((2, across), (1, down)):
        length = image.shape[axis] // len(order)
        sizes = [length] * (len(order) - 1) + [image.shape[axis] - length * (len(order) - 1)]
        strips = image.split(sizes, axis)
        image = torch.cat([strips[k] for k in order], axis)
    return image


@pytest.mark.parametrize(("factor", "size"), [(1, 8), (2, 8), (2, 9), (3, 11)])
def test_patch_shuffle(factor: int, size: int) -> None:
    shuffle, images = PatchShuffle(factor), random_images(12, size)
    values = shuffle.draw(12, seeded())
    expected = torch.stack([shuffled(x, *v) for x, v in zip(images, values.tolist(), strict=True)])
    assert torch.equal(shuffle.apply(images, values), expected)
    orders = shuffle.draw(DRAWS, seeded()).unique(dim=0, return_counts=True)[1]
    assert len(orders) == math.factorial(factor) ** 2
    assert (orders / DRAWS * len(orders) - 1).abs().max() < 0.2


# Recipes


@pytest.mark.parametrize("name", VIEWS)
def test_recipe_is_its_transformations_in_order(name: str) -> None:
    recipe, images = views(name), random_images()
    drawn = recipe.draw(12, seeded(3))
    expected = images
    for operation, values in zip(recipe.operations.values(), drawn.values.values(), strict=True):
        expected = operation.apply(expected, values)
    assert torch.equal(recipe.apply(images, drawn), expected)
    assert torch.equal(recipe.apply(images, recipe.draw(12, seeded(3))), expected)
    assert (recipe.apply(images, drawn) is images) == (name == "none")


def test_what_the_recipes_hold() -> None:
    assert {name: list(views(name).operations) for name in VIEWS} == {
        "none": [],
        "idc": ["crop", "flip", "jitter", "lighting"],
        "rded": ["patches", "crop", "flip"],
        "fkd": ["crop", "flip"],
    }

    def scale(operation: Operation) -> tuple[float, float]:
        assert isinstance(operation, RandomResizedCrop)
        return operation.scale

    scales = {name: scale(views(name, factor=4).operations["crop"]) for name in ("idc", "rded", "fkd")}
    assert scales == {"idc": (0.5, 1), "rded": (0.25, 1), "fkd": (0.08, 1)}


def test_rows_and_sizes() -> None:
    fkd = views("fkd", size=20)
    one, images = fkd.draw(1, seeded()), random_images(4)
    assert torch.equal(fkd.apply(images, one), fkd.apply(images, one.take(torch.zeros(4, dtype=torch.long))))
    assert fkd.apply(images, one).shape == (4, 3, 20, 20)
    with pytest.raises(ValueError, match="drawn for 3 images, applied to 4"):
        fkd.apply(images, fkd.draw(3, seeded()))
    with pytest.raises(ValueError, match="drawn for crop, flip; applied as patches, crop, flip"):
        views("rded").apply(images, one)


def test_names() -> None:
    assert tuple(FAMILIES) == DSA_FAMILIES and tuple(RECIPES) == VIEWS
    for name in (*VIEWS, *DSA_FAMILIES, "color_crop_flip"):
        assert check_augmentation(name) == name
        assert isinstance(augmentation(name, size=8, mean=MEAN, std=STD), Views if name in VIEWS else DSA)
    for wrong, near in (("rde", "rded"), ("color_crpo", "crop"), ("idc_flip", "idc"), ("", "choose none")):
        with pytest.raises(ValueError, match=near):
            augmentation(wrong, size=8, mean=MEAN, std=STD)


# Mixing


@pytest.mark.parametrize("size", [16, 17])
def test_cutmix(size: int) -> None:
    images, generator, weights = random_images(6, size), seeded(), []
    for _ in range(50):
        mix = draw_mix("cutmix", 6, 1.0, 1.0, generator, size=size)
        mixed = mix.apply(images)
        top, bottom, left, right = mix.box
        for k, (got, other) in enumerate(zip(mixed, mix.partner, strict=True)):
            expected = images[k].clone()
            expected[:, top:bottom, left:right] = images[other, :, top:bottom, left:right]
            assert torch.equal(got, expected)
        assert mix.weight == pytest.approx(1 - (bottom - top) * (right - left) / size**2)
        weights.append(mix.weight)
    assert 0.6 < sum(weights) / len(weights) < 0.9


def test_mixup() -> None:
    images, mix = random_images(6), draw_mix("mixup", 6, 0.8, 1.0, seeded(), size=16)
    expected = [mix.weight * images[k] + (1 - mix.weight) * images[j] for k, j in enumerate(mix.partner)]
    assert 0 < mix.weight < 1 and torch.allclose(mix.apply(images), torch.stack(expected), rtol=0, atol=1e-12)


def test_mixes_are_drawn_as_told() -> None:
    generator = seeded()
    drawn = [draw_mix("mixup", 4, 0.8, 0.25, generator, size=8) for _ in range(DRAWS)]
    mixed = torch.tensor([m.weight for m in drawn if m.kind == "mixup"])
    assert len(mixed) / DRAWS == pytest.approx(0.25, abs=0.02)
    beta = torch.distributions.Beta(0.8, 0.8)
    assert mixed.mean().item() == pytest.approx(0.5, abs=0.02)
    assert mixed.std().item() == pytest.approx(beta.stddev.item(), rel=0.03)
    # The same numbers whatever the size, and thereafter the same stream.
    small, large = seeded(5), seeded(5)
    a, b = (draw_mix("cutmix", 4, 1.0, 1.0, g, size=s) for g, s in ((small, 32), (large, 3200)))
    assert torch.equal(a.partner, b.partner)
    assert torch.allclose(torch.tensor(a.box) / 32, torch.tensor(b.box) / 3200, atol=2 / 32)
    assert torch.equal(small.get_state(), large.get_state())
    with pytest.raises(ValueError, match="'blend' is not known"):
        draw_mix("blend", 4, 1.0, 1.0, generator, size=8)


def test_no_mix() -> None:
    images, labels = random_images(4), torch.tensor([0, 1, 2, 0])
    for mix in (draw_mix("none", 4, 1.0, 1.0, seeded(), size=16), draw_mix("cutmix", 4, 1.0, 0.0, seeded(), size=16)):
        assert mix.kind == "none" and mix.apply(images) is images
        hot = F.one_hot(labels, 3).double()
        assert mix.blend(hot) is hot


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_blended_targets_give_the_weighted_sum_of_two_losses(kind: str) -> None:
    logits, labels = random_images(5)[:, :, 0, 0], torch.tensor([0, 1, 2, 1, 0])
    mix = Mix(kind, torch.tensor([1, 2, 0, 4, 3]), 0.7)
    two = 0.7 * F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(logits, labels[mix.partner])
    blended = mix.blend(F.one_hot(labels, 3).double())
    assert F.cross_entropy(logits, blended).item() == pytest.approx(two.item(), abs=1e-12)


# Storage


def test_a_run_in_one_file_replays_bit_for_bit(tmp_path: Path) -> None:
    """Every view and mix of a SOFT-FKD run of 3 epochs with 2 batches, concatenated by tensor."""
    images, fkd, generator = random_images(12).float(), views("fkd"), seeded()
    batches, stored, shown = [], [], []
    for _ in range(3):
        for index in torch.randperm(12, generator=generator).split(6):
            view = fkd.draw(6, generator)
            mix = draw_mix(MIXES[1 + len(batches) % 2], 6, 1.0, 0.8, generator, size=16)
            stored.append({**view.to_tensors(), **mix.to_tensors()})
            shown.append(mix.apply(fkd.apply(images[index], view)))
            batches.append(index)
    write_tensors(tmp_path / "run", {k: torch.cat([s[k] for s in stored]) for k in stored[0]}, {"name": "fkd"})
    run, header = read_tensors(tmp_path / "run")
    assert sum(t[0].numel() * t.element_size() for k, t in run.items() if k in ("crop", "flip", "partner")) == 21
    recipe, all_views = views(header["name"]), View.from_tensors({k: run[k] for k in ("crop", "flip")})
    for number, (index, expected) in enumerate(zip(batches, shown, strict=True)):
        rows, row = torch.arange(6 * number, 6 * number + 6), slice(number, number + 1)
        mix = Mix.from_tensors({"partner": run["partner"][rows], **{k: run[k][row] for k in ("kind", "weight", "box")}})
        assert torch.equal(mix.apply(recipe.apply(images[index], all_views.take(rows))), expected)


@pytest.mark.parametrize("name", VIEWS)
def test_views_do_not_depend_on_storage_or_size(name: str, tmp_path: Path) -> None:
    recipe = views(name)
    drawn, larger = recipe.draw(12, seeded(7)), views(name, size=64).draw(12, seeded(7))
    assert all(torch.equal(values, larger.values[k]) for k, values in drawn.values.items())
    write_tensors(tmp_path / "views", drawn.to_tensors(), {})
    images, read = random_images(), View.from_tensors(read_tensors(tmp_path / "views")[0])
    assert torch.equal(recipe.apply(images, read), recipe.apply(images, drawn))


@pytest.mark.parametrize("name", ["idc", "color_crop_cutout_flip_scale_rotate", "none"])
def test_batches_seen_together_are_those_seen_one_by_one(name: str) -> None:
    """Batches of several sizes, some of one draw for all of their images."""
    generator = torch.Generator().manual_seed(0)
    augment = augmentation(name, size=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    batches = [torch.randn(n, 3, 16, 16, generator=generator) for n in (3, 1, 4, 2, 4, 3, 5)]
    drawn = [augment.draw(1 if place % 3 == 2 else len(x), generator) for place, x in enumerate(batches)]
    shown = apply_each(augment, batches, drawn)
    for x, view, got in zip(batches, drawn, shown, strict=True):
        assert torch.allclose(got, augment.apply(x, view), atol=1e-5)
