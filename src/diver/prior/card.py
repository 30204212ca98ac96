"""The card of a trained prior: how it was made and how good it is."""

import csv
import os
import platform
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from diver.data.prepared import Prepared


def _curve(path: str | Path) -> tuple[list[int], list[float]]:
    with Path(path).open() as file:
        rows = list(csv.DictReader(file))
    return [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]


def draw_losses(vae_curve: str | Path, dit_curve: str | Path, out: str | Path) -> None:
    """Training losses of the autoencoder (logarithmic) and of the transformer, side by side, as PNG."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for axis, path, title in zip(axes, (vae_curve, dit_curve), ("autoencoder", "transformer"), strict=True):
        axis.plot(*_curve(path), linewidth=1)
        axis.set(title=title, xlabel="step", ylabel="training loss")
    axes[0].set_yscale("log")
    figure.savefig(out, dpi=120, metadata={"Software": None})
    plt.close(figure)


def hardware() -> str:
    """Processor and number of usable cores of this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{len(os.sched_getaffinity(0))} cores of {model}, no GPU used"


def write_card(
    path: str | Path, data: Prepared, vae: dict[str, Any], dit: dict[str, Any], quality: dict[str, Any], per_class: int
) -> None:
    """Write the card as Markdown, with the facts of both trainings and the measured quality."""
    agreements = "\n".join(
        f"| {scale} | {share:.1f} ± {half:.1f} % |" for scale, (share, half) in quality["agreement"].items()
    )
    judge = quality.get("classifier_accuracy")
    made = [f"{one['settings']['steps']} x {one['settings']['batch']}" for one in (vae, dit)]
    judged = (
        f"Class agreement of {per_class * len(data.classes)} samples ({per_class} a class, 50 DDIM steps, seed 0), "
        f"judged by a ResNet-20 that was not used in training and classifies {judge[0]:.2f} % of the test images "
        f"correctly (± is a 95 % interval):\n\n| guidance | agreement |\n|---|---|\n{agreements}\n"
        if judge
        else "Class agreement was not measured: no classifier was given (`prior.classifier`).\n"
    )
    Path(path).write_text(
        f"""---
license: mit
library_name: diffusers
---
# Prior for {data.dataset}

A small autoencoder (`AutoencoderKL`) and class-conditional diffusion transformer (`DiTTransformer2DModel`) in
diffusers' layout: `DiTPipeline.from_pretrained(<this directory>)`. Made so that the study of {data.dataset} trains
nothing.

| | autoencoder | transformer |
|---|---|---|
| parameters | {vae["parameters"]:,} | {dit["parameters"]:,} |
| steps x batch | {made[0]} | {made[1]} |
| wall time | {vae["seconds"] / 60:.0f} min | {dit["seconds"] / 60:.0f} min |

- **Data**: the {len(data.train_images)} training images of {data.dataset} alone, and their mirror images.
- **Command**: `snakemake prior --cores all --configfile STUDY`, a study of it with `prior.source: trained`.
- **Hardware**: {hardware()}.
- **Transformer**: velocity prediction on DiT's linear schedule of 1000 steps, label dropout
  {dit["settings"]["label_dropout"]}, averaged weights; the null class is the last embedding. No learned variance.
- **Weights** are stored in half precision.

## Quality

Reconstruction of the {len(data.test_images)} test images: {quality["psnr_test_db"]:.2f} dB peak signal-to-noise ratio.

{judged}
![Training loss](loss.png)

Samples, a row per class; left half without guidance, right half with guidance 4:

![Samples](samples.png)
"""
    )
