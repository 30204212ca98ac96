"""Settings of D3HR."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from diver.config.base import Respacing, length_of
from diver.config.native.base import LATENTS, Artefact, NativeConfig

STATISTICS = Artefact("statistics", "entry")
PREPARATION = (LATENTS, STATISTICS)

# What the statistics of a class depend on, beside the levels.
INVERSION = {
    "seed",
    "batch",
    "respacing",
    "cfg_scale",
    "cfg_channels",
    "class_ids",
    "latents",
    "images_per_class",
    "inversion_time",
}


class D3HRConfig(NativeConfig):
    """Latents drawn from class statistics of inverted images, in the group that matches them best (D3HR)."""

    respacing: Respacing = Field("ddim50", description="Levels of the inversion and of the chain; D3HR's are strided.")
    level: int = Field(
        31,
        ge=1,
        description="Index of the noise level that classes are inverted to, that their statistics are of and that "
        "sampling starts from.",
    )
    kept_levels: list[int] = Field(
        list(range(24, 39)),
        description="Further levels whose statistics are kept, for the normality by level; the released code keeps "
        "24 to 38.",
    )
    images_per_class: int | None = Field(
        None, ge=4, description="Latents of each class that are inverted, drawn at random; none: all that there are."
    )
    inversion_time: Literal["target", "current"] = Field(
        "target",
        description="Time that the network is told in a step of the inversion: that of the level to come, as in the "
        "released code, or of the present one.",
    )
    candidates: int = Field(1_000_000, ge=1, description="Groups of which each class's best is taken (m).")
    lambda_mean: float = Field(1.0, ge=0, description="Weight of the distance between the group's and class's means.")
    lambda_std: float = Field(1.0, ge=0, description="Weight of that of standard deviations; from IPC 2 on.")
    lambda_skew: float = Field(
        0.5, ge=0, description="Weight of the group's skewness; from IPC 3 on. The released code has 0.1."
    )
    skewness: Literal["true", "released"] = Field(
        "true",
        description="Skewness of each dimension over the group; or, as in the released code, of each vector over its "
        "dimensions, which hardly moves the choice.",
    )
    paper_code_offset: bool = Field(
        False, description="Start sampling one level above that of the statistics, as the released code does."
    )
    shared_seed: bool = Field(
        False, description="Draw the same candidates for every class and run, as the released code does."
    )

    def statistics_level(self) -> int:
        """Index of the level whose statistics the candidates are drawn from."""
        return self.level - self.paper_code_offset

    def levels(self) -> list[int]:
        """Levels whose statistics are kept, rising."""
        return sorted({*self.kept_levels, self.statistics_level()})

    def inversion(self) -> dict[str, Any]:
        """Settings with the same statistics, and the same for all settings that differ in the synthesis only."""
        levels = self.levels()
        return {**self.model_dump(mode="json", include=INVERSION), "kept_levels": levels, "level": levels[-1]}

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if self.levels()[0] < 1:
            raise ValueError(
                f"kept_levels, and level less paper_code_offset, must be 1 or more, not {self.levels()[0]}: "
                "index 0 is where the inversion starts"
            )
        highest, top = max(self.level, *self.levels()), length_of(self.respacing) - 1
        if highest > top:
            raise ValueError(
                f"level {highest} (the highest of level and kept_levels): with respacing {self.respacing!r} they lie "
                f"in 1..{top}"
            )
        return self


# The released code's, beside what the paper says: the defaults are the paper's.
PUBLISHED: dict[str, Any] = {}
