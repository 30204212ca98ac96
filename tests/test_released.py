"""Released sets as a stage 1, and what their files record beside our students."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tidy import LABELS, make_table

from diver.config.distill import ReleasedConfig
from diver.data.prepare import hold_out
from diver.data.prepared import ContentError, Prepared
from diver.data.subsets import subsets
from diver.distill import METHODS
from diver.prior.base import PriorError
from diver.prior.classes import class_ids, describe
from diver.report.forms import to_csv, to_html, to_markdown, to_tex
from diver.report.recorded import compare_recorded, recorded_accuracies
from diver.report.sweeps import sweeps
from diver.sets import DistilledSet, SetError, Step
from diver.study import SetCell, released_files


@pytest.fixture
def data() -> Prepared:
    images = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat(20)
    return Prepared(images, labels, images[:6], labels[:6], "toy", ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(3).repeat_interleave(2)
    accuracies = {"ConvNet": [0.25, 0.27], "VGG11": [np.float64(0.2), np.float64(0.21)], "MLP": [0.1]}
    torch.save({"data": [[images, labels]], "accs_all_exps": accuracies}, tmp_path / "released.pt")
    return tmp_path / "released.pt"


def test_released_set_is_one_of_the_dataset(data: Prepared, file: Path, tmp_path: Path) -> None:
    made = METHODS["released"](data, 2, ReleasedConfig(path=str(file)), code="c")
    assert (made.dataset, made.classes, made.ipc, made.value_range.kind) == ("toy", ("a", "b", "c"), 2, "standardised")
    (step,) = made.steps
    assert step.parameters["file"] == "released.pt" and len(step.parameters["sha256"]) == 64
    made.write(tmp_path / "set.safetensors")
    # The report reads this without a tensor library.
    assert recorded_accuracies(tmp_path / "set.safetensors") == {
        "ConvNet": [0.25, 0.27],
        "VGG11": [0.2, 0.21],
        "MLP": [0.1],
    }
    assert step.parameters["form"] == "dc" and step.code == "c"
    assert any("read as standardised" in note for note in step.parameters["notes"])
    unit = METHODS["released"](data, 2, ReleasedConfig(path=str(file), value_range="unit"), folder=tmp_path)
    assert unit.value_range.kind == "unit" and unit.steps[0].parameters["value_range"] == "unit"


def test_released_folder_with_a_learned_rate_and_its_own_class_order(data: Prepared, tmp_path: Path) -> None:
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(3).repeat_interleave(2)
    for name, tensor in {"images": images, "labels": labels, "lr": torch.tensor(0.5)}.items():
        torch.save(tensor, tmp_path / f"{name}_best.pt")
    config = ReleasedConfig(path=str(tmp_path), class_order=("c", "a", "b"), factor=2)
    made = METHODS["released"](data, 2, config)
    assert made.ipc == 8 and made.steps[0].parameters["syn_lr"] == 0.5 and made.steps[0].parameters["form"] == "mtt"
    assert made.steps[0].parameters["factor"] == 2 and recorded_of(made, tmp_path) == {}
    whole = METHODS["released"](data, 2, ReleasedConfig(path=str(tmp_path), class_order=("c", "a", "b")))
    assert torch.equal(whole.images, images[[2, 3, 4, 5, 0, 1]])


def test_released_set_of_ours_keeps_its_chain(data: Prepared, file: Path, tmp_path: Path) -> None:
    first = METHODS["released"](data, 2, ReleasedConfig(path=str(file)))
    own = first.with_images(
        first.images + 1, first.value_range, Step("diver", {"syn_lr": 0.1, "zca": {"epsilon": 0.2}}, 4)
    )
    own.write(tmp_path / "own.safetensors")
    made = METHODS["released"](data, 2, ReleasedConfig(path=str(tmp_path / "own.safetensors")))
    (step,) = made.steps
    assert [one["method"] for one in step.parameters["made_by"]] == ["released", "diver"]
    assert step.parameters["digest"] == own.digest() and step.parameters["syn_lr"] == 0.1
    assert step.parameters["zca"] == {"epsilon": 0.2}
    assert torch.equal(made.images, own.images) and recorded_of(made, tmp_path)["ConvNet"] == [0.25, 0.27]


def recorded_of(made: DistilledSet, folder: Path) -> dict[str, list[float]]:
    made.write(folder / "written.safetensors")
    return recorded_accuracies(folder / "written.safetensors")


def test_released_set_of_another_kind_is_refused(data: Prepared, file: Path) -> None:
    with pytest.raises(SetError, match=r"released\.pt: 2 images per class, and IPC 10"):
        METHODS["released"](data, 10, ReleasedConfig(path=str(file)))
    larger = replace(data, train_images=torch.zeros(60, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(SetError, match=r"16, 16.*set `size: 16` to have them resized"):
        METHODS["released"](larger, 2, ReleasedConfig(path=str(file)))
    made = METHODS["released"](larger, 2, ReleasedConfig(path=str(file), size=16))
    assert made.images.shape == (6, 3, 16, 16) and made.steps[0].parameters["size"] == 16
    with pytest.raises(SetError, match="path is not given"):
        METHODS["released"](data, 2, ReleasedConfig())


def test_recorded_and_ours_stand_side_by_side() -> None:
    table = make_table(seeds=3)
    ours = table[(table.stage1 == "dm") & (table.stage2 == "none") & (table.ipc == 10)]
    mean = ours.loc[ours.architecture == "resnet", "accuracy_last"].mean()
    recorded = {"ResNet18": [0.30, 0.31, 0.32], "LeNet": [0.2, 0.2], "ConvNet": [0.4]}
    cell = SetCell("cifar10", 10, "dm")
    made = compare_recorded(table, [(cell, recorded)], {"resnet": "resnet18-dd"}, LABELS)
    (row,) = made.data.to_dict("records")
    assert (row["architecture"], row["recorded_n"], row["ours_n"]) == ("resnet", 3, 3)
    assert row["recorded"] == pytest.approx(31) and row["difference"] == pytest.approx(mean - 31)
    assert 0 < row["p"] <= 1
    assert row["best"] == pytest.approx(ours.loc[ours.architecture == "resnet", "accuracy_best"].mean())
    assert made.display["ours"].iloc[0].endswith(f" (best {row['best']:.1f}) (3)")
    constant = table.assign(accuracy_last=10.0)
    guessing = {"ResNet18": [0.1000001] * 3}
    (row,) = compare_recorded(constant, [(cell, guessing)], {"resnet": "resnet18-dd"}, LABELS).data.to_dict("records")
    assert math.isnan(row["p"])
    none_yet = compare_recorded(table[table.ipc == 1], [(cell, recorded)], {"resnet": "resnet18-dd"}, LABELS)
    assert none_yet.data.empty and none_yet.display.empty
    text = to_markdown(made)
    assert "31.0 ± 2.5 (3)" in text and "not among our students: ConvNet, LeNet" in text
    for write in (to_csv, to_html, to_tex):
        assert "ResNet" in write(made) or "resnet" in write(made)


def test_sweep_figure_shows_each_point(tmp_path: Path) -> None:
    table = make_table()
    points = {"gamma": ["vae", "predd", "diver"], "t_f": ["raw", "inheritance"]}
    png, svg, pdf = sweeps(table, LABELS, points, tmp_path / "sweeps.png")
    assert png.stat().st_size > 10_000 and svg.exists() and pdf.exists()
    again, *_ = sweeps(table, LABELS, points, tmp_path / "again.png")
    assert png.read_bytes() == again.read_bytes()
    moved = table.assign(accuracy_last=table.accuracy_last.where(table.stage2 != "diver", 50.0))
    other, *_ = sweeps(pd.DataFrame(moved), LABELS, points, tmp_path / "other.png")
    assert png.read_bytes() != other.read_bytes()


def test_held_out_images_are_training_images_that_are_no_longer_trained_on(data: Prepared) -> None:
    split = hold_out(data, 5)
    assert torch.bincount(split.test_labels).tolist() == [5, 5, 5]
    assert torch.bincount(split.train_labels).tolist() == [15, 15, 15]
    rows = torch.cat([split.train_images, split.test_images]).flatten(1)
    assert len(rows.unique(dim=0)) == len(data.train_images.flatten(1).unique(dim=0)) == 60
    assert torch.equal(hold_out(data, 5).test_images, split.test_images)
    with pytest.raises(ContentError, match="class 0 has 20"):
        hold_out(data, 20)


def test_subsets_name_classes_of_imagenet() -> None:
    assert len(subsets()) == 12 and all(len(set(wnids)) == 10 for wnids in subsets().values())
    # The indices that DIVER's and PReDD's code list, in the order of the labels.
    fruit = class_ids(subsets()["imagefruit"], None, 1000, None, "DiT")
    assert fruit == [953, 954, 949, 950, 951, 957, 952, 945, 943, 948]
    # As many classes as the prior has are not the prior's for that.
    names = {"airplane": 0, "bird": 1}
    assert class_ids(["bird", "airplane"], None, 2, names, "mine") == [1, 0]
    assert class_ids(["a", "b"], None, 2, None, "mine") == [0, 1]
    with pytest.raises(PriorError, match=r"2 classes \(airplane, bird, ...\) and the set has 2, of which 'n0000'"):
        class_ids(["n0000", "bird"], None, 2, names, "mine")
    squawk = class_ids(subsets()["imagesquawk"], None, 1000, None, "DiT")
    assert squawk == [84, 130, 88, 144, 145, 22, 96, 9, 100, 89]
    assert "pineapple" in describe(subsets()["imagefruit"][0]) and describe("hot_dog") == "hot dog"


def test_released_set_is_all_that_is_read_for_it(tmp_path: Path) -> None:
    names = ["a/0.png", "b/1.png", "meta.json", ".hidden/0.png", "images_zca_best.pt", "labels_best.pt", "lr_best.pt"]
    for name in [*names, "labels_9.pt", "res.pt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    of_folder = [str(file.relative_to(tmp_path)) for file in released_files(str(tmp_path))]
    assert of_folder == sorted({*names, "labels_9.pt", "res.pt"} - {".hidden/0.png"})
    of_images = [file.name for file in released_files(f"{tmp_path}/images_zca_best.pt")]
    assert of_images == ["images_zca_best.pt", "labels_best.pt", "lr_best.pt", "meta.json"]
    assert [file.name for file in released_files(f"{tmp_path}/res.pt")] == ["res.pt"]
    assert [file.name for file in released_files(f"{tmp_path}/not-here.pt")] == ["not-here.pt"]
