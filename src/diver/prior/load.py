"""A prior: autoencoder, class-conditional diffusion transformer and noise schedule, in diffusers' layout."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiTPipeline, DiTTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

diffusers_logging.disable_progress_bar()


class PriorError(ValueError):
    """A prior cannot be loaded or does not fit; the message names it and the remedy."""


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


@dataclass(frozen=True)
class Prior:
    """The frozen networks. Latents are scaled by `vae.config.scaling_factor`; images are in [-1, 1]."""

    vae: AutoencoderKL | AutoencoderTiny
    transformer: DiTTransformer2DModel
    alphas_cumprod: Tensor
    prediction_type: str
    name: str

    @property
    def classes(self) -> int:
        return int(self.transformer.config.num_embeds_ada_norm)

    @property
    def null_class(self) -> int:
        """Label of the unconditional estimate: the last embedding."""
        return self.classes

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.transformer.config.sample_size
        return self.transformer.config.in_channels, size, size

    @property
    def image_size(self) -> int:
        return self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_channels(self) -> int:
        return int(self.vae.config.in_channels)

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def learns_variance(self) -> bool:
        return self.transformer.config.out_channels == 2 * self.transformer.config.in_channels

    @torch.inference_mode()
    def encode(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Scaled latents [N, c, h, w] of images [N, C, H, W] in [-1, 1].

        `noise`: unit normal [N, c, h, w] for a posterior sample; None for the posterior mean. An
        `AutoencoderTiny` has no posterior, and ignores it.
        """
        encoded = self.vae.encode(images.to(self.dtype))
        if isinstance(self.vae, AutoencoderTiny):
            return encoded.latents * self.vae.config.scaling_factor
        posterior = encoded.latent_dist
        latent = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        return latent * self.vae.config.scaling_factor

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images, float32 [N, C, H, W], nominally in [-1, 1] and not clipped, of scaled latents [N, c, h, w]."""
        return self.vae.decode(latents.to(self.dtype) / self.vae.config.scaling_factor).sample.float()

    @torch.inference_mode()
    def denoise(
        self, latents: Tensor, timestep: int, labels: Tensor, cfg_scale: float, cfg_channels: int | None = None
    ) -> Denoised:
        """Estimate noise and clean latent at a training timestep with classifier-free guidance.

        `latents`: [N, c, h, w]; `labels`: int64 [N]. The estimate is e_u + cfg_scale (e_c - e_u) (Ho and
        Salimans 2022) in the first `cfg_channels` channels and e_c in the others; None guides all. DiT's
        released sampler guides three of its four. Without guidance (scale 1) one pass is made instead of two.
        """
        alpha = float(self.alphas_cumprod[timestep])
        guided = cfg_scale != 1
        batch = torch.cat([latents, latents]) if guided else latents
        classes = torch.cat([labels, torch.full_like(labels, self.null_class)]) if guided else labels
        steps = torch.full((len(batch),), timestep, device=latents.device)
        output = self.transformer(batch.to(self.dtype), timestep=steps, class_labels=classes).sample.to(latents.dtype)
        channels = latents.shape[1]
        predicted, log_variance = output[:, :channels], output[:, channels:] if self.learns_variance else None
        noise = noise_of(predicted, batch, alpha, self.prediction_type)
        if guided:
            conditional, unconditional = noise.chunk(2)
            noise = conditional.clone()
            some = slice(None, cfg_channels)
            noise[:, some] = unconditional[:, some] + cfg_scale * (conditional[:, some] - unconditional[:, some])
            log_variance = None if log_variance is None else log_variance.chunk(2)[0]
        clean = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        return Denoised(noise, clean, log_variance)


def noise_of(predicted: Tensor, latents: Tensor, alpha: float, prediction_type: str) -> Tensor:
    """The noise estimate that a network output stands for; all [N, c, h, w], `alpha` cumulative.

    "epsilon" is the noise itself; "v_prediction" is sqrt(alpha) noise - sqrt(1 - alpha) clean
    (Salimans and Ho 2022, appendix D). Raises PriorError for any other type.
    """
    if prediction_type == "epsilon":
        return predicted
    if prediction_type == "v_prediction":
        return alpha**0.5 * predicted + (1 - alpha) ** 0.5 * latents
    raise PriorError(f"prediction type {prediction_type!r} is not supported; epsilon and v_prediction are")


def load_prior(source: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Prior:
    """Load a prior from a local directory in diffusers' layout or from a hub name.

    Raises PriorError naming the source and what to do when it is missing, incomplete or unreachable.
    """
    path = Path(source)
    if path.is_dir() and not (path / "model_index.json").exists():
        raise PriorError(
            f"{path}: no model_index.json; a prior is a directory as written by DiTPipeline.save_pretrained"
        )
    if not path.exists() and (path.is_absolute() or str(source).count("/") != 1):
        raise PriorError(f"{source}: no such directory, and not a hub name (owner/name)")
    try:
        pipeline = DiTPipeline.from_pretrained(str(source), dtype=dtype, local_files_only=path.is_dir())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PriorError(
            f"{source}: cannot be loaded ({reason}). With a network: `hf download {source}`; "
            "without: give a local directory in diffusers' layout"
        ) from error
    pipeline.to(device)
    for model in (pipeline.vae, pipeline.transformer):
        model.eval().requires_grad_(False)
    return Prior(
        pipeline.vae,
        pipeline.transformer,
        pipeline.scheduler.alphas_cumprod.double(),
        pipeline.scheduler.config.prediction_type,
        str(source),
    )
