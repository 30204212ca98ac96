"""The command line: single steps, and errors that are one line with exit code 2."""

import csv
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiTPipeline
from PIL import Image
from scipy import stats

from diver import cli
from diver.cli import common
from diver.cli.common import UserError
from diver.cli.comparison import Accuracies, compared, comparison_table
from diver.cli.evaluation import QUICK_EPOCHS, chosen_evaluation, reduced
from diver.cli.files import EIGHT_BIT, EXPORTED, IMPORTED
from diver.cli.reading import guessed_dataset
from diver.config import distill, recover
from diver.config.protocols import PRESETS, Protocol, by_ipc, protocol
from diver.data.prepared import Prepared, standardise
from diver.distill.loop import STATE
from diver.exports import EXPORTS
from diver.importers import FORMS
from diver.networks import create
from diver.networks.weights import read_trained
from diver.prior.base import Prior
from diver.prior.train import dit_scheduler
from diver.sets import DistilledSet, Step

ROOT = Path(__file__).parents[1]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["diver", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def set_file(tmp_path: Path, tiny_set: DistilledSet) -> Path:
    tiny_set.write(tmp_path / "set.safetensors")
    return tmp_path / "set.safetensors"


@pytest.fixture
def prior_folder(tmp_path: Path, tiny_prior: Prior) -> Path:
    DiTPipeline(tiny_prior.network, tiny_prior.vae, dit_scheduler()).save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def test_info_describes_a_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path
) -> None:
    assert run(monkeypatch, "info", str(set_file), "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert described["ipc"] == 2 and described["images"] == [6, 3, 16, 16] and described["form"] == "own"
    assert described["bytes"] == {"images": 6 * 3 * 256 * 4, "labels": 6 * 8, "soft_labels": 0, "total": 18480}
    assert run(monkeypatch, "info", str(set_file)) == 0
    shown = capsys.readouterr().out
    for text in ("18480 bytes", "images 18432, labels 48", "6 = 2 per class, 3 x 16 x 16", "mean [0.5, 0.5, 0.5]"):
        assert text in shown


def test_recover_writes_a_set_with_its_history(
    monkeypatch: pytest.MonkeyPatch, set_file: Path, prior_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    settings = ["--set", "respacing='4'", "--set", "t_f=2", "--set", "t_r=4", "--set", "sp_low=1", "--set", "sp_high=2"]
    assert run(monkeypatch, "recover", str(set_file), "--out", str(out), "--prior", str(prior_folder), *settings) == 0
    recovered = DistilledSet.read(out)
    assert recovered.steps[-1].method == "diver" and recovered.steps[-1].parameters["t_f"] == 2
    assert recovered.value_range.kind == "symmetric"


def test_projects_own_files_are_found_from_any_folder_and_recorded_by_their_name(
    monkeypatch: pytest.MonkeyPatch, set_file: Path, prior_folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made = []
    for folder in (tmp_path, elsewhere):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(common, "CHECKOUT", prior_folder.parent)
        assert run(monkeypatch, "recover", str(set_file), "--out", "out", "--prior", "prior", "--method", "vae") == 0
        made.append((folder / "out").read_bytes())
    assert made[0] == made[1]
    assert DistilledSet.read(elsewhere / "out").steps[-1].parameters["prior"] == "prior"


def test_shards_are_merged(monkeypatch: pytest.MonkeyPatch, set_file: Path, prior_folder: Path, tmp_path: Path) -> None:
    common = [str(set_file), "--prior", str(prior_folder), "--method", "vae"]
    for out, classes in [("a", ["--classes", "0:2"]), ("b", ["--classes", "2:3"]), ("whole", [])]:
        assert run(monkeypatch, "recover", *common, "--out", str(tmp_path / out), *classes) == 0
    shards = [str(tmp_path / "b"), str(tmp_path / "a")]
    assert run(monkeypatch, "merge", *shards, "--source", str(set_file), "--out", str(tmp_path / "merged")) == 0
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()
    assert run(monkeypatch, "merge", shards[0], "--source", str(set_file), "--out", str(tmp_path / "merged")) == 2


def test_presets_are_listed_and_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "presets") == 0
    assert "diver-paper-ncfm" in capsys.readouterr().out
    assert run(monkeypatch, "presets", "diver-paper-ncfm") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["method"] == "diver" and shown["settings"]["gamma"] == 0.02 and shown["settings"]["tiles"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: a full disk is not tried")
def test_a_full_disk_behind_stdout_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path
) -> None:
    # Closing it tries to write again what it could not.
    with suppress(OSError), open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(monkeypatch, "info", str(set_file)) == 2
    assert capsys.readouterr().err == "diver: No space left on device\n"


def test_released_set_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images, labels = torch.randn(10, 3, 16, 16), torch.arange(10)
    torch.save({"data": [[images, labels]], "accs_all_exps": {"ConvNet": [0.2, 0.3]}}, tmp_path / "set.pt")
    out = tmp_path / "set.safetensors"
    monkeypatch.chdir(ROOT)
    assert run(monkeypatch, "import", str(tmp_path / "set.pt"), "--dataset", "imagefruit", "--out", str(out)) == 0
    shown = capsys.readouterr().out
    assert "recorded for ConvNet: 25.00 % (mean of 2)" in shown and "form: dc" in shown
    assert DistilledSet.read(out).classes[0] == "n07753275"
    assert run(monkeypatch, "import", str(tmp_path / "set.pt"), "--dataset", "imagefrut", "--out", str(out)) == 2
    assert "did you mean 'imagefruit'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--set", "gama=1"], "did you mean 'gamma'"),
        (["--set", "gamma"], "KEY=VALUE"),
        (["--set", "gamma=-1"], "gamma"),
        (["--method", "divr"], "did you mean 'diver'"),
        (["--preset", "diver-papr"], "did you mean 'diver-paper'"),
        (["--preset", "diver-paper", "--method", "vae"], "preset diver-paper is of diver"),
        (["--prior-set", "precison=bf16"], "did you mean 'precision'"),
        (["--classes", "1-2"], "FIRST:END"),
        (["--set", "t_f=50"], "t_f = 50"),
        (["--set", "gamma=lots"], "(given: lots)"),
        (["--classes", "2:5"], "classes 2:5: the set has 0:3"),
        (["--prior", "/no/such/prior"], "/no/such/prior"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    prior_folder: Path,
    arguments: list[str],
    word: str,
) -> None:
    prior = [] if "--prior" in arguments else ["--prior", str(prior_folder)]
    out = set_file.with_name("unused")
    assert run(monkeypatch, "recover", str(set_file), "--out", str(out), *prior, *arguments) == 2
    assert not list(out.parent.glob("*unused*"))
    error = capsys.readouterr().err
    assert word in error and "truncated" not in error and len(error.strip().splitlines()) == 1


def test_what_is_read_is_never_written_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path, prior_folder: Path
) -> None:
    content, folder = set_file.read_bytes(), set_file.parent
    file = folder / "file"
    file.write_text("")
    commands = {
        "recover": ["--prior", str(prior_folder), "--method", "vae"],
        "convert": ["--size", "8"],
        "import": ["--dataset", "cifar10"],
        "show": [],
    }
    for command, more in commands.items():
        for out, words in (
            (set_file, "is what is read"),
            (folder, "is a folder"),
            (file / "under", f"nothing can be written into {file}"),
        ):
            told = "name a .png" if command == "show" else words
            assert run(monkeypatch, command, str(set_file), "--out", str(out), *more) == 2
            assert told in capsys.readouterr().err, command
    assert run(monkeypatch, "merge", str(set_file), "--source", str(set_file), "--out", str(set_file)) == 2
    assert run(monkeypatch, "evaluate", str(set_file), "--csv", str(folder)) == 2
    assert f"--csv {folder}: is a folder" in capsys.readouterr().err
    for option in ("--prepared", "--study", "--teacher"):
        assert run(monkeypatch, "evaluate", str(set_file), "--csv", str(file), option, str(file)) == 2
        assert f"--csv {file}: is what is read, and would be lost" in capsys.readouterr().err
    assert set_file.read_bytes() == content


def test_a_system_and_a_misspelt_protocol_are_told_where_to_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path
) -> None:
    data = ["--prepared", str(set_file), "--ipc", "1", "--out", str(set_file.with_name("out"))]
    assert run(monkeypatch, "distill", "d4m", *data) == 2
    assert "diver synthesize d4m" in capsys.readouterr().err
    assert run(monkeypatch, "evaluate", str(set_file), "--protocol", "soft-fk") == 2
    assert "--protocol soft-fk: did you mean 'soft-fkd'?" in capsys.readouterr().err


def test_bad_set_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    assert run(monkeypatch, "info", str(tmp_path / "bad.safetensors")) == 2
    assert "bad.safetensors" in capsys.readouterr().err


def test_check_counts_the_jobs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "check", str(ROOT / "config/test.yaml")) == 0
    assert "9 sets, 11 student jobs, 44 students" in capsys.readouterr().out


def test_refused_study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text((ROOT / "config/test.yaml").read_text().replace("students:", "studnets:"))
    assert run(monkeypatch, "check", str(path)) == 2
    assert "did you mean 'students'" in capsys.readouterr().err


def test_a_file_that_is_no_text_is_no_study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path
) -> None:
    set_file.write_bytes(b"\x80")
    for command in (["check", str(set_file)], ["cost", str(set_file)]):
        assert run(monkeypatch, *command) == 2
        assert "can't decode" in (error := capsys.readouterr().err) and len(error.splitlines()) == 1


@pytest.fixture
def prepared_file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    images, labels = (
        torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=generator),
        torch.arange(30) % 3,
    )
    about = ("tiny", ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)
    Prepared(images, labels, images.clone(), labels.clone(), *about).write(tmp_path / "prepared.safetensors")
    return tmp_path / "prepared.safetensors"


def test_protocols_are_listed_and_shown_as_a_study_takes_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "protocols") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PRESETS)
    assert run(monkeypatch, "protocols", "soft-rded") == 0
    assert Protocol.model_validate(yaml.safe_load(capsys.readouterr().out)) == protocol("soft-rded")


def test_teacher_then_every_protocol_on_a_set(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    prepared_file: Path,
    tmp_path: Path,
) -> None:
    teacher = str(tmp_path / "teacher.safetensors")
    data = ["--prepared", str(prepared_file)]
    teach = ["teach", *data, "--out", teacher, "--network", "convnet", "--set", "epochs=1", "--option"]
    for arguments, words in [
        (["wdth=8"], "convnet"),
        (["width=8", "--seed", "99999999999999999999"], "Invalid value for '--seed': Input should be less than"),
        (["width=8", "--set", "labels=own"], "--set: labels 'own' of full-data: the training set has classes alone"),
        (["width=8", "--set", "zca=true", "--set", "augmentation=none"], "--set: zca of full-data: "),
    ]:
        assert run(monkeypatch, *teach, *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and len(error.splitlines()) == 1
    assert run(monkeypatch, *teach, "width=8") == 0
    assert "% of the test images" in capsys.readouterr().out
    assert read_trained(teacher).options == {"width": 8}
    for name in PRESETS:
        short = ["--protocol", name, "--set", "epochs=2", "--architecture", "convnet", "--seeds", "2", "--threads", "1"]
        if protocol(name).needs_teacher():
            short += ["--teacher", teacher]
        if name == "soft-rded":
            assert run(monkeypatch, "evaluate", str(set_file), *data, *short) == 2
            assert "soft-rded says no batch for IPC 2: give --set batch=NUMBER" in capsys.readouterr().err
            short += ["--set", "batch=5"]
        assert run(monkeypatch, "evaluate", str(set_file), *data, *short) == 0
        shown = capsys.readouterr().out
        assert "2 seeds" in shown
        assert f"protocol {name}; departures: epochs=2" in shown
    assert run(monkeypatch, "evaluate", str(set_file), *data, *short, "--json") == 0
    assert [row["seed"] for row in json.loads(capsys.readouterr().out)] == [0, 1]


def test_teacher_that_was_trained_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepared_file: Path, tmp_path: Path
) -> None:
    """Its accuracy is that of its own answers to the test images, as it was trained to see them."""
    data, mean, std = Prepared.read(prepared_file), (0.1, 0.9, 0.1), (0.1, 0.5, 0.5)
    torch.manual_seed(0)
    network = create("convnet", 3, 3, 16, width=4).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    with torch.no_grad():
        answers = network(standardise(data.test_images, mean, std)).argmax(1)
        assert (network(data.standardised(data.test_images)).argmax(1) != answers).sum() > 3
    teacher, weights = tmp_path / "teacher.safetensors", tmp_path / "weights.pth"

    def teach(*arguments: str, out: Path = teacher, of: Path | str = weights) -> int:
        common = ["--prepared", str(prepared_file), "--out", str(out), "--weights", str(of)]
        return run(monkeypatch, "teach", *common, *arguments)

    own, lit = ["--network", "convnet", "--option", "width=4"], ["--mean", "0.1,0.9,0.1", "--std", "0.1,0.5,0.5"]
    for accuracy in (100.0, 0.0):
        replace(data, test_labels=answers if accuracy else (answers + 1) % 3).write(prepared_file)
        assert teach(*own, *lit, "--json") == 0
        said = capsys.readouterr()
        assert json.loads(said.out) == {"file": str(teacher), "network": "convnet", "accuracy": accuracy}
        assert ("0.00 % is near chance (33.3 %)" in said.err) == (not accuracy)
        assert (read_trained(teacher).mean, read_trained(teacher).accuracy) == (mean, accuracy)
    released = weights.read_bytes()
    for arguments, given, words in [
        ((), {}, "does not say which network it is of"),
        ((*own, "--set", "epochs=2"), {}, "--set epochs=2: with --weights nothing is trained"),
        ((*own, "--mean", "0.1;0.1"), {}, "--mean 0.1;0.1: numbers with commas"),
        ((*own, "--mean", ""), {}, "numbers with commas"),
        ((*own, "--mean", "0.1"), {}, "give a mean and a deviation above 0 of each of the channels"),
        (("--network", "torchvision:alexnet"), {}, "network torchvision:alexnet cannot be trained"),
        (own, {"out": weights}, "would be taken for a state dict by its suffix"),
        ((), {"out": teacher, "of": teacher}, "is what is read, and would be lost"),
        (lit, {"of": "timm:local-dir:x.pth"}, "--mean and --std are of a state dict"),
        (own, {"of": "timm:resnet18"}, "--network and --option are not for --weights timm:resnet18"),
        ((), {"of": ""}, "no such file"),
    ]:
        assert teach(*arguments, **given) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and len(error.splitlines()) == 1
    assert weights.read_bytes() == released


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--protocol", "glad-evla"], "did you mean 'glad-eval'"),
        (["--set", "epoch=3"], "did you mean 'epochs'"),
        (["--set", "name=dc-eval"], "use --protocol dc-eval"),
        (["--architecture", "convnte"], "convnet"),
        (["--protocol", "soft-fkd"], "diver teach"),
        (["--teacher", "mine.safetensors"], "--teacher mine.safetensors: protocol glad-eval asks no teacher; leave it"),
        (["--protocol", "soft-fkd", "--teacher", "nope.pth"], "nope.pth: no such file"),
        (["--architectures", ","], "--architectures ',': names no network"),
        (["--set", "epochs=true"], "epochs"),
        (["--architectures", "convnet,vgg-11"], "network vgg-11: images of 16 pixels are too small"),
    ],
)
def test_evaluation_that_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    prepared_file: Path,
    arguments: list[str],
    word: str,
) -> None:
    assert run(monkeypatch, "evaluate", str(set_file), "--prepared", str(prepared_file), *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert word in error
    assert len(error.splitlines()) == 1


def picture(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def released_file(tmp_path: Path) -> Path:
    """Ten classes of CIFAR-10, an image each, as DC releases them."""
    images = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    content = {"data": [[images, torch.arange(10)]], "accs_all_exps": {"ConvNet": [0.25, 0.35]}}
    torch.save(content, tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt")
    return tmp_path / "res_DC_CIFAR10_ConvNet_1ipc.pt"


SHORT = ["--method", "vae", "--set", "class_ids=[0,1,2,0,1,2,0,1,2,0]"]


def test_released_file_is_recovered_as_its_import_is(
    monkeypatch: pytest.MonkeyPatch, released_file: Path, prior_folder: Path, tmp_path: Path
) -> None:
    own, direct, through = (str(tmp_path / name) for name in ("own.safetensors", "direct", "through"))
    assert run(monkeypatch, "import", str(released_file), "--out", own) == 0
    for source, out in ((str(released_file), direct), (own, through)):
        assert run(monkeypatch, "recover", source, "--out", out, "--prior", str(prior_folder), *SHORT) == 0
    assert Path(direct).read_bytes() == Path(through).read_bytes()
    assert [step.method for step in DistilledSet.read(direct).steps] == ["released", "vae"]
    assert not list(tmp_path.glob(".*"))


def test_stopped_recovery_of_a_released_file_finds_the_same_copy(
    monkeypatch: pytest.MonkeyPatch, released_file: Path, prior_folder: Path, tmp_path: Path
) -> None:
    from diver.recover import run as recovering

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = [str(released_file), "--out", str(tmp_path / "out"), "--prior", str(prior_folder), *SHORT]
    with monkeypatch.context() as patched:
        patched.setattr(recovering, "recover_file", stopped)
        assert run(patched, "recover", *arguments) == 130
    copy = tmp_path / ".out.source"
    written = copy.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(recovering, "recover_file", stopped)
        assert run(patched, "recover", *arguments) == 130
    assert copy.stat().st_mtime_ns == written
    assert run(monkeypatch, "recover", *arguments) == 0
    assert not list(tmp_path.glob(".*"))
    assert run(monkeypatch, "recover", *arguments, "--set", "tiles=3") == 2
    assert not list(tmp_path.glob(".*"))


def test_settings_that_a_command_lacks_are_given_to_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def error(*arguments: str) -> str:
        assert run(monkeypatch, *arguments) == 2
        text = capsys.readouterr().err
        assert len(text.strip().splitlines()) == 1
        return text

    # Names of settings in the path ask for nothing.
    folders, unsure = tmp_path / "cifar10-ipc", tmp_path / "cifar10-factor" / "images_best.pt"
    for name in ("kitten", "puppy"):
        (folders / name).mkdir(parents=True)
        (folders / name / "0.png").touch()
    command = f"by `diver import {folders} --out SET.safetensors --class-order ...`"
    assert command in error("info", str(folders)) and command in error("show", str(folders))
    assert "by `diver import" not in error("import", str(folders), "--out", str(tmp_path / "out.safetensors"))
    unsure.parent.mkdir()
    torch.save(torch.rand(10, 3, 16, 16), unsure)
    torch.save(torch.arange(10), unsure.with_name("labels_best.pt"))
    # The one has --value-range itself, the other does not.
    assert "set value_range" in (text := error("info", str(unsure))) and "by `diver" not in text
    assert "SET.safetensors --value-range ...`" in error("export", str(unsure), "--out", str(tmp_path / "out"))


def test_both_sides_are_compared_with_the_datasets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "cifar10.pt"
    for height, told in ((16, True), (32, False)):
        torch.save({"data": [[torch.randn(10, 3, height, 32), torch.arange(10)]]}, path)
        assert run(monkeypatch, "info", str(path)) == 0
        said = "its images are 16 x 32 pixels, and those of cifar10 are 32 x 32"
        assert (said in capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("res_DC_CIFAR10_ConvNet_1ipc.pt", "cifar10"),
        ("res_DM_imagenet-fruits_ConvNet_1ipc.pt", "imagefruit"),
        ("CIFAR-10/ipc1/images_best.pt", "cifar10"),
        ("cifar10-slice.pt", "cifar10-slice"),
        ("fashion_mnist.pt", "fashion-mnist"),
        ("imagenet-b_ipc1", "imagenet-b"),
        ("ImageWoof128.pt", "imagewoof"),
        ("imagenette2-160", "imagenette"),
        ("tiny-imagenet-200", "tinyimagenet"),
        ("Tiny_ImageNet_d4m", "tinyimagenet"),
    ],
)
def test_dataset_is_guessed_from_the_name(name: str, dataset: str) -> None:
    assert guessed_dataset(Path("/somewhere") / name) == dataset


@pytest.mark.parametrize(
    ("meta", "dataset"),
    [
        ('{"dataset": "fashion-mnist"}', "fashion-mnist"),
        ('{"dataset": "CIFAR10", "source_dataset": "cifar10-slice"}', "cifar10-slice"),
        ('{"dataset": "of others"}', "cifar100"),
        ("no JSON", "cifar100"),
    ],
)
def test_dataset_is_what_an_export_says(tmp_path: Path, meta: str, dataset: str) -> None:
    folder = tmp_path / "cifar100"
    folder.mkdir()
    (folder / "meta.json").write_text(meta)
    assert guessed_dataset(folder) == guessed_dataset(folder / "images.pt") == dataset


def test_an_export_that_was_stopped_is_called_so_before_its_dataset_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"form": "ddranking", "unfinished": true}')
    with pytest.raises(UserError, match="an export that was stopped"):
        guessed_dataset(tmp_path)


@pytest.mark.parametrize("name", ["imagenet_d4m_ipc10", "imagenet_a100_run", "ImageNet-C10"])
def test_no_dataset_is_guessed_from_part_of_a_word(name: str) -> None:
    with pytest.raises(UserError, match="give --dataset"):
        guessed_dataset(Path("/somewhere") / name)


@pytest.mark.parametrize("name", ["set.pt", "cifar1000.pt", "imagenet_convnet.pt", "mycifar10.pt"])
def test_dataset_that_no_name_says_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "at").mkdir()
    (tmp_path / "at" / name).write_bytes(b"")
    monkeypatch.setattr(Path, "resolve", lambda self: Path("/somewhere") / self.name)
    assert run(monkeypatch, "import", str(tmp_path / "at" / name), "--out", "unused") == 2
    error = capsys.readouterr().err
    assert "give --dataset, after describing it in config/datasets/NAME.yaml if it is none of cifar10, " in error


def test_sets_are_shown_beside_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "show", str(set_file)) == 0
    assert capsys.readouterr().out == "set.png\n"
    out = str(tmp_path / "pair.png")
    assert run(monkeypatch, "show", str(set_file), "--beside", str(set_file), "--out", out, "--per-class", "1") == 0
    (alone_width, alone_height), (width, height) = picture(tmp_path / "set.png"), picture(tmp_path / "pair.png")
    assert width > alone_width and height == alone_height
    assert run(monkeypatch, "show", str(set_file), "--classes", "1:2", "--out", out) == 0
    assert picture(Path(out))[1] < height / 2


def test_what_cannot_be_shown_is_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    released_file: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, word in [
        (["--per-class", "3"], "has 2"),
        (["--classes", "2:5"], "0:3"),
        (["--beside", str(released_file)], "its classes are not those"),
    ]:
        assert run(monkeypatch, "show", str(set_file), *arguments) == 2
        assert word in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*.png"))


def test_convert_changes_range_size_and_ipc(
    monkeypatch: pytest.MonkeyPatch, set_file: Path, tiny_set: DistilledSet, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    changes = ["--value-range", "unit", "--size", "8", "--ipc", "1"]
    assert run(monkeypatch, "convert", str(set_file), "--out", str(out), *changes) == 0
    found = DistilledSet.read(out)
    assert found.value_range.kind == "unit" and found.hard_labels().tolist() == [0, 1, 2]
    unit = tiny_set.images[::2] * 0.25 + 0.5
    expected = torch.nn.functional.interpolate(unit, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(found.images, expected)
    assert found.steps[-1].parameters == {"ipc": 1, "size": 8}
    # Another range alone is no step: it is the same set.
    assert run(monkeypatch, "convert", str(set_file), "--out", str(out), "--value-range", "symmetric") == 0
    assert DistilledSet.read(out).steps == tiny_set.steps


@pytest.mark.parametrize(
    ("arguments", "word"),
    [([], "nothing to change"), (["--ipc", "3"], "has 2"), (["--value-range", "unti"], "did you mean 'unit'")],
)
def test_conversion_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    arguments: list[str],
    word: str,
) -> None:
    out = set_file.with_name("unused")
    assert run(monkeypatch, "convert", str(set_file), "--out", str(out), *arguments) == 2
    assert word in capsys.readouterr().err and not out.exists()


QUICK = ["--set", "epochs=2", "--architectures", "vit,convnet", "--seeds", "3", "--threads", "1"]


def test_evaluation_is_a_table_a_csv_and_json(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    prepared_file: Path,
    tmp_path: Path,
) -> None:
    common = [str(set_file), "--prepared", str(prepared_file), *QUICK]
    assert run(monkeypatch, "evaluate", *common, "--csv", str(tmp_path / "rows.csv")) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["network", "accuracy,"]
    assert not list(tmp_path.glob(".rows.csv*"))
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["architecture"] for row in rows] == ["vit"] * 3 + ["convnet"] * 3
    for line, name in zip(lines, ("vit", "convnet"), strict=False):
        mine = [float(row["accuracy_last"]) for row in rows if row["architecture"] == name]
        half = stats.t.ppf(0.975, 2) * np.std(mine, ddof=1) / np.sqrt(3)
        assert f"{np.mean(mine):.1f} ± {half:.1f}" in line
    assert run(monkeypatch, "evaluate", *common, "--json") == 0
    assert [str(row["accuracy_last"]) for row in json.loads(capsys.readouterr().out)] == [
        row["accuracy_last"] for row in rows
    ]


def test_json_of_diverged_students_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path, prepared_file: Path
) -> None:
    common = ["--prepared", str(prepared_file), "--architecture", "convnet", "--seeds", "1", "--threads", "1"]
    wild = ["--protocol", "dc-eval", "--set", "epochs=12", "--set", "learning_rate={other: 1.0e+30}"]
    assert run(monkeypatch, "evaluate", str(set_file), *common, *wild, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert row["diverged"] and row["train_loss_last"] is None


def test_soft_labels_that_are_not_used_are_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepared_file: Path,
    tiny_set: DistilledSet,
    tmp_path: Path,
) -> None:
    both = replace(tiny_set, soft_labels=torch.zeros(6, 3))
    both.write(tmp_path / "both.safetensors")
    command = ["evaluate", str(tmp_path / "both.safetensors"), "--prepared", str(prepared_file), *QUICK]
    assert run(monkeypatch, *command) == 0
    assert capsys.readouterr().err.count("--set labels=own") == 1
    assert run(monkeypatch, *command, "--set", "labels=own") == 0
    assert "--set labels=own" not in capsys.readouterr().err


def test_rates_are_the_studys_only_with_its_protocol(prepared_file: Path, tiny_set: DistilledSet) -> None:
    learned = replace(tiny_set, steps=(Step("mtt", {"syn_lr": 0.125}),))

    def note(**options: Any) -> str:
        return chosen_evaluation({"learned": learned}, prepared_file, architectures="vit,convnet", **options).note()

    assert "learning rates: ViT 0.1, ConvNet 0.01;" in note(set_=["epochs=2"])
    assert "learning rates" not in note(set_=["learning_rate={other: 0.5}"])
    of_dc = note(protocol="dc-eval")
    assert "learning rates" not in of_dc and "that the set's method learned: 0.125" in of_dc
    assert of_dc.endswith("accuracy that it reports: last")
    given = note(protocol="dc-eval", set_=["learning_rate={other: 0.5}"])
    assert "learning_rate={'other': 0.5}; learned_rate=False" in given and "0.125" not in given
    assert note(protocol="hard-idc").endswith("accuracy that it reports: best") and "0.125" not in note()


def test_a_set_that_does_not_fit_is_refused_before_another_is_trained_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    prepared_file: Path,
    tiny_set: DistilledSet,
    tmp_path: Path,
) -> None:
    small = tmp_path / "small.safetensors"
    tiny_set.with_images(tiny_set.images[..., ::2, ::2].contiguous(), tiny_set.value_range, Step("cut")).write(small)
    assert run(monkeypatch, "compare", str(set_file), str(small), "--prepared", str(prepared_file), *QUICK) == 2
    error = capsys.readouterr().err
    assert "`diver convert --size`" in error and "epochs" not in error


def test_sets_are_compared_by_pairs_of_the_same_seed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    prepared_file: Path,
    tiny_set: DistilledSet,
    tmp_path: Path,
) -> None:
    noise = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    other, small = tmp_path / "other.safetensors", tmp_path / "small.safetensors"
    tiny_set.with_images(tiny_set.images + 0.4 * noise, tiny_set.value_range, Step("noise")).write(other)
    wide = torch.nn.functional.interpolate(noise, scale_factor=2)
    tiny_set.with_images(wide, tiny_set.value_range, Step("noise")).write(small)
    common = [str(set_file), str(other), str(small), "--prepared", str(prepared_file), *QUICK]
    assert run(monkeypatch, "compare", *common, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    accuracies = {name: {net: one["accuracies"] for net, one in of.items()} for name, of in found["accuracies"].items()}
    assert run(monkeypatch, "evaluate", str(other), *common[3:], "--json") == 0
    alone = json.loads(capsys.readouterr().out)
    assert accuracies["B"]["vit"] == [row["accuracy_last"] for row in alone if row["architecture"] == "vit"]
    np.testing.assert_allclose(
        accuracies["B"]["mean"], np.mean([accuracies["B"]["vit"], accuracies["B"]["convnet"]], axis=0)
    )
    assert [(one["set"], one["network"]) for one in found["differences_to_the_first"]] == [
        (name, net) for name in "BC" for net in ("vit", "convnet", "mean")
    ]
    best = [row["accuracy_best"] for row in alone if row["architecture"] == "vit"]
    assert (found["accuracies"]["B"]["vit"]["best"], found["accuracies"]["B"]["vit"]["diverged"]) == (best, 0)
    for one in found["differences_to_the_first"]:
        a, b = accuracies["A"][one["network"]], accuracies[one["set"]][one["network"]]
        np.testing.assert_allclose(one["differences"], np.subtract(b, a))
        if np.std(one["differences"]) > 1e-6:
            assert one["p"] == pytest.approx(stats.ttest_rel(b, a).pvalue)
        assert one["p"] <= one["p_holm"] <= 1
    expected = 10 * np.log10(1 / np.square(0.1 * noise.double().numpy()).mean((1, 2, 3)))
    assert found["psnr_db"] == {"B": pytest.approx(float(expected.mean()), abs=1e-3), "C": None}
    assert run(monkeypatch, "compare", *common) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"A: {set_file}") and "PSNR to A: " in shown[1] and "PSNR" not in shown[2]
    assert shown[3].split() == [
        "network",
        "A",
        "B",
        "C",
        "B",
        "-",
        "A",
        "p",
        "p",
        "(Holm)",
        "C",
        "-",
        "A",
        "p",
        "p",
        "(Holm)",
    ]
    assert len({len(line) for line in shown[3:7]}) == 1


def test_best_and_diverged_stand_beside_the_last_accuracy() -> None:
    rows = [
        {"accuracy_last": last, "accuracy_best": best, "diverged": last == 10}
        for last, best in ((10.0, 18.0), (20.0, 22.0))
    ]
    one = Accuracies.of(rows)
    assert str(one).endswith(" (20.0) †1") and str(one).startswith("15.0 ± ")
    both = Accuracies.averaged([one, Accuracies([30.0, 30.0], [30.0, 32.0], 0)])
    assert (both.last, both.best, both.diverged) == ([20.0, 25.0], [24.0, 27.0], 1)
    labels = {"vit": "ViT", "convnet": "ConvNet"}
    found = {"A": {"vit": one, "convnet": one}, "B": {"vit": one, "convnet": replace(one, last=[11.0, 23.0])}}
    shown = comparison_table(found, compared(found), labels)
    assert "4 in all" in shown and "~" in shown.splitlines()[1] and "testable" not in shown
    # Students that only guess say nothing of what could be found.
    alone = compared(found)[1].minimum_detectable()
    assert alone > 1 and f"a difference of {alone:.1f} points (median) would be found with 80 % power" in shown
    found["B"]["convnet"] = replace(one, last=[11.0, 21.0])
    shown = comparison_table(found, compared(found), labels)
    assert "or not testable" in shown and "power" not in shown


def test_single_seed_has_no_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path, prepared_file: Path
) -> None:
    common = [str(set_file), str(set_file), "--prepared", str(prepared_file), *QUICK[:3], "convnet", "--seeds", "1"]
    assert run(monkeypatch, "compare", *common, "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)["differences_to_the_first"]
    assert (one["differences"], one["half_width"], one["p"], one["p_holm"]) == ([0.0], None, None, None)
    assert run(monkeypatch, "compare", *common) == 0
    assert capsys.readouterr().out.splitlines()[3].split()[-6:] == ["+0.0", "±", "n/a", "~", "n/a", "n/a"]


def test_comparison_of_one_set_or_of_other_datasets_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path, released_file: Path
) -> None:
    assert run(monkeypatch, "compare", str(set_file)) == 2
    assert "two or more" in capsys.readouterr().err
    assert run(monkeypatch, "compare", str(set_file), str(released_file)) == 2
    assert "a set of cifar10, and" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_quick_has_few_epochs_and_one_test_and_says_so(name: str) -> None:
    quick = reduced(protocol(name))
    for classes in (10, 100, 1000):
        usual, found = protocol(name).at(classes), quick.at(classes)
        for ipc in (1, 10, 50):
            assert by_ipc(found.epochs, ipc, "") == min(QUICK_EPOCHS, by_ipc(usual.epochs, ipc, ""))
        assert (found.evaluations, found.test_every) == (1, None)
        kept = {"epochs", "evaluations", "test_every"}
        assert found.model_dump(exclude=kept) == usual.model_dump(exclude=kept)
    assert name == "full-data" or "epochs=" in quick.departures(10)


def test_missing_data_and_epochs_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], released_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(common, "CHECKOUT", ROOT / "no-such-folder")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    assert run(monkeypatch, "evaluate", str(released_file)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "snakemake --cores all data/prepared/cifar10.safetensors" in said
    images, labels = torch.randn(500, 3, 16, 16), torch.arange(10).repeat_interleave(50)
    torch.save({"data": [[images, labels]], "accs_all_exps": {}}, tmp_path / "cifar10.pt")
    assert run(monkeypatch, "evaluate", "cifar10.pt") == 2
    assert "no epochs for IPC 50: give --set epochs=NUMBER" in capsys.readouterr().err


def test_export_of_8_bits_says_what_students_lose(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_file: Path,
    prepared_file: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "png"
    arguments = ["--form", "png", "--out", str(out), "--prepared", str(prepared_file), "--quick"]
    few = ["--architectures", "vit", "--seeds", "2", "--threads", "1"]
    assert run(monkeypatch, "export", str(set_file), *arguments, *few) == 0
    shown = capsys.readouterr()
    assert all(Path(line).exists() for line in shown.out.splitlines()) and "after - before" in shown.err
    recorded = json.loads((out / "meta.json").read_text())["accuracy"]
    (lost,) = recorded["differences_to_the_first"]
    before, after = (recorded["accuracies"][name]["vit"]["accuracies"] for name in ("before", "after"))
    np.testing.assert_allclose(lost["differences"], np.subtract(after, before))
    assert "epochs={1: 75, 10: 50}" in recorded["protocol"]
    judged = ["--out", str(tmp_path / "judged"), "--prepared", str(prepared_file)]
    for asks in (judged, [*judged[:2], "--quick"], [*judged[:2], "--threads", "1"]):
        assert run(monkeypatch, "export", str(set_file), *asks) == 2
        assert "nothing is lost" in capsys.readouterr().err


def test_exported_images_come_back(monkeypatch: pytest.MonkeyPatch, released_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "cifar10-png"
    assert run(monkeypatch, "export", str(released_file), "--form", "png", "--out", str(out)) == 0
    assert run(monkeypatch, "import", str(out), "--out", str(tmp_path / "back.safetensors")) == 0
    back = DistilledSet.read(tmp_path / "back.safetensors")
    assert back.value_range.kind == "unit" and len(back.images) == 10


def test_exported_table_is_not_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], set_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hub"
    assert run(monkeypatch, "export", str(set_file), "--form", "parquet", "--out", str(out)) == 0
    table = capsys.readouterr().out.split()[0]
    for path in (str(out), table):
        assert run(monkeypatch, "import", path, "--out", str(tmp_path / "back.safetensors")) == 2
        error = capsys.readouterr().err
        assert "a Parquet table" in error and len(error.strip().splitlines()) == 1


def test_distill_makes_a_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepared_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "random.safetensors"
    common = ["--prepared", str(prepared_file), "--ipc", "2", "--out", str(out)]
    assert run(monkeypatch, "distill", "random", *common, "--set", "seed=4") == 0
    assert capsys.readouterr().out == f"{out}\n"
    found = DistilledSet.read(out)
    assert (found.ipc, found.steps[0].method, found.steps[0].seed) == (2, "random", 4)
    short = ["--set", "iterations=2", "--set", "width=4"]
    assert run(monkeypatch, "distill", "dm", *common, *short) == 0
    assert DistilledSet.read(out).steps[0].parameters["iterations"] == 2
    assert (tmp_path / "random.run").is_dir() and not (tmp_path / "random.run" / STATE).exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["radnom"], "did you mean 'random'"),
        (["released"], "METHOD released"),
        (["dm", "--preset", "publishd"], "did you mean 'published'"),
        (["dm", "--preset", "published"], "no published settings for tiny"),
        (["dm", "--set", "iteratons=2"], "did you mean 'iterations'"),
        (["mtt", "--set", "experts=zca"], "'zca' is no folder of them: make one with `diver experts`"),
        (["random", "--ipc", "20"], "has 10 training images, and 20 are needed"),
    ],
)
def test_distillation_that_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepared_file: Path,
    arguments: list[str],
    word: str,
) -> None:
    ipc = [] if "--ipc" in arguments else ["--ipc", "1"]
    out = str(prepared_file.with_name("unused"))
    assert run(monkeypatch, "distill", *arguments, *ipc, "--prepared", str(prepared_file), "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert word in error and len(error.splitlines()) == 1


def test_experts_take_the_published_settings_and_departures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepared_file: Path, tmp_path: Path
) -> None:
    from diver.distill import experts

    asked = []
    monkeypatch.setattr(experts, "train_experts", lambda data, config, folder, **_: asked.append((config, folder)))
    common = ["--prepared", str(prepared_file), "--folder", str(tmp_path / "experts")]
    assert run(monkeypatch, "experts", *common, "--preset", "zca", "--set", "count=2") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'experts'}\n"
    ((config, folder),) = asked
    assert (config.zca, config.count, config.epochs, folder) == (True, 2, 50, tmp_path / "experts")
    assert run(monkeypatch, "experts", *common, "--preset", "zac") == 2
    assert "did you mean 'zca'" in capsys.readouterr().err


def test_methods_and_forms_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "methods", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {name for name, one in listed.items() if one["stage"] == "distill"} == set(distill.SETTINGS) - {"released"}
    assert {name for name, one in listed.items() if one["stage"] == "recover"} == set(recover.SETTINGS)
    assert run(monkeypatch, "methods", "dm") == 0
    assert "iterations: 1000" in capsys.readouterr().out
    assert run(monkeypatch, "forms", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    # What is completed and said without loading these modules is what they have.
    assert listed["import"] == FORMS and tuple(FORMS) == IMPORTED
    assert tuple(listed["export"]) == tuple(EXPORTS) == EXPORTED
    assert {name for name, one in EXPORTS.items() if "accuracy" in inspect.signature(one).parameters} == set(EIGHT_BIT)


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda one: one.__name__)
def test_every_command_has_help_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Callable[..., None]
) -> None:
    name = command.__name__.rstrip("_")
    assert run(monkeypatch, name, "--help") == 0
    assert re.search(rf"Examples?:\s+diver {name}", capsys.readouterr().out)


def test_every_option_of_an_example_is_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        name = command.__name__.rstrip("_")
        run(monkeypatch, name, "--help")
        about, options = capsys.readouterr().out.split("Options:")
        used = set(re.findall(r"(?<!\S)--[a-z-]+", re.split("Examples?:", about)[1]))
        assert used <= set(re.findall(r"--[a-z-]+", options)), name


@pytest.mark.parametrize(
    "arguments", [["inof"], ["recover", "--oot", "x"], ["recover"], ["evaluate", "x", "--seeds", "0"]]
)
def test_misspelt_command_line_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert not shown.out and len(shown.err.splitlines()) == 1 and "--help" in shown.err


def test_file_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "schema", "--out", str(tmp_path / "no" / "schema.json")) == 2
    assert capsys.readouterr().err == f"diver: {tmp_path / 'no' / 'schema.json'}: No such file or directory\n"


def diver(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, with the modules that it has loaded as the last line of its errors."""
    code = (
        "import sys; sys.argv[0] = 'diver'\n"
        "from diver import cli\n"
        "def broken(*_, **__): raise RuntimeError('broken')\n"
        "if 'BROKEN' in __import__('os').environ: cli._usage = cli._mendable = broken\n"
        "try: cli.main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_help_loads_no_torch_and_an_unexpected_error_is_code_1() -> None:
    shown = diver("--help")
    assert (shown.returncode, shown.stderr.split()[-1]) == (0, "False")
    assert diver("inof", BROKEN="1").returncode == 1


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("diver distill ra", ["random"]),
        ("diver recover --preset predd-m", ["predd-mtt"]),
        ("diver export --form p", ["png", "parquet"]),
        ("diver evaluate --architectures convnet,vit-g", ["convnet,vit-glad"]),
        ("diver protocols soft-f", ["soft-fkd"]),
    ],
)
def test_shell_completes_names_without_loading_torch(line: str, names: list[str]) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_DIVER_COMPLETE": "complete_bash"}
    shown = diver(**words)
    assert (shown.stdout.split(), shown.stderr.split()) == (names, ["False"])


def test_shell_completion_is_shown_for_a_shell() -> None:
    # The shell is named, so that the test needs none around it.
    shown = diver("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0 and "complete -o default -F _diver_completion diver" in shown.stdout


def test_a_run_that_could_not_write_its_set_does_not_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepared_file: Path, tmp_path: Path
) -> None:
    where = ["--prepared", str(prepared_file), "--ipc", "1", "--out", str(tmp_path / "set.run")]
    for command in (["distill", "dm"], ["synthesize", "d4m"]):
        assert run(monkeypatch, *command, *where) == 2
        assert "set.safetensors" in capsys.readouterr().err and not (tmp_path / "set.run").exists()
    assert run(monkeypatch, "distill", "released", *where) == 2
    assert "diver import" in capsys.readouterr().err
    where[-1] = str(tmp_path / "set.safetensors")
    assert run(monkeypatch, "distill", "random", *where, "--set", "seed=99999999999999999999") == 2
    assert "seed" in capsys.readouterr().err


def test_what_is_no_set_and_which_set_is_meant_are_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepared_file: Path,
    set_file: Path,
    tiny_set: DistilledSet,
    tmp_path: Path,
) -> None:
    small, out = tmp_path / "small.safetensors", str(tmp_path / "out.safetensors")
    replace(tiny_set, images=tiny_set.images[..., :8, :8].contiguous()).write(small)
    np.savez(tmp_path / "set.npz", images=tiny_set.images.numpy())
    (tmp_path / "set.zip").write_bytes(b"PK")
    compared = [str(set_file), str(small), "--prepared", str(prepared_file), *QUICK]
    for command, words in {
        ("info", str(prepared_file)): "prepared.safetensors: no distilled set, but another file of this project",
        ("recover", str(prepared_file), "--out", out): "no distilled set, but another file of this project",
        ("info", str(tmp_path / "set.npz")): "a file of NumPy, not read: put its images",
        ("info", str(tmp_path / "set.zip")): "an archive: unpack it",
        ("compare", *compared): f"{small}: the set's images are 8 x 8",
        ("convert", str(set_file), "--out", out, "--value-range", "auto"): "take unit, symmetric or dataset",
        ("info", str(set_file), "--dataset", "cifar10"): "says itself that it is of tiny; leave it out",
        ("recover", str(set_file), "--out", out, "--dataset", "cifar10"): "says itself that it is of tiny",
        ("recover", str(set_file), "--out", out, "--value-range", "unit"): "says itself what its values are",
    }.items():
        assert run(monkeypatch, *command) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.strip().splitlines()) == 1, error
