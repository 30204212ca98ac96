"""Where weights lie: a directory, a file inside an installed package, or a name on the model hub."""

import importlib.util
from pathlib import Path

PACKAGE = "package:"


class TextError(ValueError):
    """A caption, a model or a text is refused; one line that names it, the fault and the remedy."""


def resolve(source: str) -> str:
    """`package:NAME/PATH` as a path inside an installed package, which is not imported; anything else as it stands.

    Raises TextError if the package or the path in it is missing.
    """
    if not source.startswith(PACKAGE):
        return source
    name, _, inside = source.removeprefix(PACKAGE).partition("/")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise TextError(f"{source}: package {name} is not installed; install it, or give a directory or a hub name")
    path = Path(next(iter(found.submodule_search_locations))) / inside
    if not path.exists():
        raise TextError(f"{source}: package {name} has no {inside}; another version of it is installed")
    return str(path)
