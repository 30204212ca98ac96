"""What stage-1 methods share: drawing real images of a class, reading a trained network, wrapping the result."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diver.config.distill import TEACHER, DistillConfig
from diver.data.prepared import Prepared
from diver.networks.weights import Trained, load_teacher
from diver.sets import DistilledSet, Step, ValueRange
from diver.tensorfile import file_checksum
from diver.workers import best_device


def class_members(data: Prepared, needed: int) -> list[Tensor]:
    """Positions of each class's training images. Raises ValueError if a class has fewer than `needed`."""
    members = [(data.train_labels == number).nonzero().flatten() for number in range(len(data.classes))]
    for name, found in zip(data.classes, members, strict=True):
        if len(found) < needed:
            raise ValueError(
                f"class {name!r} of {data.dataset} has {len(found)} training images, and {needed} are needed: lower "
                "the IPC, or give the class more images"
            )
    return members


def draw_members(members: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Positions of `count` images of each class, class-major; none comes again before all of its class have come."""

    def drawn(found: Tensor) -> Tensor:
        passes = -(-count // len(found))
        order = torch.cat([torch.randperm(len(found), generator=generator) for _ in range(passes)])
        return found[order[:count]]

    return torch.cat([drawn(found) for found in members])


def redraw(network: nn.Module, seed: int) -> None:
    """Fresh weights in place, distributed as those of a new ConvNet, from the generator of their device."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # What `reset_parameters` of both comes to.
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters(recurse=False):
                parameter.data.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.GroupNorm):
            # They are no longer ones and zeros where the network was trained.
            module.reset_parameters()


def first_images(data: Prepared, ipc: int, init: str, members: list[Tensor], generator: torch.Generator) -> Tensor:
    """What images are learned from: standardised float32 [classes * ipc, C, H, W], real ones or unit-normal noise."""
    if init == "real":
        return data.standardised(data.train_images[draw_members(members, ipc, generator)])
    return torch.randn(len(members) * ipc, *data.train_images.shape[1:], generator=generator)


def standard_range(data: Prepared) -> ValueRange:
    return ValueRange.standardised(data.mean, data.std)


def read_teacher(
    setting: str, source: str, data: Prepared, labelled: bool = True, otherwise: str = ""
) -> tuple[Trained, dict[str, Any]]:
    """A trained network for standardised images of `data`, on the best device, and what a set records of it.

    setting: the name of the setting that gives the source, for errors; otherwise: what else it may be.
    labelled: its logits are used, so that its classes have to be the data's. The record is the same wherever the
    file lies. Raises ValueError for the word that stands for the study's teacher, WeightsError as `load_teacher`.
    """
    if source == TEACHER:
        raise ValueError(
            f"{setting}: {TEACHER!r} stands for the study's teacher, and the workflow puts its path here; "
            f"outside the workflow give the path of a trained network's file{otherwise}"
        )
    trained = load_teacher(source, data, labelled=labelled)
    trained.network.to(best_device())
    # Weights of timm have no file, and their notes name them.
    origin = {"sha256": file_checksum(source)} if Path(source).is_file() else trained.notes
    return trained, {
        "network": trained.name,
        "options": trained.options,
        "dataset": trained.dataset,
        "accuracy": trained.accuracy,
        **origin,
    }


def distilled(
    images: Tensor,
    data: Prepared,
    ipc: int,
    method: str,
    config: DistillConfig,
    code: str,
    found: dict[str, Any] | None = None,
    soft_labels: Tensor | None = None,
) -> DistilledSet:
    """Standardised class-major images as a set of `data` made by `method`; `found` goes into the step's parameters."""
    result = DistilledSet(
        images=images.detach().cpu().contiguous(),
        dataset=data.dataset,
        classes=data.classes,
        ipc=ipc,
        value_range=standard_range(data),
        labels=torch.arange(len(data.classes)).repeat_interleave(ipc),
        soft_labels=None if soft_labels is None else soft_labels.detach().cpu().contiguous(),
        steps=(Step(method, {**config.model_dump(mode="json"), **(found or {})}, config.seed, code),),
    )
    result.validate(method)
    return result
