"""Sets as others release them: each layout is read as what it is, doubt is said or refused, no code in files runs."""

import json
import os
import pickle
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diver.config.distill import ReleasedConfig
from diver.data.subsets import subsets
from diver.exports import export_dcbench, export_ddranking, export_parquet, export_png, rounded
from diver.importers import FORMS, Found, import_set
from diver.sets import (
    IMAGENET,
    LEARNED_RATE,
    SYMMETRIC,
    UNIT,
    DistilledSet,
    SetError,
    Step,
    ValueRange,
    whitening_epsilon,
)

CIFAR = ValueRange.standardised((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CLASSES = ("cat", "dog", "frog")
WNIDS = ("n03", "n01", "n02")
HARD = torch.tensor([0, 0, 1, 1, 2, 2])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (6, 3, 4, 4)), generator=torch.Generator().manual_seed(seed))


def read(path: Path, **options: Any) -> Found:
    return import_set(path, "toy", options.pop("classes", CLASSES), options.pop("standard", CIFAR), **options)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(SetError) as error:
        read(path, **options)
    message = str(error.value)
    assert "\n" not in message and str(path) in message.split(": ")[0]
    return message


def save(folder: Path, **tensors: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    return folder


def said(found: Found, words: str) -> bool:
    return any(words in note for note in found.notes)


def test_forms_of_the_settings_are_those_that_are_read() -> None:
    assert set(get_args(ReleasedConfig.model_fields["form"].annotation)) == {"auto", *FORMS}


# DC, DSA, DM


class Attack:
    """Unpickled the ordinary way, this makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def released(images: Tensor, labels: Tensor, accuracies: Any = None) -> dict[str, Any]:
    return {"data": [[torch.zeros(1), torch.zeros(1)], [images, labels]], "accs_all_exps": accuracies or {}}


def test_malicious_pickles_execute_nothing(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "set.pt"
    attack = released(noise(), HARD) | {"accs_all_exps": Attack(proof)}
    for kind in ("plain pickle", "old torch", "new torch"):
        if kind == "plain pickle":
            path.write_bytes(pickle.dumps(attack, protocol=2))
        else:
            torch.save(attack, path, _use_new_zipfile_serialization=kind == "new torch")
        assert "refused" in refusal(path) or "truncated, or not" in refusal(path)
        with pytest.raises(SetError, match="truncated, or not"):
            DistilledSet.read(path)
        assert not proof.exists(), kind
    assert "posix.mkdir" in refusal(path)  # the last, in the form of today's torch
    folder = save(tmp_path / "mtt", images_best=noise(), labels_best=HARD, lr_best=Attack(proof))
    assert "posix.mkdir" in str(pytest.raises(SetError, read, folder).value) and not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the attack itself must be real, or this test shows nothing"


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.pt"
    torch.save(released(noise(), HARD, {"a": np.array([1, "x"], dtype=object)}), path)
    assert "refused" in refusal(path)
    torch.save(released(noise(), HARD, {"a": [np.str_("x")]}), path)
    assert "accs_all_exps" in refusal(path) or "not a file of tensors" in refusal(path) or "refused" in refusal(path)


def test_dc_takes_the_last_experiment(tmp_path: Path) -> None:
    path = tmp_path / "set.pt"
    torch.save(released(noise(), HARD, {"ConvNet": [np.float64(0.25), 0.5], "ViT": [[0.125]], "MLP": []}), path)
    found = read(path)
    one = found.distilled
    assert found.form == "dc" and torch.equal(one.images, noise()) and torch.equal(one.hard_labels(), HARD)
    assert (one.ipc, one.classes, one.value_range) == (2, CLASSES, CIFAR)
    assert found.recorded == {"ConvNet": [25.0, 50.0], "ViT": [12.5]}
    assert one.steps[0].parameters["recorded"] == {"ConvNet": [0.25, 0.5], "ViT": [0.125]}
    assert said(found, "last of 2 experiments") and said(found, "read as standardised")
    one.write(tmp_path / "set.safetensors")
    (tmp_path / "renamed.pt").write_bytes(path.read_bytes())
    assert read(tmp_path / "renamed.pt").distilled.digest() == one.digest()


def test_accuracies_in_percent_stay_percent(tmp_path: Path) -> None:
    torch.save(released(noise(), HARD, {"ConvNet": [25.0, 50.0]}), tmp_path / "set.pt")
    found = read(tmp_path / "set.pt")
    assert found.recorded == {"ConvNet": [25.0, 50.0]}
    assert found.distilled.steps[0].parameters["recorded"] == {"ConvNet": [0.25, 0.5]}


def with_nan() -> Tensor:
    images = noise()
    images[4, 1, 2, 3] = float("nan")
    return images


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OrderedDict(weight=torch.zeros(2)), "not in the released form"),
        ([1, 2], "not in the released form"),
        (torch.zeros(2), "a tensor alone"),
        ({"data": []}, "not in the released form"),
        ({"data": [[torch.zeros(1)]]}, "last entry of 'data'"),
        (released(noise(), torch.tensor([0, 0, 1, 1, 2, 5])), "label 5 is out of range"),
        (released(noise(), torch.tensor([0, 0, 0, 1, 2, 2])), "class 'dog' has 1 and 'cat' has 3"),
        (released(noise(), torch.zeros(6)), "labels are torch.float32 [6]"),
        (released(noise(), torch.zeros(6, 2)), "soft labels are torch.float32 [6, 2], not float [6, 3]"),
        (released(noise(), torch.tensor(0)), "6 images, but labels of shape []"),
        (released(noise(), HARD[:4]), "6 images, but labels of shape [4]"),
        (released(with_nan(), HARD), "image 4 has values that are not finite"),
        (released(noise(6, 4, 4, 4), HARD), "toy has 3 channels"),
        (released(noise(6, 4), HARD), "not numbers [N, C, H, W]"),
        (released(noise(), HARD, {"ConvNet": "high"}), "accs_all_exps: ConvNet"),
        (released(noise(), HARD, {"ConvNet": [0.5, float("nan")]}), "accs_all_exps: ConvNet.1"),
        (released(noise(), HARD, {"ConvNet": [[float("inf")]]}), "accs_all_exps: ConvNet.0"),
        (released(noise().to_sparse(), HARD), "a tensor that is sparse"),
        (released(noise(), HARD.to_sparse()), "a tensor that is sparse"),
        ([noise(), HARD.to_sparse()], "a tensor that is sparse"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "set.pt")
    assert message in refusal(tmp_path / "set.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_pairs_of_other_tensors_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", images_best=noise(), labels_best=torch.tensor(0))
    assert "labels_best.pt: one number, a tensor of shape []" in str(pytest.raises(SetError, read, folder).value)
    save(folder, labels_best=HARD.to_sparse())
    assert "labels_best.pt: holds a tensor that is sparse" in str(pytest.raises(SetError, read, folder).value)
    save(folder, labels_best=HARD, images_best=torch.quantize_per_tensor(noise(), 0.1, 0, torch.qint8))
    assert "images_best.pt: holds a tensor that is quantised" in str(pytest.raises(SetError, read, folder).value)
    save(folder, images_best=noise(), lr_best=torch.ones(1).to_sparse())
    assert "lr_best.pt: holds a tensor that is sparse" in str(pytest.raises(SetError, read, folder).value)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(6, 3, 4, 4, dtype=torch.uint16), HARD, "images are torch.uint16"),
        (torch.zeros(6, 3, 4, 4).to(torch.float8_e4m3fn), HARD, "images are torch.float8_e4m3fn"),
        (torch.zeros(1).expand(10**9, 3, 100, 100), HARD, "repeats its numbers"),
        (noise(), HARD.to(torch.complex64), "labels are torch.complex64"),
    ],
)
def test_numbers_of_other_kinds_are_refused(tmp_path: Path, images: Tensor, labels: Tensor, message: str) -> None:
    save(tmp_path, images_best=images, labels_best=labels)
    with pytest.raises(SetError, match=message):
        read(tmp_path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.pt"
    assert "no such file" in refusal(path)
    torch.save(released(noise(), HARD), path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        assert "truncated" in refusal(path)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.pt"
    torch.save(released(noise(), HARD), path)
    assert "did you mean 'dc'" in refusal(path, form="dcc")
    assert "did you mean 'symmetric'" in refusal(path, value_range="symetric")
    assert "2 images per class, and IPC 3" in refusal(path, ipc=3)
    assert "factor 0" in refusal(path, factor=0) and "factor 5" in refusal(path, factor=5)
    assert "'mouse' is none of them" in refusal(path, class_order=("cat", "dog", "mouse"))
    assert "'frog' is missing" in refusal(path, class_order=("cat", "dog"))
    assert "one is twice" in refusal(path, class_order=("cat", "dog", "frog", "cat"))
    assert "not a folder" in refusal(path, form="folder")
    assert "not in the released form" in refusal(path, form="ncfm")
    assert "give its folder" in refusal(path, form="mtt")


# MTT, EDF, GLaD: images and labels side by side


def test_mtt_takes_the_best_with_its_learned_rate(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "run",
        images_best=noise(seed=1),
        labels_best=HARD,
        lr_best=torch.tensor(0.02),
        images_500=noise(seed=2),
        labels_500=HARD,
        images_1000=noise(seed=3),
        labels_1000=HARD,
        lr_1000=torch.tensor(0.03),
    )
    found = read(folder)
    assert found.form == "mtt" and torch.equal(found.distilled.images, noise(seed=1)) and said(found, "images_best.pt")
    assert found.distilled.steps[0].parameters[LEARNED_RATE] == pytest.approx(0.02) and said(found, "learned rate")
    for name in ("images_best", "labels_best", "lr_best"):
        (folder / f"{name}.pt").unlink()
    newest = read(folder)
    assert torch.equal(newest.distilled.images, noise(seed=3)) and said(newest, "images_1000.pt")
    assert newest.distilled.steps[0].parameters[LEARNED_RATE] == pytest.approx(0.03)
    chosen = read(folder / "images_500.pt")
    assert (
        torch.equal(chosen.distilled.images, noise(seed=2)) and LEARNED_RATE not in chosen.distilled.steps[0].parameters
    )
    torch.save(torch.tensor([0.1, -0.2]), folder / "lr_1000.pt")
    assert "lr_1000.pt: not one positive learning rate" in str(pytest.raises(SetError, read, folder).value)
    (folder / "labels_1000.pt").unlink()
    assert "labels_1000.pt: no such file" in str(pytest.raises(SetError, read, folder).value)


@pytest.mark.parametrize(
    ("tag", "value_range"), [("_best", "auto"), ("_00000", "dataset"), ("", "auto")], ids=["mtt", "glad", "ddranking"]
)
def test_cifar100_of_codes_that_standardise_it_as_cifar10(tmp_path: Path, tag: str, value_range: str) -> None:
    standard = ValueRange.standardised((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    save(tmp_path, **{f"images{tag}": noise(), f"labels{tag}": HARD})
    found = import_set(tmp_path, "cifar100", CLASSES, standard, value_range=value_range)
    assert found.distilled.value_range == CIFAR and said(found, "CIFAR-10's, by which these codes")
    torch.save({"data": [[noise(), HARD]]}, tmp_path / "dc.pt")
    assert import_set(tmp_path / "dc.pt", "cifar100", CLASSES, standard).distilled.value_range == standard


def test_rows_are_sorted_by_class_stably(tmp_path: Path) -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 1])
    found = read(save(tmp_path / "run", images_best=noise(), labels_best=labels))
    assert torch.equal(found.distilled.images, noise()[[1, 3, 2, 5, 0, 4]]) and said(found, "stably")
    assert torch.equal(found.distilled.hard_labels(), HARD)


def test_edf_soft_labels_are_logits_in_its_folder(tmp_path: Path) -> None:
    soft = noise(6, 3, seed=4) + 10 * functional.one_hot(torch.tensor([1, 0, 2, 0, 1, 2]), 3)
    save(tmp_path / "run" / "Normal", images_best=noise(), labels_best=soft, lr_best=torch.tensor(0.01))
    found = read(tmp_path / "run")
    rows = [1, 3, 0, 4, 2, 5]
    assert found.distilled.labels is None and found.distilled.soft_labels is not None
    assert torch.equal(found.distilled.soft_labels, soft[rows]) and torch.equal(found.distilled.images, noise()[rows])
    assert torch.equal(found.distilled.hard_labels(), HARD) and said(found, "logits") and said(found, "stably")


def test_soft_labels_that_drifted_in_turn_keep_their_places(tmp_path: Path) -> None:
    """As many of each class as before, though two have changed theirs."""
    soft = 5.0 * functional.one_hot(torch.tensor([0, 1, 1, 0, 2, 2]), 3)
    found = read(save(tmp_path / "run", images_best=noise(), labels_best=soft))
    assert found.distilled.soft_labels is not None and torch.equal(found.distilled.soft_labels, soft)
    assert said(found, "2 images have their largest soft label outside")


def test_soft_labels_that_drifted_keep_their_places(tmp_path: Path) -> None:
    soft = 5.0 * functional.one_hot(torch.tensor([0, 1, 1, 1, 2, 2]), 3)
    found = read(save(tmp_path / "run", images_best=noise(), labels_best=soft))
    assert torch.equal(found.distilled.images, noise()) and said(
        found, "1 images have their largest soft label outside"
    )
    mixed = 5.0 * functional.one_hot(torch.tensor([2, 2, 2, 0, 0, 1]), 3)
    assert "give hard labels too" in refusal(save(tmp_path / "mixed", images_best=noise(), labels_best=mixed))


def test_probabilities_become_logits(tmp_path: Path) -> None:
    probabilities = (4.0 * functional.one_hot(HARD, 3)).softmax(1).double()
    found = read(save(tmp_path / "run", images_best=noise(), labels_best=probabilities))
    assert found.distilled.soft_labels is not None and said(found, "probabilities")
    torch.testing.assert_close(found.distilled.soft_labels.softmax(1), probabilities.float())


def test_class_order_renumbers_labels_and_columns(tmp_path: Path) -> None:
    soft = noise(6, 3, seed=5) + 10 * functional.one_hot(HARD, 3)
    folder = save(tmp_path / "run", images=noise(), labels=HARD, soft=soft)
    # In the file 0 is a frog, 1 a cat, 2 a dog.
    found = read(folder, class_order=("frog", "cat", "dog")).distilled
    rows = [2, 3, 4, 5, 0, 1]
    assert torch.equal(found.images, noise()[rows]) and torch.equal(found.hard_labels(), HARD)
    assert found.soft_labels is not None
    assert torch.equal(found.soft_labels, soft[rows][:, [1, 2, 0]])
    assert torch.equal(found.soft_labels.argmax(1), HARD)


def test_whitened_images_are_not_taken_for_standardised(tmp_path: Path) -> None:
    whitened, pixels = 0.26 * noise(), torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    folder = save(tmp_path / "run", images_best=whitened, labels_best=HARD)
    assert "ZCA-whitened" in refusal(folder) and "images_zca_N.pt" in refusal(folder)
    kept = read(folder, value_range="dataset").distilled
    assert kept.value_range == CIFAR and torch.equal(kept.images, whitened)
    save(folder, images_zca_500=pixels, labels_500=HARD)
    found = read(folder)
    assert found.distilled.value_range == UNIT and torch.equal(found.distilled.images, pixels)
    assert said(found, "images_zca_500.pt") and said(found, "ZCA")
    assert whitening_epsilon(found.distilled) == 0.1
    torch.save(5 * whitened, folder / "images_best.pt")  # no longer told by its deviation, but by what lies beside it
    assert "ZCA-whitened" in refusal(folder / "images_best.pt")


def test_glad_is_told_by_its_names(tmp_path: Path) -> None:
    found = read(
        save(tmp_path / "run", images_00000=noise(seed=1), labels_00000=HARD, images_00100=noise(), labels_00100=HARD)
    )
    assert found.form == "glad" and torch.equal(found.distilled.images, noise()) and said(found, "standardised")
    latents = save(tmp_path / "latents", latents_00100=noise(6, 512))
    assert "latents (latents_00100.pt)" in refusal(latents) and "decode them" in refusal(latents)
    assert "latents" in refusal(save(tmp_path / "coded", images_best=noise(6, 512, 1, 1), labels_best=HARD))


def test_folder_with_two_forms_asks_which(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", images=noise(), labels=HARD, images_best=noise(seed=1), labels_best=HARD)
    assert "set form" in refusal(folder)
    assert torch.equal(read(folder, form="mtt").distilled.images, noise(seed=1))
    assert torch.equal(read(folder / "images.pt").distilled.images, noise())
    (tmp_path / "empty").mkdir()
    assert "no set in a form that is known" in refusal(tmp_path / "empty")


# NCFM


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (9, 2), (8, 3)])
def test_ncfm_tiles_are_enlarged(tmp_path: Path, size: int, factor: int) -> None:
    images = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(1))
    save(
        tmp_path / "run" / "distilled_data",
        data_init=[noise(), HARD],
        data_100=[noise(), HARD],
        data_2000=[images, HARD],
    )
    whole = read(tmp_path / "run")
    assert whole.form == "ncfm" and whole.distilled.value_range == UNIT and said(whole, "data_2000.pt")
    assert torch.equal(whole.distilled.images, images) and said(whole, "kept whole")
    found = read(tmp_path / "run", factor=factor, ipc=2)
    cut = found.distilled
    assert cut.ipc == 2 * factor**2 and cut.steps[0].parameters["factor"] == factor
    # NCFM pads below and right with 0.5, cuts and enlarges.
    tile = -(-size // factor)
    padded = torch.full((6, 3, tile * factor, tile * factor), 0.5)
    padded[..., :size, :size] = images
    for n in range(6):
        for i in range(factor):
            for j in range(factor):
                piece = padded[n : n + 1, :, i * tile : (i + 1) * tile, j * tile : (j + 1) * tile].double()
                expected = functional.interpolate(piece, (size, size), mode="bilinear")[0]
                got = cut.images[n * factor**2 + i * factor + j].double()
                torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(cut.hard_labels(), torch.arange(3).repeat_interleave(cut.ipc))


def test_ncfm_subset_with_another_class_is_remarked_on(tmp_path: Path) -> None:
    fruit = subsets()["imagefruit"]
    torch.save([torch.rand(10, 3, 4, 4), torch.arange(10)], tmp_path / "data_1.pt")
    found = import_set(tmp_path / "data_1.pt", "imagefruit", fruit, IMAGENET)
    assert said(found, f"has n07760859 where imagefruit here has {fruit[9]}") and "n07760859" not in fruit


def test_a_saved_file_that_is_named_as_an_archive_is_read(tmp_path: Path) -> None:
    path = tmp_path / "set.pth.tar"
    torch.save([torch.rand(6, 3, 4, 4), HARD], path)
    assert read(path).form == "ncfm"
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(path, "set.pt")
    assert "an archive: unpack it" in refusal(tmp_path / "set.tar")


def test_ncfm_folder_without_a_save_is_refused(tmp_path: Path) -> None:
    assert "no data_N.pt" in refusal(save(tmp_path / "distilled_data", data_init=[noise(), HARD]), form="ncfm")


@pytest.mark.parametrize(
    ("images", "kind", "note"),
    [
        (torch.rand(6, 3, 4, 4), "unit", "all lie in [0, 1]"),
        (torch.full((6, 3, 4, 4), 0.5), "unit", "all are equal"),
        (torch.rand(6, 3, 4, 4) * 1.8 - 0.9, "symmetric", "standardised images of little contrast"),
        (noise() * 2, "standardised", "go beyond [-1, 1]"),
        (torch.rand(6, 3, 4, 4) * 1.4 - 0.2, "standardised", "may be unit or symmetric and overshoot"),
        (noise().half() * 2, "standardised", "go beyond"),
        (torch.arange(288).remainder(256).view(6, 3, 4, 4).byte(), "unit", "pixels of 8 bits"),
        (torch.arange(288).remainder(256).view(6, 3, 4, 4), "unit", "pixels of 8 bits"),
    ],
)
def test_value_range_is_told_from_the_values(tmp_path: Path, images: Tensor, kind: str, note: str) -> None:
    torch.save((images, HARD), tmp_path / "data_1.pt")
    found = read(tmp_path / "data_1.pt")
    assert found.distilled.value_range.kind == kind and said(found, note)
    expected = images.float() if images.is_floating_point() else images.float() / 255
    assert found.distilled.images.dtype == torch.float32 and torch.equal(found.distilled.images, expected)


def test_value_range_that_nothing_fits_is_refused_unless_given(tmp_path: Path) -> None:
    path = tmp_path / "data_1.pt"
    for images in (1 + torch.rand(6, 3, 4, 4), 500 * noise()):
        torch.save([images, HARD], path)
        assert "set value_range" in refusal(path)
        assert read(path, value_range="symmetric").distilled.value_range == SYMMETRIC
    torch.save([255 * torch.rand(6, 3, 4, 4), HARD], path)
    assert "divide them by 255" in refusal(path) and "set value_range" not in refusal(path)
    torch.save([torch.full((6, 3, 4, 4), 300), HARD], path)
    assert "not pixels of 8 bits" in refusal(path)
    torch.save([torch.zeros(6, 3, 4, 4, dtype=torch.uint8), HARD], path)
    assert "leave value_range at auto" in refusal(path, value_range="dataset")


def test_unit_images_in_a_standardised_form_need_a_range(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", images_best=torch.rand(6, 3, 4, 4), labels_best=HARD)
    assert "set value_range to dataset or unit" in refusal(folder)
    assert read(folder, value_range="dataset").distilled.value_range == CIFAR
    assert read(folder, value_range="unit").distilled.value_range == UNIT
    torch.save(torch.zeros(6, 3, 4, 4), folder / "images_best.pt")
    assert read(folder).distilled.value_range == CIFAR and said(read(folder), "all are equal")


def test_pixels_stored_as_floats_are_told_from_whole_numbers(tmp_path: Path) -> None:
    pixels = torch.arange(288).remainder(256).view(6, 3, 4, 4).float()
    folder = save(tmp_path / "run", images_best=pixels, labels_best=HARD)
    found = read(folder)
    assert torch.equal(found.distilled.images, pixels / 255) and found.distilled.value_range == UNIT
    assert said(found, "pixels of 8 bits stored as floats")
    torch.save(pixels * 0.99, folder / "images_best.pt")
    assert "divide them by 255" in refusal(folder) and "set value_range" not in refusal(folder)
    torch.save(pixels - 100, folder / "images_best.pt")
    assert "set value_range to dataset" in refusal(folder)


# Folders of images


def paint(
    root: Path, folders: list[str], ipc: int = 2, size: int = 5, suffix: str = "png", mode: str = "RGB"
) -> dict[str, list[np.ndarray]]:
    """Images under root/folder/; the pixels that were drawn, by folder."""
    generator, drawn = np.random.default_rng(0), dict[str, list[np.ndarray]]()
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(ipc):
            channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
            pixels = generator.integers(0, 256, (size, size, *channels), dtype=np.uint8)
            # Numbers without zeros in front: 10 comes after 2.
            Image.fromarray(pixels).save(root / folder / f"{folder}-image{i}.{suffix}")
            drawn.setdefault(folder, []).append(pixels)
    return drawn


def pixels_of(found: Found) -> list[np.ndarray]:
    return list((found.distilled.images * 255).round().byte().permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (["n03", "n01", "n02"], "named as the classes"),
        (["new000", "new001", "new002"], "folders are numbers"),
        (["00000", "00001", "00002"], "folders are numbers"),
        (["0", "1", "2"], "folders are numbers"),
        (["0000-n01", "0001-n02", "0002-n03"], "folders are numbers"),
    ],
)
def test_image_folders_in_the_order_of_the_classes(tmp_path: Path, folders: list[str], note: str) -> None:
    drawn = paint(tmp_path / "set", folders, ipc=11)
    (tmp_path / "set" / ".cache").mkdir()
    (tmp_path / "set" / folders[0] / "notes.txt").write_text("no image")
    classes = WNIDS if folders[0] == "n03" else tuple(sorted(WNIDS))
    found = read(tmp_path / "set", classes=classes)
    assert found.form == "folder" and said(found, note) and found.distilled.value_range == UNIT
    assert found.distilled.ipc == 11 and found.distilled.classes == classes
    for got, expected in zip(pixels_of(found), [p for name in folders for p in drawn[name]], strict=True):
        assert np.array_equal(got, expected)


def test_what_other_programs_leave_in_folders_is_no_image(tmp_path: Path) -> None:
    drawn = paint(tmp_path / "set", list(CLASSES), ipc=1)
    for name in CLASSES:
        (tmp_path / "set" / name / "._0.png").write_bytes(b"resource fork")
        Image.new("RGB", (5, 5)).save(tmp_path / "set" / name / ".0.png")
        (tmp_path / "set" / name / "9.png").mkdir()
    found = read(tmp_path / "set")
    assert found.distilled.ipc == 1 and np.array_equal(pixels_of(found)[0], drawn["cat"][0])


def test_class_order_that_the_folders_contradict_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "set", sorted(WNIDS), ipc=1)
    assert "leave class_order out" in refusal(tmp_path / "set", classes=WNIDS, class_order=WNIDS)
    found = read(tmp_path / "set", classes=WNIDS, class_order=sorted(WNIDS))
    assert found.distilled.images.equal(read(tmp_path / "set", classes=WNIDS).distilled.images)


def test_ten_unpadded_folders_are_in_numeric_order(tmp_path: Path) -> None:
    classes = tuple(f"class {i:02}" for i in range(11))
    drawn = paint(tmp_path / "set", [str(i) for i in range(11)], ipc=1)
    found = read(tmp_path / "set", classes=classes)
    assert all(np.array_equal(a, drawn[str(i)][0]) for i, a in enumerate(pixels_of(found)))


def test_numbered_folders_of_an_unsorted_dataset_need_an_order(tmp_path: Path) -> None:
    drawn = paint(tmp_path / "set", ["0", "1", "2"], ipc=1)
    message = refusal(tmp_path / "set", classes=WNIDS)
    assert "(n03, n01, n02, ...) or of their sorted names (n01, n02, n03, ...)" in message and "class_order" in message
    for order in (WNIDS, tuple(sorted(WNIDS))):
        found = pixels_of(read(tmp_path / "set", classes=WNIDS, class_order=order))
        expected = [drawn[str(order.index(name))][0] for name in WNIDS]
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    (tmp_path / "set" / "meta.json").write_text(
        json.dumps({"classes": sorted(WNIDS), "dataset": None, "unfinished": "no"})
    )
    told = read(tmp_path / "set", classes=WNIDS)
    assert said(told, "in the order of meta.json") and np.array_equal(pixels_of(told)[0], drawn["2"][0])


def test_folders_that_tell_nothing_need_class_order(tmp_path: Path) -> None:
    drawn = paint(tmp_path / "set", ["kitten", "puppy", "toad"], ipc=1)
    assert "set class_order" in refusal(tmp_path / "set") and "'kitten'" in refusal(tmp_path / "set")
    found = read(tmp_path / "set", class_order=("frog", "cat", "dog"))
    got = pixels_of(found)
    assert np.array_equal(got[0], drawn["puppy"][0]) and np.array_equal(got[2], drawn["kitten"][0])
    (tmp_path / "set" / "more").mkdir()
    assert "4 folders, and 3 classes" in refusal(tmp_path / "set", class_order=CLASSES)


def test_subset_of_a_larger_release_is_found_by_name(tmp_path: Path) -> None:
    drawn = paint(tmp_path / "set", ["n00", *sorted(WNIDS), "n09"], ipc=1)
    found = read(tmp_path / "set", classes=WNIDS)
    assert said(found, "2 others are left out")
    assert all(np.array_equal(a, drawn[name][0]) for a, name in zip(pixels_of(found), WNIDS, strict=True))


def test_unequal_folders_are_refused_or_cut(tmp_path: Path) -> None:
    drawn = paint(tmp_path / "set", list(CLASSES), ipc=3)
    (tmp_path / "set" / "dog" / "dog-image2.png").unlink()
    message = refusal(tmp_path / "set")
    assert "class 'dog' has 2 and 'cat' has 3" in message and "ipc" in message
    found = read(tmp_path / "set", ipc=2)
    assert found.distilled.ipc == 2 and said(found, "first 2 images of each class are taken, of 8")
    assert np.array_equal(pixels_of(found)[5], drawn["frog"][1])
    assert "'dog' has 2" in refusal(tmp_path / "set", ipc=3)
    for file in (tmp_path / "set" / "dog").iterdir():
        file.unlink()
    assert "'dog' has 0" in (message := refusal(tmp_path / "set")) and "ipc takes" not in message


def test_unequal_classes_of_a_file_are_not_told_to_be_cut(tmp_path: Path) -> None:
    torch.save([torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 2])], tmp_path / "data_1.pt")
    assert "every class needs as many" in (message := refusal(tmp_path / "data_1.pt")) and "ipc" not in message


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    paint(tmp_path / "set", list(CLASSES), ipc=1)
    odd = tmp_path / "set" / "frog" / "frog-image0.png"
    Image.new("RGB", (7, 5)).save(odd)
    assert f"{odd}: 7x5 pixels, and the first image has 5x5" in str(
        pytest.raises(SetError, read, tmp_path / "set").value
    )
    odd.write_bytes(b"\x89PNG broken")
    assert f"{odd}: not an image" in str(pytest.raises(SetError, read, tmp_path / "set").value)
    Image.new("I;16", (5, 5)).save(odd)
    assert f"{odd}: pixels of mode I" in str(pytest.raises(SetError, read, tmp_path / "set").value)
    odd.unlink()
    assert "class 'frog' has 0" in refusal(tmp_path / "set")
    assert "leave value_range at auto" in refusal(
        paint(tmp_path / "other", list(CLASSES)) and tmp_path / "other", value_range="symmetric"
    )


def test_modes_and_lossy_formats_are_remarked_on(tmp_path: Path) -> None:
    paint(tmp_path / "rgba", list(CLASSES), mode="RGBA")
    assert said(read(tmp_path / "rgba"), "mode RGBA are converted to RGB")
    paint(tmp_path / "jpeg", list(CLASSES), suffix="jpg")
    assert said(read(tmp_path / "jpeg"), "6 of 6 images are in a format that may lose detail")
    drawn = paint(tmp_path / "grey", list(CLASSES), mode="L")
    found = read(tmp_path / "grey", standard=ValueRange.standardised((0.5,), (0.5,))).distilled
    assert list(found.images.shape) == [6, 1, 5, 5]
    assert np.array_equal((found.images[0, 0] * 255).round().byte().numpy(), drawn["cat"][0])


# What we write ourselves


def ours(**changes: Any) -> DistilledSet:
    made = DistilledSet(
        images=noise(20, 3, 32, 32),
        dataset="cifar10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        ipc=2,
        value_range=CIFAR,
        labels=torch.arange(10).repeat_interleave(2),
        soft_labels=noise(20, 10, seed=3),
        steps=(Step("mtt", {LEARNED_RATE: 0.25}, 3), Step("diver", {}, 1)),
    )
    return DistilledSet(**{**vars(made), **changes})


def test_own_file_comes_back_as_it_is(tmp_path: Path) -> None:
    made, path = ours(), tmp_path / "set.safetensors"
    made.write(path)
    found = import_set(path, "cifar10", made.classes, CIFAR, ipc=2)
    assert found.form == "own" and found.distilled.digest() == made.digest() and said(found, "mtt + diver")
    for options, word in (
        ({"value_range": "unit"}, "leave value_range"),
        ({"ipc": 3}, "IPC 3"),
        ({"factor": 2}, "factor"),
    ):
        with pytest.raises(SetError, match=word):
            import_set(path, "cifar10", made.classes, CIFAR, **options)
    assert "other classes" in refusal(path)


def test_ddranking_export_is_read_back(tmp_path: Path) -> None:
    """In DD-Ranking's class order and constants, which meta.json tells."""
    wnids = tuple(
        f"n{i:08d}" for i in (2096294, 2093754, 2111889, 2088364, 2086240, 2089973, 2087394, 2115641, 2099601, 2105641)
    )
    made = ours(dataset="imagewoof", classes=tuple(sorted(wnids)), value_range=UNIT, images=torch.rand(20, 3, 32, 32))
    export_ddranking(made, tmp_path)
    found = import_set(tmp_path, "imagewoof", made.classes, CIFAR)
    back = found.distilled
    assert found.form == "ddranking" and said(found, "order of meta.json") and said(found, "in meta.json")
    assert back.value_range == IMAGENET and back.steps[0].parameters[LEARNED_RATE] == 0.25
    torch.testing.assert_close(back.in_range(UNIT).images, made.images)
    assert torch.equal(back.soft_labels, made.soft_labels) and torch.equal(back.hard_labels(), made.hard_labels())
    assert [step["method"] for step in back.steps[0].parameters["made_by"]] == ["mtt", "diver"]
    assert "meta.json does not fit" in str(pytest.raises(SetError, read, tmp_path).value)
    (tmp_path / "meta.json").write_text('{"mean": [0.5], "std": "one"}')
    assert "meta.json: not a description" in str(pytest.raises(SetError, read, tmp_path).value)


def test_ddranking_without_labels_is_class_major(tmp_path: Path) -> None:
    save(tmp_path, images=noise(), soft=noise(6, 3))
    found = read(tmp_path)
    assert said(found, "no labels.pt") and torch.equal(found.distilled.hard_labels(), HARD)
    save(tmp_path / "odd", images=noise(7, 3, 4, 4))
    assert "every class needs as many" in refusal(tmp_path / "odd")


@pytest.mark.parametrize("method", ["dc", "tm", "random", "kmeans"])
def test_dcbench_exports_are_read_back(tmp_path: Path, method: str) -> None:
    made = ours(soft_labels=None)
    image_file = export_dcbench(made, tmp_path, method)[0]
    found = import_set(image_file, "cifar10", made.classes, IMAGENET)
    assert found.form == {"dc": "dc", "tm": "mtt"}.get(method, "dcbench")
    assert torch.equal(found.distilled.images, made.images) and found.distilled.value_range == CIFAR


@pytest.mark.parametrize("method", ["dc", "random", "kmeans"])
def test_folders_of_sets_that_are_files_name_them(tmp_path: Path, method: str) -> None:
    file = export_dcbench(ours(soft_labels=None), tmp_path, method)[0]
    assert refusal(file.parent).endswith(f"give one of its files ({file.name})")
    for folder in (file.parent.parent, tmp_path):
        assert refusal(folder).endswith("in its folders: give the folder or file of one set")


def test_parts_are_put_together(tmp_path: Path) -> None:
    parts = {f"images_best_{i}": noise()[2 * i : 2 * i + 2] for i in range(3)}
    labels = {f"labels_best_{i}": HARD[2 * i : 2 * i + 2] for i in range(3)}
    found = read(save(tmp_path / "run", **parts, **labels))
    assert found.form == "mtt" and torch.equal(found.distilled.images, noise())


def test_png_export_is_read_back_to_the_pixel(tmp_path: Path) -> None:
    made = ours(classes=(*ours().classes[:9], "t-shirt/top"))
    export_png(made, tmp_path / "png")
    shuffled = tuple(reversed(made.classes))
    found = import_set(tmp_path / "png", "cifar10", shuffled, CIFAR)
    back, expected = found.distilled, rounded(made)
    rows = torch.arange(20).view(10, 2).flip(0).flatten()
    assert torch.equal(back.in_range(CIFAR).images, expected.images[rows])
    assert torch.equal(back.soft_labels, made.soft_labels[rows].flip(1)) and said(found, "order of meta.json")
    assert back.steps[0].parameters[LEARNED_RATE] == 0.25
    first = import_set(tmp_path / "png", "cifar10", made.classes, CIFAR, ipc=1).distilled
    assert torch.equal(first.soft_labels, made.soft_labels[::2])
    (tmp_path / "png" / "soft_labels.safetensors").write_bytes(b"no")
    with pytest.raises(SetError, match=r"soft_labels\.safetensors: truncated"):
        import_set(tmp_path / "png", "cifar10", made.classes, CIFAR)


def test_parquet_export_is_for_others(tmp_path: Path) -> None:
    table, *_ = export_parquet(ours(), tmp_path / "hub")
    for path in (tmp_path / "hub", table.parent, table):
        for form in ("auto", "folder"):
            assert "a Parquet table" in (message := refusal(path, form=form)) and "PNG" in message


# Files as they were released


@pytest.mark.parametrize(
    ("name", "dataset", "shape", "network", "accuracy"),
    [
        ("res_DC_CIFAR10_ConvNet_1ipc.pt", "cifar10", [10, 3, 32, 32], "ConvNet", 26.46),
        ("res_DC_CIFAR10_ConvNet_10ipc.pt", "cifar10", [100, 3, 32, 32], "ConvNet", 42.20),
        ("res_DM_imagenet-fruits_ConvNet_1ipc.pt", "imagefruit", [10, 3, 128, 128], "AlexNet", 24.76),
    ],
)
def test_sets_as_released(
    tmp_path: Path, name: str, dataset: str, shape: list[int], network: str, accuracy: float
) -> None:
    given = os.environ.get("DIVER_SHARED_DATA")
    folders = [Path(__file__).parents[1] / "data" / "released", *([Path(given) / "distilled"] if given else [])]
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        pytest.skip(f"no {name} in data/released, nor in distilled/ of the folder that DIVER_SHARED_DATA names")
    classes, standard = (ours().classes, CIFAR) if dataset == "cifar10" else (subsets()[dataset], IMAGENET)
    found = import_set(path, dataset, classes, standard)
    assert found.form == "dc" and list(found.distilled.images.shape) == shape
    assert np.mean(found.recorded[network]) == pytest.approx(accuracy, abs=0.005)
    found.distilled.write(tmp_path / "set.safetensors")
    again = import_set(tmp_path / "set.safetensors", dataset, classes, standard)
    assert again.distilled.digest() == found.distilled.digest() and again.recorded == found.recorded
