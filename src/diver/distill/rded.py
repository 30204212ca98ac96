"""RDED (Sun, Shi, Yu and Lin 2024): the crops that a trained network finds most realistic, in grids.

`candidates` images of a class are drawn, and of each `crops` square boxes of a random area. A box is resized to
size // factor and scored by the network's cross entropy for it, put in the middle of an image that is otherwise 0 in
standardised space. Each image gives its best crop. The ipc * factor^2 crops of least loss fill the factor x factor
cells of `ipc` images: the ipc best are the first cells, left to right and down, the ipc next the second cells, ...

Where the factor does not divide the size, the first rows and columns of cells are a pixel larger, and their boxes are
resized to that at once; the released code repeats a pixel of the smaller crop.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diver.config.distill import RDEDConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, read_teacher, standard_range
from diver.distill.loop import Run
from diver.distill.pixels import as_jpeg, resample, taps
from diver.networks.views import RandomResizedCrop
from diver.networks.weights import Trained
from diver.pictures import save_grid
from diver.progress import Progress, reporter
from diver.sets import DistilledSet
from diver.workers import best_device

# Crops that are cut and scored at a time.
CHUNK = 256


def square_crops(config: RDEDConfig) -> RandomResizedCrop:
    return RandomResizedCrop((config.min_scale, 1), ratio=(1, 1))


def cut(images: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes of float images [N, C, H, W] resized to [N, C, height, width]; boxes in whole pixels, float64 [N, 4]."""
    top, left, tall, wide = boxes.unbind(1)
    return resample(images, taps(top, tall, height, images.shape[2]), taps(left, wide, width, images.shape[3]))


def padded(crops: Tensor, size: int) -> Tensor:
    """Crops [N, C, h, w] in the middle of zeros, [N, C, size, size]; an odd pixel goes below and to the right."""
    height, width = (size - side for side in crops.shape[2:])
    return F.pad(crops, (width // 2, width - width // 2, height // 2, height - height // 2))


def crop_losses(trained: Trained, images: Tensor, boxes: Tensor, label: int, side: int) -> Tensor:
    """The network's cross entropy for a class, float32 [n, m], of m boxes, float64 [n, m, 4], of each image.

    images: standardised float [n, C, H, W], on the network's device as the boxes are; each crop is of `side` pixels.
    """
    crops = cut(images.repeat_interleave(boxes.shape[1], 0), boxes.flatten(0, 1), side, side)
    logits = trained.logits(padded(crops, images.shape[2]), CHUNK)
    losses = F.cross_entropy(logits, torch.full((len(logits),), label, device=logits.device), reduction="none")
    return losses.view(boxes.shape[:2])


def cell_sides(size: int, factor: int) -> list[int]:
    """Pixels of the cells along a side; their sum is `size`."""
    return [size // factor + (number < size % factor) for number in range(factor)]


def grids(data: Prepared, chosen: Tensor, boxes: Tensor, ipc: int, factor: int) -> Tensor:
    """Standardised images float32 [classes * ipc, C, H, W], class-major, of the crops of each class.

    chosen: positions int64 [classes, ipc * factor^2] of training images in the order of their losses; boxes: float64
    [classes, ipc * factor^2, 4].
    """
    sides = cell_sides(data.train_images.shape[2], factor)
    # [ipc of all classes, cells]
    positions = chosen.unflatten(1, (-1, ipc)).transpose(1, 2).flatten(0, 1)
    places = boxes.unflatten(1, (-1, ipc)).transpose(1, 2).flatten(0, 1)

    def cell(row: int, column: int, part: Tensor) -> Tensor:
        number = row * factor + column
        images = data.standardised(data.train_images[positions[part, number]])
        return cut(images, places[part, number], sides[row], sides[column])

    return torch.cat(
        [
            torch.cat([torch.cat([cell(i, j, part) for j in range(factor)], 3) for i in range(factor)], 2)
            for part in torch.arange(len(positions)).split(CHUNK)
        ]
    )


def _check(data: Prepared, members: list[Tensor], ipc: int, config: RDEDConfig) -> None:
    size, wanted = data.train_images.shape[2], ipc * config.factor**2
    if config.factor > size:
        raise ValueError(f"rded: factor {config.factor} leaves no pixel of an image's {size} to a crop; lower it")
    for number, mine in enumerate(members):
        if (seen := min(config.candidates, len(mine))) < wanted:
            remedy = "raise candidates" if len(mine) >= wanted else "lower the IPC or the factor"
            raise ValueError(
                f"rded: class {number} gives {seen} crops (candidates {config.candidates}, images {len(mine)}), "
                f"{wanted} are needed for IPC {ipc} and factor {config.factor}; {remedy}"
            )


def distill_rded(
    data: Prepared,
    ipc: int,
    config: RDEDConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """A set of `ipc` grids of real crops per class, float32 in standardised space, the same for the same seed.

    progress: called with (classes done, all classes, the mean loss of the chosen crops); by default a line on stderr
    now and then. folder: where a run that is stopped is kept to go on from, and a picture is written.
    Raises ValueError or WeightsError if a class has too few images, the factor exceeds the images' size, or the
    teacher is missing, unresolved, of other classes or another image size.
    """
    classes, size = len(data.classes), data.train_images.shape[2]
    members = class_members(data, 1)
    _check(data, members, ipc, config)
    trained, described = read_teacher("teacher", config.teacher, data)
    generator, device = torch.Generator().manual_seed(config.seed), best_device()
    crop, wanted = square_crops(config), ipc * config.factor**2
    state = {
        "chosen": torch.zeros(classes, wanted, dtype=torch.int64),
        "boxes": torch.zeros(classes, wanted, 4, dtype=torch.float64),
    }

    def iteration(number: int) -> float:
        found = members[number]
        mine = found[torch.randperm(len(found), generator=generator)[: config.candidates]]
        boxes = crop.boxes(crop.draw(len(mine) * config.crops, generator), size, size).view(len(mine), -1, 4)
        losses = []
        for part in torch.arange(len(mine)).split(max(1, CHUNK // config.crops)):
            images = data.standardised(data.train_images[mine[part]].to(device))
            losses.append(crop_losses(trained, images, boxes[part].to(device), number, size // config.factor).cpu())
        best, which = torch.cat(losses).min(1)
        order = best.argsort(stable=True)[:wanted]
        state["chosen"][number], state["boxes"][number] = mine[order], boxes[order, which[order]]
        return best[order].mean().item()

    about = [ipc, {**config.model_dump(mode="json"), "teacher": described}, data.identity(), code]
    Run("rded", state, generator, about, folder, progress or reporter("RDED")).iterate(classes, iteration)
    images = grids(data, state["chosen"], state["boxes"], ipc, config.factor)
    if config.rounding == "released":
        images = as_jpeg(images, standard_range(data))
    if folder:
        save_grid(folder / "images.png", images, standard_range(data), ipc)
    return distilled(images, data, ipc, "rded", config, code, {"teacher": described})
