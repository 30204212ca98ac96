"""What all exports share: which folder may be written, and how it says where its set comes from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diver.sets import DistilledSet, SetError


class ExportError(SetError):
    """A set cannot be given in this form; one line with the remedy, without the set's file, which the caller adds."""


def check_folder(folder: Path, form: str) -> None:
    """Raise ExportError unless nothing is lost by an export into the folder: it is new, empty, or of the same form."""
    try:
        found = json.loads((folder / "meta.json").read_text())["form"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()) and found != form:
        raise ExportError(f"{folder} holds other files, with which these would mix: give another folder")


def begin(folder: Path, form: str) -> None:
    """Mark a folder as one whose export has not ended.

    One that is stopped can then be made again by the same command, and is not read as a set; nor does what was there
    before speak for the new files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps({"form": form, "unfinished": True}) + "\n")


def write_files(
    folder: Path, files: Mapping[str, Any], meta: dict[str, Any], stale: tuple[str, ...] = ()
) -> list[Path]:
    """Save each of `files` (name -> tensors) with torch, and `meta` as meta.json, after taking `stale` ones away."""
    begin(folder, meta["form"])
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        torch.save(content, folder / name)
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return [*(folder / name for name in files), folder / "meta.json"]


def chain(distilled: DistilledSet) -> list[dict[str, Any]]:
    """How the set came about, as a meta.json has it; `code` is the digest of the code that ran."""
    return [{"method": s.method, "parameters": s.parameters, "seed": s.seed, "code": s.code} for s in distilled.steps]


def class_major_labels(distilled: DistilledSet) -> Tensor:
    """int64 [N]."""
    return torch.arange(len(distilled.classes)).repeat_interleave(distilled.ipc)
