"""Names of augmentations, checked before torch is loaded. The transformations are in `diver.networks`."""

import difflib

# Families of DSA, which a strategy joins by underscores, and the recipes of the other protocols.
DSA_FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
VIEWS = ("none", "idc", "rded", "fkd")
# Those that change colours as ImageNet's vary, which grey images have none of.
COLOURED = ("idc",)


def check_augmentation(name: str) -> str:
    """The name, if it is one of VIEWS or DSA families joined by '_'; otherwise ValueError with the nearest names."""
    parts = name.split("_")
    unknown = [part for part in parts if part not in DSA_FAMILIES]
    if name in VIEWS or not unknown:
        return name
    candidates = DSA_FAMILIES if len(parts) > 1 else (*VIEWS, *DSA_FAMILIES)
    near = difflib.get_close_matches(unknown[0], candidates, 2, cutoff=0.4)
    hint = f"nearest to {unknown[0]!r}: {', '.join(near)}; " if near else ""
    raise ValueError(
        f"augmentation {name!r} is not known; {hint}"
        f"choose {', '.join(VIEWS)} or DSA families joined by '_': {', '.join(DSA_FAMILIES)}"
    )
