"""DSA against a per-image reference and kornia in float64, its gradients, and its random draws."""

import math

import pytest
import torch
from torch import Tensor

from diver.networks.augment import DEFAULT, DSA, FAMILIES, Augmentation
from diver.networks.views import ColorJitter, RandomResizedCrop


def sample(image: Tensor, y: float, x: float) -> Tensor:
    """Bilinear value [C] at pixel coordinates, zero outside."""
    height, width = image.shape[1:]
    total = torch.zeros(len(image), dtype=image.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def warped(image: Tensor, matrix: list[list[float]]) -> Tensor:
    out, size = torch.zeros_like(image), image.shape[-1]
    for row in range(size):
        for column in range(size):
            v, u = (2 * row + 1) / size - 1, (2 * column + 1) / size - 1
            x, y = matrix[0][0] * u + matrix[0][1] * v, matrix[1][0] * u + matrix[1][1] * v
            out[:, row, column] = sample(image, ((y + 1) * size - 1) / 2, ((x + 1) * size - 1) / 2)
    return out


def reference(image: Tensor, family: str, v: list[float]) -> Tensor:
    """One image [C, S, S] transformed as the DSA paper describes; v are numbers in [0, 1)."""
    size = image.shape[-1]
    if family == "color":
        image = image + (v[0] - 0.5)
        grey = image.mean(0, keepdim=True)
        image = grey + (image - grey) * 2 * v[1]
        return image.mean() + (image - image.mean()) * (v[2] + 0.5)
    if family == "crop":
        pad = int(size / 8 + 0.5)
        dy, dx = (int(u * (2 * pad + 1)) - pad for u in v)
        out = torch.zeros_like(image)
        for row in range(size):
            for column in range(size):
                if 0 <= row + dy < size and 0 <= column + dx < size:
                    out[:, row, column] = image[:, row + dy, column + dx]
        return out
    if family == "cutout":
        length = int(size / 2 + 0.5)
        top, left = (int(u * (size + 1 - length % 2)) - length // 2 for u in v)
        out = image.clone()
        out[:, max(top, 0) : max(top + length, 0), max(left, 0) : max(left + length, 0)] = 0
        return out
    if family == "flip":
        return torch.stack([image[:, :, size - 1 - c] for c in range(size)], 2) if v[0] < 0.5 else image
    if family == "scale":
        sx, sy = (1 / 1.2 + u * (1.2 - 1 / 1.2) for u in v)
        return warped(image, [[sx, 0], [0, sy]])
    angle = (v[0] - 0.5) * 2 * 15 * math.pi / 180
    return warped(image, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_against_reference(family: str, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 3, size, size, dtype=torch.float64, generator=generator)
    drawn = DSA(family).draw(len(images), generator)
    drawn = Augmentation(family, drawn.values.double())
    expected = torch.stack([reference(i, family, v) for i, v in zip(images, drawn.values.tolist(), strict=True)])
    got = DSA(family).apply(images, drawn)
    assert torch.allclose(got, expected, atol=1e-12)
    assert not torch.allclose(got, images)
    other_layout = images.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(DSA(family).apply(other_layout, drawn), expected, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_with_respect_to_images(family: str) -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    drawn = DSA(family).draw(2, generator)
    assert torch.autograd.gradcheck(lambda x: DSA(family).apply(x, drawn), (images,))


def test_siamese_use() -> None:
    generator, dsa = torch.Generator().manual_seed(3), DSA()
    for _ in range(12):
        per_class = dsa.draw(3, generator)
        owner = torch.tensor([0, 0, 1, 2, 2])
        images = torch.randn(5, 3, 16, 16, generator=generator)
        together = dsa.apply(images, per_class.take(owner))
        for position, c in enumerate(owner):
            alone = dsa.apply(images[position : position + 1], per_class.take(c[None]))
            assert torch.allclose(together[position], alone[0], atol=1e-6)
        one = dsa.draw(1, generator)
        assert torch.equal(dsa.apply(images, one), dsa.apply(images, one.take(torch.zeros(5, dtype=torch.long))))


def test_draws_are_seeded_and_cover_their_range() -> None:
    dsa = DSA(DEFAULT)
    first = [dsa.draw(4, torch.Generator().manual_seed(s)) for s in range(80)]
    again = [dsa.draw(4, torch.Generator().manual_seed(s)) for s in range(80)]
    assert all(a.family == b.family and torch.equal(a.values, b.values) for a, b in zip(first, again, strict=True))
    assert {a.family for a in first} == set(FAMILIES)
    generator = torch.Generator().manual_seed(0)
    marked = torch.zeros(4000, 1, 32, 32)
    marked[:, :, 16, 16] = 1
    crop, flip = DSA("crop"), DSA("flip")
    shifts = crop.apply(marked, crop.draw(4000, generator)).flatten(2).argmax(2) // 32 - 16
    assert set(shifts.flatten().tolist()) == set(range(-4, 5))
    mirrored = flip.apply(marked, flip.draw(4000, generator)).flatten(2).argmax(2) % 32 != 16
    assert 0.45 < mirrored.float().mean() < 0.55


def test_none_and_refusals() -> None:
    images = torch.randn(2, 3, 8, 8)
    for strategy in ("none", ""):
        none = DSA(strategy)
        assert none.apply(images, none.draw(2, torch.Generator())) is images
    with pytest.raises(ValueError, match="blur"):
        DSA("color_blur")
    with pytest.raises(ValueError, match="drawn for 3 images, applied to 2"):
        DSA("flip").apply(images, DSA("flip").draw(3, torch.Generator()))


# The same transformations by kornia, with the same parameters; it is used nowhere else.


def by_kornia(family: str, images: Tensor, v: Tensor) -> Tensor:
    from kornia import enhance
    from kornia.geometry import bbox, transform

    n, _, size, _ = images.shape
    if family == "color":
        brighter = enhance.adjust_brightness(images, v[:, 0] - 0.5, clip_output=False)
        return enhance.adjust_contrast_with_mean_subtraction(brighter, v[:, 2] + 0.5)
    if family == "crop":
        pad = int(size / 8 + 0.5)
        return transform.translate(images, pad - (v.flip(1) * (2 * pad + 1)).floor(), align_corners=False)
    if family == "cutout":
        side = int(size / 2 + 0.5)
        top, left = ((v * (size + 1 - side % 2)).floor() - side // 2).unbind(1)
        sides = torch.full_like(top, side)
        return images * (1 - bbox.bbox_to_mask(bbox.bbox_generator(left, top, sides, sides), size, size)[:, None])
    if family == "flip":
        return torch.where(v.view(n, 1, 1, 1) < 0.5, transform.hflip(images), images)
    if family == "scale":
        return transform.scale(images, 1 / (1 / 1.2 + v * (1.2 - 1 / 1.2)), align_corners=False)
    return transform.rotate(images, (v[:, 0] - 0.5) * 30, align_corners=False)


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_equals_kornia(family: str, size: int) -> None:
    """Colours in grey, as kornia weighs channels, and within [0, 1], to which its contrast clips."""
    pytest.importorskip("kornia")
    generator = torch.Generator().manual_seed(4)
    channels = 1 if family == "color" else 3
    images = 0.45 + 0.1 * torch.rand(12, channels, size, size, dtype=torch.float64, generator=generator)
    values = DSA(family).draw(len(images), generator).values.double()
    drawn = Augmentation(family, 0.3 + 0.4 * values if family == "color" else values)
    expected = by_kornia(family, images, drawn.values)
    assert torch.allclose(DSA(family).apply(images, drawn), expected, rtol=0, atol=1e-12)


def test_crop_of_views_equals_kornia() -> None:
    pytest.importorskip("kornia")
    from kornia.geometry.transform import crop_by_indices

    generator, crop = torch.Generator().manual_seed(5), RandomResizedCrop((0.08, 1))
    images = torch.randn(12, 3, 17, 17, dtype=torch.float64, generator=generator)
    values = crop.draw(12, generator)
    top, left, height, width = crop.boxes(values, 17, 17).unbind(1)
    right, bottom = left + width - 1, top + height - 1
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], 1).view(12, 4, 2)
    expected = crop_by_indices(images, corners, (17, 17), align_corners=False)
    assert torch.allclose(crop.apply(images, values), expected, rtol=0, atol=1e-12)


def test_jitter_of_views_equals_kornia() -> None:
    pytest.importorskip("kornia")
    from kornia import enhance

    generator, jitter = torch.Generator().manual_seed(6), ColorJitter((0, 0, 0), (1, 1, 1))
    images = 0.3 + 0.2 * torch.rand(12, 3, 8, 8, dtype=torch.float64, generator=generator)
    values = jitter.draw(12, generator)
    brightness, contrast, saturation = (1 - values.double()).unbind(1)
    expected = enhance.adjust_brightness_accumulative(images, brightness, clip_output=False)
    expected = enhance.adjust_contrast_with_mean_subtraction(expected, contrast)
    expected = enhance.adjust_saturation_with_gray_subtraction(expected, saturation)
    assert torch.allclose(jitter.apply(images, values), expected, rtol=0, atol=1e-12)
