"""Features of images and captions in one space: CLIP's, or an offline substitute.

CLIP answers features of both in its own space. The substitute has an image network and a sentence network that know
nothing of each other: ridge regression of the captions' features on the images', or canonical correlations of both
(after principal components), fitted on the captioned training images, brings the images to where the captions are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diver.config.text import FeatureConfig
from diver.text import mobilenet
from diver.text.resources import TextError, resolve
from diver.workers import best_device

Images = Sequence[Tensor] | Tensor
# Components of each side before canonical correlations, and of these.
REDUCED, CORRELATED = 64, 32


@dataclass(frozen=True)
class Pair:
    """Features of images and of their captions, float32 [N, d] both."""

    images: Tensor
    texts: Tensor


def load_model(kind: type[Any], source: str, **settings: Any) -> Any:
    """A model, tokenizer or processor of transformers from a directory, a package or the hub.

    Raises TextError naming the source and what is wrong with it.
    """
    path = resolve(source)
    try:
        return kind.from_pretrained(path, **settings)
    except Exception as error:  # the hub, safetensors and tokenizers raise errors of no common kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise TextError(
            f"{source}: cannot be loaded as {kind.__name__} ({reason}); give a directory in the hub's layout, "
            "package:NAME/PATH, or a name on the hub"
        ) from error


class Clip:
    """CLIP, on the best device; captions are cut after its text model's length."""

    def __init__(self, config: FeatureConfig):
        from transformers import AutoProcessor, CLIPModel

        self.config = config
        self.model = load_model(CLIPModel, config.clip).eval().to(best_device())
        self.processor = load_model(AutoProcessor, config.clip)

    @torch.inference_mode()
    def __call__(self, images: Images, texts: Sequence[str]) -> Pair:
        """Features of images uint8 [C, H, W] and of their captions."""
        pictures = [image.expand(3, -1, -1) for image in images]
        pixels = self.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        seen = image_embedding(self.model, pixels.to(self.model.device), self.config.post_layernorm)
        tokens = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        said = _plain(self.model.get_text_features(**tokens.to(self.model.device)))
        return Pair(seen.float().cpu(), said.float().cpu())

    def together(self, pair: Pair) -> Pair:
        """CLIP's features are in one space already."""
        return pair


def image_embedding(model: Any, pixels: Tensor, post_layernorm: bool) -> Tensor:
    """Projected class token [n, d] of pixel values [n, 3, S, S].

    Released EDITS projects the last hidden state as it stands; CLIP's own features pass the last layer normalisation.
    """
    if post_layernorm:
        return _plain(model.get_image_features(pixel_values=pixels))
    hidden = model.vision_model(pixel_values=pixels).last_hidden_state[:, 0]
    return model.visual_projection(hidden)


def _plain(features: Any) -> Tensor:
    """The features themselves, which some versions of transformers hand back in an output of named parts."""
    return features if isinstance(features, Tensor) else features.pooler_output


class Sentences:
    """Mean of a sentence network's last hidden states over the words, L2-normalised."""

    def __init__(self, source: str):
        from transformers import AutoModel, AutoTokenizer

        self.model, self.tokenizer = load_model(AutoModel, source).eval(), load_model(AutoTokenizer, source)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 [n, d]."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        hidden = (self.model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        return F.normalize(hidden.float(), dim=1)


def shared_space(images: Tensor, texts: Tensor, how: str, alpha: float) -> Pair:
    """Image features [N, a] and caption features [N, b] in one space, float32 [N, d].

    "ridge": d = b, the images' predicted captions; "cca": the canonical variates of both.
    """
    from sklearn.cross_decomposition import CCA
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    x, y = images.double().numpy(), texts.double().numpy()
    x = StandardScaler().fit_transform(x)
    if how == "ridge":
        return Pair(_floats(Ridge(alpha).fit(x, y).predict(x)), texts.float())
    x, y = (_reduced(PCA(min(REDUCED, *v.shape), random_state=0), v) for v in (x, y))
    count = min(CORRELATED, x.shape[1], y.shape[1], len(x) - 1)
    x, y = CCA(count, max_iter=2000).fit_transform(x, y)
    x, y = x / x.std(0), y / y.std(0)
    # What correlates less says less.
    weights = (x * y).mean(0).clip(0)
    return Pair(_floats(x * weights), _floats(y * weights))


def _reduced(components: Any, values: np.ndarray) -> np.ndarray:
    """Principal components of values [N, d], without those that are rounding alone."""
    found: np.ndarray = components.fit_transform(values)
    return found[:, components.explained_variance_ratio_ > 1e-6]


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


class Offline:
    """The substitute: MobileNetV2 and a sentence network."""

    def __init__(self, config: FeatureConfig):
        self.config, self.sentences = config, Sentences(config.sentences)
        mobilenet.load(config.pictures)

    def __call__(self, images: Images, texts: Sequence[str]) -> Pair:
        """Features of images uint8 [C, H, W] and of their captions, each in a space of its own."""
        config = self.config
        same = images if isinstance(images, Tensor) else torch.stack([_square(image, config.size) for image in images])
        return Pair(mobilenet.features(config.pictures, same, config.size), self.sentences(texts))

    def together(self, pair: Pair) -> Pair:
        """All of them in one space."""
        return shared_space(pair.images, pair.texts, self.config.shared, self.config.alpha)


def _square(image: Tensor, size: int) -> Tensor:
    """An image uint8 [C, H, W] as uint8 [3, size, size]."""
    resized = F.interpolate(image.expand(3, -1, -1)[None].float(), (size, size), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).byte()


EXTRACTORS: dict[str, type[Clip] | type[Offline]] = {"clip": Clip, "offline": Offline}
