"""What the commands share: refusals, settings from KEY=VALUE, names to complete, tables, and where files lie."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from diver.config.base import nearest
from diver.config.mending import place_of

# The checkout that this code lies in: its configuration and its shipped prior are found from any folder.
CHECKOUT = Path(__file__).parents[3]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A setting, KEY=VALUE; repeatable.")]


# Suffix of the folder that a run goes on from.
RUN = ".run"


class UserError(Exception):
    """Something that the user can mend; shown as one line."""


@contextmanager
def mendable(subject: object = "") -> Iterator[None]:
    """Around work: what it refuses (ValueError, a loss that is no longer finite) is the user's to mend.

    What it prints goes to stderr, so that stdout has the result alone.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except ValidationError as error:
        raise UserError(f"{subject}: {faults(error)}" if subject else faults(error)) from None
    except (ValueError, FloatingPointError) as error:
        raise UserError(f"{subject}: {error}" if subject else str(error)) from None


def faults(error: ValidationError, option: str = "") -> str:
    """A settings model's faults in one line, each key after the option that gives it."""
    lines = []
    for one in error.errors():
        given = f" (given: {one['input']})" if isinstance(one["input"], str | int | float) else ""
        lines.append(f"{option} {place_of(one['loc'])}: {one['msg']}{given}".strip(" :"))
    return "; ".join(lines)


def options_of(pairs: Sequence[str] | None, option: str, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """Values of KEY=VALUE texts, read as YAML; `keys`: which are known, if not all are."""
    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, found, value = pair.partition("=")
        if not found:
            raise UserError(f"{option} {pair}: write KEY=VALUE" + (f"; keys: {', '.join(keys)}" if keys else ""))
        if keys is not None and key not in keys:
            raise UserError(f"{option} {pair}: unknown key {key!r}; {nearest(key, list(keys))}")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"{option} {pair}: the value is not YAML; quote it, as in {key}='text'") from None
    return values


def settings(
    pairs: Sequence[str] | None, model: type[Any], base: dict[str, Any] | None = None, option: str = "--set"
) -> Any:
    """Settings from KEY=VALUE texts, values read as YAML, over those of `base`."""
    given = options_of(pairs, option, list(model.model_fields))
    try:
        return model(**{**(base or {}), **given})
    except ValidationError as error:
        raise UserError(faults(error, option)) from None


def known(name: str, names: Iterable[str], option: str = "") -> str:
    """The name if it is one of the names; else UserError with the nearest."""
    valid = list(names)
    if name not in valid:
        raise UserError(f"{option} {name}: {nearest(name, valid)}".strip())
    return name


def span(text: str, option: str = "--classes") -> range:
    """FIRST:END as a range."""
    first, _, end = text.partition(":")
    try:
        return range(int(first), int(end))
    except ValueError:
        raise UserError(f"{option} {text}: write FIRST:END, for example 0:250") from None


def at_home(path: str | Path) -> Path:
    """A file of the project by its path from the current folder, else from the checkout; as given if it is in none."""
    here, there = Path(path), CHECKOUT / path
    return there if not here.exists() and there.exists() else here


def writable(path: Path, *read: Path, option: str = "--out") -> None:
    """Refuse, before anything takes time, a file that cannot be written, or that is one of those that are `read`."""
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file in it")
    for given in read:
        if path.exists() and given.exists() and path.samefile(given):
            raise UserError(f"{option} {path}: is what is read, and would be lost; name another file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UserError(f"{option} {path}: nothing can be written into {folder}")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def completed(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """For shell completion: the names that begin with what is typed; after a comma, those of the next one."""

    def complete(incomplete: str) -> list[str]:
        before, comma, typed = incomplete.rpartition(",")
        return [before + comma + name for name in names() if name.startswith(typed)]

    return complete


def print_json(value: Any) -> None:
    """Print as JSON, which has no numbers that are not finite: null stands for them."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(one) for key, one in part.items()}
        if isinstance(part, (list, tuple)):
            return [finite(one) for one in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    print(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as text in columns: the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def apart(kept: Path, out: Path) -> None:
    """Refuse a folder to go on from that is where the set is to be written, before hours of work."""
    if kept.absolute() == out.absolute():
        raise UserError(
            f"--out {out}: a run's folder has this name; give another, as {out.with_suffix('.safetensors')}"
        )
