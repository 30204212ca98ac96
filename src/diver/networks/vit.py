"""A small vision transformer.

Written on `torch.nn` because importing timm takes several times as long as training this network on ten images;
timm's own transformers are reached by `timm:<name>`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm attention and perceptron, each with a shortcut."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, dim))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, class token, learned positions, `depth` pre-norm blocks (Dosovitskiy et al. 2021), no dropout.

    Input float [N, channels, size, size], output float [N, classes].
    Raises ValueError if `patch` does not divide `size` or `heads` does not divide `dim`.
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
    ) -> None:
        super().__init__()
        if size % patch or dim % heads:
            raise ValueError(f"vit: patch {patch} must divide the size {size}, heads {heads} must divide dim {dim}")
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.classifier(self.norm(self.blocks(tokens))[:, 0])
