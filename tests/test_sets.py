"""Distilled sets: what is written is read back, bad files are refused in one line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from diver.sets import SYMMETRIC, UNIT, DistilledSet, SetError, Step, ValueRange
from diver.tensorfile import KEY, read_tensors, write_tensors

CIFAR = ValueRange.standardised((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CLASSES = ("cat", "dog", "frog")


def make(**changes: Any) -> DistilledSet:
    generator = torch.Generator().manual_seed(0)
    made = DistilledSet(
        images=torch.randn(6, 3, 4, 4, generator=generator),
        dataset="toy",
        classes=CLASSES,
        ipc=2,
        value_range=CIFAR,
        labels=torch.tensor([0, 0, 1, 1, 2, 2]),
        steps=(Step("random", {"ipc": 2, "note": "ü"}, 7, "abc"),),
    )
    return replace(made, **changes)


def fault(path: Path) -> str:
    """The message for a bad file: one line that names the file."""
    with pytest.raises(SetError) as error:
        DistilledSet.read(path)
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.safetensors"


@pytest.mark.parametrize(("hard", "soft"), [(True, False), (False, True), (True, True)])
def test_round_trip(path: Path, hard: bool, soft: bool) -> None:
    written = make(soft_labels=torch.randn(6, 3) if soft else None, **({} if hard else {"labels": None}))
    written.write(path)
    read = DistilledSet.read(path)
    for name in ("images", "labels", "soft_labels"):
        a, b = getattr(written, name), getattr(read, name)
        assert (a is None and b is None) or (torch.equal(a, b) and a.dtype == b.dtype)
    for name in ("dataset", "classes", "ipc", "value_range", "steps"):
        assert getattr(read, name) == getattr(written, name)
    assert read.digest() == written.digest()
    assert torch.equal(read.hard_labels(), written.hard_labels())


def test_bytes_are_deterministic_and_nothing_is_left(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "other" / "b.safetensors"
    make().write(a)
    DistilledSet.read(a).write(b)
    assert a.read_bytes() == b.read_bytes()
    a.write_bytes(b"old")
    make().write(a)
    assert a.read_bytes() == b.read_bytes()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.safetensors", "b.safetensors", "other"]


def test_failed_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().write(path)
    old = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make(dataset="new").write(path)
    assert path.read_bytes() == old and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"images": torch.zeros(6, 3, 4, 4)},
        {"images": make().images.view(6, 3, 2, 8)},
        {"dataset": "other"},
        {"classes": ("cat", "dog", "ship")},
        {"value_range": SYMMETRIC},
        {"steps": ()},
        {"steps": (Step("random", {"ipc": 2, "note": "ü"}, 8, "abc"),)},
        {"soft_labels": torch.zeros(6, 3)},
    ],
)
def test_digest_sees_every_part(changes: dict[str, Any]) -> None:
    assert make().digest() == make().digest()
    assert make(**changes).digest() != make().digest()


def test_ranges_are_what_they_say() -> None:
    unit = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1).expand(3, 2, 2)
    assert SYMMETRIC.from_unit(unit)[:, 0, 0].tolist() == [-1.0, 0.0, 1.0]
    expected = [(u - m) / s for u, m, s in zip([0.0, 0.5, 1.0], CIFAR.mean, CIFAR.std, strict=True)]
    assert CIFAR.from_unit(unit)[:, 0, 0].tolist() == pytest.approx(expected, rel=1e-6)


RANGES = st.sampled_from([UNIT, SYMMETRIC, CIFAR, ValueRange.standardised((0.5,) * 3, (0.1, 1.0, 3.0))])


@settings(max_examples=60, deadline=None, database=None)
@given(start=RANGES, through=st.lists(RANGES, max_size=4), scale=st.floats(0.01, 20))
def test_conversions_return_and_never_clip(start: ValueRange, through: list[ValueRange], scale: float) -> None:
    original = make(value_range=start, images=make().images * scale)
    converted = original
    for target in through:
        converted = converted.in_range(target)
        assert converted.value_range == target
    assert torch.allclose(converted.in_range(start).images, original.images, atol=1e-4 * (1 + scale), rtol=1e-5)
    assert torch.equal(original.in_range(start).images, original.images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("percent",), "unknown"),
        (("unit", (0.5,), (0.5,)), "no mean"),
        (("standardised",), "needs a mean"),
        (("standardised", (0.5,), (0.5, 0.5)), "per channel"),
        (("standardised", (0.5,), (0.0,)), "positive"),
        (("standardised", (float("nan"),), (1.0,)), "finite"),
    ],
)
def test_bad_ranges_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValueRange(*arguments)


def test_range_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="3 channels"):
        CIFAR.to_unit(torch.zeros(2, 1, 4, 4))


def test_chain_grows() -> None:
    second = make().with_images(torch.zeros(6, 3, 8, 8), UNIT, Step("recover", {"eta": 0.0}, 1, "def"))
    second.validate("second")
    assert [s.method for s in second.steps] == ["random", "recover"]
    assert second.value_range == UNIT and torch.equal(second.hard_labels(), make().hard_labels())


def _with(value: float, at: int = 4) -> Tensor:
    images = make().images.clone()
    images[at, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": _with(float("nan"))}, "image 4 has values that are not finite"),
        ({"images": _with(float("inf"), 1)}, "image 1 has values that are not finite"),
        ({"images": torch.zeros(6, 3, 4)}, r"shape \[6, 3, 4\], not \[N, C, H, W\]"),
        ({"images": torch.zeros(6, 3, 0, 4)}, "every size positive"),
        ({"images": torch.zeros(6, 3, 4, 4, dtype=torch.float64)}, "float64, not torch.float32"),
        ({"images": torch.zeros(5, 3, 4, 4)}, "5 images, but ipc 2 and 3 classes make 6"),
        ({"images": torch.zeros(6, 1, 4, 4)}, "3 channels, the images 1"),
        ({"ipc": 0}, "ipc 0"),
        ({"classes": ("cat", "cat", "dog")}, "names a class twice"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 3])}, "label 3 is out of range for 3 classes"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, -1])}, "label -1 is out of range"),
        ({"labels": torch.tensor([0, 1, 0, 1, 2, 2])}, "not class-major"),
        ({"labels": torch.tensor([0, 0, 0, 1, 2, 2])}, "not class-major with 2 images per class"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"\[5\], not torch.int64 \[6\]"),
        ({"labels": torch.zeros(6)}, "float32 .*, not torch.int64"),
        ({"labels": None}, "neither labels nor soft labels"),
        ({"soft_labels": torch.zeros(6, 4)}, r"\[6, 4\], not torch.float32 \[6, 3\]"),
        ({"soft_labels": torch.full((6, 3), float("nan"))}, "soft labels have values that are not finite"),
        ({"steps": (Step("x", {"eta": float("nan")}),)}, "not JSON"),
        ({"steps": (Step("x", {"path": Path("a")}),)}, "not JSON"),
        ({"dataset": 3}, "metadata: dataset"),
    ],
)
def test_refusals(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SetError, match=message) as error:
        make(**changes).write(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not path.exists()


def spoil(path: Path, tensors: dict[str, Tensor] | None = None, **header: Any) -> None:
    """A file of a good set with parts replaced (or, if None, removed), past all checks of `write`."""
    make().write(path)
    good, metadata = read_tensors(path)
    changed = {k: v for k, v in {**metadata, **header}.items() if v is not None}
    write_tensors(path, {**good, **(tensors or {})}, changed)


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"images": _with(float("nan"))}, {}, "image 4 has values that are not finite"),
        ({"labels": torch.tensor([0, 0, 1, 1, 2, 9])}, {}, "label 9 is out of range"),
        ({"labels": torch.tensor([2, 2, 1, 1, 0, 0])}, {}, "not class-major"),
        ({"images": torch.zeros(6, 16)}, {}, r"shape \[6, 16\]"),
        ({"weights": torch.zeros(1)}, {}, "unknown tensor 'weights'"),
        ({}, {"value_range": {"kind": "percent", "mean": [], "std": []}}, "value_range.kind: .*'percent'"),
        ({}, {"value_range": {"kind": "standardised", "mean": [], "std": []}}, "needs a mean"),
        ({}, {"value_range": None}, "value_range: Field required"),
        ({}, {"ipc": "two"}, "ipc: .*'two'"),
        ({}, {"format": "distilled set 99"}, "format: .*distilled set 99"),
        ({}, {"extra": 1}, "extra: Extra inputs"),
    ],
)
def test_bad_files_are_refused(path: Path, tensors: dict, header: dict, message: str) -> None:
    spoil(path, tensors, **header)
    with pytest.raises(SetError, match=message):
        DistilledSet.read(path)
    fault(path)


def test_truncated_file(path: Path) -> None:
    make().write(path)
    whole = path.read_bytes()
    for length in (0, 4, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated" in fault(path)


def test_missing_file_and_missing_metadata(path: Path) -> None:
    assert "no such file" in fault(path)
    save_file({"images": torch.zeros(6, 3, 4, 4)}, path)
    assert "no metadata" in fault(path)
    for text, message in (("{", "not JSON"), ("[]", "not a JSON object")):
        save_file({"images": torch.zeros(6, 3, 4, 4)}, path, {KEY: text})
        assert message in fault(path)
    make().write(path)
    save_file({"labels": torch.zeros(6)}, path, {KEY: json.dumps(read_tensors(path)[1])})
    assert "no tensor 'images'" in fault(path)


def test_file_is_plain_safetensors(path: Path) -> None:
    make().write(path)
    assert set(load_file(path)) == {"images", "labels"}


def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    """A file that cannot grow past a limit, as on a full disk, in a process of its own."""
    make().write(path)
    before = path.read_bytes()
    script = """
import resource, signal, sys, torch
from diver.tensorfile import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_tensors(sys.argv[1], {"images": torch.zeros(10_000)}, {})
except OSError as error:
    print(error.filename, error.strerror)
"""
    said = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(path)) and "File too large" in said
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_others_may_read_a_set(path: Path) -> None:
    make().write(path)
    (path.parent / "plain").touch()
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode
