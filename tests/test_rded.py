"""RDED: scores, choice and grids against a plain reference that looks at one crop at a time; sets and failures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from diver.config.distill import RDEDConfig
from diver.data.prepared import Prepared
from diver.distill import loop
from diver.distill.pixels import as_jpeg
from diver.distill.rded import cell_sides, crop_losses, cut, distill_rded, padded, square_crops
from diver.networks import create
from diver.networks.weights import Trained, WeightsError, for_input, write_trained
from diver.sets import DistilledSet, ValueRange

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
OPTIONS = {"width": 4, "depth": 2, "norm": "batch"}
TINY = {"candidates": 12, "crops": 3}
SIZE = 16


def quiet(done: int, total: int, note: str) -> None:
    pass


@pytest.fixture(scope="module")
def data() -> Prepared:
    """Three classes of 20 blurred images each, in shuffled order."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(60, 3, 5, 5, generator=generator)
    images = (F.interpolate(small, SIZE, mode="bilinear") * 255).to(torch.uint8)
    labels = torch.arange(3).repeat(20)[torch.randperm(60, generator=generator)]
    return Prepared(images, labels, images[:6], labels[:6], "tiny", ("a", "b", "c"), MEAN, STD)


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A network with scattered answers, of another standardisation than the data's."""
    torch.manual_seed(0)
    network = create("convnet", 3, 3, SIZE, **OPTIONS).eval().requires_grad_(False)
    nn.init.normal_(network.classifier.weight)
    return Trained(network, "convnet", OPTIONS, ("a", "b", "c"), 3, SIZE, "tiny", (0.5,) * 3, (0.25,) * 3, 61.5)


@pytest.fixture(scope="module")
def teacher(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "trained.safetensors"
    write_trained(path, trained)
    return str(path)


def made(data: Prepared, teacher: str, ipc: int = 2, folder: Path | None = None, **settings: object) -> DistilledSet:
    return distill_rded(data, ipc, RDEDConfig(teacher=teacher, **TINY | settings), "abc", quiet, folder)


def plain(data: Prepared, trained: Trained, ipc: int, config: RDEDConfig) -> tuple[Tensor, list[float], list[float]]:
    """The images, the losses of the chosen crops and those of all, from the same random numbers."""
    network = for_input(trained, MEAN, STD).network.double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    generator = torch.Generator().manual_seed(config.seed)
    images, chosen, everything = torch.zeros(3 * ipc, 3, SIZE, SIZE, dtype=torch.float64), [], []
    side = SIZE // config.factor
    before, after = (SIZE - side) // 2, SIZE - side - (SIZE - side) // 2
    for c in range(3):
        members = [i for i, label in enumerate(data.train_labels.tolist()) if label == c]
        seen = [members[i] for i in torch.randperm(len(members), generator=generator)[: config.candidates]]
        boxes = square_crops(config).boxes(square_crops(config).draw(len(seen) * config.crops, generator), SIZE, SIZE)
        best = []
        for n, position in enumerate(seen):
            image = (data.train_images[position].double() / 255 - mean) / std
            scored = []
            for k in range(config.crops):
                box = boxes[n * config.crops + k].int().tolist()
                assert box[2] == box[3]
                crop = TF.resized_crop(image[None], *box, [side, side], antialias=True)
                logits = network(F.pad(crop, (before, after, before, after)))
                loss = -logits.log_softmax(1)[0, c].item()
                scored.append((loss, box, image))
                everything.append(loss)
            best.append(min(scored, key=lambda found: found[0]))
        best = sorted(best, key=lambda found: found[0])[: ipc * config.factor**2]
        chosen += [loss for loss, _, _ in best]
        for rank, (_, box, image) in enumerate(best):
            cell, number = divmod(rank, ipc)
            top, left = (sum(cell_sides(SIZE, config.factor)[:i]) for i in divmod(cell, config.factor))
            tall, wide = (cell_sides(SIZE, config.factor)[i] for i in divmod(cell, config.factor))
            filled = TF.resized_crop(image[None], *box, [tall, wide], antialias=True)[0]
            images[c * ipc + number, :, top : top + tall, left : left + wide] = filled
    network.float()
    return images, chosen, everything


@pytest.mark.parametrize(("factor", "ipc"), [(1, 2), (1, 12), (2, 1), (2, 3), (3, 1)])
def test_sets_against_one_crop_at_a_time(
    data: Prepared, trained: Trained, teacher: str, factor: int, ipc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factor 3 leaves a remainder; chunks are smaller than what there is."""
    monkeypatch.setattr("diver.distill.rded.CHUNK", 7)
    got = made(data, teacher, ipc, factor=factor)
    expected, chosen, everything = plain(data, trained, ipc, RDEDConfig(factor=factor, **TINY))
    assert torch.allclose(got.images.double(), expected, atol=1e-5)
    assert sum(chosen) / len(chosen) < sum(everything) / len(everything)


def test_scores_against_one_crop_at_a_time(data: Prepared, trained: Trained) -> None:
    network = for_input(trained, MEAN, STD)
    images, crop = data.standardised(data.train_images[:4]), square_crops(RDEDConfig())
    boxes = crop.boxes(crop.draw(8, torch.Generator().manual_seed(3)), SIZE, SIZE).view(4, 2, 4)
    got = crop_losses(network, images, boxes, 1, 8)
    assert got.shape == (4, 2)
    for n in range(4):
        for k in range(2):
            whole = torch.zeros(1, 3, SIZE, SIZE)
            whole[:, :, 4:12, 4:12] = TF.resized_crop(images[n : n + 1], *boxes[n, k].int().tolist(), [8, 8])
            assert got[n, k].item() == pytest.approx(-network.network(whole).log_softmax(1)[0, 1].item(), abs=1e-4)


def test_crops_lie_in_the_middle() -> None:
    got = padded(torch.ones(1, 1, 2, 2), 5)
    assert got[0, 0, 1:3, 1:3].sum() == got.sum() == 4
    assert torch.equal(padded(got, 5), got)


@pytest.mark.parametrize(("size", "factor"), [(32, 2), (32, 3), (17, 4), (5, 5)])
def test_cells_fill_a_side(size: int, factor: int) -> None:
    sides = cell_sides(size, factor)
    assert (len(sides), sum(sides)) == (factor, size)
    assert sides == sorted(sides, reverse=True)
    assert max(sides) - min(sides) <= 1


def test_a_box_of_the_whole_image_is_the_image() -> None:
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, SIZE, SIZE]], dtype=torch.float64).expand(2, 4)
    assert torch.equal(cut(images, boxes, SIZE, SIZE), images)


def test_whole_images_by_loss(data: Prepared, trained: Trained, teacher: str) -> None:
    """Factor 1 and crops of the whole area choose real images, those that the network finds easiest."""
    got = made(data, teacher, 4, factor=1, min_scale=1.0, candidates=100)
    real = data.standardised(data.train_images)
    logits = for_input(trained, MEAN, STD).network(real)
    losses = F.cross_entropy(logits, data.train_labels, reduction="none")
    for c in range(3):
        mine = (data.train_labels == c).nonzero().flatten()
        easiest = mine[losses[mine].argsort()[:4]]
        assert torch.allclose(got.images[4 * c : 4 * c + 4], real[easiest], atol=1e-5)


@pytest.mark.parametrize("rounding", ["none", "released"])
def test_sets_keep_their_promises_and_repeat(data: Prepared, teacher: str, tmp_path: Path, rounding: str) -> None:
    first, again = made(data, teacher, 3, tmp_path, rounding=rounding), made(data, teacher, 3, rounding=rounding)
    assert first.digest() == again.digest()
    assert (tmp_path / "images.png").is_file()
    assert not torch.equal(first.images, made(data, teacher, 3, rounding=rounding, seed=2).images)
    assert first.images.shape == (9, 3, SIZE, SIZE)
    assert first.images.dtype == torch.float32
    assert first.labels is not None
    assert first.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert first.value_range == ValueRange.standardised(MEAN, STD)
    (step,) = first.steps
    assert (step.method, step.seed, step.code) == ("rded", 1, "abc")
    recorded = dict(step.parameters["teacher"])
    assert len(recorded.pop("sha256")) == 64
    assert recorded == {"network": "convnet", "options": OPTIONS, "dataset": "tiny", "accuracy": 61.5}


def test_rounding_is_that_of_the_released_files(data: Prepared, teacher: str) -> None:
    exact, coded = made(data, teacher), made(data, teacher, rounding="released")
    assert torch.equal(coded.images, as_jpeg(exact.images, exact.value_range))
    levels = coded.value_range.to_unit(coded.images) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    # Blurred images survive JPEG.
    assert 0 < (coded.images - exact.images).abs().mean() < 0.3


def test_a_stopped_run_goes_on_to_the_same_bytes(
    data: Prepared, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    whole, config = made(data, teacher), RDEDConfig(teacher=teacher, **TINY)

    def stop(done: int, total: int, note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill_rded(data, 2, config, "abc", stop, tmp_path)
    seen: list[int] = []
    resumed = distill_rded(data, 2, config, "abc", lambda done, *_: seen.append(done), tmp_path)
    assert seen == [2, 3]
    assert resumed.digest() == whole.digest()


def test_failures_are_named(data: Prepared, teacher: str) -> None:
    with pytest.raises(ValueError, match=r"class 0 gives 12 crops \(candidates 12, images 20\), 16 are needed .*raise"):
        made(data, teacher, 4)
    with pytest.raises(ValueError, match=r"class 0 gives 20 crops .*24 are needed for IPC 6 and factor 2; lower"):
        made(data, teacher, 6, candidates=300)
    with pytest.raises(ValueError, match="factor 17 leaves no pixel of an image's 16"):
        made(data, teacher, 1, factor=17, candidates=300)
    with pytest.raises(ValueError, match="the workflow puts its path here"):
        made(data, "teacher")
    with pytest.raises(WeightsError, match="no such file"):
        made(data, "nowhere.safetensors")
    with pytest.raises(WeightsError, match="its classes are not those of tiny"):
        made(replace(data, classes=("x", "y", "z")), teacher)
    few = data.train_labels < 2
    with pytest.raises(ValueError, match="class .c. of tiny has 0 training images"):
        made(replace(data, train_images=data.train_images[few], train_labels=data.train_labels[few]), teacher)
