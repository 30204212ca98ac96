"""DiT and SiT written down from the papers, as a reference for the networks that released checkpoints are read into.

Peebles and Xie 2023, section 3 and appendix A: adaLN-Zero blocks on patches of a latent. SiT (Ma et al. 2024) is the
same network with other targets. Modules are named so that their tensors have the names of the released checkpoints.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(positions: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Sine and cosine of positions [n] at channels / 2 frequencies from 1 to nearly 1e-4, each [n, channels / 2]."""
    half = channels // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, dtype=positions.dtype) / half)
    angles = positions[:, None] * frequencies
    return angles.sin(), angles.cos()


def grid_positions(side: int, width: int) -> Tensor:
    """Fixed sinusoidal positions [1, side^2, width], row by row: half of the channels tell the column, half the row."""
    row, column = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    parts = [*sinusoids(column.flatten(), width // 2), *sinusoids(row.flatten(), width // 2)]
    return torch.cat(parts, dim=1).float()[None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalised tokens [N, T, D], shifted and scaled by one vector an image, [N, D]."""
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate[:, None] * self.attn(modulate(x, shift, scale))
        return x + mlp_gate[:, None] * self.mlp(modulate(x, mlp_shift, mlp_scale))


class PlainDiT(nn.Module):
    """x [N, channels, size, size], t [N] and y [N] to [N, outputs, size, size]; label `classes` is null."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        classes: int,
        size: int,
        channels: int = 4,
        outputs: int = 8,
        patch: int = 2,
    ):
        super().__init__()
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = nn.ModuleDict(
            {
                "linear": nn.Linear(width, patch**2 * outputs),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            }
        )
        self.pos_embed = nn.Parameter(grid_positions(size // patch, width), requires_grad=False)
        self.patch = patch

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens = self.x_embedder["proj"](x).flatten(2).mT + self.pos_embed
        # The released network computes the sinusoids in single precision whatever its own is.
        sine, cosine = sinusoids(t.float(), 256)
        time = self.t_embedder["mlp"](torch.cat([cosine, sine], dim=1).to(x.dtype))
        condition = time + self.y_embedder["embedding_table"](y)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.final_layer["adaLN_modulation"](condition).chunk(2, dim=1)
        patches = self.final_layer["linear"](modulate(tokens, shift, scale))
        n, p, side = len(x), self.patch, x.shape[-1] // self.patch
        return patches.view(n, side, side, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(n, -1, p * side, p * side)


def random_weights(network: PlainDiT, seed: int = 0) -> PlainDiT:
    """Every tensor that is trained drawn from a normal: products keep their spread, and no modulation is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "table" not in name else 16
            nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
    return network.eval().requires_grad_(False)
