"""Priors from a model hub's cache: what is fetched, at which commit, verified by which digests."""

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DiTPipeline
from huggingface_hub.utils import filter_repo_objects
from plain_dit import PlainDiT, random_weights
from torch import Tensor

from diver.config.prior import PriorOptions, VAETraining
from diver.prior import hub
from diver.prior.base import Prior, PriorError
from diver.prior.checkpoint import load_checkpoint
from diver.prior.dit import DiTPrior
from diver.prior.load import load_prior
from diver.prior.train import build_vae, dit_scheduler

DIT, VAE = "facebook/DiT-XL-2-256", "stabilityai/sd-vae-ft-mse"
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
DEPTH = 4
WEIGHTS = "transformer/diffusion_pytorch_model.bin"


@pytest.fixture(scope="module")
def plain() -> PlainDiT:
    return random_weights(PlainDiT(64, DEPTH, 1, 3, 4))


@pytest.fixture(scope="module")
def layout(plain: PlainDiT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published network as the hub has it: diffusers' layout, older weights' files, diffusers' own 1e-5."""
    path = tmp_path_factory.mktemp("layout")
    torch.save(plain.state_dict(), path / "DiT.pt")
    torch.manual_seed(0)
    vae = build_vae(VAETraining(widths=[8, 8, 8], latent_channels=4), 3)
    pipeline = DiTPipeline(load_checkpoint(path / "DiT.pt"), vae, dit_scheduler())
    pipeline.save_pretrained(path / "dit", safe_serialization=False)
    settings = path / "dit/transformer/config.json"
    settings.write_text(settings.read_text().replace('"norm_eps": 1e-06', '"norm_eps": 1e-05'))
    assert json.loads(settings.read_text())["norm_eps"] == 1e-5
    vae.save_pretrained(path / "vae")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Cache:
    """A hub's cache without a network: blobs, snapshots that link to them, and the commit that main is at."""

    def __init__(self, root: Path):
        self.root = root

    def add(self, name: str, source: Path, commit: str = COMMIT, main: bool = True) -> Path:
        folder = self.root / f"models--{name.replace('/', '--')}"
        for file in (p for p in source.rglob("*") if p.is_file()):
            blob = folder / "blobs" / sha256(file)
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blob)
            link = folder / "snapshots" / commit / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        if main:
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs/main").write_text(commit)
        return folder / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    # The client has read its environment by now.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return Cache(tmp_path / "hub")


def pin(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    known = hub.KNOWN[name]
    settings = {"revision": known.revision, "sha256": known.sha256, "as_published": known.as_published, **changes}
    monkeypatch.setitem(hub.KNOWN, name, hub.Pin(**settings))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the cache ---


def test_a_name_is_found_in_the_cache_at_its_commit(cache: Cache, layout: Path) -> None:
    snapshot = cache.add("owner/name", layout / "dit")
    assert hub.fetch("owner/name", None) == (snapshot, COMMIT)
    prior = load_prior("owner/name", device="cpu")
    assert isinstance(prior, DiTPrior) and prior.name == "owner/name"
    assert prior.facts == {"prior": "owner/name", "family": "dit", "precision": "fp32", "revision": COMMIT}


def test_a_revision_is_kept_to(cache: Cache, layout: Path) -> None:
    old = cache.add("owner/name", layout / "dit", OTHER, main=False)
    cache.add("owner/name", layout / "dit")
    assert hub.fetch("owner/name", OTHER) == (old, OTHER)
    prior = load_prior("owner/name", PriorOptions(revision=OTHER), "cpu")
    assert prior.facts["revision"] == OTHER
    with pytest.raises(PriorError, match=f"hf download owner/name --revision {'e' * 40}`"):
        load_prior("owner/name", PriorOptions(revision="e" * 40), "cpu")


def test_known_names_are_read_at_their_commit_and_not_at_main(cache: Cache, layout: Path) -> None:
    cache.add(DIT, layout / "dit")
    with pytest.raises(PriorError, match=f"hf download {DIT} --revision {hub.KNOWN[DIT].revision}`"):
        load_prior(DIT, device="cpu")
    snapshot = cache.add(DIT, layout / "dit", hub.KNOWN[DIT].revision, main=False)
    assert hub.fetch(DIT, None) == (snapshot, hub.KNOWN[DIT].revision)


def test_a_single_file_takes_its_autoencoder_from_the_hub(
    cache: Cache, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, commit = "diffusion_pytorch_model.safetensors", hub.KNOWN[VAE].revision
    cache.add(VAE, layout / "vae", commit)
    with pytest.raises(PriorError, match=f"{VAE}: {name}: SHA-256 is"):
        load_prior(layout / "DiT.pt", device="cpu")
    digest = {name: sha256(layout / "vae" / name)}
    pin(monkeypatch, VAE, sha256=digest)
    facts = load_prior(layout / "DiT.pt", device="cpu").facts
    expected = {"autoencoder": VAE, "autoencoder_revision": commit, "autoencoder_sha256": digest}
    assert {key: facts[key] for key in facts if "autoencoder" in key} == expected


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_hub_out_of_reach_costs_one_line_with_the_command(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    # The client tries again five times, later each time.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    command = "hf download owner/name" + (f" --revision {revision}" if revision else "")
    for offline in (True, False):
        # Nothing listens at this port.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(PriorError) as caught:
            hub.fetch("owner/name", revision)
        said = str(caught.value)
        assert "\n" not in said and said.startswith("owner/name: ") and f"`{command}`" in said and len(said) < 400


# --- digests ---


def test_digests_of_known_names_are_compared(cache: Cache, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache.add(DIT, layout / "dit", hub.KNOWN[DIT].revision)
    found, expected = sha256(layout / "dit" / WEIGHTS), hub.KNOWN[DIT].sha256[WEIGHTS]
    with pytest.raises(PriorError, match=rf"{DIT}: {WEIGHTS}: SHA-256 is {found}, expected {expected};") as caught:
        load_prior(DIT, device="cpu")
    # A new link to the same blob would bring the same file back.
    assert f"delete {(snapshot / WEIGHTS).resolve()} and fetch" in str(caught.value)
    pin(monkeypatch, DIT, sha256={WEIGHTS: found.upper()})
    facts = load_prior(DIT, device="cpu").facts
    assert facts["sha256"] == {WEIGHTS: found} and facts["revision"] == hub.KNOWN[DIT].revision


def test_another_commit_of_a_known_name_has_other_digests(cache: Cache, layout: Path) -> None:
    cache.add(DIT, layout / "dit")
    facts = load_prior(DIT, PriorOptions(revision=COMMIT), "cpu").facts
    assert "sha256" not in facts and facts["revision"] == COMMIT


def test_digests_of_local_files_are_compared_on_demand(layout: Path) -> None:
    found = sha256(layout / "dit" / WEIGHTS)
    prior = load_prior(layout / "dit", PriorOptions(sha256={WEIGHTS: found}), "cpu")
    assert prior.facts["sha256"] == {WEIGHTS: found} and "revision" not in prior.facts
    with pytest.raises(PriorError, match=f"{WEIGHTS}: SHA-256 is {found}, expected {'0' * 64}"):
        load_prior(layout / "dit", PriorOptions(sha256={WEIGHTS: "0" * 64}), "cpu")
    with pytest.raises(PriorError, match="other.bin: no such file"):
        load_prior(layout / "dit", PriorOptions(sha256={"other.bin": found}), "cpu")
    with pytest.raises(PriorError, match=r"DiT\.pt: SHA-256 is"):
        load_prior(layout / "DiT.pt", PriorOptions(sha256={"DiT.pt": found}), "cpu")


# --- the network as published ---


def deviation(prior: Prior, plain: PlainDiT) -> float:
    """In float64, of the largest output."""
    x, t, y = normal(2, 4, 4, 4).double(), torch.tensor([500, 20]), torch.tensor([0, 3])
    network, reference = prior.network.double(), PlainDiT(64, DEPTH, 1, 3, 4).double()
    reference.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        expected = reference(x, t, y)
        return float((network(x, timestep=t, class_labels=y).sample - expected).abs().max() / expected.abs().max())


def test_known_networks_compute_as_published_and_others_as_diffusers(
    cache: Cache, layout: Path, plain: PlainDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.add(DIT, layout / "dit", hub.KNOWN[DIT].revision)
    cache.add("owner/name", layout / "dit")
    pin(monkeypatch, DIT, sha256={})
    assert deviation(load_prior(DIT, device="cpu"), plain) < 1e-10
    assert deviation(load_prior(DIT, PriorOptions(dit_arithmetic="diffusers"), "cpu"), plain) > 1e-3
    for other in ("owner/name", layout / "dit"):
        assert deviation(load_prior(other, device="cpu"), plain) > 1e-3
    assert deviation(load_prior(layout / "dit", PriorOptions(dit_arithmetic="published"), "cpu"), plain) < 1e-10
    # A folder that has a known name is not the hub's.
    shutil.copytree(layout / "dit", cache.root / DIT)
    monkeypatch.chdir(cache.root)
    assert deviation(load_prior(DIT, device="cpu"), plain) > 1e-3


# --- what is downloaded ---

STABLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
LAYOUTS = {
    # Needed first, not needed second.
    DIT: (
        "model_index.json scheduler/scheduler_config.json transformer/config.json "
        "transformer/diffusion_pytorch_model.bin vae/config.json vae/diffusion_pytorch_model.bin",
        ".gitattributes README.md",
    ),
    VAE: (
        "config.json diffusion_pytorch_model.safetensors",
        ".gitattributes README.md diffusion_pytorch_model.bin",
    ),
    STABLE: (
        "model_index.json scheduler/scheduler_config.json text_encoder/config.json text_encoder/model.safetensors "
        "tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json "
        "unet/config.json unet/diffusion_pytorch_model.safetensors vae/config.json "
        "vae/diffusion_pytorch_model.safetensors",
        ".gitattributes README.md feature_extractor/preprocessor_config.json safety_checker/config.json "
        "safety_checker/model.fp16.safetensors safety_checker/model.safetensors safety_checker/pytorch_model.bin "
        "safety_checker/pytorch_model.fp16.bin text_encoder/model.fp16.safetensors text_encoder/pytorch_model.bin "
        "text_encoder/pytorch_model.fp16.bin unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin "
        "unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.non_ema.bin "
        "unet/diffusion_pytorch_model.non_ema.safetensors vae/diffusion_pytorch_model.bin "
        "vae/diffusion_pytorch_model.fp16.bin vae/diffusion_pytorch_model.fp16.safetensors v1-5-pruned-emaonly.ckpt "
        "v1-5-pruned-emaonly.safetensors v1-5-pruned.ckpt v1-5-pruned.safetensors v1-inference.yaml",
    ),
    "owner/pieces": (
        "model_index.json unet/config.json unet/diffusion_pytorch_model-00001-of-00002.safetensors "
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors unet/diffusion_pytorch_model.safetensors.index.json "
        "text_encoder/config.json text_encoder/pytorch_model-00001-of-00001.bin "
        "text_encoder/pytorch_model.bin.index.json",
        "unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors "
        "unet/diffusion_flax_model.msgpack unet/model.onnx text_encoder/tf_model.h5",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_needed_is_fetched_and_nothing_else(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed, others = (names.split() for names in LAYOUTS[name])
    commit = hub.KNOWN[name].revision if name in hub.KNOWN else COMMIT

    def download(source: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert source == name and (revision or commit) == commit
        for file in filter_repo_objects([*others, *needed], allow_patterns=allow_patterns):
            path = tmp_path / commit / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(tmp_path / commit)

    monkeypatch.setattr(hub, "snapshot_download", download)
    root, revision = hub.fetch(name, None)
    assert revision == commit
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) == sorted(needed)


# --- how it runs ---


def test_half_precision_is_inside_only(layout: Path) -> None:
    prior = load_prior(layout / "dit", PriorOptions(precision="bf16"), "cpu")
    exact = load_prior(layout / "dit", device="cpu")
    for part in (prior.network, prior.vae):
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    images, y = normal(2, 3, 16, 16).clamp(-1, 1), torch.tensor([0, 2])
    z, level = prior.encode(images, normal(2, 4, 4, 4)), prior.schedule("50").level(30)
    said, expected = (p.denoise(z, level, y, 4.0) for p in (prior, exact))
    for ours, theirs in [
        (z, exact.encode(images, normal(2, 4, 4, 4))),
        (prior.decode(z), exact.decode(z)),
        (said.clean, expected.clean),
        (said.noise, expected.noise),
        (said.log_variance, expected.log_variance),
    ]:
        assert ours is not None and theirs is not None
        assert ours.dtype == torch.float32
        assert 0 < (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_compiled_blocks_compute_the_same(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = []

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compilations.append(graph)
        return graph.forward

    # Machine code would take most of a minute here.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counted))
    torch.compiler.reset()
    plainly, compiled = (load_prior(layout / "dit", PriorOptions(compile=c), "cpu") for c in (False, True))
    z, y, level = normal(2, 4, 4, 4), torch.tensor([0, 2]), plainly.schedule("50").level(30)
    found = compiled.denoise(z, level, y, 4.0).noise
    assert torch.allclose(found, plainly.denoise(z, level, y, 4.0).noise, atol=1e-5)
    # The first block's input lies otherwise in memory; one compilation serves the others.
    assert len(compilations) == 2 < DEPTH
