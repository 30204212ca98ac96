"""Class-conditional transformers: DiT, a diffusion, and SiT, the same network on the linear path of flow matching."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from diver.prior.base import Prior, PriorError
from diver.prior.classes import class_ids
from diver.prior.schedule import Level, Schedule, linear_path, respace


@dataclass
class ClassConditionalPrior(Prior):
    """What both have in common: integer conditions, one of which is null."""

    network: DiTTransformer2DModel
    labels: dict[str, int] | None = None

    @property
    def classes(self) -> int:
        return int(self.network.config.num_embeds_ada_norm)

    @property
    def null_class(self) -> int:
        """Label of the unconditional estimate: the last embedding."""
        return self.classes

    @property
    def null(self) -> Tensor:
        return torch.tensor([self.null_class])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.network.config.sample_size
        return self.network.config.in_channels, size, size

    def class_table(self, classes: Sequence[str], ids: Sequence[int] | None = None) -> Tensor:
        return torch.tensor(class_ids(classes, ids, self.classes, self.labels, self.name))

    def _network(self, latents: Tensor, level: Level, condition: Tensor) -> Tensor:
        steps = torch.full((len(latents),), level.timestep, device=latents.device)
        steps = steps.long() if float(level.timestep).is_integer() and not isinstance(self, SiTPrior) else steps
        output = self.network(latents.to(self.dtype), timestep=steps, class_labels=condition)
        return output.sample.to(latents.dtype)


@dataclass
class DiffusionPrior(Prior):
    """What every diffusion has: cumulative alphas float64 [T], and guidance that acts on the noise estimate.

    `prediction_type`: "epsilon" or "v_prediction"; raises PriorError for another.
    """

    alphas_cumprod: Tensor = torch.empty(0)
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise PriorError(
                f"prior {self.name}: prediction type {self.prediction_type!r} is not supported; epsilon and "
                "v_prediction are"
            )

    def schedule(self, spacing: str) -> Schedule:
        return respace(self.alphas_cumprod, spacing)

    def resolve(self, predicted: Tensor, latents: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        # Schedules that are rescaled to end in noise alone have such a top; chains that begin below it do not meet it.
        if level.signal == 0:
            raise PriorError(
                f"prior {self.name}: its schedule has no signal at timestep {level.timestep:g}, where no clean latent "
                "follows from a noise estimate; take a strided respacing, as 'ddim50', which leaves its top out"
            )
        return predicted, (latents - level.noise * predicted) / level.signal


@dataclass
class DiTPrior(DiffusionPrior, ClassConditionalPrior):
    """DiT (Peebles and Xie 2023), a diffusion."""

    @property
    def learns_variance(self) -> bool:
        return self.network.config.out_channels == 2 * self.network.config.in_channels

    def predict(self, latents: Tensor, level: Level, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        output, channels = self._network(latents, level, condition), latents.shape[1]
        noise = noise_of(output[:, :channels], latents, level, self.prediction_type)
        return noise, output[:, channels:] if self.learns_variance else None


@dataclass
class SiTPrior(ClassConditionalPrior):
    """SiT (Ma et al. 2024) on its linear path: the network answers the velocity clean - noise.

    Its released networks have twice the channels that they need, of which the second half is not used.
    """

    def schedule(self, spacing: str) -> Schedule:
        return linear_path(spacing)

    def predict(self, latents: Tensor, level: Level, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._network(latents, level, condition)[:, : latents.shape[1]], None

    def resolve(self, predicted: Tensor, latents: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        return latents - level.signal * predicted, latents + level.noise * predicted


def noise_of(predicted: Tensor, latents: Tensor, level: Level, prediction_type: str) -> Tensor:
    """The noise estimate that a diffusion network's output stands for; all [N, c, h, w].

    "epsilon" is the noise itself; "v_prediction" is signal * noise - noise level * clean
    (Salimans and Ho 2022, appendix D).
    """
    return predicted if prediction_type == "epsilon" else level.signal * predicted + level.noise * latents


def share_embedders(network: DiTTransformer2DModel) -> int:
    """Let blocks that hold equal copies of the first block's time and class embedding use that one.

    diffusers gives every block its own copy, which in a converted DiT-XL/2 are 28 times the same 2.8 million
    parameters. A network that was trained with separate ones keeps them. Returns the parameters that were freed.
    """
    first = network.transformer_blocks[0].norm1.emb
    own = list(first.state_dict().values())
    freed = 0
    for block in network.transformer_blocks[1:]:
        other = block.norm1.emb
        if all(torch.equal(a, b) for a, b in zip(own, other.state_dict().values(), strict=True)):
            freed += sum(p.numel() for p in other.parameters())
            block.norm1.emb = first
    return freed


class _Embedded(nn.Module):
    """Stands in every block for the embedder that all share, and answers what it said once for the pass."""

    def __init__(self, embedder: nn.Module):
        super().__init__()
        self.embedder = embedder
        self.value = torch.empty(0)

    def forward(self, *given: Any, **named: Any) -> Tensor:
        return self.value


def embed_once(network: DiTTransformer2DModel) -> None:
    """Embed time and class once a pass instead of once a block, where the blocks share one embedder.

    The output does not change. The embedding is a third of the operations that a block issues, which is what small
    batches on a GPU wait for.
    """
    shared = network.transformer_blocks[0].norm1.emb
    if any(block.norm1.emb is not shared for block in network.transformer_blocks):
        return
    once = _Embedded(shared)
    for block in network.transformer_blocks:
        block.norm1.emb = once

    def embed(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        once.value = shared(named["timestep"], named["class_labels"], hidden_dtype=network.dtype)

    network.register_forward_pre_hook(embed, with_kwargs=True)


def compute_as_published(network: DiTTransformer2DModel) -> None:
    """Compute as DiT's and SiT's released weights were trained, in the two places where diffusers' class does not.

    They space the frequencies of the time embedding by 1/128 of the exponent, the class by 1/127, which asks the
    weights with slightly wrong sinusoids; and they add 1e-6 to the variance in a block's second normalisation, the
    class 1e-5 unless told otherwise.
    """
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
