"""A small vision transformer.

Written on `torch.nn` because importing timm takes several times as long as training this network on ten images;
timm's own transformers are reached by `timm:<name>`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _norm(norm: str, dim: int) -> nn.Module:
    if norm not in ("layer", "none"):
        raise ValueError(f"norm {norm!r} is not known; choose layer or none")
    return nn.LayerNorm(dim) if norm == "layer" else nn.Identity()


class Block(nn.Module):
    """Pre-norm attention and perceptron, each with a shortcut."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        norm: str = "layer",
        head_dim: int | None = None,
        dropout: float = 0.0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = _norm(norm, dim), _norm(norm, dim)
        inner = heads * (head_dim or dim // heads)
        self.qkv, self.proj = nn.Linear(dim, 3 * inner, bias=qkv_bias), nn.Linear(inner, dim)
        hidden = int(dim * mlp_ratio)
        self.drop = nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), self.drop, nn.Linear(hidden, dim), self.drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.drop(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, class token, learned positions, `depth` pre-norm blocks (Dosovitskiy et al. 2021).

    Input float [N, channels, size, size], output float [N, classes].
    norm: layer, or none to leave out every LayerNorm, as GLaD does (Cazenavette et al. 2023).
    head_dim: channels of a head, by default dim / heads. dropout: after the positions and after each linear layer of
    a block but that of queries, keys and values, from torch's global generator.
    init: small (linear weights and positions of deviation 0.02, all else zero) or unit (token and positions of
    deviation 1, linear layers as PyTorch draws them; GLaD).
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        size: int,
        dim: int = 96,
        depth: int = 4,
        heads: int = 3,
        patch: int = 4,
        mlp_ratio: float = 2.0,
        norm: str = "layer",
        head_dim: int | None = None,
        dropout: float = 0.0,
        qkv_bias: bool = True,
        init: str = "small",
    ) -> None:
        super().__init__()
        unit = init == "unit"
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, dim) if unit else torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, dim) * (1.0 if unit else 0.02))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, mlp_ratio, norm, head_dim, dropout, qkv_bias) for _ in range(depth))
        )
        self.norm = _norm(norm, dim)
        self.classifier = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear) and not unit:
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.classifier(self.norm(self.blocks(self.drop(tokens)))[:, 0])
