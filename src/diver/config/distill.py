"""Settings of the stage-1 methods."""

from typing import Literal

from pydantic import Field

from diver.config.base import Model

# Values of `encoder` that are not paths.
PIXELS, TEACHER = "pixels", "teacher"


class DistillConfig(Model):
    """Settings that every stage-1 method has."""

    seed: int = Field(1, ge=0, description="Seed of the method.")


class RandomConfig(DistillConfig):
    """Real training images, drawn per class without replacement."""


class DMConfig(DistillConfig):
    """Distribution matching. The defaults are the setting of the PReDD authors' sets."""

    init: Literal["noise", "real"] = Field("noise", description="Start from unit-normal noise or from real images.")
    iterations: int = Field(1000, ge=1, description="Updates of the images; each draws a fresh random network.")
    batch_real: int = Field(256, ge=1, description="Real images per class and iteration.")
    learning_rate: float = Field(1.0, gt=0, description="Learning rate of the images (SGD).")
    momentum: float = Field(0.5, ge=0, lt=1, description="Momentum of the images' updates.")
    width: int = Field(128, ge=1, description="Width of the random ConvNets.")
    depth: int = Field(3, ge=1, description="Depth of the random ConvNets.")
    augmentation: str = Field(
        "color_crop_cutout_flip_scale_rotate", description="DSA families, joined by '_'; 'none' switches it off."
    )


class CoresetConfig(DistillConfig):
    """Real training images, chosen per class by their features under a fixed encoder."""

    encoder: str = Field(
        PIXELS,
        min_length=1,
        description="Where features come from: 'pixels' (standardised), 'teacher' (the study's), or the path of a "
        "trained network's file.",
    )


class ReleasedConfig(DistillConfig):
    """A set that others have released. `seed` has no effect."""

    path: str = Field("", description="The released file: a pickled dict of DC, DSA or DM, read without running code.")
    value_range: Literal["dataset", "unit", "symmetric"] = Field(
        "dataset",
        description="What its numbers mean: standardised with the dataset's mean and deviation, [0, 1], or [-1, 1].",
    )


SETTINGS: dict[str, type[DistillConfig]] = {
    "random": RandomConfig,
    "herding": CoresetConfig,
    "k_center": CoresetConfig,
    "k_means": CoresetConfig,
    "dm": DMConfig,
    "released": ReleasedConfig,
}
