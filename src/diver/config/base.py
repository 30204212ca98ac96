"""What every settings model shares."""

import difflib
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

# Methods multiply a seed by a million or so for the parts of a run, and torch takes 63 bits.
LAST_SEED = 2**40
Seed = Annotated[int, Field(ge=0, le=LAST_SEED)]


def length_of(respacing: str) -> int:
    """Levels of a chain."""
    return int(respacing.removeprefix("ddim"))


def _levels(respacing: str) -> str:
    if not re.fullmatch(r"(ddim)?[0-9]+", respacing) or length_of(respacing) < 2:
        raise ValueError(f"{respacing!r} is no chain; give a number from 2 on, as '50', or with 'ddim' before it")
    return respacing


# How many there may be depends on the prior. A number is one as YAML reads it.
Respacing = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) is int else value), AfterValidator(_levels)
]


class ConfigError(ValueError):
    """A configuration is refused; the message lists every fault with its key and remedy."""


class Model(BaseModel):
    """Immutable settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def nearest(name: str, valid: list[str]) -> str:
    """ "did you mean 'X'?", or the list of valid names."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(sorted(valid))}"


def first_fault(error: ValidationError) -> str:
    """The first fault of a pydantic error in one line: where, what, and the value that it found."""
    fault = error.errors(include_url=False)[0]
    where = f"{'.'.join(map(str, fault['loc']))}: " if fault["loc"] else ""
    found = f" (found {fault['input']!r})" if isinstance(fault["input"], (str, int, float)) else ""
    return " ".join(f"{where}{fault['msg']}{found}".split())[:300]
