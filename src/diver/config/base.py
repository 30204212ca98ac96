"""What every settings model shares."""

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A configuration is refused; the message lists every fault with its key and remedy."""


class Model(BaseModel):
    """Immutable settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
