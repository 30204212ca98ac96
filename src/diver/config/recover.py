"""Settings of the stage-2 methods."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from diver.config.base import Model, Respacing, Seed, length_of


class RecoverConfig(Model):
    """Settings that every stage-2 method has."""

    seed: Seed = Field(1, description="Seed of all noise; each image draws from its own key under it.")
    batch: int = Field(
        50,
        ge=1,
        description="Images processed together; the result does not depend on it beyond rounding. Halved where memory "
        "runs out.",
    )
    input_range: Literal["denormalised", "raw"] = Field(
        "denormalised",
        description="denormalised: images are brought to the autoencoder's [-1, 1]. raw: stored values are fed "
        "unchanged, as the public PReDD code does, although standardised images exceed that range.",
    )
    vae_sample: bool = Field(True, description="Sample the autoencoder's posterior, as PReDD does; otherwise its mean.")
    tiles: int = Field(
        1,
        ge=1,
        description="Cut each image into so many rows and columns, recover each piece and put them together again: 2 "
        "for NCFM, whose images hold four.",
    )
    output_size: int | None = Field(
        None, ge=1, description="Size of the result (bilinear); the prior's own when left out."
    )
    class_ids: list[int] | None = Field(
        None,
        description="The prior's class for each class of the set; by name when left out, by order without names.",
    )

    def require_levels(self, ipc: int) -> None:
        """Raise ValueError for a level outside the chain, at an IPC."""


class ChainConfig(RecoverConfig):
    """Settings of a reverse chain."""

    respacing: Respacing = Field(
        "50", description="Levels of the chain: '50' spans the whole schedule, 'ddim50' strides it."
    )
    cfg_scale: float = Field(4.0, ge=0, description="Classifier-free guidance scale; 1 is off.")
    cfg_channels: int | None = Field(
        None,
        ge=1,
        description="Guide only the first so many latent channels; DiT-XL/2's released sampler guides 3 of 4.",
    )

    def length(self) -> int:
        """Levels of the chain."""
        return length_of(self.respacing)

    def _require(self, key: str, value: int, limit: int, first: int = 0) -> None:
        if not first <= value <= first + limit:
            span = f"{first}..{first + limit}"
            raise ValueError(f"{key} = {value}: with respacing {self.respacing!r} it must lie in {span}")


class VAEConfig(RecoverConfig):
    """Settings of the encode-decode control."""


class RawConfig(ChainConfig):
    """Settings of raw sampling; `input_range` and `vae_sample` have no effect."""

    eta: float = Field(0.0, ge=0, le=1, description="DDIM's eta; 0 is deterministic.")


class PReDDConfig(ChainConfig):
    """Settings of PReDD. Its README's pairs for DM are 10/15 at IPC 1 and 20/20 at IPC 10."""

    forward_t: int = Field(20, ge=0, description="Index of the noise level put on the clean latent (t_init).")
    reverse_t: int = Field(20, ge=1, description="Number of reverse steps (K); the chain starts at index K - 1.")
    sampler: Literal["ddpm", "ddim"] = Field("ddpm", description="Stepping rule; the published one is ancestral.")
    by_ipc: dict[int, tuple[int, int]] = Field(
        {}, description="forward_t and reverse_t for given IPCs, before the two above."
    )

    def levels(self, ipc: int) -> tuple[int, int]:
        return self.by_ipc.get(ipc, (self.forward_t, self.reverse_t))

    def require_levels(self, ipc: int) -> None:
        # The defaults are DM's at IPC 10, which no one means who has given pairs for other IPCs.
        if self.by_ipc and ipc not in self.by_ipc and not {"forward_t", "reverse_t"} <= self.model_fields_set:
            raise ValueError(
                f"by_ipc: no levels for IPC {ipc} (known: IPC {', '.join(map(str, self.by_ipc))}); give forward_t and "
                "reverse_t"
            )
        forward_t, reverse_t = self.levels(ipc)
        self._require("forward_t", forward_t, self.length() - 1)
        self._require("reverse_t", reverse_t, self.length())


class DIVERConfig(ChainConfig):
    """Settings of DIVER; the defaults are the paper's where it states them, else the most plausible ones."""

    start: Literal["inherit", "gaussian"] = Field(
        "inherit", description="inherit: noised latent; gaussian: pure noise."
    )
    t_f: int = Field(25, ge=0, description="Index of the noise level put on the clean latent.")
    t_r: int = Field(50, ge=1, description="Number of reverse steps; equal to t_f + 1 gives an SDEdit-like control.")
    sp_low: int = Field(25, ge=0, description="Lower end of the guidance window, included.")
    sp_high: int = Field(40, ge=0, description="Upper end of the guidance window, included.")
    index_base: Literal[0, 1] = Field(0, description="1 reads t_f, sp_low and sp_high as steps counted from 1.")
    level_by: Literal["index", "noise"] = Field(
        "index",
        description="What t_f, sp_low and sp_high mean on another schedule than DiT's: the same indices, or the levels "
        "with the signal-to-noise ratio that DiT's schedule has there.",
    )
    gamma: float = Field(0.1, ge=0, description="Guidance scale; the paper takes 0.02 for NCFM.")
    anchor_blur: float = Field(
        0.0,
        ge=0,
        description="Control: blur the image that is the anchor of the guidance, and it only (standard deviation in "
        "pixels of the prior's images).",
    )
    anchor_noise: float = Field(
        0.0,
        ge=0,
        description="Control: add white noise of this standard deviation to the anchor's image in [-1, 1].",
    )
    sg_residual: Literal["pred_x0", "x_t"] = Field("pred_x0", description="What is pulled to the clean latent.")
    sg_sigma: Literal["learned", "posterior", "none"] = Field(
        "posterior",
        description="Standard deviation in the guidance term. 'learned' needs a network that predicts it; in the "
        "window of DiT's schedule learned and posterior differ by less than 1 %.",
    )
    sg_inject: Literal["sample", "clean"] = Field(
        "sample", description="Move the stepped state, or the predicted clean latent."
    )
    eta: float = Field(0.0, ge=0, le=1, description="DDIM's eta; 0 is deterministic.")
    sampler: Literal["ddim", "ddpm"] = Field("ddim", description="Stepping rule.")

    def window(self) -> tuple[int, int]:
        """Guidance window as indices from 0, both ends included."""
        return self.sp_low - self.index_base, self.sp_high - self.index_base

    def require_levels(self, ipc: int) -> None:
        if self.start == "inherit":
            self._require("t_f", self.t_f, self.length() - 1, self.index_base)
        self._require("t_r", self.t_r, self.length())
        if self.gamma:
            self._require("sp_high", self.sp_high, self.length() - 1, self.index_base)

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.sp_low > self.sp_high:
            raise ValueError(f"sp_low = {self.sp_low} is above sp_high = {self.sp_high}; the window is empty")
        return self


SETTINGS: dict[str, type[RecoverConfig]] = {
    "vae": VAEConfig,
    "raw": RawConfig,
    "predd": PReDDConfig,
    "diver": DIVERConfig,
}


@dataclass(frozen=True)
class Preset:
    """A published setting: the method, its settings where they are not the defaults, and where they stand."""

    method: str
    settings: dict[str, Any]
    source: str


# DiT's released sampler, which PReDD, DIVER and MGD3 build on: three guided channels, and images as they are stored.
_RELEASED = {"cfg_channels": 3, "input_range": "raw"}
_DIVER = {**_RELEASED, "sg_sigma": "learned"}
_PREDD = {**_RELEASED, "sampler": "ddpm"}
_MGD3 = {**_DIVER, "start": "gaussian", "sp_low": 26, "sp_high": 49, "input_range": "denormalised"}

PRESETS: dict[str, Preset] = {
    "diver-paper": Preset(
        "diver", _DIVER, "DIVER: t_f 25, t_r 50, window 40 to 25, gamma 0.1, DDIM; residual as in its code"
    ),
    "diver-paper-ncfm": Preset(
        "diver", {**_DIVER, "gamma": 0.02, "tiles": 2}, "DIVER for NCFM: gamma 0.02, four pieces"
    ),
    "diver-paper-text": Preset(
        "diver",
        {**_DIVER, "sg_residual": "x_t", "index_base": 1},
        "DIVER as its text reads: noisy residual, steps from 1",
    ),
    "raw-dit": Preset("raw", _RELEASED, "DIVER, ablation: raw DiT with guidance towards the class"),
    "ladder-inheritance": Preset("diver", {**_DIVER, "gamma": 0}, "DIVER, ablation: inheritance"),
    "ladder-guidance": Preset(
        "diver", {**_DIVER, "start": "gaussian", "sp_low": 0, "sp_high": 49}, "DIVER, ablation: guidance at every step"
    ),
    "ladder-both": Preset("diver", {**_DIVER, "sp_low": 0, "sp_high": 49}, "DIVER, ablation: both, at every step"),
    "predd-dm": Preset("predd", {**_PREDD, "by_ipc": {1: (10, 15), 10: (20, 20)}}, "PReDD's README, DM"),
    "predd-ncfm": Preset(
        "predd", {**_PREDD, "by_ipc": {1: (25, 30), 10: (30, 35)}, "tiles": 2}, "PReDD's README, NCFM: four pieces"
    ),
    "predd-mtt": Preset("predd", {**_PREDD, "by_ipc": {1: (10, 10), 10: (10, 10)}}, "PReDD's README, MTT"),
    "predd-edf": Preset("predd", {**_PREDD, "by_ipc": {1: (10, 10), 10: (10, 15)}}, "PReDD's README, EDF"),
    "mgd3": Preset(
        "diver", {**_MGD3, "sampler": "ddpm"}, "MGD3: from noise, lambda 0.1 down to index 26; images are modes"
    ),
    "manifoldgd-mgd3": Preset(
        "diver",
        {**_MGD3, "sg_inject": "clean", "respacing": "ddim50"},
        "ManifoldGD's code, DDIM form of MGD3: moves the predicted clean latent",
    ),
}
