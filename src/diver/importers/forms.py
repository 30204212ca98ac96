"""A reader for each form in which sets are released, and which form a path is of."""

import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from diver.config.base import first_fault
from diver.importers.folders import read_folder
from diver.importers.pickles import dense, load_foreign, load_tensor
from diver.importers.source import FORMS, Source, read_about
from diver.sets import SetError

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Accuracies = TypeAdapter(dict[str, list[_Finite | list[_Finite]]])
_IMAGES = re.compile(r"(?P<stem>.*?)images(?P<zca>_zca)?(?P<tag>|_best|_\d+)\.pt")


def _fractions(values: list[float | list[float]]) -> list[float]:
    """Recorded accuracies in one list; the codes record fractions, of which a value above 1 would be percent."""
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    return [v / 100 for v in flat] if flat and max(flat) > 1 else flat


def _two_tensors(content: Any) -> bool:
    return isinstance(content, (list, tuple)) and len(content) == 2 and all(isinstance(t, Tensor) for t in content)


def _read_dc(path: Path, *_: Any) -> Source:
    content = load_foreign(path)
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list) or not data:
        raise SetError(f"{path}: not in the released form, a dict with a list of [images, labels] under 'data'")
    if not _two_tensors(data[-1]):
        raise SetError(f"{path}: the last entry of 'data' is not [images, labels]")
    try:
        accuracies = _Accuracies.validate_python(content.get("accs_all_exps", {}))
    except ValidationError as error:
        raise SetError(f"{path}: accs_all_exps: {first_fault(error)}") from error
    images, labels = (dense(path, t) for t in data[-1])
    notes = [f"the last of {len(data)} experiments is taken"] if len(data) > 1 else []
    recorded = {name: _fractions(values) for name, values in accuracies.items() if values}
    about = read_about(path.parent)
    return Source(images, labels, [path], notes, rate=about.lr, about=about, accuracies=recorded)


def _read_ncfm(path: Path, *_: Any) -> Source:
    if path.is_dir():
        path = path / "distilled_data" if (path / "distilled_data").is_dir() else path
        saved = {int(m[1]): found for found in path.iterdir() if (m := re.fullmatch(r"data_(\d+)\.pt", found.name))}
        if not saved:
            raise SetError(f"{path}: no data_N.pt; name the file with [images, labels]")
        path = saved[max(saved)]
    content = load_foreign(path)
    if not _two_tensors(content):
        raise SetError(f"{path}: not in the released form, a list of [images, labels]")
    images, labels = (dense(path, t) for t in content)
    return Source(images, labels, [path], [f"{path.name} is taken"])


def _inside(path: Path) -> Path:
    """The folder with the tensors: EDF's code puts them into one named Normal."""
    return path / "Normal" if (path / "Normal").is_dir() else path


def _saves(folder: Path) -> dict[str, list[str]]:
    """The tags (nothing, `_best` or `_N`) of a folder's images{tag}.pt as 'images', of images_zca{tag}.pt as 'zca'."""
    found: dict[str, list[str]] = {"images": [], "zca": []}
    for file in folder.iterdir():
        if (match := _IMAGES.fullmatch(file.name)) and not match["stem"]:
            found["zca" if match["zca"] else "images"].append(match["tag"])
    # TinyImageNet at IPC 50 is stored in parts.
    if not found["images"] and (folder / "images_best_0.pt").is_file():
        found["images"] = ["_best"]
    return found


def _newest(tags: Sequence[str]) -> str:
    """The best of several saves if one is named so, else the last iteration's."""
    return "_best" if "_best" in tags else max(tags, key=lambda tag: int(tag[1:] or 0))


def _whole(path: Path, files: list[Path]) -> Tensor:
    """The tensor of a file, or of its parts images_best_0.pt, ... one after the other."""
    parts = [path] if path.is_file() else sorted(path.parent.glob(f"{path.stem}_[0-9].pt")) or [path]
    files += parts
    tensors = [load_tensor(part) for part in parts]
    for part, tensor in zip(parts, tensors, strict=True):
        if not tensor.ndim:
            raise SetError(f"{part}: one number, a tensor of shape []: give an entry for each image")
    if len({t.shape[1:] for t in tensors}) > 1:
        raise SetError(f"{path}: its parts have different shapes")
    return torch.cat(tensors)


def _read_pair(path: Path, classes: Sequence[str], *_: Any) -> Source:
    """images{tag}.pt with labels{tag}.pt beside it, and soft{tag}.pt and lr{tag}.pt if there are any.

    Without a tag labels may be missing, as DD-Ranking has it: then images are class-major.
    """
    notes, files = list[str](), list[Path]()
    saves = _saves(_inside(path) if path.is_dir() else path.parent)
    if path.is_dir():
        folder, tags = _inside(path), saves["zca"] or saves["images"]
        if not tags:
            _no_set(folder)
        stem, tag, whitened = "", _newest(tags), bool(saves["zca"])
        if len(tags) > 1 or whitened:
            notes.append(f"images{'_zca' * whitened}{tag}.pt is taken")
    else:
        match = _IMAGES.fullmatch(path.name)
        if not match:
            raise SetError(f"{path}: not named images_best.pt, images_N.pt or images.pt: give its folder, or set form")
        folder, stem, tag, whitened = path.parent, match["stem"], match["tag"], bool(match["zca"])
    if whitened:
        notes.append("made under ZCA whitening: these images are turned back to pixels, its students saw whitened ones")
    images = _whole(folder / f"{stem}images{'_zca' * whitened}{tag}.pt", files)
    if stem or tag or (folder / "labels.pt").is_file():
        labels = _whole(folder / f"{stem}labels{tag}.pt", files)
    else:
        labels = torch.arange(len(images)) * len(classes) // max(1, len(images))
        notes.append("no labels.pt: images are taken for class-major, as DD-Ranking takes them")
    found = Source(images, labels, files, notes, about=read_about(folder))
    found.pixels, found.whitened, found.rate = whitened, bool(saves["zca"]) and not whitened, found.about.lr
    if (soft := folder / f"{stem}soft{tag}.pt").is_file():
        found.soft = _whole(soft, files)
    if (rate := folder / f"{stem}lr{tag}.pt").is_file():
        found.rate = _rate(rate)
        files.append(rate)
    return found


def _rate(path: Path) -> float:
    content = load_foreign(path)
    value = dense(path, content).flatten().tolist() if isinstance(content, Tensor) else [content]
    if len(value) != 1 or not isinstance(value[0], (int, float)) or not 0 < value[0] < float("inf"):
        raise SetError(f"{path}: not one positive learning rate; mend it or take it away")
    return float(value[0])


# Called with (path, classes, channels, images per class or none, class order or none).
READERS: dict[str, Callable[..., Source]] = {
    "dc": _read_dc,
    "ncfm": _read_ncfm,
    "folder": read_folder,
    **dict.fromkeys(["mtt", "glad", "ddranking", "dcbench"], _read_pair),
}


def _no_set(path: Path) -> NoReturn:
    latents = sorted(f.name for f in path.iterdir() if "latent" in f.name.lower())
    if latents:
        raise SetError(
            f"{path}: holds latents ({latents[0]}) and no images, and they mean nothing without their generator: "
            "decode them with the code that made them and give the images"
        )
    # DC's sets and DC-BENCH's random and k-means ones are files, of which a folder may hold several.
    files = [f.name for f in sorted(path.iterdir()) if f.suffix in (".pt", ".safetensors") and "labels" not in f.name]
    remedy = f"give one of its files ({', '.join(files[:3])})" if files else f"set form to one of {', '.join(FORMS)}"
    raise SetError(f"{path}: holds no set in a form that is known; {remedy}")


def _tagged(tags: Sequence[str], path: Path) -> str:
    if "" in tags and len(tags) > 1:
        raise SetError(f"{path}: holds images.pt and images{_newest(tags)}.pt: give the file, or set form")
    return "ddranking" if "" in tags else "glad" if any(re.fullmatch(r"_0\d{4}", tag) for tag in tags) else "mtt"


def refuse_unread(path: Path) -> None:
    """Raise SetError for what is never read: NumPy's files, archives, and a hub's Parquet table or the folder of one,
    which is an export for others."""
    if path.suffix in (".npz", ".npy") and path.is_file():
        raise SetError(
            f"{path}: a file of NumPy, not read: put its images [N, C, H, W] and labels [N] into a folder with "
            "torch.save, as images_best.pt and labels_best.pt, and give the folder"
        )
    archive = path.suffix in (".zip", ".tar", ".gz", ".tgz") and path.is_file()
    # What torch.save wrote may be named .pth.tar.
    if archive and (path.suffix != ".tar" or tarfile.is_tarfile(path)):
        raise SetError(f"{path}: an archive: unpack it and give the file or folder that was in it")
    tables = [path] if path.suffix == ".parquet" else [*path.glob("*.parquet"), *path.glob("data/*.parquet")]
    # A table may also lie beside the folders of images.
    others = path.is_dir() and any(f.is_dir() and f.name != "data" and f.name[0] != "." for f in path.iterdir())
    if tables and path.exists() and not others:
        raise SetError(
            f"{path}: a Parquet table, which is for others and is not read back: import the set's safetensors file, or "
            "its folder of PNG images"
        )


def detect(path: Path) -> str:
    if path.is_dir():
        saves = _saves(_inside(path))
        if tags := saves["images"] or saves["zca"]:
            return _tagged(tags, path)
        if (path / "distilled_data").is_dir() or any(re.fullmatch(r"data_\d+\.pt", f.name) for f in path.iterdir()):
            return "ncfm"
        if any(f.is_dir() and not f.name.startswith(".") for f in path.iterdir()):
            return "folder"
        _no_set(path)
    if not path.is_file():
        raise SetError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return "own"
    if match := _IMAGES.fullmatch(path.name):
        return "dcbench" if match["stem"] else _tagged([match["tag"]], path)
    content = load_foreign(path)
    if _two_tensors(content):
        return "ncfm"
    if isinstance(content, dict) and "data" in content:
        return "dc"
    if isinstance(content, Tensor):
        raise SetError(f"{path}: a tensor alone: name the images images_best.pt, with labels_best.pt beside them")
    raise SetError(f"{path}: not in the released form of any code that is known; set form to one of {', '.join(FORMS)}")
