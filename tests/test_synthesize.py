"""`diver synthesize`: a set and its preparations by one command, on the tiny prior."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiTPipeline

from diver import cli
from diver.config import native
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.prior.train import dit_scheduler
from diver.recover import preparing
from diver.recover.preparing import MAKERS
from diver.sets import DistilledSet


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["diver", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def files(tmp_path: Path, tiny_prior: Prior) -> list[str]:
    """Options that name a prepared dataset of three classes with ten images each, and the tiny prior."""
    DiTPipeline(tiny_prior.network, tiny_prior.vae, dit_scheduler()).save_pretrained(tmp_path / "prior")
    images = torch.randint(0, 256, (30, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(3).repeat(10)
    data = Prepared(
        images,
        labels,
        images[:3].clone(),
        labels[:3].clone(),
        "tiny",
        ("a", "b", "c"),
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
    )
    data.write(tmp_path / "tiny.safetensors")
    return ["--prepared", str(tmp_path / "tiny.safetensors"), "--prior", str(tmp_path / "prior"), "--ipc", "2"]


@pytest.mark.parametrize(
    ("system", "settings"),
    [
        ("d4m", []),
        ("mgd3", ["stop=1"]),
        ("d3hr", ["respacing=ddim4", "level=2", "kept_levels=[]", "candidates=50"]),
        ("minimax", ["steps=2", "tuning_batch=4", "memory=2"]),
    ],
)
def test_a_system_makes_its_set_from_nothing_but_the_data_and_the_prior(
    monkeypatch: pytest.MonkeyPatch, files: list[str], tmp_path: Path, system: str, settings: list[str]
) -> None:
    out = tmp_path / "set.safetensors"
    options = [part for one in ["respacing='4'", *settings] for part in ("--set", one)]
    assert run(monkeypatch, "synthesize", system, *files, "--out", str(out), *options) == 0
    made = DistilledSet.read(out)
    assert (made.ipc, made.classes, made.steps[0].method) == (2, ("a", "b", "c"), system)
    assert {one.name for one in native.PREPARATIONS[system]} <= {
        path.name.split(".")[0] for path in (tmp_path / "set.run").iterdir()
    }


def test_what_was_prepared_is_taken_again_unless_settings_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path
) -> None:
    asked: list[str] = []
    for name in ("latents", "prototypes"):
        make = MAKERS[name]
        monkeypatch.setitem(
            preparing.MAKERS, name, lambda work, out, name=name, make=make: (asked.append(name), make(work, out))
        )
    out = tmp_path / "set.safetensors"
    command = ["synthesize", "d4m", *files, "--out", str(out), "--set", "respacing='4'"]
    latents = tmp_path / "set.run/latents.npy"
    assert run(monkeypatch, *command, "--until", "latents") == 0
    assert capsys.readouterr().out == f"{latents}\n" and asked == ["latents"] and not out.exists()
    assert run(monkeypatch, *command) == 0
    assert asked == ["latents", "prototypes"] and out.exists()
    # Nor does what a preparation does not depend on count.
    assert run(monkeypatch, *command, "--set", "strength=0.5") == 0
    assert asked == ["latents", "prototypes"]
    for change in (["--set", "seed=2"], ["--ipc", "1"]):
        assert run(monkeypatch, *command, *change) == 0
        assert asked.pop() == "prototypes" and asked == ["latents", "prototypes"]
    assert run(monkeypatch, *command, "--share", "latents.per_class=5") == 0
    assert asked == ["latents", "prototypes"] * 2
    # Nor is what was made of other files.
    os.utime(tmp_path / "prior/vae/config.json", (1, 1))
    assert run(monkeypatch, *command, "--share", "latents.per_class=5") == 0
    assert asked == ["latents", "prototypes"] * 3
    # A file that is given is not made.
    assert run(monkeypatch, *command, "--artefact", f"latents={latents}", "--folder", str(tmp_path / "other")) == 0
    assert asked[6:] == ["prototypes"] and not (tmp_path / "other/latents.npy").exists()


def test_what_a_given_file_was_made_from_is_not_made(
    monkeypatch: pytest.MonkeyPatch, files: list[str], tmp_path: Path
) -> None:
    out, folder = tmp_path / "set.safetensors", tmp_path / "other"
    command = ["synthesize", "d4m", *files, "--out", str(out), "--set", "respacing='4'"]
    assert run(monkeypatch, *command) == 0
    first, given = out.read_bytes(), f"prototypes={tmp_path / 'set.run/prototypes.safetensors'}"
    assert run(monkeypatch, *command, "--artefact", given, "--folder", str(folder)) == 0
    assert out.read_bytes() == first and not folder.exists()
    assert run(monkeypatch, *command, "--artefact", given, "--folder", str(folder), "--until", "latents") == 0
    assert [path.name for path in folder.glob("*.npy")] == ["latents.npy"]


@pytest.mark.parametrize(
    ("system", "last", "given", "found"),
    [
        ("edits", "texts", [], {"captions", "features", "texts"}),
        ("edits", "texts", ["features"], {"features", "texts"}),
        ("edits", "features", ["texts"], {"captions", "features"}),
        ("vlcp", "texts", ["captions"], {"captions", "latents", "texts"}),
        ("vlcp", "texts", ["texts"], {"texts"}),
        ("minimax", "tuned", [], {"latents", "tuned"}),
    ],
)
def test_only_what_is_needed_is_prepared(system: str, last: str, given: list[str], found: set[str]) -> None:
    assert preparing.needed(system, last, given) == found


def test_minimax_tunes_in_full_precision_whatever_samples(
    monkeypatch: pytest.MonkeyPatch, files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "set.safetensors"
    given = ["respacing=4", "steps=1", "tuning_batch=4", "memory=2"]
    options = [part for one in given for part in ("--set", one)]
    command = ["synthesize", "minimax", *files, "--out", str(out), "--prior-set", "precision=bf16", *options]
    assert run(monkeypatch, *command) == 0
    assert DistilledSet.read(out).steps[0].parameters["prior_facts"]["precision"] == "bf16"


def test_data_are_not_written_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path
) -> None:
    before = Path(files[1]).read_bytes()
    assert run(monkeypatch, "synthesize", "d4m", *files, "--out", files[1]) == 2
    assert "is what is read, and would be lost" in capsys.readouterr().err
    assert Path(files[1]).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d5m"], "SYSTEM d5m: did you mean 'd4m'?"),
        (["d4m", "--set", "strenght=1"], "did you mean 'strength'?"),
        (["d4m", "--set", "strength=2"], "--set strength: Input should be less than or equal to 1"),
        (["d4m", "--share", "latents=5"], "write PART.KEY=VALUE"),
        (["d4m", "--share", "latent.per_class=5"], "did you mean 'latents'?"),
        (["d4m", "--share", "latents.per_class=0"], "--share latents.per_class"),
        (["d4m", "--artefact", "latents=absent.npy"], "latents=absent.npy: no such file"),
        (["d4m", "--artefact", "latent=absent.npy"], "did you mean 'latents'?"),
        (["d4m", "--until", "texts"], "--until texts"),
        (["d4m", "--set", "km_expand=20", "--set", "drop_leftover=true"], "class 0: 10 latents fill no batch of 40"),
        (["d4m", "--prior-set", "prompt=a {}"], "prior: prompt: is for a prior that reads, and this is a dit"),
        (["mgd3", "--set", "respacing='4'"], "stop = 25: with respacing '4' it must lie below 3"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, "synthesize", *arguments, *files, "--out", str(tmp_path / "set.safetensors")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and not (tmp_path / "set.safetensors").exists()


def test_images_that_the_prior_does_not_take_are_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files: list[str], tmp_path: Path
) -> None:
    data = Prepared.read(files[1])
    grey = {"train_images": data.train_images[:, :1].clone(), "test_images": data.test_images[:, :1].clone()}
    Prepared(**{**vars(data), **grey, "mean": (0.5,), "std": (0.25,)}).write(files[1])
    assert run(monkeypatch, "synthesize", "edits", *files, "--out", str(tmp_path / "set.safetensors")) == 2
    assert "takes 3 channels, images of tiny have 1" in capsys.readouterr().err
    assert not (tmp_path / "set.run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("class_ids=[0,1,3]", "class_ids: 3 given for 3 classes"),
        ("cfg_channels=5", "cfg_channels = 5: latents of prior"),
        ("respacing=1001", "respacing '1001': give a number from 2 to 1000"),
    ],
)
def test_settings_that_the_prior_does_not_take_are_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    tmp_path: Path,
    setting: str,
    message: str,
) -> None:
    assert (
        run(monkeypatch, "synthesize", "d4m", *files, "--out", str(tmp_path / "set.safetensors"), "--set", setting) == 2
    )
    assert message in capsys.readouterr().err and not (tmp_path / "set.run").exists()


def test_systems_are_listed_with_their_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "methods", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    systems = {name for name, one in listed.items() if one["stage"] == "synthesize"}
    assert systems == set(native.SETTINGS) and all(listed[name]["about"] for name in systems)
    assert run(monkeypatch, "methods", "d4m") == 0
    assert "strength: 0.7" in capsys.readouterr().out
