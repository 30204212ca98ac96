"""ImageNet-1K's classes, and the ten-class subsets of it that dataset distillation is measured on.

Classes are wnids in the order of the labels. ImageNet-1K's are sorted; those of the subsets often are not. The subsets
are from the released codes of MTT (ImageNette, Woof, Meow, Squawk, Fruit, Yellow), GLaD (A to E) and IDC by way of
Minimax.
"""

import difflib
import json
from functools import cache
from pathlib import Path

IMAGENET = "imagenet1k"


@cache
def subsets() -> dict[str, tuple[str, ...]]:
    """Wnids of each subset by its name, in the order of its labels."""
    listed = json.loads(Path(__file__).with_name("subsets.json").read_text())
    return {name: tuple(wnids) for name, wnids in listed.items()}


@cache
def imagenet() -> tuple[str, ...]:
    """ImageNet-1K's thousand wnids in the order of its labels."""
    return tuple(json.loads(Path(__file__).with_name("imagenet1k.json").read_text()))


def wnids(name: str) -> tuple[str, ...]:
    """Classes of a subset, or of imagenet1k. Raises ValueError with the nearest name for another."""
    if name == IMAGENET:
        return imagenet()
    if name not in subsets():
        known = [*subsets(), IMAGENET]
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f"unknown subset {name!r}, " + (f"nearest is {near[0]!r}" if near else ", ".join(known)))
    return subsets()[name]
