"""All faults of a configuration at once.

pydantic stops at the first stage that fails: while a field is wrong, nothing that concerns several fields is checked.
Here what it refuses is noted and taken out, and the rest is checked again, until nothing more is found.
"""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from diver.config.base import nearest

# Each pass takes something out; a configuration that needs more has more than one fault to a key.
PASSES = 20
Location = Sequence[int | str]
M = TypeVar("M", bound=BaseModel)


class Faults(ValueError):
    """Several faults of one part of a configuration, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = list(dict.fromkeys(lines))
        super().__init__("; ".join(self.lines))


def _owner(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The model that a location lies in, following fields and the keys of dictionaries; None inside another type."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
            # An optional model or dictionary.
            options = [one for one in getattr(current, "__args__", ()) if one is not type(None)]
            if len(options) == 1 and getattr(current, "__origin__", None) is not list:
                current = options[0]
        else:
            # A dictionary of models: the part is its key, the model its last type argument.
            current = (getattr(current, "__args__", None) or (None,))[-1]
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def place_of(location: Location) -> str:
    """A fault's key, without the kinds of value that pydantic tried where several are allowed."""
    return ".".join(str(part) for part in location if "[" not in str(part))


def fault_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per fault: key, what is wrong, the nearest valid name for an unknown key."""
    lines = []
    for fault in error.errors():
        key = place_of(fault["loc"])
        several = fault.get("ctx", {}).get("error")
        if fault["type"] == "extra_forbidden":
            owner = _owner(model, fault["loc"][:-1])
            hint = f"; {nearest(str(fault['loc'][-1]), list(owner.model_fields))}" if owner else ""
            lines.append(f"{key}: unknown key{hint}")
        elif isinstance(several, Faults):
            lines += [f"{key}: {line}" if key else line for line in several.lines]
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if fault["type"] in ("value_error", "missing") else f" (given: {fault['input']!r})"
            lines.append(f"{key}: {message}{given}" if key else message)
    return lines


def _inside(content: Any, location: Location) -> Any:
    """What is at a location of loaded YAML; None if there is nothing."""
    for part in location:
        if isinstance(content, dict):
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            content = content[part]
        else:
            return None
    return content


def _take_out(content: Any, model: type[BaseModel], location: Location) -> Location | None:
    """Remove the smallest part around a location that may be missing; None if there is none."""
    for end in range(len(location), 0, -1):
        *path, last = location[:end]
        around, owner = _inside(content, path), _owner(model, path)
        if isinstance(around, list) and isinstance(last, int) and last < len(around) > 1:
            around[last] = around[last - 1]
            return location[:end]
        if not isinstance(around, dict) or last not in around:
            continue
        field = owner.model_fields.get(str(last)) if owner else None
        if field is None or not field.is_required():
            del around[last]
            return location[:end]
    return None


def mended(model: type[M], content: dict[str, Any]) -> tuple[M | None, list[str], set[str]]:
    """The model of a content without its faults (None if too little is left), the faults, and the keys taken out.

    A missing label is replaced by a dash; any other missing key takes the entry around it out.
    """
    content = copy.deepcopy(content)
    lines: list[str] = []
    taken: set[str] = set()
    for _ in range(PASSES):
        try:
            return model.model_validate(content), list(dict.fromkeys(lines)), taken
        except ValidationError as error:
            lines += fault_lines(error, model)
            for fault in error.errors():
                location = fault["loc"]
                around = _inside(content, location[:-1])
                if fault["type"] == "missing" and location and location[-1] == "label" and isinstance(around, dict):
                    around["label"] = "-"
                    continue
                out = _take_out(content, model, location[:-1] if fault["type"] == "missing" else location)
                if out is None:
                    return None, list(dict.fromkeys(lines)), taken
                taken.add(".".join(map(str, out)))
    return None, list(dict.fromkeys(lines)), taken
