"""Stable Diffusion: a latent diffusion whose conditions are embedded prompts (Rombach et al. 2022)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from diver.config.prior import PriorOptions
from diver.prior.base import PriorError, load_part
from diver.prior.classes import describe
from diver.prior.dit import DiffusionPrior, noise_of
from diver.prior.schedule import Level

transformers_logging.disable_progress_bar()

# Prompts that the text encoder handles at once.
CHUNK = 64


@dataclass
class StableDiffusionPrior(DiffusionPrior):
    """A UNet that attends to the text encoder's last hidden states, [N, L, D].

    `prompt` holds {} for a class's name in words; `negative_prompt` is that of the unconditional estimate. The text
    encoder computes in float32, on the network's device from the first prompt on.
    """

    network: UNet2DConditionModel
    text_encoder: CLIPTextModel = field(kw_only=True)
    tokenizer: CLIPTokenizer = field(kw_only=True)
    prompt: str = "{}"
    negative_prompt: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.network.config.in_channels, height, width

    @cached_property
    def null(self) -> Tensor:
        """Embedding of the negative prompt, float32 [1, L, D]."""
        return self._embed([self.negative_prompt], ["negative_prompt"])

    def class_table(self, classes: Sequence[str], ids: Sequence[int] | None = None) -> Tensor:
        """Embedded prompts, float32 [len(classes), L, D], on the network's device.

        A prompt with more tokens than the text encoder takes loses its end, which is said on stderr. Raises PriorError
        if `ids` are given or the prompt cannot be filled in.
        """
        if ids is not None:
            raise PriorError(
                f"class_ids: prior {self.name} is asked in words and knows no class numbers; leave them out, and set "
                "prompt for what is said of a class"
            )
        try:
            prompts = [self.prompt.format(describe(name)) for name in classes]
        except (LookupError, ValueError, AttributeError) as error:
            raise PriorError(f"prompt {self.prompt!r}: give {{}} where the class's name goes ({error})") from error
        return self._embed(prompts, [f"class {name}" for name in classes])

    def predict(self, latents: Tensor, level: Level, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        steps = torch.full((len(latents),), int(level.timestep), device=latents.device)
        output = self.network(latents.to(self.dtype), steps, encoder_hidden_states=condition.to(self.dtype))
        return noise_of(output.sample.to(latents.dtype), latents, level, self.prediction_type), None

    @property
    def _tokens(self) -> int:
        """L, both end tokens included; a tokenizer without a configuration of its own does not know it."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @torch.no_grad()
    def _embed(self, prompts: list[str], owners: list[str]) -> Tensor:
        """Last hidden states of prompts, float32 [len(prompts), L, D]; `owners` says whose a prompt is.

        Each is padded to L tokens, and the padding is attended to, as in the network's training.
        """
        given = self.tokenizer(prompts, verbose=False).input_ids
        for prompt, tokens, owner in zip(prompts, given, owners, strict=True):
            if len(tokens) > self._tokens:
                print(
                    f"{self.name}: the prompt of {owner} is cut after {self._tokens} of {len(tokens)} tokens: {prompt}",
                    file=sys.stderr,
                    flush=True,
                )
        self.text_encoder.to(self.device)
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=self._tokens, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        return torch.cat([self.text_encoder(part).last_hidden_state.float() for part in ids.split(CHUNK)])


def load_stable_diffusion(root: Path, vae: Any, source: str, options: PriorOptions) -> StableDiffusionPrior:
    """Stable Diffusion from a directory in diffusers' layout: unet, text_encoder, tokenizer and scheduler.

    Only the scheduler's noise levels are used, so that a configuration of any of diffusers' schedulers will do.
    Raises PriorError naming the part that is missing, damaged or does not fit the others.
    """
    network = load_part(UNet2DConditionModel, root, "unet")
    text_encoder = load_part(CLIPTextModel, root, "text_encoder", dtype=torch.float32)
    tokenizer = load_part(CLIPTokenizer, root, "tokenizer")
    scheduler = load_part(DDIMScheduler, root, "scheduler")
    unet, text = network.config, text_encoder.config
    for what, one, first, other, second in (
        ("latent channels", "unet", unet.in_channels, "autoencoder", vae.config.latent_channels),
        ("width of a token", "unet", unet.cross_attention_dim, "text_encoder", text.hidden_size),
        ("vocabulary", "tokenizer", len(tokenizer), "text_encoder", text.vocab_size),
    ):
        if first != second:
            raise PriorError(
                f"{source}: {what}: {one} has {first}, {other} {second}; they are not of one model or one is incomplete"
            )
    return StableDiffusionPrior(
        vae,
        network,
        source,
        alphas_cumprod=scheduler.alphas_cumprod.double(),
        prediction_type=scheduler.config.prediction_type,
        text_encoder=text_encoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
    )
