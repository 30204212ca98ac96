"""A distilled set in the forms of others: external judges (DD-Ranking 0.2.0, DC-BENCH), image files, a hub's table.

Each judge has its own name, class order and normalisation for a dataset; a set is brought to them or refused. For them
pixels are converted affinely and never clipped or rounded. Image files and tables hold 8 bits and say what that lost.
"""

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from diver.config.base import nearest
from diver.data.subsets import subsets
from diver.sets import IMAGENET, UNIT, DistilledSet, SetError, Step, ValueRange, learned_rate
from diver.tensorfile import canonical_json, write_tensors


class ExportError(SetError):
    """A set cannot be given in this form; one line with the remedy, without the set's file, which the caller adds."""


@dataclass(frozen=True)
class JudgedDataset:
    """A dataset as a judge knows it. Without a class list, labels are the positions of the sorted class names."""

    name: str
    count: int
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()

    @property
    def value_range(self) -> ValueRange:
        return ValueRange.standardised(self.mean, self.std)


_CIFAR_STD = (0.2023, 0.1994, 0.2010)
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_IMAGENET = (IMAGENET.mean, IMAGENET.std)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# ImageNet's subsets by wnid in DD-Ranking's label order, that of Cazenavette et al. 2022, which is often not sorted.
_SUBSETS = """
ImageNette n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257
ImageWoof n02096294 n02093754 n02111889 n02088364 n02086240 n02089973 n02087394 n02115641 n02099601 n02105641
ImageFruit n07753275 n07753592 n07745940 n07747607 n07749582 n07768694 n07753113 n07720875 n07718472 n07742313
ImageYellow n02206856 n12057211 n07753592 n07749582 n12144580 n04146614 n03530642 n02129165 n01773157 n01531178
ImageMeow n02123045 n02123159 n02123394 n02123597 n02124075 n02129165 n02129604 n02128925 n02128757 n02127052
ImageSquawk n01806143 n02007558 n01818515 n02051845 n02056570 n01614925 n01843383 n01518878 n01860187 n01819313
"""

# By this project's name of the dataset. DD-Ranking normalises CIFAR-100 with CIFAR-10's constants, DC-BENCH does not.
DDRANKING: dict[str, JudgedDataset] = {
    "cifar10": JudgedDataset("CIFAR10", 10, 32, _CIFAR_MEAN, _CIFAR_STD, _CIFAR10),
    "cifar100": JudgedDataset("CIFAR100", 100, 32, _CIFAR_MEAN, _CIFAR_STD),
    "tinyimagenet": JudgedDataset("TinyImageNet", 200, 64, *_IMAGENET),
    **{
        n.lower(): JudgedDataset(n, 10, None, *_IMAGENET, tuple(c))
        for n, *c in map(str.split, _SUBSETS.split("\n")[1:-1])
    },
    "imagenet1k": JudgedDataset("ImageNet1K", 1000, None, *_IMAGENET),
}
DCBENCH: dict[str, JudgedDataset] = {
    "cifar10": JudgedDataset("CIFAR10", 10, 32, _CIFAR_MEAN, _CIFAR_STD, _CIFAR10),
    "cifar100": JudgedDataset("CIFAR100", 100, 32, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tinyimagenet": JudgedDataset("tinyimagenet", 200, 64, *_IMAGENET),
}


def _for_judge(distilled: DistilledSet, known: Mapping[str, JudgedDataset], judge: str) -> DistilledSet:
    """The set in the judge's class order and value range. Raises ExportError if the judge does not know it."""
    images, here = distilled.images, tuple(distilled.classes)
    if images.shape[1] != 3:
        raise ExportError(
            f"images have {images.shape[1]} channel(s); the networks of {judge} take 3: "
            "judge a grey set with `diver evaluate`"
        )
    if distilled.dataset not in known:
        hint = nearest(distilled.dataset, list(known))
        raise ExportError(f"dataset {distilled.dataset!r} is not one of those that {judge} knows; {hint}")
    dataset = known[distilled.dataset]
    order = dataset.classes or tuple(sorted(here))
    if len(here) != dataset.count or set(here) != set(order):
        unknown = sorted(set(here) - set(order)) or sorted(set(order) - set(here))
        fault = f"{unknown[0]!r} is in only one of the two" if unknown else f"the set has {len(here)}"
        raise ExportError(
            f"{judge}'s {dataset.name} has {dataset.count} classes, {order[0]!r} to {order[-1]!r}, and {fault}: "
            "name all of its classes in the set"
        )
    if images.shape[-1] != images.shape[-2] or dataset.size not in (None, images.shape[-1]):
        size = f"{dataset.size}x{dataset.size}" if dataset.size else "square images"
        raise ExportError(
            f"images are {images.shape[-2]}x{images.shape[-1]}, {judge}'s {dataset.name} takes {size}: resize the set"
        )
    moved = distilled.in_range(dataset.value_range)
    if order == here:
        return moved
    columns = torch.tensor([here.index(name) for name in order])
    rows = (columns[:, None] * distilled.ipc + torch.arange(distilled.ipc)).flatten()
    soft = distilled.soft_labels
    return replace(
        moved,
        images=moved.images[rows],
        soft_labels=None if soft is None else soft[rows][:, columns].contiguous(),
        classes=order,
    )


def _class_major_labels(distilled: DistilledSet) -> Tensor:
    return torch.arange(len(distilled.classes)).repeat_interleave(distilled.ipc)


def _check_folder(folder: Path, form: str) -> None:
    """Raise ExportError unless nothing is lost by an export into the folder: it is new, empty, or of the same form."""
    try:
        found = json.loads((folder / "meta.json").read_text())["form"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()) and found != form:
        raise ExportError(f"{folder} holds other files, with which these would mix: give another folder")


def _write(folder: Path, files: Mapping[str, Any], meta: dict[str, Any], stale: tuple[str, ...] = ()) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        torch.save(content, folder / name)
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return [*(folder / name for name in files), folder / "meta.json"]


def _chain(distilled: DistilledSet) -> list[dict[str, Any]]:
    return [{"method": s.method, "parameters": s.parameters, "seed": s.seed} for s in distilled.steps]


def _meta(form: str, original: DistilledSet, exported: DistilledSet, known: JudgedDataset) -> dict[str, Any]:
    """`digest` is the original set's, by which the study's table of students names it."""
    return {
        "form": form,
        "dataset": known.name,
        "source_dataset": original.dataset,
        "ipc": exported.ipc,
        "classes": list(exported.classes),
        "mean": list(known.mean),
        "std": list(known.std),
        "shape": list(exported.images.shape),
        "labels": "hard" if original.soft_labels is None else "soft",
        "steps": _chain(original),
        "lr": learned_rate(original),
        "digest": original.digest(),
    }


def export_ddranking(distilled: DistilledSet, out_dir: str | Path) -> list[Path]:
    """Write what DD-Ranking's scores take, and return the paths. Raises ExportError.

    images.pt: float32 [C * ipc, 3, H, W], class-major in DD-Ranking's class order, normalised with its constants;
    labels.pt: int64 [C * ipc]; soft.pt: float32 [C * ipc, C] logits, if the set has soft labels; lr.pt: 0-d float32,
    if a step of the set recorded a rate; meta.json: what this is and how it was made.
    """
    _check_folder(Path(out_dir), "ddranking")
    exported = _for_judge(distilled, DDRANKING, "DD-Ranking")
    rate = learned_rate(distilled)
    files = {
        "images.pt": exported.images.contiguous(),
        "labels.pt": _class_major_labels(exported),
        "soft.pt": exported.soft_labels,
        "lr.pt": None if rate is None else torch.tensor(rate),
    }
    meta = _meta("ddranking", distilled, exported, DDRANKING[distilled.dataset])
    kept = {name: tensor for name, tensor in files.items() if tensor is not None}
    return _write(Path(out_dir), kept, meta, stale=("soft.pt", "lr.pt"))


# DC-BENCH's folder and the files that its loader for a method reads.
_FOLDERS = {"dc": "DC", "dsa": "DSA", "dm": "DM", "tm": "TM", "random": "random", "kmeans": "Kmeans"}


def _dcbench_files(method: str, dataset: str, ipc: int, images: Tensor, labels: Tensor) -> dict[str, Any]:
    if method in ("dc", "dsa", "dm"):
        network = "ConvNetD4" if dataset == "tinyimagenet" else "ConvNet"
        content = {"data": [[images, labels]], "accs_all_exps": {}}
        return {f"res_{method.upper()}_{dataset}_{network}_{ipc}ipc.pt": content}
    if method == "tm":
        if dataset == "tinyimagenet" and ipc == 50:  # read in five parts
            parts = zip(images.chunk(5), labels.chunk(5), strict=True)
            return {
                f"{kind}_best_{i}.pt": part.clone()
                for i, pair in enumerate(parts)
                for kind, part in zip(("images", "labels"), pair, strict=True)
            }
        return {"images_best.pt": images, "labels_best.pt": labels}
    stem = f"{dataset}_IPC{ipc}" + ("_normalize" if method == "random" else "")
    return {f"{stem}_images.pt": images, f"{stem}_labels.pt": labels}


def export_dcbench(distilled: DistilledSet, out_dir: str | Path, method: str | None = None) -> list[Path]:
    """Write {METHOD}/{dataset}/IPC{n}/ as DC-BENCH looks for it under `distilled_results`; return the paths.

    `method` is the DC-BENCH loader to write for; by default the set's own, if a single step of that name made it.
    Images as for DD-Ranking, with DC-BENCH's constants. A set with soft labels only is written with probabilities,
    which only the loaders of dc, dsa and dm keep. Raises ExportError.
    """
    own = distilled.steps[0].method if len(distilled.steps) == 1 else None
    chosen = method or {"mtt": "tm", "k_means": "kmeans"}.get(own or "", own)
    if chosen not in _FOLDERS:
        made = " + ".join(step.method for step in distilled.steps) or "no recorded method"
        hint = nearest(method or "", list(_FOLDERS))
        asked = f"method {method!r} is unknown to DC-BENCH" if method else f"DC-BENCH has no loader for {made!r}"
        raise ExportError(f"{asked}; choose whose layout to write with --method: {hint}")
    exported = _for_judge(distilled, DCBENCH, "DC-BENCH")
    labels = _class_major_labels(exported)
    if exported.labels is None and exported.soft_labels is not None:
        if chosen not in ("dc", "dsa", "dm"):
            raise ExportError(
                f"the set has soft labels, which the loader of {chosen!r} drops: use --method dc, dsa or dm"
            )
        labels = exported.soft_labels.softmax(1)
    known = DCBENCH[distilled.dataset]
    folder = Path(out_dir) / _FOLDERS[chosen] / known.name / f"IPC{exported.ipc}"
    if Path(out_dir).is_file():
        raise ExportError(f"{out_dir} is a file: give a folder")
    _check_folder(folder, "dcbench")
    files = _dcbench_files(chosen, known.name, exported.ipc, exported.images.contiguous(), labels)
    return _write(folder, files, {**_meta("dcbench", distilled, exported, known), "method": chosen})


# Pixels of 8 bits


def _pixels(distilled: DistilledSet) -> tuple[Tensor, dict[str, Any]]:
    """uint8 [N, C, H, W], and what that loses: values clipped to [0, 1], and by how much, and the largest rounding."""
    unit = distilled.in_range(UNIT).images
    levels = (unit * 255).round()
    # What rounds to 0 or 255 is rounded, not clipped.
    clipped = (levels < 0) | (levels > 255)
    pixels = levels.clamp(0, 255)
    lost = (pixels / 255 - unit).abs()
    facts = {
        "values": unit.numel(),
        "clipped": int(clipped.sum()),
        "largest_clipping": float((lost * clipped).max()),
        "largest_rounding_error": float((lost * ~clipped).max()),
    }
    return pixels.to(torch.uint8), facts


def rounded(distilled: DistilledSet) -> DistilledSet:
    """The set after its images have gone through 8 bits, in the same value range: what png and parquet hold."""
    pixels, facts = _pixels(distilled)
    images = distilled.value_range.from_unit(pixels.float() / 255)
    return distilled.with_images(
        images, distilled.value_range, Step("pixels", {"bits": 8, "clipped": facts["clipped"]})
    )


def _png(image: Tensor) -> bytes:
    """A PNG of uint8 [1 or 3, H, W]."""
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(distilled: DistilledSet) -> tuple[list[bytes], dict[str, Any]]:
    """The images as PNG files, and what 8 bits lose. Raises ExportError if they are neither grey nor RGB."""
    if distilled.images.shape[1] not in (1, 3):
        raise ExportError(f"images have {distilled.images.shape[1]} channels, and a PNG 1 or 3: export as tensors")
    pixels, facts = _pixels(distilled)
    return [_png(image) for image in pixels], facts


def _pixels_meta(
    form: str, distilled: DistilledSet, facts: dict[str, Any], accuracy: dict[str, Any] | None
) -> dict[str, Any]:
    meta = {
        "form": form,
        "dataset": distilled.dataset,
        "ipc": distilled.ipc,
        "classes": list(distilled.classes),
        "shape": list(distilled.images.shape),
        "labels": "hard" if distilled.soft_labels is None else "soft",
        "value_range": asdict(distilled.value_range),
        "pixels": facts,
        "steps": _chain(distilled),
        "lr": learned_rate(distilled),
        "digest": distilled.digest(),
    }
    return meta if accuracy is None else {**meta, "accuracy": accuracy}


_UNSAFE = re.compile(r"[^\w.-]+")


def export_png(distilled: DistilledSet, out_dir: str | Path, accuracy: dict[str, Any] | None = None) -> list[Path]:
    """Write a folder of PNG images for each class, soft labels beside them; return the paths.

    {number}-{class}/{i}.png: pixels clipped to [0, 1] and rounded to 8 bits; soft_labels.safetensors: float32 [N, K]
    logits, if the set has any; meta.json: what this is, how many values were clipped, the largest rounding error, and
    `accuracy`, what students lose by it, if that is given. Raises ExportError, also if the folder holds other files.
    """
    out = Path(out_dir)
    images, facts = _pictures(distilled)
    _check_folder(out, "png")
    for stale in [*out.glob("[0-9]*-*/[0-9]*.png"), out / "soft_labels.safetensors"]:
        stale.unlink(missing_ok=True)
    written = []
    for number, name in enumerate(distilled.classes):
        folder = out / f"{number:04d}-{_UNSAFE.sub('_', name)}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(distilled.ipc):
            written.append(folder / f"{i:04d}.png")
            written[-1].write_bytes(images[number * distilled.ipc + i])
    for folder in out.glob("[0-9]*-*"):
        if not any(folder.iterdir()):
            folder.rmdir()
    if distilled.soft_labels is not None:
        written.append(out / "soft_labels.safetensors")
        write_tensors(written[-1], {"soft_labels": distilled.soft_labels}, {"classes": list(distilled.classes)})
    return [*written, *_write(out, {}, _pixels_meta("png", distilled, facts, accuracy))]


# Identifier of the hub, and what the authors of the images state, by dataset; a name that goes on after "-" is a part.
_LICENCES = {
    "cifar10": ("unknown", "no licence is stated for CIFAR-10"),
    "cifar100": ("unknown", "no licence is stated for CIFAR-100"),
    "fashion-mnist": ("mit", "Fashion-MNIST is under the MIT licence"),
    "imagenet": ("other", "ImageNet's images may be used for non-commercial research and education only"),
}


def _licence(dataset: str) -> tuple[str, str]:
    if dataset in subsets() or dataset in ("imagenet1k", "tinyimagenet"):
        dataset = "imagenet"
    known = [key for key in _LICENCES if dataset == key or dataset.startswith(f"{key}-")]
    return _LICENCES[known[0]] if known else ("unknown", "the licence of the images is not known here")


def _features(distilled: DistilledSet) -> dict[str, Any]:
    """The columns as the `datasets` library describes them."""
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(distilled.classes), "_type": "ClassLabel"},
    }
    if distilled.soft_labels is not None:
        features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    return features


def _table(distilled: DistilledSet, images: list[bytes]) -> pa.Table:
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    names = [f"{n // distilled.ipc:04d}-{n % distilled.ipc:04d}.png" for n in range(len(images))]
    rows = [{"bytes": data, "path": name} for data, name in zip(images, names, strict=True)]
    columns = {"image": pa.array(rows, picture), "label": pa.array(_class_major_labels(distilled).numpy(), pa.int64())}
    if distilled.soft_labels is not None:
        columns["soft_label"] = pa.array(list(distilled.soft_labels.numpy()), pa.list_(pa.float32()))
    described = {"huggingface": canonical_json({"info": {"features": _features(distilled)}})}
    return pa.table(columns).replace_schema_metadata(described)


_CARD = """---
{front}
---

# {title}

A distilled set: {count} synthetic images of {height} x {width} pixels that stand in for the training images of
`{dataset}`, {ipc} for each of its {classes} classes.

## How it was made

{chain}

Digest of the set before rounding: `{digest}`

## Pixels

The set's values are {kind}{statistics}. Here they are pixels of 8 bits.
Clipped, because they lay outside [0, 1]: {clipped} of {values} values ({share:.2%}), by {largest_clipping:.3g} at most.
The others moved by {largest_rounding_error:.2g} at most.
Bring the pixels, divided by 255, to the scale that a network is trained on.
{accuracy}
## Labels

{labels}

## Storage

| | bytes |
|:--|--:|
| images as PNG | {png} |
| images as float32 | {raw} |
| labels | {label_bytes} |
| images as PNG and labels | {total} |

## Use

For research on dataset distillation: training small classifiers and comparing methods at this number of images. The
images are synthetic, hold what a network needs rather than what a person sees, and are no substitute for the real ones
where accuracy or fairness matters.

## Licence of the source

{licence}. This set is made from those images, and whoever uses it is bound by their terms.
"""


def _card(distilled: DistilledSet, meta: dict[str, Any], images: list[bytes]) -> DatasetCard:
    made = " + ".join(step.method for step in distilled.steps) or "no recorded method"
    identifier, licence = _licence(distilled.dataset)
    count, soft, kind = len(images), distilled.soft_labels, distilled.value_range.kind
    sizes = [("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", math.inf)]
    front = DatasetCardData(
        license=identifier,
        task_categories=["image-classification"],
        size_categories=[next(name for name, limit in sizes if count < limit)],
        tags=["dataset-distillation", "synthetic"],
        pretty_name=f"{distilled.dataset}, {distilled.ipc} images per class, {made}",
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    )
    if identifier == "other":
        front["license_name"] = "imagenet-terms"
    chain = [
        f"{i}. `{step.method}`{'' if step.seed is None else f', seed {step.seed}'}: `{canonical_json(step.parameters)}`"
        for i, step in enumerate(distilled.steps, 1)
    ]
    rate = learned_rate(distilled)
    labels = ["`label` is the class."]
    if soft is not None:
        labels.append(f"`soft_label` holds {soft.shape[1]} logits, to which a softmax is to be applied.")
    if rate is not None:
        labels.append(f"The method learned a rate for students: {rate:.6g}.")
    png, label_bytes = sum(map(len, images)), count * (8 + (0 if soft is None else 4 * soft.shape[1]))
    statistics = f" with mean {meta['value_range']['mean']} and deviation {meta['value_range']['std']}"
    lost = f"\nWhat students lose by it:\n\n```json\n{json.dumps(meta.get('accuracy'), indent=2)}\n```\n"
    return DatasetCard(
        _CARD.format(
            front=front.to_yaml(),
            title=front.pretty_name,
            count=count,
            height=distilled.images.shape[2],
            width=distilled.images.shape[3],
            dataset=distilled.dataset,
            ipc=distilled.ipc,
            classes=len(distilled.classes),
            chain="\n".join(chain) or "No step is recorded.",
            digest=meta["digest"],
            kind=kind,
            statistics=statistics if kind == "standardised" else "",
            share=meta["pixels"]["clipped"] / meta["pixels"]["values"],
            **meta["pixels"],
            accuracy=lost if "accuracy" in meta else "",
            labels=" ".join(labels),
            png=png,
            raw=4 * distilled.images.numel(),
            label_bytes=label_bytes,
            total=png + label_bytes,
            licence=licence[0].upper() + licence[1:],
        )
    )


def export_parquet(distilled: DistilledSet, out_dir: str | Path, accuracy: dict[str, Any] | None = None) -> list[Path]:
    """Write a table of PNG images and labels for a dataset hub, with a card; return the paths.

    data/train-00000-of-00001.parquet, as the `datasets` library reads it: image (PNG of 8 bits, clipped to [0, 1]),
    label (int64, with the names of the classes) and soft_label (float32 logits), if the set has any; README.md: the
    card, with the chain of methods, licence of the source, sizes and what was clipped; meta.json: the same for
    programs, with `accuracy`, what students lose by rounding, if that is given. Raises ExportError.
    """
    out = Path(out_dir)
    images, facts = _pictures(distilled)
    meta = _pixels_meta("parquet", distilled, facts, accuracy)
    _check_folder(out, "parquet")
    table = out / "data" / "train-00000-of-00001.parquet"
    table.parent.mkdir(parents=True, exist_ok=True)
    # Small groups of rows, so that a viewer need not read all images for one.
    parquet.write_table(_table(distilled, images), table, row_group_size=100)
    _card(distilled, meta, images).save(out / "README.md")
    return [table, out / "README.md", *_write(out, {}, meta)]


# Form -> how a set is written in it. A new form is a function and a line here.
# What is written, by form.
WRITTEN = {
    "ddranking": "a folder with images.pt and labels.pt as DD-Ranking's scores take them",
    "dcbench": "METHOD/DATASET/IPCn/ as DC-BENCH looks for it under distilled_results",
    "png": "a folder of PNG images for each class, soft labels beside them",
    "parquet": "a Hugging Face dataset: tables of PNG images and labels, and its card",
}
EXPORTS: dict[str, Callable[..., list[Path]]] = {
    "ddranking": export_ddranking,
    "dcbench": export_dcbench,
    "png": export_png,
    "parquet": export_parquet,
}
