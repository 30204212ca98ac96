"""Settings of EDITS and VLCP."""

from typing import Any, Literal

from pydantic import Field

from diver.config.base import Respacing
from diver.config.native.base import LATENTS, Artefact, ReadingConfig
from diver.config.text import MergeConfig

CAPTIONS = Artefact("captions", "dataset", ".jsonl")
FEATURES = Artefact("features", "dataset")
TEXTS = Artefact("texts", "set", ".jsonl")
EDITS_PREPARATION = (CAPTIONS, FEATURES, TEXTS)
VLCP_PREPARATION = (LATENTS, CAPTIONS, TEXTS)
# What texts depend on, among the settings of both.
CLUSTERED_BY = (
    *("seed", "features", "tau", "normalise", "contamination", "k_image", "k_text", "text", "merge"),
    *("top_words", "threshold", "released_words", "tokenizer", "max_tokens"),
)


class DualConfig(ReadingConfig):
    """What EDITS and VLCP share: a prototype in pictures and one in words for each image of the set."""

    respacing: Respacing = Field(
        "ddim50", description="Levels of the chain: '50' spans the whole schedule, 'ddim50' strides it."
    )
    cfg_scale: float = Field(10.0, ge=0, description="Classifier-free guidance scale; 1 is off.")
    strength: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Share of the chain that a prototype goes through: 0 decodes it, 1 starts from noise alone. What "
        "0.7 leaves of it on Stable Diffusion's schedule, 0.5 leaves on DiT's.",
    )


class EDITSConfig(DualConfig):
    """Clusters of images and of what their captions say to them, each with an image and a text prototype (EDITS)."""

    latents: Literal["sample", "mean"] = Field(
        "mean", description="Latents of real images: a sample of the autoencoder's posterior, or its mean."
    )
    features: Literal["image", "concat", "gsq"] = Field(
        "gsq",
        description="What is clustered: image features; these beside the caption's; or beside what the image asks of "
        "all captions of its class (Global Semantic Query).",
    )
    tau: float = Field(0.01, gt=0, description="Temperature of the query; a large one makes all images ask the same.")
    normalise: bool = Field(
        True, description="L2-normalise the features. The released flag has no effect; False is what its code does."
    )
    contamination: float = Field(
        0.0, ge=0, le=0.5, description="Share of a class's images that the local outlier factor takes out; 0: none."
    )
    k_image: int = Field(5, ge=1, description="Members nearest to the centre whose latents' mean is the prototype.")
    k_text: int = Field(5, ge=1, description="Members nearest to the centre whose captions become one text.")
    text: Literal["merged", "best_caption", "class_name"] = Field(
        "merged",
        description="Text prototype: the captions merged, the caption of the nearest member, or the class's name.",
    )
    merge: MergeConfig = Field(MergeConfig(), description="How captions are merged.")


class VLCPConfig(DualConfig):
    """Clusters of latents, each with its centre and the caption that has most of its words (VLCP)."""

    contamination: float = Field(
        0.1, ge=0, le=0.5, description="Share of a class's images that the local outlier factor takes out; 0: none."
    )
    top_words: int = Field(30, ge=1, description="Words of a cluster, the most frequent ones, that weigh captions.")
    threshold: float = Field(
        0.7, gt=0, le=1, description="Share of a class's captions from which a word is too common to weigh anything."
    )
    released_words: bool = Field(
        False,
        description="Look for words as the released code does: as parts of other words, and in the captions' own case.",
    )
    text: Literal["weighted", "class_name"] = Field(
        "weighted", description="Text prototype: the caption with the most weight, or the class's name."
    )
    tokenizer: str = Field(
        MergeConfig().tokenizer, description="Tokenizer that counts a text's tokens, where the prior has none."
    )
    max_tokens: int = Field(77, ge=8, description="Tokens of a text, at most; the prior's text encoder takes 77.")


# Departures from the defaults, which are the published ones.
PUBLISHED: dict[str, dict[str, Any]] = {"edits": {}, "vlcp": {}}
