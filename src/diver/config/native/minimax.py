"""Settings of Minimax Diffusion."""

from typing import Any, Literal

from pydantic import Field

from diver.config.native.base import LATENTS, Artefact, NativeConfig

# A directory in diffusers' layout, of which this file is written last.
TUNED = Artefact("tuned", "entry", "/model_index.json")
PREPARATION = (LATENTS, TUNED)

# What the fine-tuned prior depends on.
TUNING = {
    "seed",
    "class_ids",
    "latents",
    "steps",
    "tuning_batch",
    "images_per_class",
    "learning_rate",
    "weight_decay",
    "ema_decay",
    "label_dropout",
    "memory",
    "lambda_pos",
    "lambda_neg",
    "scales",
    "arithmetic",
}


class MinimaxConfig(NativeConfig):
    """Samples of a prior that was fine-tuned to be representative and diverse (Minimax Diffusion)."""

    steps: int = Field(12_000, ge=1, description="Optimiser steps; of the released training the file after 12 000.")
    tuning_batch: int = Field(8, ge=1, description="Latents in a step.")
    images_per_class: int | None = Field(
        None, ge=1, description="Latents of each class that it is tuned on, drawn at random; none: all that there are."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of AdamW, constant.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    ema_decay: float = Field(
        0.9999, ge=0, lt=1, description="Decay of the averaged parameters, which are what is sampled."
    )
    label_dropout: float = Field(
        0.1, ge=0, lt=1, description="Probability of the null class, for classifier-free guidance."
    )
    memory: int = Field(64, ge=1, description="Latents of each class that each of the two memories holds.")
    lambda_pos: float = Field(
        0.002, ge=0, description="Weight of the representativeness: least similarity to real latents."
    )
    lambda_neg: float = Field(
        0.008, ge=0, description="Weight of the diversity: greatest similarity to latents predicted before."
    )
    scales: bool = Field(
        True,
        description="Also tune a factor for each channel of the attention's and the feed-forward's outputs in the "
        "first half of the blocks (DiffFit's gamma), which is multiplied into the weights at the end.",
    )
    arithmetic: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the forward pass (autocast).")

    def tuning(self) -> dict[str, Any]:
        """Settings with the same fine-tuned prior, and the same for all that differ in the sampling only."""
        return self.model_dump(mode="json", include=TUNING)


# Departures from the defaults for DiT-XL/2, whose released sampler guides three channels.
PUBLISHED: dict[str, Any] = {"cfg_channels": 3}
