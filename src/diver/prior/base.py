"""What every prior is to the sampler: a way into latent space, a way out, noise levels and a denoiser."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from diver.prior.classes import PriorError
from diver.prior.schedule import Level, Schedule


def load_part(kind: type[Any], root: Path, subfolder: str | None, **settings: Any) -> Any:
    """A model, scheduler or tokenizer of a directory in diffusers' layout, from the files that are there.

    `settings` go to its from_pretrained. Raises PriorError naming the folder and what is wrong with it.
    """
    where = root / subfolder if subfolder else root
    try:
        # A tokenizer without its folder is an empty one to transformers.
        if not where.is_dir():
            raise FileNotFoundError("no such folder")
        read = partial(kind.from_pretrained, str(root), subfolder=subfolder, local_files_only=True, **settings)
        if not issubclass(kind, torch.nn.Module):
            return read()
        model, found = read(output_loading_info=True)
        # What a file lacks is otherwise left at random values.
        if found["missing_keys"]:
            raise ValueError(f"no tensor {min(found['missing_keys'])}")
        return model
    except Exception as error:  # safetensors and tokenizers raise errors of no common kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise PriorError(
            f"{where}: cannot be loaded ({reason}); it is incomplete or damaged: fetch it again"
        ) from error


def stamps(root: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of a file or of a folder's files, which tell them from what took their places."""
    files = sorted(file for file in root.rglob("*") if file.is_file()) if root.is_dir() else [root]
    found = [(file, file.stat()) for file in files if file.exists()]
    return [(str(file.relative_to(root)), stat.st_size, stat.st_mtime_ns) for file, stat in found]


@dataclass(frozen=True)
class Denoised:
    """What the network says about a noisy latent.

    `noise`: guided noise estimate, [N, c, h, w]. `clean`: the clean latent that follows from it, same shape.
    `log_variance`: the network's own log variance in [-1, 1] units of its range (DiT with learned variance),
    or None when the network has none.
    """

    noise: Tensor
    clean: Tensor
    log_variance: Tensor | None


@dataclass
class Prior(ABC):
    """Frozen networks. Latents are scaled to about unit variance; images are in [-1, 1]; states are float32.

    A backbone says how class names become conditions (`class_table`), what its noise levels are (`schedule`), what
    its network answers (`predict`) and what noise and clean latent follow from the answer (`resolve`).
    """

    vae: AutoencoderKL | AutoencoderTiny
    network: torch.nn.Module
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    # Where it was read from, and the files there; not part of what a set records.
    root: Path | None = None
    files: list[tuple[str, int, int]] = field(default_factory=list)
    # Images that the autoencoder handles at once; None leaves it to the batch.
    vae_chunk: int | None = None
    _null: Tensor | None = field(default=None, init=False, repr=False)

    def identity(self) -> list[Any]:
        """What tells this prior from another on this machine, as JSON: work that was stopped goes on with the same."""
        return [self.name, self.facts, self.files]

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    @property
    @abstractmethod
    def null(self) -> Tensor:
        """Condition of the unconditional estimate, [1, ...]."""

    @abstractmethod
    def class_table(self, classes: Sequence[str], ids: Sequence[int] | None = None) -> Tensor:
        """A condition for each class of a set, [len(classes), ...]; raises PriorError where there is none."""

    @abstractmethod
    def schedule(self, spacing: str) -> Schedule:
        """Noise levels of a chain; raises ValueError on a spacing that it does not know."""

    @abstractmethod
    def predict(self, latents: Tensor, level: Level, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """The quantity that guidance acts on, affine in the clean latent, and the log variance or None.

        `latents`: [N, c, h, w]; `condition`: rows of a class table, [N, ...].
        """

    @abstractmethod
    def resolve(self, predicted: Tensor, latents: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Noise and clean latent that a (guided) prediction stands for."""

    @property
    def image_size(self) -> int:
        return self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_channels(self) -> int:
        return int(self.vae.config.in_channels)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def learns_variance(self) -> bool:
        return False

    @torch.inference_mode()
    def encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Scaled latents [N, c, h, w], float32, of images [N, C, H, W] in [-1, 1].

        `noise`: unit normal [N, c, h, w] for a posterior sample; None for the posterior mean. An
        `AutoencoderTiny` has no posterior, and ignores it.
        """
        parts = []
        for at in self._chunks(len(images)):
            encoded = self.vae.encode(images[at].to(self.vae.dtype))
            if isinstance(self.vae, AutoencoderTiny):
                latent = encoded.latents
            else:
                posterior = encoded.latent_dist
                latent = posterior.mean
                latent = latent if noise is None else latent + posterior.std * noise[at].to(latent)
            parts.append(latent.float() * self.vae.config.scaling_factor)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images, float32 [N, C, H, W], nominally in [-1, 1] and not clipped, of scaled latents [N, c, h, w]."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        parts = [self.vae.decode(scaled[at]).sample.float() for at in self._chunks(len(latents))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _null_like(self, condition: Tensor) -> Tensor:
        """The null condition where the others are: moved once, since each move makes a GPU wait."""
        if self._null is None or self._null.device != condition.device or self._null.dtype != condition.dtype:
            self._null = self.null.to(condition)
        return self._null

    def _chunks(self, count: int) -> list[slice]:
        size = self.vae_chunk or max(count, 1)
        return [slice(first, first + size) for first in range(0, count, size)]

    @torch.inference_mode()
    def denoise(
        self, latents: Tensor, level: Level, condition: Tensor, cfg_scale: float, cfg_channels: int | None = None
    ) -> Denoised:
        """Estimate noise and clean latent at a level with classifier-free guidance.

        `latents`: float32 [N, c, h, w]; `condition`: [N, ...], rows of `class_table`. The estimate is
        e_u + cfg_scale (e_c - e_u) (Ho and Salimans 2022) in the first `cfg_channels` channels and e_c in the others;
        None guides all. DiT's released sampler guides three of its four. Without guidance (scale 1) one pass is made
        instead of two; with it, both halves go through the network together.
        """
        if cfg_scale == 1:
            predicted, log_variance = self.predict(latents, level, condition)
        else:
            null = self._null_like(condition).expand_as(condition)
            both, log_variance = self.predict(torch.cat([latents, latents]), level, torch.cat([condition, null]))
            conditional, unconditional = both.chunk(2)
            predicted = conditional.clone()
            some = slice(None, cfg_channels)
            predicted[:, some] = unconditional[:, some] + cfg_scale * (conditional[:, some] - unconditional[:, some])
            log_variance = None if log_variance is None else log_variance.chunk(2)[0]
        noise, clean = self.resolve(predicted, latents, level)
        return Denoised(noise, clean, log_variance)
