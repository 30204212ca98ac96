"""What the settings of all diffusion-native systems share, and how what they prepare is declared."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from diver.config.base import Model, Respacing, Seed
from diver.config.text import CaptionConfig, FeatureConfig


class NativeConfig(Model):
    """Settings that every diffusion-native system has."""

    seed: Seed = Field(1, description="Seed of all noise; each image draws from its own key under it.")
    batch: int = Field(50, ge=1, description="Images made together; the result does not depend on it beyond rounding.")
    respacing: Respacing = Field(
        "50", description="Levels of the chain: '50' spans the whole schedule, 'ddim50' strides it."
    )
    cfg_scale: float = Field(4.0, ge=0, description="Classifier-free guidance scale; 1 is off.")
    cfg_channels: int | None = Field(
        None,
        ge=1,
        description="Guide only the first so many latent channels; DiT-XL/2's released sampler guides 3 of 4.",
    )
    class_ids: list[int] | None = Field(
        None,
        description="The prior's class for each class of the set; by name when left out, by order without names.",
    )
    output_size: int | None = Field(
        None, ge=1, description="Size of the images (bilinear, antialiased); the dataset's own when left out."
    )
    latents: Literal["sample", "mean"] = Field(
        "sample", description="Latents of real images: a sample of the autoencoder's posterior, or its mean."
    )


class ReadingConfig(NativeConfig):
    """Settings of the systems that were published for a prior that reads."""

    negative_prompt: str | None = Field(
        None,
        description="What guidance leads away from, for a prior that reads. When left out, the negative prompt that "
        "the prior was given, and without one the released 'cartoon, anime, painting'.",
    )

    def led_away(self, own: str) -> str:
        """The negative prompt that these settings ask of a prior whose own is `own`."""
        return own or "cartoon, anime, painting" if self.negative_prompt is None else self.negative_prompt


class LatentsConfig(Model):
    """Latents of real training images, which all systems of a study share."""

    per_class: int | None = Field(None, ge=1, description="Training images of each class that are encoded; none: all.")
    dtype: Literal["float16", "float32"] = Field("float16", description="How they are stored.")
    batch: int = Field(256, ge=1, description="Images encoded together.")
    seed: Seed = Field(1, description="Seed of the choice of images and of the posterior's samples.")


class Preparations(Model):
    """Settings of what the diffusion-native systems of a study share."""

    latents: LatentsConfig = Field(LatentsConfig(), description="Latents of real training images.")
    captions: CaptionConfig = Field(CaptionConfig(), description="Captions of training images (EDITS, VLCP).")
    features: FeatureConfig = Field(FeatureConfig(), description="Features of captioned images and captions (EDITS).")


@dataclass(frozen=True)
class Artefact:
    """A file that is prepared before a system's sets are made, by a rule with its own benchmark.

    `name`: its key among the artefacts that a system is called with, and in its path. `per`: what there is one of
    it for: a dataset (all systems share it), an entry of the study at a dataset, or a set of an entry (with its
    IPC). `by`: the setting whose value is part of the path, if its content depends on one.
    """

    name: str
    per: Literal["dataset", "entry", "set"]
    suffix: str = ".safetensors"
    by: str | None = None


LATENTS = Artefact("latents", "dataset", ".npy", by="latents")
PROTOTYPES = Artefact("prototypes", "set")
# What prototypes depend on, among the settings of the systems that have them.
CLUSTERING = ("seed", "km_expand", "drop_leftover", "from_prototypes", "n_init")
