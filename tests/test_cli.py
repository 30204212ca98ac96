"""The command line: single steps, and errors that are one line with exit code 2."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiTPipeline

from diver import cli
from diver.config.protocols import PRESETS, Protocol, protocol
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.prior.train import dit_scheduler
from diver.sets import DistilledSet

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
    assert run(monkeypatch, "info", str(set_file)) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["ipc"] == 2 and described["images"] == [6, 3, 16, 16]


def test_recover_writes_a_set_with_its_history(
    monkeypatch: pytest.MonkeyPatch, set_file: Path, prior_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    settings = ["--set", "respacing='4'", "--set", "t_f=2", "--set", "t_r=4", "--set", "sp_low=1", "--set", "sp_high=2"]
    assert run(monkeypatch, "recover", str(set_file), "--out", str(out), "--prior", str(prior_folder), *settings) == 0
    recovered = DistilledSet.read(out)
    assert recovered.steps[-1].method == "diver" and recovered.steps[-1].parameters["t_f"] == 2
    assert recovered.value_range.kind == "symmetric"


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


def test_released_set_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images, labels = torch.randn(10, 3, 16, 16), torch.arange(10)
    torch.save({"data": [[images, labels]], "accs_all_exps": {"ConvNet": [0.2, 0.3]}}, tmp_path / "set.pt")
    out = tmp_path / "set.safetensors"
    monkeypatch.chdir(ROOT)
    assert run(monkeypatch, "import", str(tmp_path / "set.pt"), "--dataset", "imagefruit", "--out", str(out)) == 0
    assert "recorded for ConvNet: 25.00 % (mean of 2)" in capsys.readouterr().out
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
        (["--prior-set", "precison=bf16"], "did you mean 'precision'"),
        (["--classes", "1-2"], "FIRST:END"),
        (["--set", "t_f=50"], "t_f = 50"),
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
    assert word in error and len(error.strip().splitlines()) == 1


def test_bad_set_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    assert run(monkeypatch, "info", str(tmp_path / "bad.safetensors")) == 2
    assert "bad.safetensors" in capsys.readouterr().err


def test_check_counts_the_jobs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "check", str(ROOT / "config/test.yaml")) == 0
    assert "9 sets, 20 student jobs, 40 students" in capsys.readouterr().out


def test_refused_study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text((ROOT / "config/test.yaml").read_text().replace("students:", "studnets:"))
    assert run(monkeypatch, "check", str(path)) == 2
    assert "did you mean 'students'" in capsys.readouterr().err


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
    assert run(monkeypatch, "teach", *data, "--out", teacher, "--network", "alexnet", "--set", "epochs=1") == 0
    assert "% of the test images" in capsys.readouterr().out
    for name in PRESETS:
        short = ["--protocol", name, "--set", "epochs=2", "--architecture", "alexnet", "--seeds", "2"]
        assert run(monkeypatch, "evaluate", str(set_file), *data, *short, "--teacher", teacher) == 0
        shown = capsys.readouterr().out
        assert "2 seeds" in shown
        assert f"protocol {name}; departures: epochs=2" in shown
    assert run(monkeypatch, "evaluate", str(set_file), *data, *short, "--json") == 0
    assert [row["seed"] for row in json.loads(capsys.readouterr().out)] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--protocol", "glad-evla"], "did you mean 'glad-eval'"),
        (["--set", "epoch=3"], "did you mean 'epochs'"),
        (["--architecture", "convnte"], "convnet"),
        (["--protocol", "soft-fkd"], "diver teach"),
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
