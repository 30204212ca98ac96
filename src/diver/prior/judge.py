"""How good a prior is: reconstruction, and whether an independent classifier sees the class that was asked for."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diver.config.prior import JUDGED
from diver.networks import create
from diver.prior.base import Prior, PriorError
from diver.prior.dit import ClassConditionalPrior
from diver.progress import Progress
from diver.sets import IMAGENET


def require_judged(prior: Prior) -> None:
    """Raise PriorError unless the classifier knows a prior's classes and the size of its images."""
    images = (getattr(prior, "classes", 0), prior.image_channels, prior.image_size)
    if images != JUDGED:
        raise PriorError(
            "prior {}: the judge is for {} classes, {} channels and {} pixels, and it has {}, {} and {}; name a prior "
            "of CIFAR-10".format(prior.name, *JUDGED, *images)
        )


@dataclass(frozen=True)
class Classifier:
    """A judge of images in [0, 1]."""

    network: nn.Module

    @torch.inference_mode()
    def predict(self, images: Tensor, batch: int = 500) -> Tensor:
        """Predicted labels, int64 [N], of float images [N, 3, 32, 32] in [0, 1]."""
        return torch.cat([self.network(IMAGENET.from_unit(chunk)).argmax(1) for chunk in images.split(batch)])


def load_classifier(path: str | Path) -> Classifier:
    """A CIFAR-10 ResNet-20 saved as a state dict, bare or under "state_dict", keys with or without "module.".

    It expects images standardised with ImageNet's mean and deviation. Only tensors are loaded. Raises PriorError.
    """
    if not Path(path).is_file():
        raise PriorError(f"{path}: no such file; give the weights of a CIFAR-10 ResNet-20")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        network = create("resnet20")
        network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    except (OSError, RuntimeError, AttributeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise PriorError(f"{path}: not the weights of a CIFAR-10 ResNet-20 ({str(error).splitlines()[0]})") from error
    return Classifier(network.eval())


def sample_classes(
    prior: Prior, per_class: int, cfg_scale: float, seed: int, batch: int = 100, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Samples from Gaussian noise by 50 deterministic DDIM steps.

    Returns (images in [0, 1] after 8-bit rounding, float32 [classes * per_class, C, H, W]; labels, class-major).
    Raises PriorError for a prior of texts.
    """
    if not isinstance(prior, ClassConditionalPrior):
        raise PriorError(f"prior {prior.name} has no classes of its own to judge")
    # Raw sampling lives in a later room; here one plain DDIM loop serves the judgement.
    schedule = prior.schedule("50")
    labels = torch.arange(prior.classes).repeat_interleave(per_class)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), *prior.latent_shape, generator=generator)
    images = []
    for z, y in zip(noise.split(batch), labels.split(batch), strict=True):
        z, y = z.to(prior.device), y.to(prior.device)
        for k in range(len(schedule) - 1, -1, -1):
            said = prior.denoise(z, schedule.level(k), y, cfg_scale)
            below = schedule.level(k - 1)
            z = below.signal * said.clean + below.noise * said.noise
        images.append((((prior.decode(z).clamp(-1, 1) + 1) * 127.5).round() / 255).cpu())
        if progress is not None:
            progress(sum(map(len, images)), len(labels), f"samples, guidance {cfg_scale},")
    return torch.cat(images), labels


def agreement(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Percentage of images that the classifier assigns to their label, and its 95 % half-width (normal)."""
    share = float((classifier.predict(images) == labels).float().mean())
    return 100 * share, 196 * (share * (1 - share) / len(labels)) ** 0.5
