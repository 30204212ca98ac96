"""Random views of the protocols HARD-IDC, SOFT-RDED and SOFT-FKD: batched, with parameters of each image's own.

As in DSA, drawing is apart from applying. What is drawn is a value that can be stored, and replayed bit for bit; it
comes from a CPU generator and does not depend on the size of the images. Two images of a batch mixed (CutMix, Mixup)
are a step and a value of their own, because hard labels have to be mixed along.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from diver.config.augment import check_augmentation
from diver.networks.augment import DSA, Augmentation

CROP_TRIES, CROP_RATIO = 10, (3 / 4, 4 / 3)
JITTER, LIGHTING, FLIP = 0.4, 0.1, 0.5
# ITU-R 601 luma; principal components of ImageNet's colours (Krizhevsky et al. 2012), one row per channel.
LUMA = (0.299, 0.587, 0.114)
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
MIXES = ("none", "cutmix", "mixup")


class Augmenter(Protocol):
    """What DSA and Views share; a drawn value has one row per image, or one for all images, and `take`."""

    def draw(self, n: int, generator: torch.Generator) -> Any: ...

    def apply(self, images: Tensor, drawn: Any) -> Tensor: ...


class Operation(Protocol):
    """One transformation. Values are a small tensor with one row per image."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor: ...

    def apply(self, images: Tensor, values: Tensor) -> Tensor: ...


@lru_cache
def _constant(numbers: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Kept because bringing numbers to a GPU waits for it; fit for gradients, whatever it is first asked for."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device, dtype=dtype)


def _per_channel(numbers: Sequence[float], images: Tensor) -> Tensor:
    return _constant(tuple(numbers), images.device, images.dtype).view(1, -1, 1, 1)


def _span(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Positions [N, count] of the pixels that a span of pixels is resized to, held between its outermost centres."""
    steps = torch.arange(count, dtype=start.dtype, device=start.device) + 0.5
    positions = start[:, None] + steps * (length / count)[:, None]
    return positions.clamp((start + 0.5)[:, None], (start + length - 0.5)[:, None])


class RandomResizedCrop:
    """A box of random area and aspect ratio, resized bilinearly to `size` (by default the size of the images).

    Drawn as torchvision does: area uniform in `scale`, ratio log-uniform in `ratio`, the first of ten tries that fits,
    else the whole image. A row of values is float32 [4]: the box's place down and across among all that it can take,
    then its height and width as fractions of the image's. Whole pixels come about when the box is applied, and then
    the result is torchvision's `resized_crop` of that box. Two consequences: a try fits if it does so before
    rounding, which torchvision asks after, and fractions are those of a square image.
    Raises ValueError for ranges without the whole image's ratio 1, or when images are larger than `size`, which
    would need anti-aliasing.
    """

    def __init__(
        self, scale: tuple[float, float], ratio: tuple[float, float] = CROP_RATIO, size: int | None = None
    ) -> None:
        if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= 1 <= ratio[1]):
            raise ValueError(f"crop scale {scale} must lie in (0, 1], and ratio {ratio} contain 1")
        self.scale, self.ratio, self.size = scale, ratio, size

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, CROP_TRIES, 2, dtype=torch.float64, generator=generator)
        low, high = (math.log(r) for r in self.ratio)
        area = self.scale[0] + u[..., 0] * (self.scale[1] - self.scale[0])
        ratio = (low + u[..., 1] * (high - low)).exp()
        sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2)
        fits = (sides <= 1).all(2)
        chosen = sides[torch.arange(n), fits.int().argmax(1)].where(fits.any(1, keepdim=True), 1.0)
        return torch.cat([torch.rand(n, 2, generator=generator), chosen.float()], 1)

    def boxes(self, values: Tensor, height: int, width: int) -> Tensor:
        """Whole numbers [N, 4] of pixels, in float64: top, left, height, width."""
        image = _constant((height, width), values.device, torch.float64)
        sides = (values[:, 2:] * image).round().clamp(min=1)
        return torch.cat([(values[:, :2] * (image - sides + 1)).floor(), sides], 1)

    def apply(self, images: Tensor, values: Tensor) -> Tensor:
        n, _, height, width = images.shape
        rows, columns = (self.size, self.size) if self.size else (height, width)
        if rows < height or columns < width:
            raise ValueError(f"images of {height}x{width} are larger than the crop's size {self.size}; resize before")
        top, left, tall, wide = self.boxes(values, height, width).unbind(1)
        y = (_span(top, tall, rows) * (2 / height) - 1)[:, :, None].expand(n, rows, columns)
        x = (_span(left, wide, columns) * (2 / width) - 1)[:, None, :].expand(n, rows, columns)
        grid = torch.stack([x, y], 3).to(images.dtype)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class Flip:
    """Mirrored left to right with a probability; values are bool [N]."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, generator=generator) < FLIP

    def apply(self, images: Tensor, values: Tensor) -> Tensor:
        return torch.where(values.view(-1, 1, 1, 1), images.flip(3), images)


class ColorJitter:
    """Brightness, contrast and saturation of HARD-IDC, on the [0, 1] images behind standardised ones.

    Values are float32 [N, 3], uniform within +-JITTER: how far the image moves towards black, towards its mean luma
    and towards its own luma. The released code neither clips nor fixes the order, but draws one per image; without
    clipping the three commute, so that no order is drawn here.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = mean, std

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return (2 * torch.rand(n, 3, generator=generator) - 1) * JITTER

    def apply(self, images: Tensor, values: Tensor) -> Tensor:
        mean, std = _per_channel(self.mean, images), _per_channel(self.std, images)
        brightness, contrast, saturation = values.to(images.dtype)[:, :, None, None, None].unbind(1)
        x = images * std + mean
        luma = (x * _per_channel(LUMA, x)).sum(1, keepdim=True)
        x = x.lerp(luma, saturation).lerp(luma.mean((2, 3), keepdim=True), contrast) * (1 - brightness)
        return (x - mean) / std


class Lighting:
    """The same colour added to all of an image, along the principal components of ImageNet's colours.

    Values are float32 [N, 3], normal with deviation LIGHTING: multiples of the eigenvalues. Raises ValueError unless
    there are three channels.
    """

    def __init__(self, std: Sequence[float]) -> None:
        if len(std) != len(EIGENVECTORS):
            raise ValueError(f"lighting is for {len(EIGENVECTORS)} channels, not {len(std)}")
        self.std = std

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 3, generator=generator) * LIGHTING

    def apply(self, images: Tensor, values: Tensor) -> Tensor:
        axes, spread = (_constant(one, images.device, images.dtype) for one in (EIGENVECTORS, EIGENVALUES))
        components = axes * spread
        color = (components * values.to(images.dtype)[:, None]).sum(2)
        return images + color[:, :, None, None] / _per_channel(self.std, images)


class PatchShuffle:
    """RDED's shuffle of a factor x factor mosaic: strips of columns, then strips of rows, are permuted.

    Values are uint8 [N, 2, factor]: the strip shown at each place, across and down. The last strip has what is left.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, 2, self.factor, generator=generator).argsort(2).to(torch.uint8)

    def _order(self, strips: Tensor, size: int) -> Tensor:
        strip = (torch.arange(size, device=strips.device) // (size // self.factor)).clamp(max=self.factor - 1)
        return strips.argsort(1)[:, strip].argsort(dim=1, stable=True)

    def apply(self, images: Tensor, values: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        columns, rows = self._order(values[:, 0], width), self._order(values[:, 1], height)
        pixels = (rows[:, :, None] * width + columns[:, None]).view(n, 1, -1).expand(n, channels, -1)
        return images.flatten(2).gather(2, pixels).view_as(images)


# Name -> its transformations in the order of their application. A new recipe is a line here and in the settings.
RECIPES: dict[str, Callable[..., dict[str, Operation]]] = {
    "none": lambda size, mean, std, factor: {},
    "idc": lambda size, mean, std, factor: {
        "crop": RandomResizedCrop((0.5, 1), size=size),
        "flip": Flip(),
        "jitter": ColorJitter(mean, std),
        "lighting": Lighting(std),
    },
    "rded": lambda size, mean, std, factor: {
        **({"patches": PatchShuffle(factor)} if factor > 1 else {}),
        "crop": RandomResizedCrop((1 / factor, 1), size=size),
        "flip": Flip(),
    },
    "fkd": lambda size, mean, std, factor: {"crop": RandomResizedCrop((0.08, 1), size=size), "flip": Flip()},
}


@dataclass(frozen=True)
class View:
    """Drawn parameters, by transformation: small tensors with one row per image."""

    values: dict[str, Tensor]

    def take(self, index: Tensor) -> "View":
        """Rows `index`, for example one batch of a run whose views were drawn or read at once."""
        return View({name: values[index] for name, values in self.values.items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """To be stored; tensors of several views may be concatenated along their first dimension."""
        return dict(self.values)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(dict(tensors))


class Views:
    """Draws and applies transformations by name, one after the other; `augmentation` makes those of a recipe."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self.operations = operations

    def draw(self, n: int, generator: torch.Generator) -> View:
        """Parameters of `n` images. They do not depend on the size of the images."""
        return View({name: operation.draw(n, generator) for name, operation in self.operations.items()})

    def apply(self, images: Tensor, drawn: View) -> Tensor:
        """Views of float images [N, C, H, W]; one row of values serves all images if there is one.

        Raises ValueError if there are neither one nor N rows, or if the values belong to another recipe.
        """
        if drawn.values.keys() != self.operations.keys():
            raise ValueError(f"view drawn for {', '.join(drawn.values)}; applied as {', '.join(self.operations)}")
        for name, operation in self.operations.items():
            values = drawn.values[name].to(images.device, non_blocking=True)
            if len(values) not in (1, len(images)):
                raise ValueError(f"view drawn for {len(values)} images, applied to {len(images)}")
            images = operation.apply(images, values.expand(len(images), *values.shape[1:]))
        return images


def mosaic_factor(size: int) -> int:
    """RDED's factor for images of `size` pixels: 1 in its scripts for CIFAR and Tiny ImageNet, 2 for ImageNet's."""
    return 1 if size <= 64 else 2


def augmentation(
    name: str, *, size: int | None, mean: Sequence[float], std: Sequence[float], factor: int = 2
) -> Augmenter:
    """Views by the name of a recipe, or DSA by its families joined by '_', for standardised images.

    size: of the views, None for that of the images. mean, std: of the standardisation, per channel. factor: of RDED's
    mosaic. Raises ValueError for an unknown name, with the nearest ones, or settings that a transformation refuses.
    """
    check_augmentation(name)
    return Views(RECIPES[name](size, mean, std, factor)) if name in RECIPES else DSA(name)


def _joined(drawn: Sequence[Augmentation | View], sizes: Sequence[int]) -> Augmentation | View:
    """What was drawn of one kind as one, a row for each image; of one row for all images there are as many."""

    def rows(values: Sequence[Tensor]) -> Tensor:
        pairs = zip(values, sizes, strict=True)
        return torch.cat([v.expand(size, *v.shape[1:]) if len(v) == 1 else v for v, size in pairs])

    augmentations = [one for one in drawn if isinstance(one, Augmentation)]
    if augmentations:
        return Augmentation(augmentations[0].family, rows([one.values for one in augmentations]))
    views = [one.values for one in drawn if isinstance(one, View)]
    return View({name: rows([values[name] for values in views]) for name in views[0]})


def apply_each(augment: Augmenter, batches: Sequence[Tensor], drawn: Sequence[Augmentation | View]) -> list[Tensor]:
    """`apply` of each batch [n, C, H, W] with its own draw; batches that are seen in the same way are made at once."""
    kinds: dict[str, list[int]] = {}
    for place, one in enumerate(drawn):
        kinds.setdefault(one.family if isinstance(one, Augmentation) else "", []).append(place)
    found: dict[int, Tensor] = {}
    for places in kinds.values():
        sizes = [len(batches[place]) for place in places]
        view = _joined([drawn[place] for place in places], sizes)
        shown = augment.apply(torch.cat([batches[place] for place in places]), view)
        found |= zip(places, shown.split(sizes), strict=True)
    return [found[place] for place in range(len(batches))]


@dataclass(frozen=True)
class Mix:
    """How the images of one batch are mixed, each with a partner of the batch: "none", "cutmix" or "mixup".

    partner: int64 [n], the other image of each. weight: what remains of an image, so that its label has that weight;
    for CutMix exactly the share of pixels outside the box. box: top, bottom, left, right, the same for all images.
    """

    kind: str
    partner: Tensor
    weight: float = 1.0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)

    def apply(self, images: Tensor) -> Tensor:
        """A mixed copy of float images [n, C, H, W], of the size for which a CutMix was drawn."""
        if self.kind == "none":
            return images
        partner = self.partner.to(images.device, non_blocking=True)
        if self.kind == "mixup":
            return self.weight * images + (1 - self.weight) * images[partner]
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        return mixed

    def blend(self, targets: Tensor) -> Tensor:
        """Class probabilities [n, K] of the mixed images: each image's own and its partner's, by their shares.

        Cross entropy is linear in them, so its value is the released codes' weighted sum of two losses.
        """
        if self.kind == "none":
            return targets
        return self.weight * targets + (1 - self.weight) * targets[self.partner.to(targets.device, non_blocking=True)]

    def to_tensors(self) -> dict[str, Tensor]:
        """To be stored; tensors of several batches may be concatenated along their first dimension."""
        return {
            "kind": torch.tensor([MIXES.index(self.kind)], dtype=torch.uint8),
            "partner": self.partner.to(torch.int32),
            "weight": torch.tensor([self.weight], dtype=torch.float64),
            "box": torch.tensor([self.box], dtype=torch.int16),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        top, bottom, left, right = tensors["box"][0].tolist()
        return cls(
            MIXES[int(tensors["kind"])], tensors["partner"].long(), tensors["weight"].item(), (top, bottom, left, right)
        )


def draw_mix(kind: str, n: int, alpha: float, probability: float, generator: torch.Generator, *, size: int) -> Mix:
    """A mix of `n` square images of `size`, whose random numbers do not depend on it; "none" otherwise than by chance.

    One weight is drawn from Beta(alpha, alpha), one permutation, and for CutMix one box of about the other weight's
    area, centred anywhere and cut at the border, as in the codes of Minimax, RDED and FKD.
    Raises ValueError for an unknown kind.
    """
    if kind not in MIXES:
        raise ValueError(f"mix {kind!r} is not known; choose {', '.join(MIXES)}")
    u = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
    seed = int(torch.randint(2**62, (1,), generator=generator))
    partner = torch.randperm(n, generator=generator)
    if kind == "none" or u[0] >= probability:
        return Mix("none", partner)
    weight = random.Random(seed).betavariate(alpha, alpha)
    if kind == "mixup":
        return Mix(kind, partner, weight)
    half = int(size * math.sqrt(1 - weight)) // 2
    centres = [int(size * v) for v in u[1:]]
    (top, bottom), (left, right) = ((max(c - half, 0), min(c + half, size)) for c in centres)
    return Mix(kind, partner, 1 - (bottom - top) * (right - left) / size**2, (top, bottom, left, right))
