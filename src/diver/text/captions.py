"""Captions of images as a file: JSON lines with `file_name` and `text`, the form in which they are published.

A `file_name` is that of the image below the folder of its split, `n02086240/n02086240_10.JPEG`. The images of a
prepared dataset have no files and are called by class and position, `cat/000017`.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from diver.text.resources import TextError


def image_names(labels: Tensor, classes: Sequence[str]) -> list[str]:
    """Names of the images of a prepared dataset: class and position among all, for labels int64 [N]."""
    return [f"{classes[label]}/{position:06d}" for position, label in enumerate(labels.tolist())]


def read_names(path: str | Path, count: int) -> list[str]:
    """Names of `count` images, one a line in their order. Raises TextError for a missing file or another number."""
    try:
        names = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(
            f"{path}: cannot be read ({error}); give the names of the training images, one a line"
        ) from error
    names = names[:-1] if names[-1] == "" else names
    if len(names) != count or len(set(names)) != count:
        raise TextError(
            f"{path}: {len(set(names))} names, and {count} training images; give each image one, in their order"
        )
    return names


def read_captions(path: str | Path) -> dict[str, str]:
    """Captions by file name, in the file's order, white space normalised.

    Raises TextError naming the file and, for what is wrong in it, the line: not JSON, no `file_name` or `text`, an
    empty text, a name twice.
    """
    path = Path(path)
    if not path.is_file():
        raise TextError(
            f"{path}: no such file; give JSON lines with file_name and text, or have captions made "
            "(source: attributes, or model)"
        )
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path}: cannot be read as text ({error}); give JSON lines in UTF-8") from error
    found: dict[str, str] = {}
    # Not by splitlines: JSON may hold the other ends of lines that Unicode has.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
        except (ValueError, TypeError, KeyError) as error:
            raise TextError(
                f'{where}: not of the form {{"file_name": ..., "text": ...}} ({" ".join(str(error).split())})'
            ) from error
        if not isinstance(name, str) or not isinstance(text, str) or not name or not text.strip():
            raise TextError(f"{where}: file_name and text have to be words, and one is empty or none; remove the line")
        if name in found:
            raise TextError(f"{where}: {name} has a caption already; keep one of the two")
        found[name] = " ".join(text.split())
    if not found:
        raise TextError(f"{path}: has no captions")
    return found


def write_captions(path: str | Path, captions: Mapping[str, str]) -> None:
    """Write the file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text("".join(map(_line, captions.items())), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def append_captions(path: str | Path, rows: Iterable[tuple[str, str]]) -> None:
    """Add rows to a journal that a later run goes on from."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("".join(map(_line, rows)))


def read_journal(path: str | Path) -> dict[str, str]:
    """What an unfinished run has written; a last line that was cut off by a kill is left out."""
    path = Path(path)
    if not path.exists():
        return {}
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    return read_captions(path) if whole else {}


def _line(row: tuple[str, str]) -> str:
    return json.dumps({"file_name": row[0], "text": row[1]}, ensure_ascii=False) + "\n"


def match(captions: Mapping[str, str], names: Sequence[str], source: str) -> list[int]:
    """Positions of the images that have a caption, in order.

    Captions of other images (those of another split, or of classes that are left out) are counted on stderr. Raises
    TextError if no image has a caption.
    """
    positions = [position for position, name in enumerate(names) if name in captions]
    if not positions:
        raise TextError(
            f"{source}: its {len(captions)} captions, as of {next(iter(captions), '(none)')}, are of none of the "
            f"{len(names)} training images, as {names[0] if names else '(none)'}; call the images as the second"
        )
    if others := len(captions) - len(positions):
        known = set(names)
        first = next(name for name in captions if name not in known)
        print(f"{source}: {others} captions are of no training image, as of {first}", file=sys.stderr, flush=True)
    return positions
