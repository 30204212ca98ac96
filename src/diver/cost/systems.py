"""What the diffusion-native systems make of a prior: passes of its network for an image, and for what they prepare."""

import math
from collections.abc import Mapping
from typing import Any

from diver.cost.counting import TRAIN, PriorCost

# Preparations that are not passes of the prior's networks, with what is not counted of them.
UNCOUNTED = {
    "prototypes": "clustering of latents: no networks, not counted",
    "captions": "captions: the vision-language model's operations are not counted",
    "features": "features of images and captions: their encoders' operations are not counted",
    "texts": "texts: clustering and the language model's operations are not counted",
}


def levels(settings: Mapping[str, Any]) -> int:
    """Levels of a chain."""
    return int(settings["respacing"].removeprefix("ddim"))


def guided(settings: Mapping[str, Any]) -> int:
    """Passes in a step: classifier-free guidance takes two."""
    return 1 if settings["cfg_scale"] == 1 else 2


def synthesis_passes(method: str, settings: Mapping[str, Any]) -> int:
    """Passes of the prior's network that a system makes for one image of its set."""
    if method in ("d4m", "edits", "vlcp"):
        steps = math.floor(levels(settings) * settings["strength"] + 1e-9)
    elif method == "d3hr":
        steps = settings["level"] + 1
    else:
        steps = levels(settings)
    return guided(settings) * steps


def preparation_macs(
    name: str, settings: Mapping[str, Any], classes: int, encoded: int, cost: PriorCost
) -> tuple[float, str]:
    """Multiply-adds of a preparation, and what is left out of them. `encoded`: latents of each class."""
    if name == "latents":
        return classes * encoded * cost.encode, ""
    if name == "statistics":
        inverted = min(encoded, settings["images_per_class"] or encoded)
        top = max([*settings["kept_levels"], settings["level"] - settings["paper_code_offset"]])
        return classes * inverted * top * guided(settings) * cost.passes, "search of groups: no network, not counted"
    if name == "tuned":
        return settings["steps"] * settings["tuning_batch"] * TRAIN * cost.passes, ""
    return 0.0, UNCOUNTED[name]
