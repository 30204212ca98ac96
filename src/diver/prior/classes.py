"""Which of a prior's classes a set's classes are."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

WNID = re.compile(r"n\d{8}")
IMAGENET = 1000


class PriorError(ValueError):
    """A prior cannot be loaded or does not fit; the message names it and the remedy."""


@cache
def _imagenet() -> dict[str, int]:
    """ImageNet-1K's index of each wnid."""
    from timm.data import ImageNetInfo

    return {wnid: index for index, wnid in enumerate(ImageNetInfo().label_names())}


def describe(name: str) -> str:
    """A class's name in words: a wnid's WordNet names, anything else with spaces for underscores."""
    if not WNID.fullmatch(name) or name not in _imagenet():
        return name.replace("_", " ")
    from timm.data import ImageNetInfo

    return str(ImageNetInfo().index_to_description(_imagenet()[name]))


def class_ids(
    classes: Sequence[str], ids: Sequence[int] | None, count: int, labels: dict[str, int] | None, prior: str
) -> list[int]:
    """A prior's class for each of a set's.

    `ids` if given; wnids are ImageNet's for a prior of a thousand classes; otherwise by the prior's own `labels`, and
    without them as many classes as the prior has are its classes in order. Raises PriorError naming what does not fit.
    """
    if ids is not None:
        if len(ids) != len(classes) or not all(0 <= i < count for i in ids):
            raise PriorError(
                f"class_ids: {len(ids)} given for {len(classes)} classes; prior {prior} has classes 0..{count - 1}"
            )
        return list(ids)
    known = _imagenet() if count == IMAGENET and all(WNID.fullmatch(name) for name in classes) else labels or {}
    if not known and len(classes) == count:
        return list(range(count))
    missing = [name for name in classes if name not in known]
    if missing:
        of = f" ({', '.join([*known][:3])}, ...)" if known else ""
        raise PriorError(
            f"prior {prior} knows {count} classes{of} and the set has {len(classes)}, of which {missing[0]!r} cannot "
            "be matched by name; take a prior of the set's classes, or give class_ids, a class of the prior for each"
        )
    return [known[name] for name in classes]


def read_labels(root: Path) -> dict[str, str] | None:
    """Names by class, as text of a number, where a pipeline's directory lists them."""
    listed = json.loads((root / "model_index.json").read_text()).get("id2label")
    return listed if isinstance(listed, dict) else None


def labels_of(listed: Any) -> dict[str, int] | None:
    """Class of each name that a pipeline's index lists: one, or several that are separated by commas.

    A name of two classes, as ImageNet's crane is the bird and the machine, stands for neither.
    """
    if not isinstance(listed, dict):
        return None
    found: dict[str, set[int]] = {}
    for i, names in listed.items():
        for name in (str(names), *str(names).split(",")):
            found.setdefault(name.strip(), set()).add(int(i))
    return {name: next(iter(classes)) for name, classes in found.items() if len(classes) == 1}


def write_labels(root: Path, labels: Mapping[str, str]) -> None:
    """List names by class in a pipeline's directory, as DiT's has them: diffusers reads them and never writes them."""
    path = root / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": dict(labels)}, indent=2) + "\n")
