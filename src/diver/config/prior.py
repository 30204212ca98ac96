"""Settings of the prior: where it comes from, and how the small one is trained."""

from typing import Literal

from pydantic import Field

from diver.config.base import Model, Seed

# Classes, channels and pixels a side of the images that the judge of a trained prior, a ResNet-20 of CIFAR-10, is for.
JUDGED = (10, 3, 32)


class VAETraining(Model):
    """Training of the autoencoder."""

    widths: list[int] = Field(
        [32, 64, 64], min_length=1, description="Channels per resolution; each further entry halves the resolution."
    )
    latent_channels: int = Field(6, ge=1, description="Channels of the latent.")
    steps: int = Field(9000, ge=1, description="Optimiser steps.")
    batch: int = Field(32, ge=1, description="Images per step.")
    learning_rate: float = Field(1.5e-3, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay.")
    warmup: int = Field(100, ge=0, description="Steps of linear warm-up.")
    decay: float = Field(
        0.5, gt=0, le=1, description="Last fraction of the steps, over which the rate falls linearly to zero."
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged weights, which are the product.")
    kl_weight: float = Field(
        2e-4, ge=0, description="Weight of the divergence from the unit normal, a mean per latent element."
    )
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Arithmetic of the forward pass (autocast).")


class DiTTraining(Model):
    """Training of the class-conditional diffusion transformer."""

    width: int = Field(256, ge=8, description="Hidden width.")
    depth: int = Field(8, ge=1, description="Number of blocks.")
    heads: int = Field(4, ge=1, description="Attention heads; divides the width.")
    patch: int = Field(2, ge=1, description="Latent patch size.")
    steps: int = Field(6000, ge=1, description="Optimiser steps.")
    batch: int = Field(128, ge=1, description="Latents per step.")
    learning_rate: float = Field(6e-4, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay.")
    warmup: int = Field(300, ge=0, description="Steps of linear warm-up.")
    decay: float = Field(
        0.4, gt=0, le=1, description="Last fraction of the steps, over which the rate falls linearly to zero."
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged weights, which are the product.")
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="Probability of the null class, for classifier-free guidance."
    )
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Arithmetic of the forward pass (autocast).")
    snapshots: list[int] = Field(
        [], description="Steps after which the averaged weights are also saved, to measure what prior quality does."
    )


class PriorOptions(Model):
    """How a prior is read and run; what is left out follows from its source."""

    family: Literal["auto", "dit", "sit", "stable-diffusion"] = Field(
        "auto",
        description="Kind of network. auto reads it from model_index.json, or from the name of a single file "
        "(DiT-*.pt, SiT-*.pt).",
    )
    autoencoder: str | None = Field(
        None,
        description="Directory or hub name of another autoencoder (AutoencoderKL or AutoencoderTiny) than the "
        "source's; a single-file checkpoint has none and takes stabilityai/sd-vae-ft-mse.",
    )
    revision: str | None = Field(
        None, description="Commit of a hub source; the tested one where the project knows one."
    )
    autoencoder_revision: str | None = Field(None, description="Commit of a hub autoencoder.")
    sha256: dict[str, str] = Field(
        {}, description="Expected SHA-256 of files, by path in the source; known ones are verified without asking."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of network and autoencoder.")
    compile: bool = Field(False, description="Compile the network's repeated blocks (torch.compile): pays on a GPU.")
    vae_chunk: int | None = Field(None, ge=1, description="Images that the autoencoder handles at once; none: all.")
    dit_arithmetic: Literal["auto", "diffusers", "published"] = Field(
        "auto",
        description="Time frequencies and normalisation of a DiT: published is what DiT's and SiT's released weights "
        "were trained with, diffusers what its class computes. auto: published for single files and known hub names.",
    )
    prompt: str = Field("{}", description="Stable Diffusion's prompt; {} is the class's name in words.")
    negative_prompt: str = Field("", description="Stable Diffusion's prompt of the unconditional estimate.")

    def words(self) -> dict[str, str]:
        """What is said to a prior that reads, where it was asked for."""
        return self.model_dump(include={"prompt", "negative_prompt"}, exclude_defaults=True)


class PriorChoice(PriorOptions):
    """Where the prior comes from."""

    source: str = Field(
        "shipped",
        description="shipped: the project's own for the dataset. trained: trained by this workflow. Otherwise a local "
        "directory or a hub name (owner/name) in diffusers' layout, or a single-file checkpoint of DiT or SiT.",
    )
    seed: Seed = Field(0, description="Seed of the training.")
    vae: VAETraining = Field(VAETraining(), description="Training of the autoencoder, when trained.")
    dit: DiTTraining = Field(DiTTraining(), description="Training of the transformer, when trained.")
    classifier: str | None = Field(
        None,
        description="Weights of a CIFAR-10 ResNet-20 that judges a trained prior; none: not judged.",
    )

    def options(self) -> PriorOptions:
        """The part that reading the prior needs, without how it is trained."""
        return PriorOptions(**self.model_dump(include=set(PriorOptions.model_fields)))
