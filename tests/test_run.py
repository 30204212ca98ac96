"""Stage 2 over whole sets: pieces, streaming, resuming, shards, memory that runs out."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diver.config.recover import PRESETS, SETTINGS, DIVERConfig, PReDDConfig, VAEConfig
from diver.prior.base import Prior, PriorError
from diver.recover import METHODS, run
from diver.recover.run import cut, join, recover, recover_file
from diver.setfile import RowWriter, SetFile, merge
from diver.sets import SYMMETRIC, UNIT, DistilledSet, SetError, ValueRange

FAST = DIVERConfig(respacing="4", t_f=2, t_r=4, sp_low=1, sp_high=3, batch=2)


@pytest.fixture
def odd_set() -> DistilledSet:
    """Three classes, IPC 3, soft labels: nine images, which no batch of two or four divides."""
    images = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return DistilledSet(
        images=images,
        labels=torch.arange(3).repeat_interleave(3),
        soft_labels=torch.randn(9, 3, generator=torch.Generator().manual_seed(4)),
        dataset="tiny",
        classes=("a", "b", "c"),
        ipc=3,
        value_range=ValueRange.standardised((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    )


@pytest.fixture
def odd_file(odd_set: DistilledSet, tmp_path: Path) -> Path:
    odd_set.write(tmp_path / "set.safetensors")
    return tmp_path / "set.safetensors"


# --- pieces ---


def test_pieces_come_row_by_row_and_go_back() -> None:
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    pieces = cut(images, 2)
    # NCFM's order: top left, top right, bottom left, bottom right.
    for i, (y, x) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        assert torch.equal(pieces[i], images[0, :, y : y + 2, x : x + 3])
    assert torch.equal(join(pieces, 2), images)
    with pytest.raises(ValueError, match="tiles = 3"):
        cut(images, 3)


def test_tiles_are_recovered_each_for_itself(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    """Encoding and decoding four enlarged pieces, put together and brought down to the prior's size."""
    ours = recover(tiny_set, tiny_prior, "vae", VAEConfig(tiles=2, vae_sample=False)).images
    unit = tiny_set.in_range(SYMMETRIC).images
    first = torch.nn.functional.interpolate(unit[:1, :, :8, :8], (16, 16), mode="bilinear")
    piece = tiny_prior.decode(tiny_prior.encode(first, None))
    down = torch.nn.functional.interpolate(join(piece.repeat(4, 1, 1, 1), 2), (16, 16), mode="bilinear")
    # Away from the seams the corner of the whole is the piece alone, at half its size.
    assert torch.allclose(ours[0, :, :7, :7], down[0, :, :7, :7], atol=1e-5)


def test_pieces_of_an_image_get_different_noise(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    flat = tiny_set.with_images(
        torch.zeros_like(tiny_set.images), UNIT, run.step_of(tiny_prior, "vae", VAEConfig(), "")
    )
    out = recover(flat, tiny_prior, "diver", FAST.model_copy(update={"tiles": 2})).images
    quarters = cut(out, 2).view(len(out), 4, -1)
    assert not torch.allclose(quarters[:, 0], quarters[:, 1])


def test_output_size_is_what_was_asked_for(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    assert recover(tiny_set, tiny_prior, "vae", VAEConfig(output_size=10)).images.shape[-2:] == (10, 10)


# --- classes ---


def test_class_ids_choose_the_priors_classes(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    plain = recover(tiny_set, tiny_prior, "raw", SETTINGS["raw"](respacing="4")).images
    turned = recover(tiny_set, tiny_prior, "raw", SETTINGS["raw"](respacing="4", class_ids=[1, 2, 0])).images
    assert not torch.allclose(plain, turned)
    same = recover(tiny_set, tiny_prior, "raw", SETTINGS["raw"](respacing="4", class_ids=[0, 1, 2])).images
    assert torch.equal(plain, same)
    with pytest.raises(PriorError, match="class_ids"):
        recover(tiny_set, tiny_prior, "raw", SETTINGS["raw"](class_ids=[0, 1]))


# --- streaming ---


def test_file_by_rows_is_the_file_of_the_whole(tiny_prior: Prior, odd_set: DistilledSet, odd_file: Path) -> None:
    out, whole = odd_file.with_name("out.safetensors"), odd_file.with_name("whole.safetensors")
    recover_file(odd_file, out, tiny_prior, "diver", FAST, code="abc")
    recover(odd_set, tiny_prior, "diver", FAST, code="abc").write(whole)
    assert out.read_bytes() == whole.read_bytes()
    assert DistilledSet.read(out).steps[-1].method == "diver"
    assert sorted(p.name for p in odd_file.parent.iterdir()) == [
        "out.safetensors",
        "set.safetensors",
        "whole.safetensors",
    ]


def test_killed_recovery_goes_on_after_its_last_batch(
    tiny_prior: Prior, odd_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, out = odd_file.with_name("undisturbed.safetensors"), odd_file.with_name("out.safetensors")
    recover_file(odd_file, undisturbed, tiny_prior, "diver", FAST)
    computed: list[int] = []
    original = METHODS["diver"]

    def failing(prior: Prior, config: DIVERConfig, ipc: int):  # type: ignore[no-untyped-def]
        mapped = original(prior, config, ipc)

        def one(images: Tensor, condition: Tensor, noise):  # type: ignore[no-untyped-def]
            if len(computed) == 3:
                raise KeyboardInterrupt
            computed.append(len(images))
            return mapped(images, condition, noise)

        return one

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(METHODS, "diver", failing)
        recover_file(odd_file, out, tiny_prior, "diver", FAST)
    assert not out.exists()
    rows = json.loads((out.parent / ".out.safetensors.rows").read_text())["rows"]
    # The batch that was being computed is lost, and the one before it at most.
    assert rows in (4, 6)
    recover_file(odd_file, out, tiny_prior, "diver", FAST)
    assert f"after image {rows} of 9" in capsys.readouterr().out
    assert out.read_bytes() == undisturbed.read_bytes()


def test_rows_of_a_prior_that_was_replaced_are_not_continued(
    tiny_prior: Prior, odd_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def kept(out: Path, head: DistilledSet, shape: tuple[int, ...], key: str) -> None:
        keys.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "RowWriter", kept)
    replaced = copy.copy(tiny_prior)
    replaced.files = [(name, size, time + 1) for name, size, time in tiny_prior.files]
    for prior in (tiny_prior, tiny_prior, replaced):
        with pytest.raises(KeyboardInterrupt):
            recover_file(odd_file, odd_file.with_name("out.safetensors"), prior, "diver", FAST)
    assert tiny_prior.files and keys[0] == keys[1] != keys[2]


def test_rows_of_other_settings_are_not_continued(tiny_prior: Prior, odd_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with SetFile.open(odd_file) as opened:
        head = opened.head
    for key, kept in [("one", 2), ("other", 0)]:
        writer = RowWriter(out, head, (3, 16, 16), key)
        assert writer.done == 0
        writer.write(torch.zeros(2, 3, 16, 16))
        writer.close()
        again = RowWriter(out, head, (3, 16, 16), "one")
        assert again.done == kept
        again.close()


def test_unfinished_or_overflowing_rows_are_refused(odd_file: Path, tmp_path: Path) -> None:
    with SetFile.open(odd_file) as opened:
        writer = RowWriter(tmp_path / "out.safetensors", opened.head, (3, 16, 16))
    writer.write(torch.zeros(2, 3, 16, 16))
    with pytest.raises(SetError, match="image 3 has values that are not finite"):
        writer.write(torch.tensor([0.0, float("inf")]).view(2, 1, 1, 1).expand(2, 3, 16, 16))
    with pytest.raises(SetError, match="2 of 9 images"):
        writer.finish()


def test_progress_counts_images(tiny_prior: Prior, odd_file: Path) -> None:
    said: list[tuple[int, int]] = []
    out = odd_file.with_name("out.safetensors")
    recover_file(odd_file, out, tiny_prior, "vae", VAEConfig(batch=4), progress=lambda d, t, n="": said.append((d, t)))
    assert said == [(4, 9), (8, 9), (9, 9)]


# --- shards ---


@pytest.mark.parametrize("parts", [[range(0, 1), range(1, 3)], [range(2, 3), range(0, 2)]])
def test_shards_make_the_unsharded_set(tiny_prior: Prior, odd_file: Path, parts: list[range]) -> None:
    whole, merged = odd_file.with_name("whole.safetensors"), odd_file.with_name("merged.safetensors")
    recover_file(odd_file, whole, tiny_prior, "diver", FAST)
    shards = []
    for i, part in enumerate(parts):
        shards.append(odd_file.with_name(f"shard{i}.safetensors"))
        recover_file(odd_file, shards[-1], tiny_prior, "diver", FAST, classes=part)
        assert DistilledSet.read(shards[-1]).classes == tuple("abc"[part.start : part.stop])
    merge(odd_file, shards, merged)
    assert merged.read_bytes() == whole.read_bytes()


def test_what_is_refused_of_a_sound_file_is_no_fault_of_the_file(
    tiny_prior: Prior, odd_file: Path, tmp_path: Path
) -> None:
    """The file is open while it is recovered: what the method or the disk refuses then is not the file's damage."""
    out = tmp_path / "out.safetensors"
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"config": VAEConfig(tiles=7)}, ValueError, "tiles = 7"),
        ({"config": VAEConfig(class_ids=[1])}, ValueError, "1 given for 3 classes"),
        ({"classes": range(2, 2)}, SetError, "FIRST lies before END"),
        ({"out": tmp_path}, OSError, "directory"),
    ]
    for changed, kind, words in refused:
        given = {"source": odd_file, "out": out, "prior": tiny_prior, "method": "vae", "config": VAEConfig(), **changed}
        with pytest.raises(kind, match=words) as refusal:
            recover_file(**given)
        assert "truncated" not in str(refusal.value)


def test_shards_that_do_not_fit_are_refused(tiny_prior: Prior, odd_file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    recover_file(odd_file, first, tiny_prior, "vae", VAEConfig(), classes=range(0, 2))
    recover_file(odd_file, second, tiny_prior, "vae", VAEConfig(seed=5), classes=range(2, 3))
    with pytest.raises(SetError, match="class 'c' is missing"):
        merge(odd_file, [first], tmp_path / "out.safetensors")
    with pytest.raises(SetError, match="other settings"):
        merge(odd_file, [first, second], tmp_path / "out.safetensors")
    one = DistilledSet.read(odd_file)
    fewer = replace(one, images=one.images[:: one.ipc].clone(), labels=torch.arange(3), soft_labels=None, ipc=1)
    fewer.write(tmp_path / "fewer.safetensors")
    recover_file(odd_file, second, tiny_prior, "vae", VAEConfig(), classes=range(2, 3))
    with pytest.raises(SetError, match=rf"fewer.* IPC 1, and .*first.* has IPC {one.ipc}: give as source what"):
        merge(tmp_path / "fewer.safetensors", [first, second], tmp_path / "out.safetensors")
    with pytest.raises(SetError, match="classes 2:5: the set has 0:3"):
        recover_file(odd_file, first, tiny_prior, "vae", VAEConfig(), classes=range(2, 5))


def test_damaged_file_is_named(tiny_prior: Prior, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("bad", "absent"):
        with pytest.raises(SetError, match=f"{name}.safetensors"):
            recover_file(tmp_path / f"{name}.safetensors", tmp_path / "out", tiny_prior, "vae", VAEConfig())


# --- memory ---


def test_batch_is_halved_where_memory_runs_out(
    tiny_prior: Prior, odd_set: DistilledSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = recover(odd_set, tiny_prior, "vae", VAEConfig(batch=8)).images
    sizes: list[int] = []
    original = type(tiny_prior).encode

    def encode(self: Prior, images: Tensor, noise: Tensor | None) -> Tensor:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("no memory for that")
        return original(self, images, noise)

    monkeypatch.setattr(type(tiny_prior), "encode", encode)
    found = recover(odd_set, tiny_prior, "vae", VAEConfig(batch=8)).images
    # 8 and 4 do not fit; from then on 2 at once, in the second batch as well.
    assert sizes == [8, 4] + [2] * 8
    assert torch.allclose(found, reference, atol=1e-5)
    assert "going on with 2" in capsys.readouterr().err


def test_error_that_is_not_of_memory_is_raised(
    tiny_prior: Prior, odd_set: DistilledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: Prior, images: Tensor, noise: Tensor | None) -> Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(type(tiny_prior), "encode", encode)
    with pytest.raises(RuntimeError, match="shapes"):
        recover(odd_set, tiny_prior, "vae", VAEConfig())


# --- presets ---


def test_presets_are_valid_and_published_values_stand() -> None:
    for preset in PRESETS.values():
        SETTINGS[preset.method](**preset.settings)
    paper = DIVERConfig(**PRESETS["diver-paper"].settings)
    assert (paper.t_f, paper.t_r, paper.window(), paper.gamma, paper.cfg_scale) == (25, 50, (25, 40), 0.1, 4.0)
    assert (paper.sg_sigma, paper.cfg_channels, paper.input_range, paper.sampler) == ("learned", 3, "raw", "ddim")
    assert DIVERConfig(**PRESETS["diver-paper-ncfm"].settings).gamma == 0.02
    # The driver of its DDIM form takes a strided chain.
    chains = {name: PRESETS[name].settings.get("respacing", "50") for name in ("mgd3", "manifoldgd-mgd3")}
    assert chains == {"mgd3": "50", "manifoldgd-mgd3": "ddim50"}
    levels = {
        name: [SETTINGS["predd"](**PRESETS[name].settings).levels(ipc) for ipc in (1, 10)]  # type: ignore[attr-defined]
        for name in PRESETS
        if name.startswith("predd")
    }
    assert levels == {
        "predd-dm": [(10, 15), (20, 20)],
        "predd-ncfm": [(25, 30), (30, 35)],
        "predd-mtt": [(10, 10), (10, 10)],
        "predd-edf": [(10, 10), (10, 15)],
    }


def test_levels_of_other_images_per_class_are_asked_for() -> None:
    published: dict[str, Any] = PRESETS["predd-mtt"].settings
    PReDDConfig(**published).require_levels(10)
    with pytest.raises(ValueError, match=r"no levels for IPC 50 \(known: IPC 1, 10\); give forward_t and reverse_t"):
        PReDDConfig(**published).require_levels(50)
    PReDDConfig(**published, forward_t=15, reverse_t=15).require_levels(50)
    PReDDConfig().require_levels(50)
