"""Multiply-adds of networks and priors at their sizes, and how many images a dataset has, from what is at hand."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from diver.config.study import Study
from diver.data.spec import DatasetSpec
from diver.study import prepared_path, prior_path


@cache
def _network(name: str, options: str, classes: int, channels: int, size: int) -> tuple[float, int]:
    """Multiply-adds of a forward pass for one image, and parameters."""
    from diver.networks import create

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = create(name, classes, channels, size, **json.loads(options)).eval()
        network(torch.empty(1, channels, size, size))
    return counter.get_total_flops() / 2, sum(one.numel() for one in network.parameters())


def network_cost(name: str, options: Mapping[str, Any], spec: DatasetSpec) -> tuple[float, int]:
    """Multiply-adds of a forward pass for one image of a dataset, and parameters."""
    return _network(name, json.dumps(options, sort_keys=True), len(spec.classes), spec.channels, spec.size)


# Forward passes that a step counts as: with a gradient, and with a gradient of a gradient.
TRAIN, TWICE = 3, 9


class PriorCost(NamedTuple):
    """Multiply-adds for one image of a pass of a prior's network, of encoding and of decoding; its images' size."""

    passes: float
    encode: float
    decode: float
    size: int


def _counted(dit: Any, vae: Any) -> PriorCost:
    """Count networks that are on the device meta."""
    side = dit.config["sample_size"]
    size = side * 2 ** (len(vae.config["block_out_channels"]) - 1)
    with torch.device("meta"), torch.no_grad():
        latent, number = torch.empty(1, dit.config["in_channels"], side, side), torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as passes:
            dit.eval()(latent, timestep=number, class_labels=number)
        with FlopCounterMode(display=False) as encoding:
            vae.eval().encode(torch.empty(1, vae.config["in_channels"], size, size))
        with FlopCounterMode(display=False) as decoding:
            vae.decode(latent)
    network, encode, decode = (one.get_total_flops() / 2 for one in (passes, encoding, decoding))
    return PriorCost(network, encode, decode, size)


@cache
def _prior(folder: str) -> PriorCost:
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    configs = [json.loads((Path(folder) / part / "config.json").read_text()) for part in ("transformer", "vae")]
    with torch.device("meta"):
        return _counted(DiTTransformer2DModel.from_config(configs[0]), AutoencoderKL.from_config(configs[1]))


def trained_prior(study: Study, spec: DatasetSpec) -> tuple[PriorCost, int]:
    """What the prior takes that the study trains for a dataset, whether it is here or not, and its parameters."""
    from diver.prior.train import build_dit, build_vae

    choice = study.prior
    side = spec.size // 2 ** (len(choice.vae.widths) - 1)
    with torch.device("meta"):
        vae = build_vae(choice.vae, spec.channels)
        dit = build_dit(choice.dit, choice.vae.latent_channels, side, len(spec.classes))
    return _counted(dit, vae), sum(one.numel() for network in (vae, dit) for one in network.parameters())


def prior_cost(study: Study, spec: DatasetSpec, rates: Mapping[str, Any], root: Path) -> PriorCost | None:
    """What a dataset's prior takes; None for one that is neither known, nor here, nor trained."""
    if study.prior.source == "trained":
        return trained_prior(study, spec)[0]
    source = prior_path(study, spec.name)
    known = rates["priors"].get(source)
    if known:
        return PriorCost(known["pass"], known["encode"], known["decode"], known["size"])
    path = root / source
    return _prior(str(path)) if (path / "transformer/config.json").exists() else None


def counts(spec: DatasetSpec, root: Path) -> tuple[int, int] | None:
    """Training and test images of a dataset: of its prepared file, else its specification's; None if neither says."""
    path = root / prepared_path(spec.name)
    if path.exists():
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            train, test = (file.get_slice(f"{split}_labels").get_shape()[0] for split in ("train", "test"))
        return train, test
    train, test = spec.images or (0, 0)
    if spec.pictures:
        train, test = (
            split.total or (split.most or 0) * len(spec.classes) for split in (spec.pictures.train, spec.pictures.test)
        )
    if spec.held_out and train:
        test = spec.held_out * len(spec.classes)
        train -= test
    return (train, test) if train and test else None
