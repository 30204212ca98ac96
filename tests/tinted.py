"""The data of the stage-1 tests."""

import torch

from diver.data.prepared import Prepared


def tinted(size: int = 16, tested: int = 6) -> Prepared:
    """Three classes of 20 images of noise, each tinted by its own colour, in shuffled order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)[torch.randperm(60, generator=generator)]
    images = torch.randint(0, 120, (60, 3, size, size), generator=generator)
    images[torch.arange(60), labels] += 100
    images = images.to(torch.uint8)
    shown, classes = (images[:tested], labels[:tested]), ("a", "b", "c")
    return Prepared(images, labels, *shown, "tinted", classes, (0.3, 0.4, 0.5), (0.2, 0.25, 0.3))


def quiet(done: int, total: int, note: str) -> None:
    pass
