"""Captions from measured attributes: the substitute for a vision-language model where none can be had.

What is said of an image: its class's name, the names of its dominant colours (k-means in CIE Lab), how bright and how
contrasted it is, how many edges it has and which way they run, how much of it the object covers, and what a small
classifier of ImageNet takes it for. It says what can be measured and no more: no pose, no setting, no relation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

# Colour terms and the sRGB values that stand for them.
COLOURS = {
    "black": (15, 15, 15),
    "dark grey": (70, 70, 70),
    "grey": (128, 128, 128),
    "light grey": (190, 190, 190),
    "white": (245, 245, 245),
    "red": (200, 30, 30),
    "dark red": (100, 25, 25),
    "orange": (230, 120, 30),
    "brown": (110, 70, 35),
    "tan": (190, 155, 110),
    "beige": (225, 210, 180),
    "yellow": (235, 215, 50),
    "olive": (110, 110, 40),
    "green": (50, 150, 50),
    "dark green": (30, 70, 35),
    "light green": (150, 205, 130),
    "teal": (30, 130, 130),
    "light blue": (150, 195, 230),
    "blue": (45, 90, 200),
    "dark blue": (25, 40, 100),
    "purple": (120, 60, 150),
    "pink": (235, 150, 180),
}
BRIGHTNESS = ((25, "very dark"), (42, "dark"), (60, "evenly lit"), (76, "bright"), (np.inf, "very bright"))
CONTRAST = ((9, "low"), (17, "moderate"), (np.inf, "high"))
EDGES = ((0.08, "few"), (0.2, "some"), (np.inf, "many"))
EXTENT = ((0.3, "a small part"), (0.6, "about half"), (np.inf, "most"))
DIRECTIONS = ("vertical", "diagonal", "horizontal", "diagonal")
# A cluster of pixels that is smaller is not named; colours apart by less than this are one.
NAMED_SHARE, GREATEST_SIDE, EDGE = 0.15, 32, 8.0


def to_lab(images: Floats) -> Floats:
    """CIE Lab under D65, float64 [..., 3], of sRGB values in [0, 1], [..., 3]."""
    linear = np.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


_NAMES = list(COLOURS)
_LAB = to_lab(np.array(list(COLOURS.values())) / 255)


def colour_name(lab: Floats) -> str:
    """The colour term nearest to a value in Lab."""
    return _NAMES[int(((_LAB - lab) ** 2).sum(1).argmin())]


def article(word: str) -> str:
    """A word behind its indefinite article."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def _word(value: float, scale: Sequence[tuple[float, str]]) -> str:
    return next(word for limit, word in scale if value < limit)


@dataclass(frozen=True)
class Seen:
    """What a classifier says of an image: the class's name, and the share of the image that made it say so."""

    tag: str
    extent: float


# Images uint8 [n, 3, H, W] to what is seen in each.
Look = Callable[[Tensor], list[Seen]]


@dataclass(frozen=True)
class Attributes:
    """What is measured on one image."""

    colours: tuple[str, ...]
    brightness: str
    contrast: str
    edges: str
    direction: str
    extent: str
    tag: str

    def sentence(self, name: str) -> str:
        """A caption of an image of the class `name`."""
        edges = f"{self.edges} {self.direction} edges" if self.direction else f"{self.edges} edges"
        return (
            f"{article(self.brightness).capitalize()} picture of {article(name)}, mainly {' and '.join(self.colours)}, "
            f"with {self.contrast} contrast, with {edges}, the object covers {self.extent} of it, "
            f"it looks like {article(self.tag)}."
        )


def measure(image: Tensor, seen: Seen) -> Attributes:
    """Attributes of an image, uint8 [C, H, W] of one or three channels, of which a classifier has said `seen`."""
    from sklearn.cluster import KMeans

    image = image.expand(3, -1, -1)
    stride = max(1, max(image.shape[-2:]) // GREATEST_SIDE)
    lab = to_lab(image[:, ::stride, ::stride].permute(1, 2, 0).numpy() / 255.0)
    pixels = lab.reshape(-1, 3)
    distinct = min(3, len(np.unique(pixels.round(), axis=0)))
    fitted = KMeans(distinct, n_init=1, max_iter=30, random_state=0).fit(pixels)
    shares = np.bincount(fitted.labels_, minlength=distinct) / len(pixels)
    order = np.argsort(-shares, kind="stable")
    names = [colour_name(fitted.cluster_centers_[i]) for i in order if shares[i] >= NAMED_SHARE or i == order[0]]
    across, down = np.gradient(lab[..., 0], axis=1), np.gradient(lab[..., 0], axis=0)
    strong = np.hypot(across, down) > EDGE
    return Attributes(
        tuple(dict.fromkeys(names)),
        _word(float(pixels[:, 0].mean()), BRIGHTNESS),
        _word(float(pixels[:, 0].std()), CONTRAST),
        _word(float(strong.mean()), EDGES),
        _direction(across[strong], down[strong]),
        _word(seen.extent, EXTENT),
        seen.tag,
    )


def _direction(across: Floats, down: Floats) -> str:
    """The way that edges run, "" where they have no common one: the axis of the mean structure tensor."""
    xx, yy, xy = (across**2).sum(), (down**2).sum(), (across * down).sum()
    coherence = np.hypot(xx - yy, 2 * xy)
    if coherence <= 0.2 * (xx + yy):
        return ""
    normal = 0.5 * np.arctan2(2 * xy, xx - yy)
    return DIRECTIONS[round(normal / (np.pi / 4)) % 4]


def describe_images(images: Tensor, names: Sequence[str], look: Look) -> list[str]:
    """Captions of images uint8 [n, C, H, W] whose classes are called `names`."""
    seen = look(images.expand(-1, 3, -1, -1))
    return [measure(image, one).sentence(name) for image, one, name in zip(images, seen, names, strict=True)]
