"""Settings of EDITS and VLCP."""

from typing import Any

from diver.config.native.base import LATENTS, Artefact, NativeConfig

CAPTIONS = Artefact("captions", "dataset", ".jsonl")
PREPARATION = (LATENTS, CAPTIONS)


class EDITSConfig(NativeConfig):
    """Image and text prototypes of clusters of images and captions (EDITS)."""


class VLCPConfig(NativeConfig):
    """Image and text prototypes of clusters of images (VLCP)."""


PUBLISHED: dict[str, dict[str, Any]] = {"edits": {}, "vlcp": {}}
