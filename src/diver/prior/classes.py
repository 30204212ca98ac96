"""Which of a prior's classes a set's classes are."""

import re
from collections.abc import Sequence
from functools import cache

from diver.prior.base import PriorError

WNID = re.compile(r"n\d{8}")
IMAGENET = 1000


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

    `ids` if given; as many classes as the prior has are its classes in order; wnids are ImageNet's for a prior of a
    thousand classes; otherwise by the prior's own `labels`. Raises PriorError naming what does not fit.
    """
    if ids is not None:
        if len(ids) != len(classes) or not all(0 <= i < count for i in ids):
            raise PriorError(
                f"class_ids: {len(ids)} given for {len(classes)} classes; prior {prior} has classes 0..{count - 1}"
            )
        return list(ids)
    if len(classes) == count:
        return list(range(count))
    known = _imagenet() if count == IMAGENET and all(WNID.fullmatch(name) for name in classes) else labels or {}
    missing = [name for name in classes if name not in known]
    if missing:
        raise PriorError(
            f"prior {prior} knows {count} classes and the set has {len(classes)}, of which {missing[0]!r} cannot be "
            "matched by name; give class_ids, a class of the prior for each class of the set"
        )
    return [known[name] for name in classes]
