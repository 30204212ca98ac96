"""Reading a prior: a directory or a hub name in diffusers' layout, or a single-file checkpoint of DiT or SiT."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiTTransformer2DModel
from diffusers.utils import logging as diffusers_logging

from diver.config.prior import PriorOptions
from diver.places import placed
from diver.prior.base import Prior, PriorError, load_part, stamps
from diver.prior.checkpoint import load_checkpoint
from diver.prior.classes import labels_of, read_labels
from diver.prior.dit import DiTPrior, SiTPrior, compute_as_published, embed_once, share_embedders
from diver.prior.hub import KNOWN, fetch, verify
from diver.workers import best_device

diffusers_logging.disable_progress_bar()

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_AUTOENCODER = "stabilityai/sd-vae-ft-mse"
PIPELINES = {"DiTPipeline": "dit", "StableDiffusionPipeline": "stable-diffusion"}


def load_prior(
    source: str | Path, options: PriorOptions | None = None, device: str | torch.device | None = None
) -> Prior:
    """Load a prior, frozen, onto `device` (a GPU where there is one, when left out).

    Raises PriorError naming the source and what to do when it is missing, damaged, incomplete or unreachable.
    """
    options = options or PriorOptions()
    source = str(source)
    root, revision = fetch(source, options.revision)
    family = _family(root, options.family)
    known = KNOWN.get(source) if revision else None
    facts: dict[str, Any] = {"prior": source, "family": family, "precision": options.precision}
    # What else changes images, where it was asked for.
    facts |= options.model_dump(include={"dit_arithmetic"}, exclude_defaults=True) | options.words()
    if family != "stable-diffusion" and (words := options.words()):
        raise PriorError(
            f"{source}: {next(iter(words))}: is for a prior that reads, and this is a {family}; leave it out"
        )
    if revision:
        facts["revision"] = revision
    if options.sha256:
        facts["sha256"] = verify(root, options.sha256, source)
    elif known and revision == known.revision:
        facts["sha256"] = verify(root, known.sha256, source, required=False)
    autoencoder = options.autoencoder or (DEFAULT_AUTOENCODER if root.is_file() else None)
    files = stamps(root)
    if autoencoder:
        vae, place = _autoencoder(autoencoder, options, facts)
        files += stamps(place)
    else:
        vae = load_part(_vae_class(root), root, "vae")
    if family == "stable-diffusion":
        from diver.prior.stable_diffusion import load_stable_diffusion

        prior: Prior = load_stable_diffusion(root, vae, source, options)
    else:
        prior = _transformer(root, vae, source, family, options, known is not None and known.as_published)
    prior.facts, prior.vae_chunk, prior.root, prior.files = facts, options.vae_chunk, root, files
    return _placed(prior, options, device or best_device())


def load_placed(source: str, options: Mapping[str, Any], files: Iterable[str | Path]) -> Prior:
    """A prior of the workflow from where a job finds its input `files`, under the name that the study gives it.

    options: of PriorOptions. Raises as `load_prior`.
    """
    files = list(files)
    prior = load_prior(placed(source, files), PriorOptions(**placed(dict(options), files)))
    prior.name = source
    return prior


def _family(root: Path, asked: str) -> str:
    """Kind of network at a path; raises PriorError if it cannot be told or is another than asked for."""
    if root.is_file():
        if asked == "stable-diffusion":
            raise PriorError(f"{root}: a single file is read as DiT or SiT; give {asked} in diffusers' layout")
        told = next((family for family in ("dit", "sit") if root.name.lower().startswith(family)), None)
        if asked == "auto" and told is None:
            raise PriorError(
                f"{root}: say whether it is DiT or SiT, whose files look alike: family: dit or family: sit"
            )
        return asked if asked != "auto" else str(told)
    index = root / "model_index.json"
    if not index.exists():
        raise PriorError(
            f"{root}: no model_index.json; a prior is a directory as written by DiTPipeline.save_pretrained"
        )
    try:
        pipeline = json.loads(index.read_text()).get("_class_name")
    except ValueError as error:
        raise PriorError(f"{index}: not JSON ({error})") from error
    if pipeline not in PIPELINES:
        raise PriorError(f"{index}: pipeline {pipeline!r} is not supported; {', '.join(PIPELINES)} are")
    found = PIPELINES[pipeline]
    # SiT has no pipeline of its own; its networks are kept in DiT's layout.
    if asked not in ("auto", found) and (asked, found) != ("sit", "dit"):
        raise PriorError(f"{root}: holds a {pipeline}, but family is {asked}")
    return found if asked == "auto" else asked


def _vae_class(root: Path, subfolder: str = "vae") -> type[Any]:
    """AutoencoderKL or AutoencoderTiny, as a configuration says."""
    path = root / subfolder / "config.json"
    try:
        name = json.loads(path.read_text()).get("_class_name")
    except (OSError, ValueError) as error:
        raise PriorError(f"{path}: {error}; an autoencoder has a config.json") from error
    kinds: dict[str, type[Any]] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if name not in kinds:
        raise PriorError(f"{path}: {name!r} is not supported; {', '.join(kinds)} are")
    return kinds[name]


def _autoencoder(source: str, options: PriorOptions, facts: dict[str, Any]) -> tuple[Any, Path]:
    """An autoencoder of its own, and where it is; `facts` has it too."""
    root, revision = fetch(source, options.autoencoder_revision)
    facts["autoencoder"] = source
    known = KNOWN.get(source)
    if revision:
        facts["autoencoder_revision"] = revision
    if known and revision == known.revision:
        facts["autoencoder_sha256"] = verify(root, known.sha256, source, required=False)
    return load_part(_vae_class(root, ""), root, None), root


def _transformer(
    root: Path, vae: Any, source: str, family: str, options: PriorOptions, known_published: bool
) -> DiTPrior | SiTPrior:
    labels: dict[str, int] | None = None
    if root.is_file():
        network = load_checkpoint(root)
        alphas, prediction = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), "epsilon"
        alphas = (1 - alphas).cumprod(0)
        if options.dit_arithmetic == "diffusers":
            raise PriorError(f"{source}: a single-file checkpoint computes as published; leave dit_arithmetic out")
    else:
        network = load_part(DiTTransformer2DModel, root, "transformer")
        share_embedders(network)
        if options.dit_arithmetic == "published" or (options.dit_arithmetic == "auto" and known_published):
            compute_as_published(network)
        scheduler = load_part(DDIMScheduler, root, "scheduler")
        alphas, prediction = scheduler.alphas_cumprod.double(), scheduler.config.prediction_type
        labels = labels_of(read_labels(root))
    embed_once(network)
    fits = vae.config.latent_channels == network.config.in_channels
    if not fits:
        raise PriorError(
            f"{source}: the network takes {network.config.in_channels} latent channels, the autoencoder has "
            f"{vae.config.latent_channels}"
        )
    if family == "sit":
        return SiTPrior(vae, network, source, labels=labels)
    return DiTPrior(vae, network, source, labels=labels, alphas_cumprod=alphas, prediction_type=prediction)


def _placed(prior: Prior, options: PriorOptions, device: str | torch.device) -> Prior:
    for model in (prior.vae, prior.network):
        # diffusers' own `to` warns of modules that are to stay in float32, of which these models have none.
        torch.nn.Module.to(model, device=device, dtype=DTYPES[options.precision])
        model.eval().requires_grad_(False)
    if options.compile:
        compile_blocks(prior)
    return prior


def compile_blocks(prior: Prior) -> None:
    """Compile what repeats in the network, so that a compilation or two serve all of its blocks."""
    blocks = getattr(prior.network, "transformer_blocks", None)
    if blocks is None:
        prior.network.compile(dynamic=False)
        return
    for block in blocks:
        block.compile(dynamic=False)
