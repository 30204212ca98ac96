"""Pictures: what a pixel of a grid shows, magnified by whole numbers; galleries with a block for each set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diver.pictures import BLOCK_GAP, BLOCK_WIDTH, GAP, MARGIN, Block, gallery, grid, magnification, psnr, save_grid
from diver.sets import SYMMETRIC, UNIT, ValueRange


def test_grid_shows_each_image_magnified_at_its_place(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    save_grid(tmp_path / "folder" / "grid.png", SYMMETRIC.from_unit(images), SYMMETRIC, columns=2)
    drawn = np.asarray(Image.open(tmp_path / "folder" / "grid.png"))
    times = magnification(5, 2)
    assert times == 96 // 5
    assert drawn.shape == (3 * 4 * times + 2 * GAP, 2 * 5 * times + GAP, 3)
    for number, image in enumerate(images):
        top, left = number // 2 * (4 * times + GAP), number % 2 * (5 * times + GAP)
        cell = drawn[top : top + 4 * times, left : left + 5 * times]
        expected = np.kron(np.rint(image.double().permute(1, 2, 0).numpy() * 255), np.ones((times, times, 1)))
        # Bringing the range back costs a rounding error of float32, which may tip a half.
        assert np.abs(cell - expected).max() <= 1
    assert (drawn[4 * times : 4 * times + GAP] == 255).all() and (drawn[:, 5 * times : 5 * times + GAP] == 255).all()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["grid.png"]


def test_values_are_clipped_and_grey_is_repeated() -> None:
    images = torch.tensor([-3.0, 0.5, 9.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    drawn = np.asarray(grid(images, columns=3, factor=1))
    assert drawn[0, :: 2 + GAP].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_values_are_read_in_their_range() -> None:
    standard = ValueRange.standardised((0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    drawn = np.asarray(grid(torch.zeros(1, 3, 2, 2), columns=1, value_range=standard, factor=1))
    assert drawn[0, 0].tolist() == [51, 102, 153]


@pytest.mark.parametrize(("side", "columns", "times"), [(32, 10, 3), (32, 50, 1), (28, 1, 3), (256, 1, 1), (16, 25, 4)])
def test_magnification_keeps_a_picture_readable_and_within_a_width(side: int, columns: int, times: int) -> None:
    assert magnification(side, columns) == times


def test_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for name in "ab":
        save_grid(tmp_path / name, images, UNIT, 2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("images", "columns", "word"),
    [
        (torch.zeros(2, 4, 4, 4), 1, r"\[2, 4, 4, 4\]"),
        (torch.zeros(3, 4, 4), 1, r"\[3, 4, 4\]"),
        (torch.full((1, 3, 4, 4), float("nan")), 1, "not finite"),
        (torch.zeros(1, 3, 4, 4), 0, "0 columns"),
    ],
)
def test_what_makes_no_picture_is_refused(tmp_path: Path, images: torch.Tensor, columns: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        save_grid(tmp_path / "grid.png", images, UNIT, columns)
    assert not list(tmp_path.iterdir())


def test_gallery_has_a_block_for_each_set_and_one_size_for_all() -> None:
    red, blue = torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 16, 16)
    red[:, 0], blue[:, 2] = 1, 1
    blocks = [Block("red", red, UNIT, "made by hand"), Block("a-name-that-is-too-long-for-a-line", blue, UNIT)]
    drawn = np.asarray(gallery(blocks, ["first", "second"], columns=2))
    cell = 16 * magnification(16, 4)
    for colour in ([255, 0, 0], [0, 0, 255]):
        assert (drawn == colour).all(2).sum() == 4 * cell**2
    starts = [int((drawn == colour).all(2).any(0).argmax()) for colour in ([255, 0, 0], [0, 0, 255])]
    assert starts[1] - starts[0] == max(2 * cell + GAP, BLOCK_WIDTH) + BLOCK_GAP
    # Titles stand above the images and names left of them.
    top = int((drawn == [255, 0, 0]).all(2).any(1).argmax())
    assert (drawn[:top, starts[0] :] < 128).any() and (drawn[top:, : starts[0] - MARGIN] < 128).any()


def test_gallery_wants_as_many_images_of_each_class() -> None:
    with pytest.raises(ValueError, match="red: 3 images for 2 rows of 2"):
        gallery([Block("red", torch.zeros(3, 3, 8, 8), UNIT)], ["a", "b"], columns=2)


def test_psnr_is_that_of_the_equation() -> None:
    a, b = torch.rand(2, 3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    x, y = a.double().numpy(), b.double().numpy()
    expected = [10 * np.log10(1 / ((one - other) ** 2).mean()) for one, other in zip(x, y, strict=True)]
    np.testing.assert_allclose(psnr(a, b).numpy(), expected, rtol=1e-12)
    assert psnr(a, a).tolist() == [float("inf")] * 3
    with pytest.raises(ValueError, match="no PSNR"):
        psnr(a, b[:, :, :2])
