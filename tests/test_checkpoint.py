"""Released DiT and SiT files: the converted network computes what the published one does."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from plain_dit import PlainDiT, random_weights
from safetensors.torch import save_file
from torch import Tensor

from diver.prior.base import PriorError
from diver.prior.checkpoint import load_checkpoint
from diver.prior.dit import embed_once, share_embedders

WIDTH, DEPTH, HEADS, CLASSES, SIZE = 128, 3, 2, 3, 8
XL = {"width": 1152, "depth": 28, "heads": 16, "classes": 1000, "size": 32}


@pytest.fixture(scope="module")
def plain() -> PlainDiT:
    return random_weights(PlainDiT(WIDTH, DEPTH, HEADS, CLASSES, SIZE))


def bare(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path / "DiT.pt")
    return path / "DiT.pt"


def older(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path / "DiT.pt", _use_new_zipfile_serialization=False)
    return path / "DiT.pt"


def averaged(state: dict[str, Tensor], path: Path) -> Path:
    """As DiT's training leaves it: the weights, their average, and what it was started with."""
    content = {
        "model": {name: tensor + 1 for name, tensor in state.items()},
        "ema": state,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "args": argparse.Namespace(model="DiT-XL/2", image_size=256, ckpt=None),
    }
    torch.save(content, path / "0400000.pt")
    return path / "0400000.pt"


def safe(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path / "DiT.safetensors")
    return path / "DiT.safetensors"


def arguments(network: PlainDiT, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Five latents at times from the first to the last; one label is null."""
    dtype = network.pos_embed.dtype
    x = torch.randn(5, 4, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x, torch.tensor([0, 1, 40, 500, 999]), torch.tensor([0, 1, 2, CLASSES, 0])


@torch.inference_mode()
def difference(network: DiTTransformer2DModel, plain: PlainDiT, size: int = SIZE) -> float:
    """Largest difference of the two outputs, relative to the largest output."""
    x, t, y = arguments(plain, size)
    expected = plain(x, t, y)
    return float((network.eval()(x, timestep=t, class_labels=y).sample - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("save", [bare, older, averaged, safe])
def test_every_kind_of_file_becomes_the_published_network(
    plain: PlainDiT, tmp_path: Path, save: Callable[[dict[str, Tensor], Path], Path]
) -> None:
    network = load_checkpoint(save(plain.state_dict(), tmp_path))
    assert network.config.num_embeds_ada_norm == CLASSES and network.config.out_channels == 8
    assert difference(network, plain) < 1e-5


@pytest.fixture
def exact(plain: PlainDiT, tmp_path: Path) -> tuple[DiTTransformer2DModel, PlainDiT]:
    """Both in float64, where rounding hides nothing."""
    double = PlainDiT(WIDTH, DEPTH, HEADS, CLASSES, SIZE).double()
    double.load_state_dict(plain.state_dict())
    return load_checkpoint(bare(double.state_dict(), tmp_path)), double.eval()


def test_agreement_is_that_of_double_precision(exact: tuple[DiTTransformer2DModel, PlainDiT]) -> None:
    assert difference(*exact) < 1e-10


def test_diffusers_own_time_frequencies_and_normalisation_are_others(
    exact: tuple[DiTTransformer2DModel, PlainDiT],
) -> None:
    network, double = exact
    block = network.transformer_blocks[1]
    block.norm3.eps = 1e-5
    assert difference(network, double) > 1e-8
    block.norm3.eps = 1e-6
    embedder = network.transformer_blocks[0].norm1.emb
    assert block.norm1.emb is embedder
    embedder.time_proj.downscale_freq_shift = 1
    assert difference(network, double) > 1e-3


@pytest.mark.parametrize(("width", "heads", "patch"), [(64, 1, 4), (384, 6, 2), (1152, 16, 2)])
def test_other_sizes_are_read_off_the_tensors(width: int, heads: int, patch: int, tmp_path: Path) -> None:
    plain = random_weights(PlainDiT(width, 1, heads, CLASSES, SIZE, channels=4, outputs=4, patch=patch))
    network = load_checkpoint(bare(plain.state_dict(), tmp_path))
    config = network.config
    assert (config.num_attention_heads, config.patch_size, config.sample_size, config.out_channels) == (
        heads,
        patch,
        SIZE,
        4,
    )
    assert difference(network, plain) < 1e-5


def test_full_depth(tmp_path: Path) -> None:
    plain = random_weights(PlainDiT(64, XL["depth"], 1, CLASSES, SIZE))
    assert difference(load_checkpoint(bare(plain.state_dict(), tmp_path)), plain) < 1e-5


def test_the_published_size_has_its_parameters_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without storage: 675 million, as the paper says, of which the positions are not trained."""
    with torch.device("meta"):
        plain = PlainDiT(**XL)
        network = DiTTransformer2DModel(out_channels=8)
    trained = sum(p.numel() for p in plain.parameters() if p.requires_grad)
    assert (trained, trained + plain.pos_embed.numel()) == (674_834_720, 675_129_632)
    embedders = sum(p.numel() for p in network.transformer_blocks[0].norm1.emb.parameters())
    assert sum(p.numel() for p in network.parameters()) == trained + 27 * embedders
    # Tensors without storage cannot be compared.
    monkeypatch.setattr(torch, "equal", lambda a, b: a.shape == b.shape)
    assert share_embedders(network) == 27 * embedders == 74_991_744
    assert sum(p.numel() for p in network.parameters()) == trained


def test_embedders_that_differ_are_kept() -> None:
    network = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, num_layers=3, sample_size=4, num_embeds_ada_norm=2
    )
    first, second, third = (block.norm1.emb for block in network.transformer_blocks)
    third.load_state_dict(first.state_dict())
    assert share_embedders(network) == sum(p.numel() for p in first.parameters())
    kept = [block.norm1.emb for block in network.transformer_blocks]
    assert kept[0] is first and kept[1] is second and kept[2] is first


# --- files that are no checkpoints ---


class Runs:
    """Unpickling an instance makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [bare, older, safe])
@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_truncated_file_is_named(
    plain: PlainDiT, tmp_path: Path, save: Callable[[dict[str, Tensor], Path], Path], share: float
) -> None:
    path = save(plain.state_dict(), tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(PriorError, match=rf"{path}: truncated, or not a file of tensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("save", [bare, older])
def test_a_file_that_would_run_something_is_refused(
    plain: PlainDiT, tmp_path: Path, save: Callable[[dict[str, Tensor], Path], Path]
) -> None:
    path = save({**plain.state_dict(), "args": Runs(tmp_path / "ran")}, tmp_path)  # type: ignore[dict-item]
    with pytest.raises(PriorError, match=rf"{path}: .*would run posix\.mkdir"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_page_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "DiT.pt"
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(PriorError, match=str(path)):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["x_embedder.proj.weight", "pos_embed", "t_embedder.mlp.2.bias", "blocks.1.attn.qkv.bias"]
)
def test_a_missing_tensor_is_named(plain: PlainDiT, tmp_path: Path, name: str) -> None:
    state = plain.state_dict()
    del state[name]
    path = bare(state, tmp_path)
    with pytest.raises(PriorError, match=rf"{path}: .*'{name}'"):
        load_checkpoint(path)


def test_a_tensor_of_another_network_is_named(plain: PlainDiT, tmp_path: Path) -> None:
    path = bare({**plain.state_dict(), "blocks.0.attn.q_norm.weight": torch.ones(64)}, tmp_path)
    with pytest.raises(PriorError, match=rf"{path}: tensor 'blocks\.0\.attn\.q_norm\.weight' has no place"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["blocks.2.mlp.fc1.weight", "pos_embed"])
def test_tensors_that_do_not_fit_each_other_are_refused(plain: PlainDiT, tmp_path: Path, name: str) -> None:
    state = plain.state_dict()
    state[name] = state[name][..., :-2, :].clone()
    path = bare(state, tmp_path)
    with pytest.raises(PriorError, match=rf"{path}: tensors do not fit"):
        load_checkpoint(path)


def test_a_width_whose_heads_nobody_published_is_refused(tmp_path: Path) -> None:
    path = bare(PlainDiT(32, 1, 2, CLASSES, SIZE).state_dict(), tmp_path)
    with pytest.raises(PriorError, match=rf"{path}: number of attention heads"):
        load_checkpoint(path)


def test_embedding_once_a_pass_changes_no_bit() -> None:
    torch.manual_seed(0)
    settings = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3}
    network = DiTTransformer2DModel(**settings, sample_size=8, num_embeds_ada_norm=5).eval()
    for block in network.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([700, 700]), torch.tensor([1, 5])
    before = network(x, timestep=t, class_labels=y).sample
    embed_once(network)
    assert torch.equal(before, network(x, timestep=t, class_labels=y).sample), "separate embedders are left alone"
    share_embedders(network)
    calls: list[int] = []
    network.transformer_blocks[0].norm1.emb.register_forward_hook(lambda *_: calls.append(1))
    embed_once(network)
    assert torch.equal(before, network(x, timestep=t, class_labels=y).sample)
    assert not torch.equal(before, network(x, timestep=t - 1, class_labels=y).sample)
    assert len(calls) == 2
