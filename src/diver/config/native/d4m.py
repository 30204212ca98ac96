"""Settings of D4M."""

from typing import Any

from pydantic import Field

from diver.config.native.base import LATENTS, PROTOTYPES, ReadingConfig

PREPARATION = (LATENTS, PROTOTYPES)


class D4MConfig(ReadingConfig):
    """Prototypes by mini-batch k-means on latents, each noised and denoised towards its class (D4M)."""

    cfg_scale: float = Field(8.0, ge=0, description="Classifier-free guidance scale; 1 is off.")
    strength: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Share of the chain that a prototype goes through: 0 decodes it, 1 starts from noise alone. What "
        "0.7 leaves of it on Stable Diffusion's schedule, 0.5 leaves on DiT's.",
    )
    km_expand: int = Field(
        1, ge=1, description="Latents in a batch of the k-means for each cluster; 1 in the released script."
    )
    drop_leftover: bool = Field(
        False,
        description="Leave out the latents that do not fill a batch in all classes but the last, and there as well if "
        "they are fewer than the clusters, as the released code does.",
    )
    from_prototypes: bool = Field(
        True, description="False takes a real latent drawn at random for each prototype, which is D4M's control."
    )


# Departures from the defaults, which are the published ones, for Stable Diffusion 1.5 at 512 pixels.
PUBLISHED: dict[str, Any] = {}
