"""Settings of MGD3."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from diver.config.base import length_of
from diver.config.native.base import LATENTS, PROTOTYPES, NativeConfig

PREPARATION = (LATENTS, PROTOTYPES)


class MGD3Config(NativeConfig):
    """Modes by k-means on latents, each pulling a sample from noise towards it in the first steps (MGD3)."""

    scale: float = Field(0.1, ge=0, description="Scale of the pull (lambda).")
    stop: int = Field(25, ge=0, description="Index down to which the pull acts, itself not included.")
    sigma: Literal["auto", "learned", "posterior"] = Field(
        "auto",
        description="Standard deviation in the pull: the network's own where it predicts one (auto), or as named.",
    )
    residual: Literal["pred_x0", "x_t"] = Field("pred_x0", description="What is pulled to the mode.")
    inject: Literal["sample", "clean"] = Field(
        "sample", description="Move the stepped state, or the predicted clean latent."
    )
    sampler: Literal["ddpm", "ddim"] = Field("ddpm", description="Stepping rule; the published one is ancestral.")
    eta: float = Field(1.0, ge=0, le=1, description="DDIM's eta; without effect on the ancestral rule.")
    n_init: int = Field(10, ge=1, description="Starts of the k-means, of which the best is taken.")

    @model_validator(mode="after")
    def _stop(self) -> Self:
        top = length_of(self.respacing) - 1
        if self.scale and self.stop >= top:
            raise ValueError(f"stop = {self.stop}: with respacing {self.respacing!r} it must lie below {top}")
        return self


# Departures from the defaults for DiT-XL/2.
PUBLISHED: dict[str, Any] = {"cfg_channels": 3}
