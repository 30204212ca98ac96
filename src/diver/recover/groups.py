"""D3HR's group sampling: of many candidate groups of normal vectors, the one whose moments are nearest to the class's.

With mu and sigma of the class per dimension, a group G of ipc vectors from N(mu, diag sigma^2) scores

    lambda_mean ||mean(G) - mu|| + lambda_std ||std(G) - sigma|| + lambda_skew ||skew(G)||

with the unbiased standard deviation and the skewness n / ((n - 1)(n - 2)) sum z^3 per dimension over the group. A
deviation needs two vectors, a skewness three: smaller groups go without. All three follow from unit normals z, as
mean(G) - mu = sigma mean(z), std(G) = sigma std(z) and skew(G) = skew(z), so that sigma enters on [groups, d] only.

A candidate costs ipc * d draws and about nine passes over them, in chunks that are drawn, scored and forgotten; the
best is drawn again from its chunk's seed. A million groups of 10 at 4096 dimensions are 4.1e10 normals and 1.5 TB of
traffic, half a second of a GPU's memory of 3 TB/s beside the drawing.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Draws of one chunk: what a core's cache holds, and what keeps a GPU busy. A chunk has a seed of its own.
CPU_DRAWS, GPU_DRAWS = 2**18, 2**25

Skewness = Literal["true", "released"]


@dataclass(frozen=True)
class Weights:
    """Weights of the three terms; "released" takes the skewness of D3HR's code, a number a vector, not a dimension."""

    mean: float = 1.0
    std: float = 1.0
    skew: float = 0.5
    skewness: Skewness = "true"


@dataclass(frozen=True)
class Chosen:
    """The best group, float32 [ipc, *shape]; its score; the mean score of all candidates; how many there were."""

    group: Tensor
    score: float
    mean_score: float
    candidates: int


def chunk_seed(seed: int, label: int, chunk: int, shared: bool = False) -> int:
    """Seed of a chunk of candidates; `shared` is that of D3HR's code, the same for all runs and classes."""
    if shared:
        return chunk * 12345
    key = hashlib.sha256(f"{seed}/{label}/group chunk {chunk}".encode()).digest()
    return int.from_bytes(key[:8], "big") % 2**63


def group_scores(z: Tensor, sigma: Tensor, weights: Weights) -> Tensor:
    """Scores [groups] of unit-normal groups [groups, ipc, d], for a class of standard deviation `sigma` [d].

    The released skewness is the norm over the group of each vector's mean cubed z-score over the dimensions.
    """
    n = z.shape[1]
    mean = z.mean(1)
    score = weights.mean * torch.linalg.vector_norm(sigma * mean, dim=-1)
    if n == 1:
        return score
    if weights.skewness == "released" and n > 2:
        std = z.std(1)
        cubes = ((z - mean[:, None]) / std[:, None].clamp_min(1e-12)) ** 3
        score += weights.skew * torch.linalg.vector_norm(cubes.mean(-1), dim=-1)
    power = z * z
    squares = power.sum(1)
    std = ((squares - n * mean**2) / (n - 1)).clamp_min(0).sqrt_()
    score += weights.std * torch.linalg.vector_norm(sigma * (std - 1), dim=-1)
    if weights.skewness == "true" and weights.skew and n > 2:
        third = power.mul_(z).sum(1) - 3 * mean * squares + 2 * n * mean**3
        skew = third / std.clamp_min(1e-12) ** 3 * (n / ((n - 1) * (n - 2)))
        score += weights.skew * torch.linalg.vector_norm(skew, dim=-1)
    return score


def choose_group(
    mean: Tensor,
    std: Tensor,
    ipc: int,
    candidates: int,
    weights: Weights,
    seed: int,
    label: int,
    shared_seed: bool = False,
) -> Chosen:
    """Best of `candidates` groups for a class of mean and standard deviation [*shape], on their device.

    What is drawn depends on (seed, label, chunk), and on whether it is drawn on a CPU or a GPU. A longer search sees
    the same chunks first.
    """
    sigma = std.float().flatten()
    chunk = max(1, (CPU_DRAWS if sigma.device.type == "cpu" else GPU_DRAWS) // (ipc * len(sigma)))
    generator = torch.Generator(sigma.device)
    draws = torch.empty(chunk, ipc, len(sigma), device=sigma.device)

    def drawn(number: int) -> Tensor:
        generator.manual_seed(chunk_seed(seed, label, number, shared_seed))
        return draws.normal_(generator=generator)

    # The best of each chunk stays on the device: asking for a number would make it wait.
    bests, places, total = [], [], sigma.new_zeros((), dtype=torch.float64)
    for number, first in enumerate(range(0, candidates, chunk)):
        scores = group_scores(drawn(number)[: candidates - first], sigma, weights)
        best, place = scores.min(0)
        bests.append(best)
        places.append(place)
        total += scores.sum(dtype=torch.float64)
    winner = int(torch.stack(bests).argmin())
    z = drawn(winner)[int(places[winner])]
    group = mean.float() + std.float() * z.view(ipc, *mean.shape)
    return Chosen(group, float(bests[winner]), float(total) / candidates, candidates)
