"""The ten-class subsets of ImageNet-1K that dataset distillation is measured on.

Classes are wnids in the order of the labels, which often is not the order of the wnids. From the released codes of
MTT (ImageNette, Woof, Meow, Squawk, Fruit, Yellow), GLaD (A to E) and IDC by way of Minimax.
"""

import json
from functools import cache
from pathlib import Path


@cache
def subsets() -> dict[str, tuple[str, ...]]:
    """Wnids of each subset by its name, in the order of its labels."""
    listed = json.loads(Path(__file__).with_name("subsets.json").read_text())
    return {name: tuple(wnids) for name, wnids in listed.items()}
