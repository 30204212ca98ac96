"""Sets in the forms of others: judges, image files and tables hold what the set holds, or say what they lost.

DD-Ranking is seeded and its numbers rescored.
"""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import DatasetCard
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from diver import cli
from diver.data.prepared import Prepared
from diver.exports import (
    EXPORTS,
    ExportError,
    export_dcbench,
    export_ddranking,
    export_parquet,
    export_png,
    rounded,
)
from diver.exports.judges import DCBENCH, DDRANKING, _dcbench_files
from diver.importers import import_set
from diver.importers.source import read_about
from diver.sets import (
    LEARNED_RATE,
    SYMMETRIC,
    UNIT,
    WHITENING,
    DistilledSet,
    SetError,
    Step,
    ValueRange,
    learned_rate,
    whitening_epsilon,
)
from diver.tensorfile import read_tensors
from ranking import rank_set

ROOT = Path(__file__).parents[1]
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR = ValueRange.standardised((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IPC = 2


def make(**changes: Any) -> DistilledSet:
    made = DistilledSet(
        images=torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        dataset="cifar10",
        classes=CIFAR10,
        ipc=IPC,
        value_range=CIFAR,
        labels=torch.arange(10).repeat_interleave(IPC),
        steps=(Step("dm", {"iterations": 3}, 5, "c0de"),),
    )
    return replace(made, **changes)


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def logits() -> Tensor:
    return torch.randn(20, 10, generator=torch.Generator().manual_seed(1))


def small_prepared(path: Path) -> Prepared:
    generator = torch.Generator().manual_seed(3)
    labels = {n: torch.randperm(10 * n, generator=generator) % 10 for n in (6, 4)}
    images = {n: torch.randint(0, 256, (10 * n, 3, 32, 32), dtype=torch.uint8, generator=generator) for n in (6, 4)}
    made = Prepared(images[6], labels[6], images[4], labels[4], "cifar10", CIFAR10, CIFAR.mean, CIFAR.std)
    made.write(path)
    return made


# Exports


@pytest.mark.parametrize("form", EXPORTS)
def test_no_export_mixes_with_other_files(tmp_path: Path, form: str) -> None:
    """It replaces an export of its own form and nothing else, in its own folder."""
    for written in EXPORTS[form](make(), tmp_path / "own"):
        assert written.exists()
    EXPORTS[form](make(), tmp_path / "own")
    (meta,) = (path for path in (tmp_path / "own").rglob("meta.json"))
    meta.unlink()
    kept = {path: path.read_bytes() for path in (tmp_path / "own").rglob("*") if path.is_file()}
    with pytest.raises(ExportError, match="holds other files"):
        EXPORTS[form](make(), tmp_path / "own")
    assert {path: path.read_bytes() for path in (tmp_path / "own").rglob("*") if path.is_file()} == kept
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a file: give a folder"):
        EXPORTS[form](make(), tmp_path / "file")


@pytest.mark.parametrize("form", EXPORTS)
def test_an_export_that_was_stopped_is_made_again_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"method": "dm"} if form == "dcbench" else {}
    EXPORTS[form](make(), tmp_path / "again", **options)
    for folder in (tmp_path / "new", tmp_path / "again"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(torch, "save", stop)
            patch.setattr(Path, "write_bytes", stop)
            patch.setattr(parquet, "write_table", stop)
            EXPORTS[form](make(), folder, **options)
        (meta,) = folder.rglob("meta.json")
        with pytest.raises(SetError, match="an export that was stopped"):
            read_about(meta.parent)
        EXPORTS[form](make(), folder, **options)
        read_about(meta.parent)


def test_ddranking_gets_what_it_takes(tmp_path: Path) -> None:
    made = make()
    written = export_ddranking(made, tmp_path)
    assert sorted(p.name for p in written) == ["images.pt", "labels.pt", "meta.json"]
    images, labels = read(tmp_path / "images.pt"), read(tmp_path / "labels.pt")
    assert images.dtype == torch.float32 and list(images.shape) == [20, 3, 32, 32] and images.is_contiguous()
    assert labels.dtype == torch.int64 and torch.equal(labels, torch.arange(10).repeat_interleave(IPC))
    assert torch.equal(images, made.images)  # the same range: no bit changes
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["dataset"] == "CIFAR10" and meta["classes"] == list(CIFAR10) and meta["ipc"] == IPC
    assert meta["steps"] == [{"method": "dm", "parameters": {"iterations": 3}, "seed": 5, "code": "c0de"}]
    assert meta["digest"] == made.digest() and meta["lr"] is None


@pytest.mark.parametrize("value_range", [UNIT, SYMMETRIC, ValueRange.standardised((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))])
def test_normalisation_is_the_judges_own_and_clips_nothing(tmp_path: Path, value_range: ValueRange) -> None:
    made = make(value_range=value_range)
    export_ddranking(made, tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    back = ValueRange.standardised(meta["mean"], meta["std"]).to_unit(read(tmp_path / "images.pt"))
    unit = value_range.to_unit(made.images)
    assert unit.min() < 0 and unit.max() > 1
    torch.testing.assert_close(back, unit, atol=1e-5, rtol=1e-5)


def test_soft_labels_and_learned_rate_are_handed_over_and_not_left_behind(tmp_path: Path) -> None:
    soft = logits()
    learned = (Step("mtt", {"syn_lr": 0.02}), Step("diver", {}, 1))
    export_ddranking(make(labels=None, soft_labels=soft, steps=learned), tmp_path)
    assert torch.equal(read(tmp_path / "soft.pt"), soft)
    assert read(tmp_path / "lr.pt").item() == pytest.approx(0.02) and read(tmp_path / "lr.pt").ndim == 0
    assert torch.equal(read(tmp_path / "labels.pt"), torch.arange(10).repeat_interleave(IPC))
    export_ddranking(make(), tmp_path)
    assert not (tmp_path / "soft.pt").exists() and not (tmp_path / "lr.pt").exists()


def test_classes_come_in_the_judges_order(tmp_path: Path) -> None:
    """A set made in the order of the wnids, as image folders give it, is handed over in DD-Ranking's."""
    known = DDRANKING["imagewoof"].classes
    here = tuple(sorted(known))
    assert here != known
    images = torch.arange(10.0).repeat_interleave(IPC).view(-1, 1, 1, 1).expand(20, 3, 16, 16).clone()
    soft = torch.nn.functional.one_hot(torch.arange(10).repeat_interleave(IPC), 10).float()
    made = make(dataset="imagewoof", classes=here, images=images, soft_labels=soft, value_range=UNIT)
    export_ddranking(made, tmp_path)
    back = DDRANKING["imagewoof"].value_range.to_unit(read(tmp_path / "images.pt"))[:, 0, 0, 0].round().int()
    assert [here[i] for i in back.tolist()] == [name for name in known for _ in range(IPC)]
    assert torch.equal(read(tmp_path / "soft.pt").argmax(1), read(tmp_path / "labels.pt"))


@pytest.mark.parametrize(("known", "of"), [(DDRANKING, "DD-Ranking"), (DCBENCH, "DC-BENCH")])
def test_known_datasets_are_consistent(known: dict[str, Any], of: str) -> None:
    for dataset in known.values():
        assert len(set(dataset.classes)) == (dataset.count if dataset.classes else 0), f"{of}: {dataset.name}"


@pytest.mark.parametrize("export", [EXPORTS["ddranking"], EXPORTS["dcbench"]])
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": torch.zeros(20, 1, 32, 32), "value_range": UNIT}, "diver evaluate"),
        ({"dataset": "cifar10-slice"}, "did you mean 'cifar10'"),
        ({"dataset": "fashion-mnist"}, "valid names"),
        ({"classes": (*CIFAR10[:9], "lorry")}, "'lorry'"),
        ({"images": torch.zeros(20, 3, 64, 64)}, "takes 32x32"),
    ],
)
def test_what_a_judge_does_not_know_is_refused(tmp_path: Path, export: Any, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ExportError, match=word) as refused:
        export(make(**changes), tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "images", "labels"),
    [
        ("tm", "TM/CIFAR10/IPC2/images_best.pt", "TM/CIFAR10/IPC2/labels_best.pt"),
        (
            "random",
            "random/CIFAR10/IPC2/CIFAR10_IPC2_normalize_images.pt",
            "random/CIFAR10/IPC2/CIFAR10_IPC2_normalize_labels.pt",
        ),
        ("kmeans", "Kmeans/CIFAR10/IPC2/CIFAR10_IPC2_images.pt", "Kmeans/CIFAR10/IPC2/CIFAR10_IPC2_labels.pt"),
    ],
)
def test_dcbench_pairs_of_files(tmp_path: Path, method: str, images: str, labels: str) -> None:
    made = make()
    assert {tmp_path / images, tmp_path / labels} < set(export_dcbench(made, tmp_path, method))
    assert torch.equal(read(tmp_path / images), made.images)
    assert torch.equal(read(tmp_path / labels), torch.arange(10).repeat_interleave(IPC))


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_dcbench_released_form_is_read_back(tmp_path: Path, method: str) -> None:
    made, name = make(), method.upper()
    export_dcbench(made, tmp_path, method)
    path = tmp_path / f"{name}/CIFAR10/IPC{IPC}/res_{name}_CIFAR10_ConvNet_{IPC}ipc.pt"
    found = import_set(path, "cifar10", CIFAR10, CIFAR, value_range="dataset")
    back = found.distilled
    assert torch.equal(back.images, made.images) and not any("experiments" in note for note in found.notes)
    assert torch.equal(back.hard_labels(), made.hard_labels())


def test_dcbench_tiny_imagenet(tmp_path: Path) -> None:
    """Another network in the name, and TM at IPC 50 in five parts, as the loader asks."""
    classes = tuple(f"n{i:08d}" for i in range(200))
    tiny = {"dataset": "tinyimagenet", "classes": classes, "value_range": DCBENCH["tinyimagenet"].value_range}
    images = torch.zeros(1, 3, 64, 64).expand(200, 3, 64, 64)
    export_dcbench(make(**tiny, ipc=1, images=images, labels=torch.arange(200)), tmp_path, "dm")
    assert (tmp_path / "DM/tinyimagenet/IPC1/res_DM_tinyimagenet_ConvNetD4_1ipc.pt").is_file()
    labels = torch.arange(200).repeat_interleave(50)
    parts = _dcbench_files("tm", "tinyimagenet", 50, torch.arange(10000.0), labels)
    assert list(parts)[:2] == ["images_best_0.pt", "labels_best_0.pt"] and len(parts) == 10
    assert torch.equal(torch.cat([parts[f"labels_best_{i}.pt"] for i in range(5)]), labels)


def test_dcbench_method_is_the_sets_own_or_asked_for(tmp_path: Path) -> None:
    assert export_dcbench(make(), tmp_path)[0].name.startswith("res_DM_")
    with pytest.raises(ExportError, match="no loader for 'dm \\+ diver'.*--method"):
        export_dcbench(make(steps=(Step("dm"), Step("diver"))), tmp_path)
    with pytest.raises(ExportError, match="did you mean 'kmeans'"):
        export_dcbench(make(), tmp_path, "kmean")


@pytest.mark.parametrize("hard", [None, make().labels])
def test_dcbench_soft_labels_are_probabilities_where_they_are_read(tmp_path: Path, hard: Tensor | None) -> None:
    soft = logits()
    made = make(labels=hard, soft_labels=soft)
    path, meta = export_dcbench(made, tmp_path, "dc")
    assert torch.equal(read(path)["data"][-1][1], soft.softmax(1)) and json.loads(meta.read_text())["labels"] == "soft"
    with pytest.raises(ExportError, match="soft labels"):
        export_dcbench(made, tmp_path, "tm")
    *_, meta = export_dcbench(make(), tmp_path / "hard", "tm")
    assert json.loads(meta.read_text())["labels"] == "hard"


# Pixels of 8 bits

LEVELS = torch.arange(20 * 3 * 4 * 4).remainder(256).view(20, 3, 4, 4).float()


def beyond() -> Tensor:
    """Unit images at exact levels of 8 bits but for five values: two far outside, one just so, and two in between."""
    images = LEVELS / 255
    images[0, 0, 0, :4] = torch.tensor([-0.5, 1.25, 1 + 0.4 / 255, 100.25 / 255])
    images[1, 0, 0, 0] = 17.4 / 255
    return images


@pytest.mark.parametrize("value_range", [UNIT, SYMMETRIC, CIFAR])
def test_rounding_is_to_the_nearest_level_and_clips(value_range: ValueRange) -> None:
    made = make(images=value_range.from_unit(beyond()), value_range=value_range)
    found = rounded(made)
    expected = LEVELS.double() / 255
    expected[0, 0, 0, :4] = torch.tensor([0, 1, 1, 100 / 255], dtype=torch.float64)
    expected[1, 0, 0, 0] = 17 / 255
    torch.testing.assert_close(value_range.to_unit(found.images).double(), expected, atol=1e-6, rtol=0)
    assert found.value_range == value_range and torch.equal(found.hard_labels(), made.hard_labels())
    assert found.steps == (*made.steps, Step("pixels", {"bits": 8, "clipped": 2}))
    again = rounded(found)
    assert torch.equal(again.images, found.images) and again.steps[-1].parameters["clipped"] == 0


def test_png_folder_holds_pixels_and_says_what_was_lost(tmp_path: Path) -> None:
    names = (*CIFAR10[:9], "t-shirt/top")
    soft, accuracy = logits(), {"before": 50.0, "after": 49.5}
    made = make(images=beyond(), value_range=UNIT, soft_labels=soft, classes=names)
    written = export_png(made, tmp_path, accuracy)
    assert [p.name for p in sorted(tmp_path.iterdir()) if p.is_dir()][-2:] == ["0008-ship", "0009-t-shirt_top"]
    assert len(written) == 22 and all(p.is_file() for p in written)
    pixels = np.array(Image.open(tmp_path / "0000-airplane" / "0001.png"))
    expected = LEVELS[1].byte().permute(1, 2, 0).numpy().copy()
    expected[0, 0, 0] = 17
    assert np.array_equal(pixels, expected)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["classes"] == list(names) and meta["accuracy"] == accuracy and meta["digest"] == made.digest()
    assert meta["pixels"]["values"] == 960 and meta["pixels"]["clipped"] == 2
    assert meta["pixels"]["largest_clipping"] == pytest.approx(0.5)
    assert meta["pixels"]["largest_rounding_error"] == pytest.approx(0.4 / 255, abs=1e-6)
    assert torch.equal(read_tensors(tmp_path / "soft_labels.safetensors")[0]["soft_labels"], soft)


def test_png_folder_is_written_anew_but_not_over_other_files(tmp_path: Path) -> None:
    export_png(make(soft_labels=logits()), tmp_path / "out")
    first = {p.name: p.read_bytes() for p in (tmp_path / "out/0003-cat").iterdir()}
    fewer = make(images=make().images[::2], ipc=1, labels=torch.arange(10), classes=(*CIFAR10[:9], "lorry"))
    export_png(fewer, tmp_path / "out")
    kept = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert kept == {"meta.json", *(f"{i:04d}-{name}/0000.png" for i, name in enumerate(fewer.classes))}
    assert not (tmp_path / "out/0009-truck").exists()
    assert (tmp_path / "out/0003-cat/0000.png").read_bytes() == first["0000.png"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/0001.png").write_bytes(b"mine")
    with pytest.raises(ExportError, match="give another folder"):
        export_png(make(), tmp_path / "photos")
    assert (tmp_path / "photos/0001.png").read_bytes() == b"mine"


@pytest.mark.parametrize("export", [EXPORTS["png"], EXPORTS["parquet"]])
def test_pixels_are_grey_or_rgb(tmp_path: Path, export: Any) -> None:
    grey = make(images=torch.rand(20, 1, 8, 8), value_range=UNIT)
    export(grey, tmp_path / "grey")
    with pytest.raises(ExportError, match="2 channels"):
        export(make(images=torch.rand(20, 2, 8, 8), value_range=UNIT), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("soft", [None, logits()])
def test_parquet_holds_images_labels_and_their_description(tmp_path: Path, soft: Tensor | None) -> None:
    made = make(soft_labels=soft)
    written = export_parquet(made, tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in written] == [
        "data/train-00000-of-00001.parquet",
        "README.md",
        "meta.json",
    ]
    table = parquet.read_table(written[0])
    assert table.column_names == ["image", "label"] + ["soft_label"] * (soft is not None)
    images = [np.array(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    unit = CIFAR.to_unit(rounded(made).images)
    assert np.array_equal(np.stack(images), (unit * 255).round().byte().permute(0, 2, 3, 1).numpy())
    assert table["label"].to_pylist() == made.hard_labels().tolist()
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(CIFAR10), "_type": "ClassLabel"} and set(features) == set(
        table.column_names
    )
    if soft is not None:
        assert torch.equal(torch.tensor(table["soft_label"].to_pylist()), soft)
    again = export_parquet(made, tmp_path / "again")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]


@pytest.mark.parametrize(
    ("dataset", "licence", "words"),
    [
        ("cifar10-slice", "unknown", "No licence is stated for CIFAR-10"),
        ("fashion-mnist", "mit", "MIT licence"),
        ("imagefruit", "other", "non-commercial research"),
        ("imagenette-224", "other", "non-commercial research"),
        ("imagewoof5-64", "other", "non-commercial research"),
        ("tinyimagenet-slice", "other", "non-commercial research"),
        ("my-cats", "unknown", "not known here"),
    ],
)
def test_card_says_what_the_table_is(tmp_path: Path, dataset: str, licence: str, words: str) -> None:
    soft, accuracy = logits(), {"before": 50.0}
    chain = (Step("mtt", {"syn_lr": 0.02}, 5, "c0de"), Step("diver", {"gamma": 0.1}, 1))
    made = make(dataset=dataset, soft_labels=soft, steps=chain)
    table, path, _ = export_parquet(made, tmp_path, accuracy)
    card = DatasetCard.load(path)
    assert card.data.license == licence and card.data.task_categories == ["image-classification"]
    assert card.data.configs == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    assert (card.data.get("license_name") is None) == (licence != "other")
    text = card.text
    png = sum(len(row["bytes"]) for row in parquet.read_table(table)["image"].to_pylist())
    unit = CIFAR.to_unit(made.images)
    clipped = int((((unit * 255).round() < 0) | ((unit * 255).round() > 255)).sum())
    assert words in text and made.digest() in text
    assert '1. `mtt`, seed 5, code `c0de`: `{"syn_lr":0.02}`' in text and "2. `diver`, seed 1: `" in text
    assert (
        f"{clipped} of 61440 values" in text
        and "standardised with mean (0.4914" in text
        and "rate for students: 0.02" in text
    )
    # Eight bytes of a label and four of each logit.
    sizes = [png, 4 * made.images.numel(), 20 * (8 + 40), png + 20 * 48]
    assert [int(n) for n in re.findall(r"\| (\d+) \|", text)] == sizes
    assert '"before": 50.0' in text and text.isascii()


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    for export in (export_png, export_parquet):
        *_, path = export(make(), tmp_path / export.__name__)
        meta = json.loads(path.read_text())
        assert meta["accuracy"] is None and "--accuracy-lost" in meta["accuracy_remark"]
    text = (tmp_path / "export_parquet" / "README.md").read_text()
    assert "was not measured; `diver export --accuracy-lost` measures it." in text and "\n\n\n" not in text
    *_, path = export_png(make(), tmp_path / "measured", {"before": 50.0})
    assert "accuracy_remark" not in json.loads(path.read_text())


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["diver", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_command_writes_and_names_the_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make().write(tmp_path / "set.safetensors")
    assert run_cli(monkeypatch, "export", str(tmp_path / "set.safetensors"), "--out", str(tmp_path / "out")) == 0
    assert str(tmp_path / "out/images.pt") in capsys.readouterr().out.splitlines()
    assert rank_set.read_export(tmp_path / "out")[3]["ipc"] == IPC


@pytest.mark.parametrize(
    ("changes", "arguments", "word"),
    [
        ({}, ["--form", "ddrankin"], "did you mean 'ddranking'"),
        ({}, ["--form", "ddranking", "--method", "dc"], "only for --form dcbench"),
        ({}, ["--form", "dcbench", "--method", "mtt"], "--method"),
        ({"dataset": "tiny"}, [], "set.safetensors: dataset 'tiny'"),
    ],
)
def test_command_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    changes: dict[str, Any],
    arguments: list[str],
    word: str,
) -> None:
    make(**changes).write(tmp_path / "set.safetensors")
    given = ["export", str(tmp_path / "set.safetensors"), "--out", str(tmp_path / "out"), *arguments]
    assert run_cli(monkeypatch, *given) == 2
    error = capsys.readouterr().err
    assert word in error and len(error.strip().splitlines()) == 1


# The judge's script, without the judge


def test_score_is_of_fractions() -> None:
    assert rank_set.label_robust_score(0.30, 0.15) == pytest.approx(0.238, abs=5e-4)
    assert rank_set.label_robust_score(-1, 1) == pytest.approx(1)
    assert rank_set.label_robust_score(1, -1) == pytest.approx(0)
    assert rank_set.label_robust_score(0.30, 0.15, weight=1) > rank_set.label_robust_score(0.30, 0.15, weight=0)


def test_scores_recover_the_accuracies() -> None:
    """Full 80 %, set 50 and 54 %, random 35 and 40 %."""
    found = rank_set.scores([30.0, 26.0], [15.0, 14.0], 80.0)
    assert found["accuracy_set_pct"]["values"] == [50.0, 54.0]
    assert found["accuracy_random_pct"]["values"] == [35.0, 40.0]
    assert found["HLR"]["mean"] == pytest.approx(0.28) and found["IOR"]["mean"] == pytest.approx(0.145)
    assert found["LRS"]["values"][0] == pytest.approx(0.2382, abs=5e-5)
    assert found["HLR"]["std"] == pytest.approx(0.04 / math.sqrt(2))
    assert rank_set.scores([30.0], [15.0], 80.0)["HLR"]["std"] is None


def test_difference_is_in_pooled_deviations() -> None:
    assert rank_set.pooled_difference([10, 12, 14], [10, 12, 14]) == 0
    # Variances 4 and 1, equal numbers: pooled deviation sqrt(2.5).
    assert rank_set.pooled_difference([10, 12, 14], [8, 9, 10]) == pytest.approx(3 / math.sqrt(2.5))
    assert rank_set.pooled_difference([10], [9]) is None and rank_set.pooled_difference([], [9, 10]) is None
    assert rank_set.pooled_difference([10, 10], [9, 9]) is None


def test_control_is_near_zero_or_not() -> None:
    zero = rank_set.near_zero([-0.01, 0.0, 0.012])
    assert zero is not None and zero["holds_zero"]
    # t quantile for two degrees of freedom.
    assert zero["half_width_95"] == pytest.approx(4.3027 * 0.011015 / math.sqrt(3), rel=1e-3)
    far = rank_set.near_zero([0.1, 0.1001, 0.0999])
    assert far is not None and not far["holds_zero"]
    assert rank_set.near_zero([0.1]) is None


def write_table(path: Path, digest: str | None) -> None:
    rows = [
        {
            "architecture": name,
            "seed": seed,
            "accuracy_last": base + seed,
            "accuracy_best": base + seed + 1,
            "stage1": "dm",
            "stage2": "none",
            "ipc": ipc,
            "scale": scale,
            **({"set_digest": digest if ipc == 1 else "other"} if digest else {}),
        }
        for name, base in (("convnet", 20), ("vit", 30))
        for ipc in (1, 10)
        for scale in ("matched", "as-published")
        for seed in (1, 0)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(("digest", "where"), [("abc", {}), (None, {"ipc": "1", "stage1": "dm"})])
def test_our_students_stand_beside(tmp_path: Path, digest: str | None, where: dict[str, str]) -> None:
    write_table(tmp_path / "results.csv", digest)
    found = rank_set.our_accuracies(tmp_path / "results.csv", "abc", where, [20.0, 21.0])
    assert [entry["architecture"] for entry in found] == ["convnet", "vit"]
    assert found[0]["accuracy_last_pct"]["values"] == [20.0, 21.0]
    assert found[0]["accuracy_best_pct"]["values"] == [21.0, 22.0]
    assert found[0]["best_minus_judge_in_pooled_std"] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("export", [export_png, export_ddranking])
def test_a_set_learned_under_whitening_is_known_as_such_when_it_comes_back(export: Any, tmp_path: Path) -> None:
    white = make(steps=(Step("mtt", {LEARNED_RATE: 0.02, WHITENING: {"epsilon": 0.1}}),))
    export(white, tmp_path)
    back = import_set(tmp_path, white.dataset, white.classes, CIFAR).distilled
    assert (learned_rate(back), whitening_epsilon(back)) == pytest.approx((0.02, 0.1))
    export_parquet(white, tmp_path / "hub")
    assert "ZCA whitening (epsilon 0.1)" in (tmp_path / "hub/README.md").read_text()


def test_our_students_of_the_command_line_stand_beside(tmp_path: Path) -> None:
    """`diver evaluate --csv` has no column of scales."""
    write_table(tmp_path / "all.csv", "abc")
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "scale"} for row in csv.DictReader(file) if row["stage1"] == "dm"]
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = rank_set.our_accuracies(tmp_path / "results.csv", "abc", {}, [20.0, 21.0])
    assert [entry["architecture"] for entry in found] == ["convnet", "vit"]


def test_our_students_that_are_not_there(tmp_path: Path) -> None:
    write_table(tmp_path / "results.csv", "abc")
    with pytest.raises(rank_set.RankError, match="no students with .*set_digest=xyz.*--where"):
        rank_set.our_accuracies(tmp_path / "results.csv", "xyz", {}, [])
    with pytest.raises(rank_set.RankError, match="no column 'stge1'"):
        rank_set.our_accuracies(tmp_path / "results.csv", "abc", {"stge1": "dm"}, [])
    (tmp_path / "empty.csv").write_text("architecture,seed\n")
    (tmp_path / "other.csv").write_text("set_digest,name\nabc,x\n")
    for name, words in (("none.csv", "No such file"), ("empty.csv", "no students"), ("other.csv", "no column 'acc")):
        with pytest.raises(rank_set.RankError, match=f"{name}: .*{words}"):
            rank_set.our_accuracies(tmp_path / name, "abc", {}, [])


def test_export_that_was_changed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rank_set.RankError, match="diver export"):
        rank_set.read_export(tmp_path)
    export_ddranking(make(), tmp_path)
    images, labels, rate, meta = rank_set.read_export(tmp_path)
    assert torch.equal(images, make().images) and rate is None and meta["digest"] == make().digest()
    torch.save(labels.flip(0), tmp_path / "labels.pt")
    with pytest.raises(rank_set.RankError, match="export the set to a new folder"):
        rank_set.read_export(tmp_path)
    less = json.dumps({key: value for key, value in meta.items() if key != "steps"})
    for number, (name, content) in enumerate([("labels.pt", ""), ("meta.json", "{"), ("meta.json", less)]):
        export_ddranking(make(), tmp_path / str(number))
        (tmp_path / str(number) / name).write_text(content)
        with pytest.raises(rank_set.RankError, match=f"{number}: damaged"):
            rank_set.read_export(tmp_path / str(number))


def test_torchvision_reads_the_batches_that_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10 as Dataset

    for name in ("train_list", "test_list", "meta"):
        monkeypatch.setattr(Dataset, name, getattr(Dataset, name))
    prepared = small_prepared(tmp_path / "small.safetensors")
    sums, digest = rank_set.write_batches(tmp_path / "small.safetensors", tmp_path / "real", 20)
    assert digest == prepared.digest()
    with pytest.raises(rank_set.RankError, match="is not the official file"):
        rank_set.check_official(tmp_path / "real" / rank_set.BATCHES)
    with pytest.raises(rank_set.RankError, match="data_batch_1 is missing"):
        rank_set.check_official(tmp_path)
    rank_set.trust_batches(sums)
    train, test = (Dataset(tmp_path / "real", train=train, download=False) for train in (True, False))
    assert torch.equal(torch.from_numpy(train.data).permute(0, 3, 1, 2), prepared.train_images)
    assert train.targets == prepared.train_labels.tolist() and train.classes == list(CIFAR10)
    assert len(test) == 20 and sorted(test.targets) == sorted(list(range(10)) * 2)
    for image, label in zip(torch.from_numpy(test.data).permute(0, 3, 1, 2), test.targets, strict=True):
        same = (prepared.test_images == image).flatten(1).all(1).nonzero().flatten()
        assert prepared.test_labels[same].tolist() == [label]


def test_other_prepared_data_are_refused(tmp_path: Path) -> None:
    made = small_prepared(tmp_path / "small.safetensors")
    replace(made, classes=CIFAR10[::-1]).write(tmp_path / "other.safetensors")
    for name, word in (("none.safetensors", "snakemake"), ("other.safetensors", "--real")):
        with pytest.raises(rank_set.RankError, match=word):
            rank_set.write_batches(tmp_path / name, tmp_path / "real", None)


def test_reference_is_measured_once_per_setting(tmp_path: Path) -> None:
    values = iter([80.0, 81.0])
    path = tmp_path / "sub" / "reference.json"
    for epochs, expected in ((1, 80.0), (1, 80.0), (2, 81.0), (1, 80.0)):
        assert rank_set.cached(path, {"epochs": epochs}, lambda: next(values)) == expected


def test_control_is_class_major_real_images() -> None:
    class Evaluator:
        dst_train = [(torch.full((3, 2, 2), float(i)), i % 3) for i in range(30)]
        class_to_indices = [[i for i in range(30) if i % 3 == c] for c in range(3)]

    drawn = rank_set.draw_control(Evaluator(), 4, seed=1)
    numbers = drawn[:, 0, 0, 0].int()
    assert drawn.shape == (12, 3, 2, 2) and len(set(numbers.tolist())) == 12
    assert torch.equal(numbers % 3, torch.arange(3).repeat_interleave(4).int())
    assert torch.equal(drawn, rank_set.draw_control(Evaluator(), 4, seed=1))
    assert not torch.equal(drawn, rank_set.draw_control(Evaluator(), 4, seed=2))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--epochs", "9"], "--epochs 9"),
        (["--test-images", "15"], "multiple of 10"),
        (["--evaluations", "0"], "at least 1"),
        (["--where", "ipc"], "KEY=VALUE"),
        (["--real", "y"], "not allowed with"),
    ],
)
def test_script_refuses(capsys: pytest.CaptureFixture[str], arguments: list[str], word: str) -> None:
    with pytest.raises(SystemExit) as end:
        rank_set.main(["x", "--prepared", "y", *arguments])
    assert end.value.code == 2 and word in capsys.readouterr().err


# The judge itself

JUDGE = ROOT / ".venv-ddranking" / "bin" / "python"


@pytest.mark.skipif(not JUDGE.exists(), reason="no .venv-ddranking, which `make rank` creates: DD-Ranking is not run")
def test_ddranking_judges_and_repeats_itself(tmp_path: Path) -> None:
    small_prepared(tmp_path / "small.safetensors")
    made = make()
    export_ddranking(made, tmp_path / "out")
    write_table(tmp_path / "results.csv", made.digest())
    command = [str(JUDGE), str(ROOT / "src/ranking/rank_set.py"), "out", "--prepared", "small.safetensors"]
    command += ["--model", "MLP", "--epochs", "10", "--evaluations", "2", "--threads", "1", "--control"]
    command += ["--reference-epochs", "1", "--reference-cache", "reference.json", "--ours", "results.csv"]
    results = []
    for name in ("first.json", "second.json"):
        done = subprocess.run([*command, "--out", name], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        results.append((tmp_path / name).read_bytes())
        (tmp_path / "reference.json").unlink()
    assert results[0] == results[1]
    found = json.loads(results[0])
    full = found["full_data"]["accuracy_pct"]
    for judged in (found["set"], found["control"]):
        for i in range(2):
            of_set, of_random = (judged[f"accuracy_{which}_pct"]["values"][i] for which in ("set", "random"))
            hlr, ior = judged["HLR"]["values"][i], judged["IOR"]["values"][i]
            assert (full - of_set) / 100 == pytest.approx(hlr) and (of_set - of_random) / 100 == pytest.approx(ior)
            assert judged["LRS"]["values"][i] == pytest.approx(rank_set.label_robust_score(hlr, ior))
    assert found["judged"]["digest"] == made.digest() and len(found["patches"]) == 3
    assert [entry["architecture"] for entry in found["ours"]] == ["convnet", "vit"]
    assert str(tmp_path) not in results[0].decode()
