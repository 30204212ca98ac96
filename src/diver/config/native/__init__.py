"""Settings of the diffusion-native systems, and what each prepares. A new system is a file and a line in each table."""

from typing import Any

from diver.config.native import d3hr, d4m, edits, mgd3, minimax
from diver.config.native.base import (
    CLUSTERING,
    LATENTS,
    PROTOTYPES,
    Artefact,
    LatentsConfig,
    NativeConfig,
    Preparations,
)

__all__ = ["CLUSTERING", "LATENTS", "PREPARATIONS", "PROTOTYPES", "PUBLISHED", "SETTINGS", "Artefact", "LatentsConfig",
           "NativeConfig", "Preparations"]  # fmt: skip

SETTINGS: dict[str, type[NativeConfig]] = {
    "d4m": d4m.D4MConfig,
    "d3hr": d3hr.D3HRConfig,
    "edits": edits.EDITSConfig,
    "vlcp": edits.VLCPConfig,
    "minimax": minimax.MinimaxConfig,
    "mgd3": mgd3.MGD3Config,
}

# What a system's sets are made from beside the prior, in the order in which it is made.
PREPARATIONS: dict[str, tuple[Artefact, ...]] = {
    "d4m": d4m.PREPARATION,
    "d3hr": d3hr.PREPARATION,
    "edits": edits.EDITS_PREPARATION,
    "vlcp": edits.VLCP_PREPARATION,
    "minimax": minimax.PREPARATION,
    "mgd3": mgd3.PREPARATION,
}

# `preset: published` of a study: where the published settings depart from the defaults.
PUBLISHED: dict[str, dict[str, Any]] = {
    "d4m": d4m.PUBLISHED,
    "d3hr": d3hr.PUBLISHED,
    **edits.PUBLISHED,
    "minimax": minimax.PUBLISHED,
    "mgd3": mgd3.PUBLISHED,
}
