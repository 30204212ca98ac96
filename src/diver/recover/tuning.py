"""Fine-tuning of a class-conditional transformer with Minimax Diffusion's two terms (CVPR 2024).

With zhat0 the clean latent that the network predicts for a noised latent z0 of class c, the loss of a batch is

    L_diff + 1 / |Y| sum over its classes Y of
        lambda_pos (1 - min cos(zhat0 of c, real memory of c)) + lambda_neg max cos(zhat0 of c, predicted memory of c)

where the memories hold the latest 64 latents z0, and zhat0, of each class, without gradients. A class has no terms on
its first visit, and its memories take in the batch after the loss. DiffFit (Xie et al. 2023) trains few parameters:
biases, affine normalisations, the class embedding, and factors of the outputs of the residual branches. Latents are
encoded once, so that images are not mirrored as they are in the released code.
"""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diver.config.native.minimax import MinimaxConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior, PriorError
from diver.prior.dit import DiTPrior, SiTPrior
from diver.prior.train import keyed_generator
from diver.progress import Progress
from diver.recover.latents import Latents
from diver.tensorfile import TensorFileError, canonical_json, read_tensors, write_tensors

SAVE_SECONDS = 60.0
LOG_EVERY = 25
COLUMNS = ("step", "loss", "diffusion", "representativeness", "diversity")


def tunable(prior: Prior) -> DiTPrior | SiTPrior:
    """The prior, if it can be fine-tuned.

    Raises PriorError if it is no class-conditional transformer, or estimates noise where there is nothing else.
    """
    if not isinstance(prior, DiTPrior | SiTPrior):
        raise PriorError(f"prior {prior.name}: Minimax fine-tunes class-conditional transformers (DiT, SiT) only")
    # Every timestep is tuned; chains may begin below the top.
    if isinstance(prior, DiTPrior) and prior.prediction_type == "epsilon" and not prior.alphas_cumprod.all():
        raise PriorError(
            f"prior {prior.name}: its schedule has no signal at its top, where no clean latent follows from a noise "
            "estimate, and Minimax tunes there too; take a prior that predicts velocities, or one of other betas"
        )
    return prior


def is_tuned(name: str, parameter: Tensor) -> bool:
    """Whether a parameter of diffusers' DiT is one that DiffFit trains.

    The released code looks for bias, norm, gamma and y_embed in the names of DiT's code. There, norm names affine
    normalisations only; diffusers calls `norm1.linear` what modulates them, whose weights stay frozen.
    """
    return name.endswith(".bias") or "class_embedder" in name or (name.endswith(".weight") and parameter.ndim == 1)


class Scales:
    """Factors, one a channel, of the attention's and feed-forward's outputs in the first half of the blocks."""

    def __init__(self, network: nn.Module):
        blocks = list(network.transformer_blocks)  # type: ignore[arg-type]
        self.layers: dict[str, nn.Linear] = {}
        for i, block in enumerate(blocks[: (len(blocks) + 1) // 2]):
            self.layers[f"scales.{i}.attention"] = block.attn1.to_out[0]
            self.layers[f"scales.{i}.feed_forward"] = block.ff.net[2]
        self.factors = {
            name: nn.Parameter(torch.ones(layer.out_features, device=layer.weight.device, dtype=layer.weight.dtype))
            for name, layer in self.layers.items()
        }
        self._hooks = [
            layer.register_forward_hook(lambda _, __, output, factor=self.factors[name]: output * factor)
            for name, layer in self.layers.items()
        ]

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the factors into the layers; what the network computes stays."""
        for name, layer in self.layers.items():
            layer.weight.mul_(self.factors[name][:, None])
            if layer.bias is not None:
                layer.bias.mul_(self.factors[name])
        for hook in self._hooks:
            hook.remove()


class Memories:
    """The latest `size` real and predicted clean latents of each class, flat, [classes, size, d]."""

    def __init__(self, classes: int, size: int, width: int, device: torch.device):
        self.real = torch.zeros(classes, size, width, device=device)
        self.predicted = torch.zeros_like(self.real)
        # How many each class has been given, which tells where the next goes.
        self.given = torch.zeros(classes, dtype=torch.int64)

    def held(self, c: int) -> int:
        return min(int(self.given[c]), self.real.shape[1])

    def push(self, labels: Sequence[int], real: Tensor, predicted: Tensor) -> None:
        """Take in latents [N, ...] of these classes; the oldest of a full memory goes."""
        for i, c in enumerate(labels):
            slot = int(self.given[c]) % self.real.shape[1]
            self.real[c, slot], self.predicted[c, slot] = real[i].detach().flatten(), predicted[i].detach().flatten()
            self.given[c] += 1

    def tensors(self) -> dict[str, Tensor]:
        return {"memory.real": self.real, "memory.predicted": self.predicted, "memory.given": self.given}


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs of [n, d] and [m, d], [n, m]."""
    return nn.functional.normalize(a, dim=1) @ nn.functional.normalize(b, dim=1).T


def minimax_terms(clean: Tensor, labels: Sequence[int], memories: Memories) -> tuple[Tensor, Tensor]:
    """Representativeness and diversity of predicted clean latents [N, ...], without their weights.

    Means over the batch's classes, of which those without memories count as zero. The gradient flows to `clean` only.
    """
    flat, classes = clean.flatten(1), sorted(set(labels))
    pull, push = clean.new_zeros(()), clean.new_zeros(())
    for c in classes:
        held = memories.held(c)
        if not held:
            continue
        mine = flat[[i for i, label in enumerate(labels) if label == c]]
        pull = pull + 1 - similarities(mine, memories.real[c, :held]).min()
        push = push + similarities(mine, memories.predicted[c, :held]).max()
    return pull / len(classes), push / len(classes)


@dataclass(frozen=True)
class Noised:
    """A batch at random noise levels: `told` [N] is what the network gets; `signal`, `noise` are [N, 1, 1, 1].

    `index`: timestep of a diffusion, [N], or None.
    """

    state: Tensor
    told: Tensor
    signal: Tensor
    noise: Tensor
    index: Tensor | None


def noised_at_random(prior: DiTPrior | SiTPrior, clean: Tensor, unit: Tensor, generator: torch.Generator) -> Noised:
    """Clean latents [N, c, h, w] noised by `unit` at uniform timesteps of the training schedule, or times of a flow."""
    if isinstance(prior, SiTPrior):
        time_ = torch.rand(len(clean), generator=generator).to(clean)
        told, signal, noise, index = 1 - time_, 1 - time_, time_, None
    else:
        alphas = prior.alphas_cumprod
        index = torch.randint(len(alphas), (len(clean),), generator=generator)
        told, kept = index.to(clean.device), alphas[index]
        signal, noise = kept.sqrt().to(clean), (1 - kept).sqrt().to(clean)
    signal, noise = signal.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1)
    return Noised(signal * clean + noise * unit, told, signal, noise, index)


def target_of(prior: DiTPrior | SiTPrior, clean: Tensor, unit: Tensor, at: Noised) -> Tensor:
    """What the network should answer: the velocity of a flow or a diffusion, or the noise."""
    if isinstance(prior, SiTPrior):
        return clean - unit
    return unit if prior.prediction_type == "epsilon" else at.signal * unit - at.noise * clean


def clean_of(prior: DiTPrior | SiTPrior, answer: Tensor, at: Noised) -> Tensor:
    """The clean latent that an answer stands for, as `Prior.resolve` says for one level."""
    if isinstance(prior, SiTPrior):
        return at.state + at.noise * answer
    if prior.prediction_type == "epsilon":
        return (at.state - at.noise * answer) / at.signal
    return at.signal * at.state - at.noise * answer


def variance_bound(prior: DiTPrior, clean: Tensor, predicted: Tensor, raw: Tensor, at: Noised) -> Tensor:
    """Variational bound in bits per dimension [N], which trains the learned variance only (Nichol and Dhariwal 2021).

    The divergence between the posterior of step t and the network's, with `predicted`, the clean latent it says,
    detached. Step 0 counts as zero: its term in the released code assumes values of 8 bits, which latents are not.
    """
    assert at.index is not None
    alphas = prior.alphas_cumprod
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    betas = 1 - alphas / before
    posterior = betas * (1 - before) / (1 - alphas)
    # The posterior of step 0 has no variance; the released code takes that of step 1.
    posterior[0] = posterior[1]
    weight = (before.sqrt() * betas / (1 - alphas))[at.index]

    def column(values: Tensor) -> Tensor:
        return values.to(raw).view(-1, 1, 1, 1)

    low, high = column(posterior.log()[at.index]), column(betas.log()[at.index])
    fraction = (raw + 1) / 2
    log_variance = fraction * high + (1 - fraction) * low
    # Both means hold the same share of the state; they differ by that of the clean latent.
    gap = column(weight) * (clean - predicted.detach())
    divergence = 0.5 * (log_variance - low - 1 + (low - log_variance).exp() + gap**2 * (-log_variance).exp())
    bits = divergence.mean((1, 2, 3)) / math.log(2)
    return torch.where(at.index.to(bits.device) > 0, bits, torch.zeros_like(bits))


class Tuning:
    """A fine-tuning of a prior's network, in place: its parameters, their average, the optimiser and the memories."""

    def __init__(self, prior: Prior, config: MinimaxConfig, classes: int, table: Tensor):
        self.prior, self.config, self.table = tunable(prior), config, table
        if prior.dtype != torch.float32:
            raise ValueError(
                f"minimax: a prior in {prior.dtype} loses most steps to rounding; read it with precision: fp32, "
                "arithmetic: bf16 makes its passes fast"
            )
        network = self.prior.network
        self.scales = Scales(network) if config.scales else None
        self.parameters = {name: p for name, p in network.named_parameters() if is_tuned(name, p)}
        self.parameters.update(self.scales.factors if self.scales else {})
        network.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), config.learning_rate, weight_decay=config.weight_decay
        )
        width = math.prod(prior.latent_shape)
        self.memories = Memories(classes, config.memory, width, prior.device)
        self.done = 0

    def losses(
        self, clean: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Diffusion loss, representativeness and diversity of a batch, and the predicted clean latents.

        `clean`: float32 [N, c, h, w]; `labels`: int64 [N] of the set's classes. Everything random is `generator`'s.
        """
        prior, config = self.prior, self.config
        unit = torch.randn(clean.shape, generator=generator).to(clean)
        at = noised_at_random(prior, clean, unit, generator)
        dropped = torch.rand(len(labels), generator=generator) < config.label_dropout
        condition = torch.where(dropped, prior.null_class, self.table[labels]).to(clean.device)
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=config.arithmetic == "bf16"):
            output = prior.network(at.state.to(prior.dtype), timestep=at.told, class_labels=condition).sample
        answer, raw = output[:, : clean.shape[1]].float(), output[:, clean.shape[1] :].float()
        predicted = clean_of(prior, answer, at)
        loss = (answer - target_of(prior, clean, unit, at)).square().mean()
        if isinstance(prior, DiTPrior) and prior.learns_variance:
            loss = loss + variance_bound(prior, clean, predicted, raw, at).mean()
        pull, push = minimax_terms(predicted, labels.tolist(), self.memories)
        return loss, pull, push, predicted

    def step(self, clean: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[float, float, float, float]:
        """One optimiser step; returns the whole loss and its three parts without weights."""
        config = self.config
        diffusion, pull, push, predicted = self.losses(clean, labels, generator)
        loss = diffusion + config.lambda_pos * pull + config.lambda_neg * push
        if not torch.isfinite(loss):
            raise FloatingPointError(f"minimax: loss is {loss.item()} at step {self.done}; lower learning_rate")
        self.memories.push(labels.tolist(), clean, predicted)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for name, average in self.average.items():
                average.lerp_(self.parameters[name].detach(), 1 - config.ema_decay)
        self.done += 1
        return loss.item(), diffusion.item(), pull.item(), push.item()

    def finish(self) -> None:
        """Put the averaged parameters into the network, with the factors multiplied into its weights."""
        with torch.no_grad():
            for name, average in self.average.items():
                self.parameters[name].copy_(average)
        if self.scales is not None:
            self.scales.fold()
        self.prior.network.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """All state, by name."""
        found = self.memories.tensors()
        for name, parameter in self.parameters.items():
            found |= {f"now.{name}": parameter, f"average.{name}": self.average[name]}
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"adam.{key}.{name}"] = value
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], done: int) -> None:
        """The state of `tensors`."""
        for name, value in self.memories.tensors().items():
            value.copy_(tensors[name])
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"now.{name}"])
            self.average[name].copy_(tensors[f"average.{name}"])
            self.optimizer.state[parameter] = {
                # Adam keeps its count of steps where it is.
                key: value if key == "step" else value.to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                for value in [tensors[f"adam.{key}.{name}"]]
            }
        self.done = done


def tuned_rows(latents: Latents, config: MinimaxConfig) -> Tensor:
    """Rows of the latents that it is tuned on, int64, rising."""
    if config.images_per_class is None:
        return torch.arange(len(latents))
    generator, parts = torch.Generator().manual_seed(config.seed), []
    for first, end in latents.bounds:
        parts.append(first + torch.randperm(end - first, generator=generator)[: config.images_per_class].sort().values)
    return torch.cat(parts)


def batch_rows(rows: Tensor, batch: int, seed: int, step: int) -> Tensor:
    """Which rows a step takes: each epoch goes through all of them in an order of its own, but for the last few."""
    batch = min(batch, len(rows))
    epoch, place = divmod(step, len(rows) // batch)
    order = torch.randperm(len(rows), generator=keyed_generator(seed + 1, epoch))
    return rows[order[place * batch : (place + 1) * batch]]


def finetune(
    latents: Latents,
    data: Prepared,
    prior: Prior,
    config: MinimaxConfig,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    code: str = "",
) -> tuple[dict[str, Any], list[tuple[float, ...]]]:
    """Fine-tune the prior's network in place; returns what is recorded, and the curve with columns COLUMNS.

    `checkpoint`: a file that is written once a minute, from which a run that was killed goes on, with the same
    result, if `code`, the digest of the code, is the same too.
    Raises PriorError as `tunable` or if the prior lacks a class, FloatingPointError if the loss is not finite.
    """
    tuning = Tuning(prior, config, len(data.classes), prior.class_table(data.classes, config.class_ids))
    settings = config.tuning()
    of_latents = hashlib.sha256(latents.rows.view(np.uint8)).hexdigest()
    key = canonical_json([settings, prior.identity(), data.dataset, of_latents, code, torch.__version__])
    curve = _resume(tuning, checkpoint, key)
    rows, first = tuned_rows(latents, config), tuning.done
    saved, running = time.monotonic(), [] if not curve else curve.pop("running")
    history: list[tuple[float, ...]] = curve.get("history", [])
    while tuning.done < config.steps:
        at = batch_rows(rows, config.tuning_batch, config.seed, tuning.done).numpy()
        clean = torch.from_numpy(np.ascontiguousarray(latents.rows["latent"][at], dtype=np.float32)).to(prior.device)
        labels = torch.from_numpy(np.ascontiguousarray(latents.rows["label"][at]))
        running.append(tuning.step(clean, labels, keyed_generator(config.seed, tuning.done)))
        if tuning.done % LOG_EVERY == 0 or tuning.done == config.steps:
            means = [sum(column) / len(running) for column in zip(*running, strict=True)]
            history.append((tuning.done, *means))
            running = []
            if progress is not None:
                note = "steps, loss {:.4f}, representativeness {:.3f}, diversity {:.3f},".format(*means[:1], *means[2:])
                progress(tuning.done - first, config.steps - first, note)
        if checkpoint is not None and (time.monotonic() - saved >= SAVE_SECONDS or tuning.done == config.steps):
            header = {"key": key, "done": tuning.done, "history": history, "running": running}
            write_tensors(checkpoint, tuning.tensors(), header)
            saved = time.monotonic()
    tuning.finish()
    counts = [parameter.numel() for parameter in tuning.parameters.values()]
    return {"settings": settings, "tuned_parameters": sum(counts), "latents": len(rows)}, history


def _resume(tuning: Tuning, checkpoint: Path | None, key: str) -> dict[str, Any]:
    """Bring a fine-tuning to the state of its checkpoint, if there is one of the same run; returns its curve."""
    if checkpoint is None:
        return {}
    try:
        tensors, header = read_tensors(checkpoint)
    except TensorFileError:
        return {}
    if header.get("key") != key:
        return {}
    tuning.restore(tensors, header["done"])
    print(f"minimax: goes on after step {tuning.done}", flush=True)
    return {
        "history": [tuple(row) for row in header["history"]],
        "running": [tuple(row) for row in header["running"]],
    }
