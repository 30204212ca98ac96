"""What a reader of released files hands over, before it is decided what the numbers mean."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diver.sets import SetError

# What each form is; `auto` finds it from the path, and for a single file from what is in it.
FORMS = {
    "dc": "a file with a dict of `data` and `accs_all_exps` (DC, DSA, DM, GLaD)",
    "mtt": "a folder with images_best.pt or images_N.pt, labels likewise and perhaps lr_best.pt (MTT, DATM, EDF)",
    "ncfm": "a file data_N.pt with [images, labels], or a folder of them (NCFM)",
    "glad": "a folder with images_best.pt or images_00000.pt and labels likewise (GLaD)",
    "folder": "a folder of image files for each class (SRe2L, RDED, D4M, Minimax, and our png)",
    "ddranking": "a folder with images.pt, and perhaps labels.pt, soft.pt, lr.pt and meta.json (DD-Ranking)",
    "dcbench": "a file ..._images.pt beside ..._labels.pt (DC-BENCH's random and k-means sets)",
    "own": "a distilled set of ours (safetensors)",
}


class StoppedError(SetError):
    """An export that has not ended, of which nothing can be read."""


class About(BaseModel):
    """What a meta.json beside the tensors may say; our own exports write all of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    # Of a judge's form, `dataset` is the judge's name of it; what these hold in files of others refuses nothing.
    dataset: Any = None
    source_dataset: Any = None
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    zca: float | None = Field(None, gt=0, allow_inf_nan=False)
    steps: tuple[dict[str, Any], ...] = ()
    unfinished: Any = None


def read_about(folder: Path) -> About:
    path = folder / "meta.json"
    if not path.is_file():
        return About()
    try:
        about = About.model_validate(json.loads(path.read_text()))
    except (ValueError, OSError) as error:  # ValidationError is a ValueError
        reason = " ".join(str(error).split())[:120]
        raise SetError(f"{path}: not a description of a set ({reason}); mend it or take it away") from error
    if about.unfinished is True:
        raise StoppedError(f"{folder}: an export that was stopped: make it again by the same command")
    return about


@dataclass
class Source:
    """What a reader finds, as stored.

    images: [N, C, H, W] of any dtype; labels: integer [N] or float [N, K]; soft: float [N, K] beside hard labels.
    pixels: turned back from ZCA space, in [0, 1] nominal; whitened: certainly in ZCA space. order: the class that each
    of the labels means, if the source tells. accuracies: fractions.
    """

    images: Tensor
    labels: Tensor
    files: list[Path]
    notes: list[str] = field(default_factory=list)
    soft: Tensor | None = None
    rate: float | None = None
    pixels: bool = False
    whitened: bool = False
    order: tuple[str, ...] = ()
    about: About = field(default_factory=About)
    accuracies: dict[str, list[float]] = field(default_factory=dict)
