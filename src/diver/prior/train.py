"""Training of the small prior: first the autoencoder, then the class-conditional diffusion transformer.

Both loops draw everything random from a generator keyed by (seed, step), so a run that was
stopped and resumed computes exactly what an undisturbed run computes.
"""

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diver.config.prior import DiTTraining, VAETraining
from diver.progress import Progress
from diver.tensorfile import canonical_json, tensors_digest

CHECKPOINT_EVERY = 250
LOG_EVERY = 25


def build_vae(config: VAETraining, channels: int) -> AutoencoderKL:
    """Untrained autoencoder: `len(config.widths) - 1` halvings, `config.latent_channels` latent channels."""
    depth = len(config.widths)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(config.widths),
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        mid_block_add_attention=False,
    )


def build_dit(config: DiTTraining, latent_channels: int, latent_size: int, classes: int) -> DiTTransformer2DModel:
    """Untrained transformer, initialised so that every block is the identity and the output is zero (adaLN-Zero)."""
    model = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=config.depth,
        sample_size=latent_size,
        patch_size=config.patch,
        num_embeds_ada_norm=classes,
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if name.endswith(("norm1.linear", "proj_out_1", "proj_out_2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def dit_scheduler() -> DDIMScheduler:
    """DiT's noise schedule (linear betas, 1000 steps) with velocity prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        prediction_type="v_prediction",
    )


def keyed_generator(seed: int, step: int) -> torch.Generator:
    """CPU generator whose stream depends on (seed, step) only."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def warm_constant_decay(step: int, steps: int, warmup: int, decay: float) -> float:
    """Learning-rate factor: linear warm-up, constant, then linear to zero over the last `decay` fraction."""
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, decay * steps))


def _loop(
    model: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    config: VAETraining | DiTTraining,
    seed: int,
    checkpoint: Path,
    curve: Path,
    label: str,
    about: Any,
    snapshots: Sequence[int] = (),
    progress: Progress | None = None,
) -> Iterator[tuple[int, EMAModel, float]]:
    """Optimise `loss_of`; yields (step, EMA weights, seconds spent) at each of `snapshots` and at the end.

    about: JSON that, beside the settings and the seed, tells this training from another (data, code). A checkpoint of
    another training is not gone on from.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    first, spent, history = 0, 0.0, []
    key = canonical_json([label, config.model_dump(mode="json"), seed, about, torch.__version__])
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {}
    if state and state.get("key") != key:
        print(f"{label}: {checkpoint} is of other settings, data or code; starting from the beginning", flush=True)
    elif state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        first, spent, history = state["step"], state["seconds"], state["history"]
        print(f"{label}: resumed at step {first}/{config.steps}", flush=True)
    started = time.monotonic()
    running: list[float] = []
    for step in range(first, config.steps):
        factor = warm_constant_decay(step, config.steps, config.warmup, config.decay)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        loss = loss_of(keyed_generator(seed, step))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{label}: loss is {loss.item()} at step {step}; lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())
        running.append(loss.item())
        done = step + 1
        if done % LOG_EVERY == 0 or done == config.steps:
            now = time.monotonic()
            rate = (done - first) / (now - started)
            mean, running = sum(running) / len(running), []
            history.append((done, mean))
            if progress is not None:
                progress(done - first, config.steps - first, f"steps, loss {mean:.4f}, {rate:.2f} steps/s,")
        # Before the checkpoint, after which a run that was killed would not come by here again.
        if done in snapshots and done < config.steps:
            yield done, ema, spent + time.monotonic() - started
        if done % CHECKPOINT_EVERY == 0 or done == config.steps:
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "key": key,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                    "step": done,
                    "seconds": spent + time.monotonic() - started,
                    "history": history,
                },
                partial,
            )
            partial.replace(checkpoint)
    with curve.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss"])
        writer.writerows(history)
    yield config.steps, ema, spent + time.monotonic() - started


def train_vae(
    images: Tensor,
    config: VAETraining,
    seed: int,
    checkpoint: Path,
    curve: Path,
    progress: Progress | None = None,
    code: str = "",
) -> tuple[AutoencoderKL, float]:
    """Train the autoencoder on raw training images.

    `images`: uint8 [N, C, H, W]. Loss: mean squared error in [-1, 1] plus `kl_weight` times the mean
    divergence per latent element from the unit normal. Returns (EMA model, seconds); `scaling_factor`
    is set so that scaled latents of the training images have unit variance. `code` is the digest of the code: a
    checkpoint of another is not gone on from.
    """
    about = [tensors_digest({"images": images}), code]
    torch.manual_seed(seed)
    vae = build_vae(config, images.shape[1])

    def loss_of(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (config.batch,), generator=generator)
        x = images[index].float() / 127.5 - 1
        x = torch.where((torch.rand(config.batch, generator=generator) < 0.5)[:, None, None, None], x.flip(-1), x)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return (decoded.float() - x).square().mean() + config.kl_weight * divergence

    *_, (_, ema, seconds) = _loop(vae, loss_of, config, seed, checkpoint, curve, "vae", about, progress=progress)
    ema.copy_to(vae.parameters())
    moments = encode_moments(vae, images[: min(len(images), 10_000)])
    variance = moments.mean.var() + (2 * moments.log_std).exp().mean()
    vae.register_to_config(scaling_factor=float(1 / variance.sqrt()))
    return vae.eval(), seconds


class Moments:
    """Posterior mean and log standard deviation of latents, float32 [N, c, h, w], unscaled."""

    def __init__(self, mean: Tensor, log_std: Tensor):
        self.mean, self.log_std = mean, log_std


@torch.inference_mode()
def encode_moments(vae: AutoencoderKL, images: Tensor, batch: int = 250) -> Moments:
    """Posterior moments of uint8 images [N, C, H, W]."""
    vae.eval()
    means, log_stds = [], []
    for chunk in images.split(batch):
        posterior = vae.encode(chunk.float() / 127.5 - 1).latent_dist
        means.append(posterior.mean)
        log_stds.append(posterior.logvar / 2)
    return Moments(torch.cat(means), torch.cat(log_stds))


def train_dit(
    vae: AutoencoderKL,
    images: Tensor,
    labels: Tensor,
    classes: int,
    config: DiTTraining,
    seed: int,
    checkpoint: Path,
    curve: Path,
    progress: Progress | None = None,
    code: str = "",
) -> Iterator[tuple[int, DiTTransformer2DModel, float]]:
    """Train the transformer on latents of the training images and of their mirror images.

    `images`: uint8 [N, C, H, W]; `labels`: int64 [N] below `classes`. Loss: mean squared error of the
    velocity v = sqrt(a) eps - sqrt(1 - a) z0 (Salimans and Ho 2022, section 2.4 and appendix D) at a
    uniform timestep. Labels are replaced by the null class with probability `label_dropout`, once per
    example: diffusers' own dropout would draw separately in every block. Yields
    (step, EMA model, seconds) at each snapshot and at the end.
    """
    print(f"dit: encoding {2 * len(images)} images", flush=True)
    plain, mirrored = encode_moments(vae, images), encode_moments(vae, images.flip(-1))
    mean = torch.cat([plain.mean, mirrored.mean]).clone()
    std = torch.cat([plain.log_std, mirrored.log_std]).exp()
    labels = labels.repeat(2)
    about = [tensors_digest({"mean": mean, "std": std, "labels": labels}), code]
    scale = vae.config.scaling_factor
    torch.manual_seed(seed)
    model = build_dit(config, mean.shape[1], mean.shape[-1], classes)
    model.eval()
    scheduler = dit_scheduler()

    def loss_of(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(mean), (config.batch,), generator=generator)
        z0 = scale * (mean[index] + std[index] * torch.randn(mean[index].shape, generator=generator))
        # One timestep per stratum of the batch lowers the variance of the loss at no cost.
        strata = (torch.arange(config.batch) + torch.rand(config.batch, generator=generator)) / config.batch
        timestep = (strata * scheduler.config.num_train_timesteps).long()
        noise = torch.randn(z0.shape, generator=generator)
        dropped = torch.rand(config.batch, generator=generator) < config.label_dropout
        y = torch.where(dropped, classes, labels[index])
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            noisy = scheduler.add_noise(z0, noise, timestep)
            predicted = model(noisy, timestep=timestep, class_labels=y).sample
        return (predicted.float() - scheduler.get_velocity(z0, noise, timestep)).square().mean()

    for step, ema, seconds in _loop(
        model, loss_of, config, seed, checkpoint, curve, "dit", about, config.snapshots, progress
    ):
        product = build_dit(config, mean.shape[1], mean.shape[-1], classes).eval()
        ema.copy_to(product.parameters())
        yield step, product, seconds


def reconstruction_psnr(vae: AutoencoderKL, images: Tensor, batch: int = 250) -> float:
    """Peak signal-to-noise ratio in dB of decode(posterior mean), after 8-bit rounding: the mean over images.

    `images`: uint8 [N, C, H, W]; the peak is 255.
    """
    values = []
    with torch.inference_mode():
        for chunk in images.split(batch):
            decoded = vae.decode(vae.encode(chunk.float() / 127.5 - 1).latent_dist.mode()).sample
            pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round()
            mse = (pixels - chunk.float()).square().mean((1, 2, 3))
            values.append(10 * torch.log10(255**2 / mse))
    return float(torch.cat(values).mean())


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
