"""Settings of D3HR."""

from typing import Any

from diver.config.native.base import LATENTS, Artefact, NativeConfig

STATISTICS = Artefact("statistics", "entry")
PREPARATION = (LATENTS, STATISTICS)


class D3HRConfig(NativeConfig):
    """Latents drawn from class statistics of inverted images, in the group that matches them best (D3HR)."""


PUBLISHED: dict[str, Any] = {}
