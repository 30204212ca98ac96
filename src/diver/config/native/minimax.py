"""Settings of Minimax Diffusion."""

from typing import Any

from diver.config.native.base import LATENTS, Artefact, NativeConfig

TUNED = Artefact("tuned", "entry")
PREPARATION = (LATENTS, TUNED)


class MinimaxConfig(NativeConfig):
    """Samples of a prior that was fine-tuned to be representative and diverse (Minimax Diffusion)."""


PUBLISHED: dict[str, Any] = {}
