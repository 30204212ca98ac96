"""Minimax Diffusion (CVPR 2024): ancestral samples of a prior that was fine-tuned for it (`diver.recover.tuning`).

The fine-tuned prior is a directory in diffusers' layout, which `diver` and diffusers read like any other. A set is
what the control `raw` makes of that prior with eta 1: 50 respaced DDPM steps from noise, with guidance.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor

from diver.config.native.minimax import MinimaxConfig
from diver.config.prior import PriorOptions
from diver.data.prepared import Prepared
from diver.prior.base import Prior, PriorError, load_part
from diver.prior.classes import read_labels, write_labels
from diver.prior.load import load_prior
from diver.progress import Progress
from diver.recover.base import denoiser
from diver.recover.native import make_images, native_set
from diver.recover.sampler import KeyedNoise, run_chain
from diver.recover.tuning import tunable
from diver.sets import DistilledSet

FACTS = "minimax.json"


def plain_network(prior: Prior) -> DiTTransformer2DModel:
    """The prior's network as diffusers has it: an embedder in each block, where loading made them share one."""
    network = tunable(prior).network
    state = {name.replace(".emb.embedder.", ".emb."): value for name, value in network.state_dict().items()}
    plain = DiTTransformer2DModel.from_config(network.config).to(prior.dtype)
    plain.load_state_dict(state)
    return plain.eval()


def published_arithmetic(prior: Prior) -> bool:
    """Whether the network computes as `compute_as_published` sets it, which its files do not say."""
    embedder = tunable(prior).network.transformer_blocks[0].norm1.emb
    # Not by the normalisation, whose constant files may have set.
    return bool(getattr(embedder, "embedder", embedder).time_proj.downscale_freq_shift == 0)


def write_tuned(prior: Prior, path: str | Path, found: dict[str, Any]) -> None:
    """Write a prior with a fine-tuned network as a directory in diffusers' layout, its index last.

    The schedule and the names of classes are those of the source, of a single file DiT's own. `found` is what is
    recorded of the fine-tuning, with what reading the directory needs to be told.
    """
    path = Path(path)
    (path / "model_index.json").unlink(missing_ok=True)
    labels, root = None, prior.root
    if root is not None and root.is_dir():
        scheduler = load_part(DDIMScheduler, root, "scheduler")
        labels = read_labels(root)
    else:
        scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    options = {
        "family": prior.facts.get("family", "auto"),
        "dit_arithmetic": "published" if published_arithmetic(prior) else "diffusers",
    }
    pipeline = DiTPipeline(plain_network(prior), prior.vae, scheduler)
    path.mkdir(parents=True, exist_ok=True)
    (path / FACTS).write_text(json.dumps({**found, "source": prior.name, "options": options}, indent=1, sort_keys=True))
    for name in ("transformer", "vae", "scheduler"):
        getattr(pipeline, name).save_pretrained(path / name)
    pipeline.save_config(path)
    if labels:
        write_labels(path, labels)


def read_tuned(path: str | Path, prior: Prior) -> tuple[Prior, dict[str, Any]]:
    """A directory of `write_tuned`, in the precision, on the device and in the chunks of the prior it was tuned from;
    its record.

    Raises PriorError where it is damaged or another prior's.
    """
    path = Path(path)
    try:
        found = json.loads((path / FACTS).read_text())
        run = {"precision": prior.facts.get("precision", "fp32"), "vae_chunk": prior.vae_chunk}
        options = PriorOptions(**found["options"], **run)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PriorError(f"{path / FACTS}: no record of a fine-tuned prior ({error}); fine-tune it again") from error
    tuned = load_prior(path, options, prior.device)
    if tuned.latent_shape != prior.latent_shape:
        raise PriorError(
            f"{path}: latents of {list(tuned.latent_shape)}, and prior {prior.name} has {list(prior.latent_shape)}; "
            "fine-tune it again"
        )
    return tuned, found


def synthesise_minimax(
    data: Prepared,
    ipc: int,
    prior: Prior,
    config: MinimaxConfig,
    *,
    artefacts: Mapping[str, Path],
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """Samples of the fine-tuned prior. Raises PriorError for one that does not fit; `folder` is not used."""
    tuned, found = read_tuned(artefacts["tuned"].parent, prior)
    schedule = tuned.schedule(config.respacing)
    top = len(schedule) - 1

    def sample(rows: Sequence[int], condition: Tensor, noise: KeyedNoise) -> Tensor:
        start = noise.draw("start", tuned.latent_shape, torch.empty(0, device=tuned.device)) * schedule.scale(top)
        denoise = denoiser(tuned, schedule, condition, config)
        return run_chain(start, schedule, denoise, top, noise, stepper="ddpm")

    images = make_images(data, ipc, tuned, config, sample, progress)
    record = {"tuned_parameters": found["tuned_parameters"], "latents": found["latents"]}
    return native_set(images, data, ipc, "minimax", config, prior, code, {"tuning": record})
