"""Sets as image files of 8 bits, which say what that lost."""

import io
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diver.exports.files import ExportError, begin, chain, check_folder, write_files
from diver.sets import UNIT, DistilledSet, Step, learned_rate, whitening_epsilon
from diver.tensorfile import write_tensors


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


def png_files(distilled: DistilledSet) -> tuple[list[bytes], dict[str, Any]]:
    """The images as PNG files, and what 8 bits lose. Raises ExportError if they are neither grey nor RGB."""
    if distilled.images.shape[1] not in (1, 3):
        raise ExportError(f"images have {distilled.images.shape[1]} channels, and a PNG 1 or 3: export as tensors")
    pixels, facts = _pixels(distilled)
    return [_png(image) for image in pixels], facts


def pixels_meta(
    form: str, distilled: DistilledSet, facts: dict[str, Any], accuracy: dict[str, Any] | None
) -> dict[str, Any]:
    """`accuracy` is null, and the remark beside it says how it is measured, if students were not trained."""
    remark = "not measured; diver export --accuracy-lost measures it"
    return {
        "form": form,
        "dataset": distilled.dataset,
        "ipc": distilled.ipc,
        "classes": list(distilled.classes),
        "shape": list(distilled.images.shape),
        "labels": "hard" if distilled.soft_labels is None else "soft",
        "value_range": asdict(distilled.value_range),
        "pixels": facts,
        "steps": chain(distilled),
        "lr": learned_rate(distilled),
        "zca": whitening_epsilon(distilled),
        "digest": distilled.digest(),
        "accuracy": accuracy,
        **({"accuracy_remark": remark} if accuracy is None else {}),
    }


_UNSAFE = re.compile(r"[^\w.-]+")


def export_png(distilled: DistilledSet, out_dir: str | Path, accuracy: dict[str, Any] | None = None) -> list[Path]:
    """Write a folder of PNG images for each class, soft labels beside them; return the paths.

    {number}-{class}/{i}.png: pixels clipped to [0, 1] and rounded to 8 bits; soft_labels.safetensors: float32 [N, K]
    logits, if the set has any; meta.json: what this is, how many values were clipped, the largest rounding error, and
    `accuracy`, what students lose by it, null if that is not given. Raises ExportError, also if the folder holds other
    files.
    """
    out = Path(out_dir)
    images, facts = png_files(distilled)
    check_folder(out, "png")
    begin(out, "png")
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
    return [*written, *write_files(out, {}, pixels_meta("png", distilled, facts, accuracy))]
