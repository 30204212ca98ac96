"""DiT's and SiT's released single-file checkpoints as diffusers' transformer."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diver.prior.base import PriorError
from diver.prior.dit import original_time_frequencies, share_embedders

# DiT-XL has heads of 72 channels; S, B and L have heads of 64.
HEADS = {1152: 16}


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint: a state dict, bare or as "ema" or "model" beside a training's other content.

    Nothing in the file is executed. Raises PriorError naming the file.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # Checkpoints of DiT's own training hold its arguments, a plain container of values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise PriorError(f"{path}: truncated, or not a file of tensors ({reason})") from error
    for key in ("ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or "x_embedder.proj.weight" not in content:
        raise PriorError(f"{path}: not a DiT or SiT checkpoint: no tensor 'x_embedder.proj.weight'")
    return content


def network_config(state: dict[str, Tensor], path: Path) -> dict[str, int | float]:
    """Settings of the network, read from the shapes of its tensors. Raises PriorError if one is missing."""
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        tokens = state["pos_embed"].shape[1]
        classes = state["y_embedder.embedding_table.weight"].shape[0] - 1
        outputs = state["final_layer.linear.weight"].shape[0]
    except KeyError as error:
        raise PriorError(f"{path}: no tensor {error}; a DiT or SiT checkpoint has it") from error
    heads = HEADS.get(width, width // 64)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": outputs // patch**2,
        "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "sample_size": round(tokens**0.5) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": classes,
        "norm_eps": 1e-6,
    }


def converted_state(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The tensors under diffusers' names. Every block gets the one embedding of time and class."""
    new = {
        "pos_embed.proj.weight": state["x_embedder.proj.weight"],
        "pos_embed.proj.bias": state["x_embedder.proj.bias"],
        "proj_out_1.weight": state["final_layer.adaLN_modulation.1.weight"],
        "proj_out_1.bias": state["final_layer.adaLN_modulation.1.bias"],
        "proj_out_2.weight": state["final_layer.linear.weight"],
        "proj_out_2.bias": state["final_layer.linear.bias"],
    }
    renamed = {
        "adaLN_modulation.1": "norm1.linear",
        "attn.proj": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
    }
    embedded = {"t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2"}
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        new[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"]
        for kind in ("weight", "bias"):
            for old, name in embedded.items():
                new[f"{block}.norm1.emb.{name}.{kind}"] = state[f"{old}.{kind}"]
            for old, name in renamed.items():
                new[f"{block}.{name}.{kind}"] = state[f"blocks.{i}.{old}.{kind}"]
            for name, part in zip("qkv", state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3), strict=True):
                new[f"{block}.attn1.to_{name}.{kind}"] = part
    return new


def load_checkpoint(path: Path) -> DiTTransformer2DModel:
    """The network of a released DiT or SiT file, with its own time frequencies, normalisation and positions.

    diffusers' class differs from the published network in two places that a conversion has to mend: the spacing of
    the time frequencies, and the 1e-5 instead of 1e-6 in the second normalisation of each block.
    """
    state = read_state(path)
    config = network_config(state, path)
    try:
        tensors = converted_state(state, int(config["num_layers"]))
    except KeyError as error:
        raise PriorError(f"{path}: no tensor {error}; a DiT or SiT checkpoint has it") from error
    # Built without storage and given the file's tensors, so that no second copy of the weights exists.
    with torch.device("meta"):
        network = DiTTransformer2DModel(**config)
    network.load_state_dict(tensors, strict=True, assign=True)
    network.pos_embed.pos_embed = state["pos_embed"].clone()
    share_embedders(network)
    original_time_frequencies(network)
    return network
