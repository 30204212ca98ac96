"""Sets as external judges take them: DD-Ranking 0.2.0 and DC-BENCH.

Each has its own name, class order and normalisation for a dataset; a set is brought to them or refused. Pixels are
converted affinely and never clipped or rounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diver.config.base import nearest
from diver.exports.files import ExportError, chain, check_folder, class_major_labels, write_files
from diver.sets import IMAGENET, DistilledSet, ValueRange, learned_rate, whitening_epsilon


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


def _meta(
    form: str, original: DistilledSet, exported: DistilledSet, known: JudgedDataset, labels: str
) -> dict[str, Any]:
    """`labels`: which are written; `digest`: the original set's, by which the study's table of students names it."""
    return {
        "form": form,
        "dataset": known.name,
        "source_dataset": original.dataset,
        "ipc": exported.ipc,
        "classes": list(exported.classes),
        "mean": list(known.mean),
        "std": list(known.std),
        "shape": list(exported.images.shape),
        "labels": labels,
        "steps": chain(original),
        "lr": learned_rate(original),
        "zca": whitening_epsilon(original),
        "digest": original.digest(),
    }


def export_ddranking(distilled: DistilledSet, out_dir: str | Path) -> list[Path]:
    """Write what DD-Ranking's scores take, and return the paths. Raises ExportError.

    images.pt: float32 [C * ipc, 3, H, W], class-major in DD-Ranking's class order, normalised with its constants;
    labels.pt: int64 [C * ipc]; soft.pt: float32 [C * ipc, C] logits, if the set has soft labels; lr.pt: 0-d float32,
    if a step of the set recorded a rate; meta.json: what this is and how it was made.
    """
    check_folder(Path(out_dir), "ddranking")
    exported = _for_judge(distilled, DDRANKING, "DD-Ranking")
    rate = learned_rate(distilled)
    files = {
        "images.pt": exported.images.contiguous(),
        "labels.pt": class_major_labels(exported),
        "soft.pt": exported.soft_labels,
        "lr.pt": None if rate is None else torch.tensor(rate),
    }
    written = "hard" if exported.soft_labels is None else "soft"
    meta = _meta("ddranking", distilled, exported, DDRANKING[distilled.dataset], written)
    kept = {name: tensor for name, tensor in files.items() if tensor is not None}
    return write_files(Path(out_dir), kept, meta, stale=("soft.pt", "lr.pt"))


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
    Images as for DD-Ranking, with DC-BENCH's constants. Soft labels are written as probabilities, in place of hard
    ones, and only the loaders of dc, dsa and dm keep them. Raises ExportError.
    """
    own = distilled.steps[0].method if len(distilled.steps) == 1 else None
    chosen = method or {"mtt": "tm", "k_means": "kmeans"}.get(own or "", own)
    if chosen not in _FOLDERS:
        made = " + ".join(step.method for step in distilled.steps) or "no recorded method"
        hint = nearest(method or "", list(_FOLDERS))
        asked = f"method {method!r} is unknown to DC-BENCH" if method else f"DC-BENCH has no loader for {made!r}"
        raise ExportError(f"{asked}; choose whose layout to write with --method: {hint}")
    exported = _for_judge(distilled, DCBENCH, "DC-BENCH")
    labels, written = class_major_labels(exported), "hard"
    if exported.soft_labels is not None:
        if chosen not in ("dc", "dsa", "dm"):
            raise ExportError(
                f"the set has soft labels, which the loader of {chosen!r} drops: use --method dc, dsa or dm"
            )
        labels, written = exported.soft_labels.softmax(1), "soft"
    known = DCBENCH[distilled.dataset]
    folder = Path(out_dir) / _FOLDERS[chosen] / known.name / f"IPC{exported.ipc}"
    if Path(out_dir).is_file():
        raise ExportError(f"{out_dir} is a file: give a folder")
    check_folder(folder, "dcbench")
    files = _dcbench_files(chosen, known.name, exported.ipc, exported.images.contiguous(), labels)
    return write_files(folder, files, {**_meta("dcbench", distilled, exported, known, written), "method": chosen})
