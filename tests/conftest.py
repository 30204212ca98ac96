"""Shared fixtures: a tiny random prior and a tiny set. Slow tests wait to be asked for."""

import os

import pytest
import torch
from diffusers import DiTPipeline
from recording import acted_graphs  # noqa: F401  (a fixture)

from diver.config.prior import DiTTraining, VAETraining
from diver.prior.base import Prior
from diver.prior.load import load_prior
from diver.prior.train import build_dit, build_vae, dit_scheduler
from diver.sets import DistilledSet, ValueRange

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("DIVER_SLOW"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; run by `make test SLOW=1`"))


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    """Random weights, 3 classes, images 3x16x16, latents 4x4x4; the output is not zero as it is before training."""
    torch.manual_seed(0)
    vae = build_vae(VAETraining(widths=[8, 8, 8], latent_channels=4), 3)
    dit = build_dit(DiTTraining(width=16, depth=2, heads=2, patch=2), 4, 4, 3)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("prior")
    DiTPipeline(dit, vae, dit_scheduler()).save_pretrained(path)
    return load_prior(path)


@pytest.fixture
def tiny_set() -> DistilledSet:
    """Three classes, IPC 2, images 3x16x16, standardised."""
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return DistilledSet(
        images=images,
        labels=torch.tensor([0, 0, 1, 1, 2, 2]),
        dataset="tiny",
        classes=("a", "b", "c"),
        ipc=2,
        value_range=ValueRange.standardised((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    )
