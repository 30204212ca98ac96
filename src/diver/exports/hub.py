"""Sets as a Hugging Face dataset: tables of PNG images and labels, and a card."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData
from pyarrow import parquet

from diver.data.subsets import subsets
from diver.exports.files import begin, check_folder, class_major_labels, write_files
from diver.exports.images import pixels_meta, png_files
from diver.sets import DistilledSet, Step, learned_rate, whitening_epsilon
from diver.tensorfile import canonical_json

# Identifier of the hub, and what the authors of the images state, by dataset; a name that goes on after "-" is a part.
_LICENCES = {
    "cifar10": ("unknown", "no licence is stated for CIFAR-10"),
    "cifar100": ("unknown", "no licence is stated for CIFAR-100"),
    "fashion-mnist": ("mit", "Fashion-MNIST is under the MIT licence"),
    "imagenet": ("other", "ImageNet's images may be used for non-commercial research and education only"),
}


def _licence(dataset: str) -> tuple[str, str]:
    # Also of parts and sizes of these, such as imagenette-224 or imagewoof5-64.
    if dataset.startswith(("imagenet", "tinyimagenet", *subsets())):
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
    columns = {"image": pa.array(rows, picture), "label": pa.array(class_major_labels(distilled).numpy(), pa.int64())}
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


def _step(step: Step) -> str:
    """One link of the chain, as the card has it."""
    seed = "" if step.seed is None else f", seed {step.seed}"
    code = f", code `{step.code}`" if step.code else ""
    return f"`{step.method}`{seed}{code}: `{canonical_json(step.parameters)}`"


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
        pretty_name=f"{distilled.dataset}, {distilled.ipc} image{'' if distilled.ipc == 1 else 's'} per class, {made}",
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    )
    if identifier == "other":
        front["license_name"] = "imagenet-terms"
    chain = [f"{i}. {_step(step)}" for i, step in enumerate(distilled.steps, 1)]
    rate = learned_rate(distilled)
    labels = ["`label` is the class."]
    if soft is not None:
        labels.append(f"`soft_label` holds {soft.shape[1]} logits, to which a softmax is to be applied.")
    if rate is not None:
        labels.append(f"The method learned a rate for students: {rate:.6g}.")
    if (epsilon := whitening_epsilon(distilled)) is not None:
        labels.append(
            f"The images were learned under ZCA whitening (epsilon {epsilon:g}), and its students saw white ones."
        )
    png, label_bytes = sum(map(len, images)), count * (8 + (0 if soft is None else 4 * soft.shape[1]))
    statistics = f" with mean {meta['value_range']['mean']} and deviation {meta['value_range']['std']}"
    lost = f"What students lose by it:\n\n```json\n{json.dumps(meta['accuracy'], indent=2)}\n```"
    unmeasured = "What students lose by it was not measured; `diver export --accuracy-lost` measures it."
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
            accuracy=unmeasured if meta["accuracy"] is None else lost,
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
    programs, with `accuracy`, what students lose by rounding, null if that is not given. Raises ExportError.
    """
    out = Path(out_dir)
    images, facts = png_files(distilled)
    meta = pixels_meta("parquet", distilled, facts, accuracy)
    check_folder(out, "parquet")
    begin(out, "parquet")
    table = out / "data" / "train-00000-of-00001.parquet"
    table.parent.mkdir(parents=True, exist_ok=True)
    # Small groups of rows, so that a viewer need not read all images for one.
    parquet.write_table(_table(distilled, images), table, row_group_size=100)
    _card(distilled, meta, images).save(out / "README.md")
    return [table, out / "README.md", *write_files(out, {}, meta)]
