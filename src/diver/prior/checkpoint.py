"""DiT's and SiT's released single-file checkpoints as diffusers' transformer."""

import argparse
import re
import zipfile
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from diver.prior.base import PriorError
from diver.prior.dit import compute_as_published, share_embedders

# Layers by the names that the released files and diffusers give them; weight and bias each.
OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
TIME = {"t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2"}
BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
JOINT, POSITIONS, CLASSES = "attn.qkv", "pos_embed", "y_embedder.embedding_table.weight"


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint: a state dict, bare or as "ema" or "model" beside a training's other content.

    Nothing in the file is executed. Raises PriorError naming the file.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # Checkpoints of DiT's own training hold its arguments, a plain container of values. Files from before
            # torch 1.6 are no archives and cannot be mapped.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what damaged files raise is of no common kind
        # torch's own advice is to trust such a file.
        code = re.search(r"GLOBAL (\S+)", str(error))
        said = " ".join(str(error).split("WeightsUnpickler error:")[-1].split())[:120] or type(error).__name__
        reason = f"it would run {code[1]}" if code else said
        raise PriorError(f"{path}: truncated, or not a file of tensors alone ({reason})") from error
    for key in ("ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or "x_embedder.proj.weight" not in content:
        raise PriorError(f"{path}: not a DiT or SiT checkpoint: no tensor 'x_embedder.proj.weight'")
    return content


def _depth(state: dict[str, Tensor], path: Path) -> int:
    """Number of blocks; raises PriorError if tensors are missing or there are some that would not be used."""
    blocks = {int(found[1]) for key in state if (found := re.match(r"blocks\.(\d+)\.", key))}
    depth = 1 + max(blocks, default=0)
    layers = [*OUTER, *TIME, *(f"blocks.{i}.{layer}" for i in range(depth) for layer in (*BLOCK, JOINT))]
    known = {POSITIONS, CLASSES, *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))}
    if missing := known - state.keys():
        raise PriorError(f"{path}: no tensor {min(missing)!r}; a DiT or SiT checkpoint has it")
    if others := state.keys() - known:
        raise PriorError(f"{path}: tensor {min(others)!r} has no place in DiT or SiT; it is another network's file")
    return depth


def network_config(state: dict[str, Tensor], path: Path) -> dict[str, int]:
    """Settings of the network, read from the names and shapes of its tensors; raises PriorError if they do not fit."""
    depth = _depth(state, path)
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    # The published networks: 72 channels a head in DiT-XL, 64 in S, B and L.
    heads = 16 if width == 1152 else width // 64
    if width != 1152 and width % 64:
        raise PriorError(f"{path}: number of attention heads unknown for width {width}: not 1152, no multiple of 64")
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": len(state["final_layer.linear.bias"]) // patch**2,
        "num_layers": depth,
        "sample_size": isqrt(state[POSITIONS].shape[1]) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": len(state[CLASSES]) - 1,
    }


def converted_state(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The tensors under diffusers' names. Every block gets the one embedding of time and class."""
    new = {}
    for kind in ("weight", "bias"):
        for old, name in OUTER.items():
            new[f"{name}.{kind}"] = state[f"{old}.{kind}"]
        for i in range(depth):
            block = f"transformer_blocks.{i}"
            for old, name in TIME.items():
                new[f"{block}.norm1.emb.{name}.{kind}"] = state[f"{old}.{kind}"]
            for old, name in BLOCK.items():
                new[f"{block}.{name}.{kind}"] = state[f"blocks.{i}.{old}.{kind}"]
            for name, part in zip("qkv", state[f"blocks.{i}.{JOINT}.{kind}"].chunk(3), strict=True):
                new[f"{block}.attn1.to_{name}.{kind}"] = part
    for i in range(depth):
        new[f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"] = state[CLASSES]
    return new


def load_checkpoint(path: Path) -> DiTTransformer2DModel:
    """The network of a released DiT or SiT file, computing as published. Raises PriorError naming file and fault."""
    state = read_state(path)
    config = network_config(state, path)
    # Built without storage and given the file's tensors, so that no second copy of the weights exists.
    with torch.device("meta"):
        network = DiTTransformer2DModel(**config)
    try:
        network.load_state_dict(converted_state(state, config["num_layers"]), strict=True, assign=True)
        # Not a part of diffusers' state: it would compute the table itself.
        network.pos_embed.pos_embed = state[POSITIONS].clone().view(network.pos_embed.pos_embed.shape)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[-160:]
        raise PriorError(f"{path}: tensors do not fit each other ({reason})") from error
    share_embedders(network)
    compute_as_published(network)
    return network
