"""A distilled set in the forms of others: external judges, image files, a hub's table."""

from collections.abc import Callable
from pathlib import Path

from diver.exports.files import ExportError
from diver.exports.hub import export_parquet
from diver.exports.images import export_png, rounded
from diver.exports.judges import export_dcbench, export_ddranking

__all__ = [
    "EXPORTS",
    "WRITTEN",
    "ExportError",
    "export_dcbench",
    "export_ddranking",
    "export_parquet",
    "export_png",
    "rounded",
]

# Form -> what is written.
WRITTEN = {
    "ddranking": "a folder with images.pt and labels.pt as DD-Ranking's scores take them",
    "dcbench": "METHOD/DATASET/IPCn/ as DC-BENCH looks for it under distilled_results",
    "png": "a folder of PNG images for each class, soft labels beside them",
    "parquet": "a Hugging Face dataset: tables of PNG images and labels, and its card",
}
# Form -> how a set is written in it. A new form is a function and a line in each of the two.
EXPORTS: dict[str, Callable[..., list[Path]]] = {
    "ddranking": export_ddranking,
    "dcbench": export_dcbench,
    "png": export_png,
    "parquet": export_parquet,
}
