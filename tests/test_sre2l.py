"""SRe2L: loss, views and updates against plain references; sets, resuming and failures."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from diver.config.distill import SRe2LConfig
from diver.data.prepared import Prepared
from diver.distill import loop
from diver.distill.pixels import as_jpeg, resample, taps
from diver.distill.sre2l import View, Viewer, adam_step, answer, batch_norms, distill_sre2l, image_loss, total_variation
from diver.networks import create
from diver.networks.weights import Trained, WeightsError, write_trained
from diver.sets import DistilledSet, ValueRange

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
OPTIONS = {"width": 4, "depth": 2, "norm": "batch"}
TINY = {"iterations": 4, "batch": 4, "jitter": 3, "learning_rate": 0.1}


def quiet(done: int, total: int, note: str) -> None:
    pass


def with_statistics(norm: str = "batch") -> nn.Module:
    """A network of random weights, with running statistics of smooth images and scattered answers."""
    torch.manual_seed(0)
    network = create("convnet", 3, 3, 16, **OPTIONS | {"norm": norm}).requires_grad_(False)
    nn.init.normal_(network.classifier.weight, std=0.3)
    for layer in batch_norms(network):
        layer.momentum = 1.0
    network(F.interpolate(2 * torch.randn(50, 3, 4, 4), 16, mode="bilinear"))
    return network.eval()


@pytest.fixture(scope="module")
def data() -> Prepared:
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Prepared(images, torch.arange(12) % 3, images[:3], torch.arange(3), "tiny", ("a", "b", "c"), MEAN, STD)


def write(path: Path, norm: str = "batch", classes: tuple[str, ...] = ("a", "b", "c")) -> str:
    network = with_statistics(norm)
    write_trained(
        path, Trained(network, "convnet", OPTIONS | {"norm": norm}, classes, 3, 16, "tiny", MEAN, STD, accuracy=61.5)
    )
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("teacher") / "trained.safetensors")


def made(data: Prepared, teacher: str, ipc: int = 3, folder: Path | None = None, **settings: object) -> DistilledSet:
    return distill_sre2l(data, ipc, SRe2LConfig(teacher=teacher, **TINY | settings), "abc", quiet, folder)


def plain_loss(network: nn.Module, images: Tensor, labels: Tensor, config: SRe2LConfig) -> Tensor:
    """L by its equation: the network's layers are run by hand, one channel's statistics at a time."""
    loss, x, first = images.new_zeros(()), images, True
    for layer in network.features:
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = [], []
            for c in range(x.shape[1]):
                values = [x[n, c, i, j] for n in range(len(x)) for i in range(x.shape[2]) for j in range(x.shape[3])]
                values = torch.stack(values)
                mean.append(values.sum() / len(values))
                variance.append(((values - mean[-1]) ** 2).sum() / len(values))
            distance = sum((m - r) ** 2 for m, r in zip(mean, layer.running_mean, strict=True)) ** 0.5
            distance = distance + sum((v - r) ** 2 for v, r in zip(variance, layer.running_var, strict=True)) ** 0.5
            loss = loss + config.r_bn * (config.first_bn if first else 1) * distance
            first = False
        x = layer(x)
    log = network.classifier(x.flatten(1)).log_softmax(1)
    loss = loss - sum(log[n, label] for n, label in enumerate(labels.tolist())) / len(labels)
    tv = images.new_zeros(())
    for dy, dx in ((1, 0), (0, 1), (1, 1), (1, -1)):
        pairs = [
            (images[n, c, i, j] - images[n, c, i + dy, j + dx]) ** 2
            for n in range(len(images))
            for c in range(3)
            for i in range(8 - dy)
            for j in range(max(0, -dx), 8 - max(0, dx))
        ]
        tv = tv + torch.stack(pairs).sum() ** 0.5
    return loss + config.tv * tv + config.l2 * sum((image**2).sum() ** 0.5 for image in images) / len(images)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weights", [{}, {"tv": 0.3, "l2": 0.2, "r_bn": 1.0, "first_bn": 3.0}, {"r_bn": 0.0}])
def test_loss_and_gradient_against_the_equation(weights: dict[str, float], layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    network = create("convnet", 3, 3, 8, **OPTIONS).double().eval().requires_grad_(False)
    for layer in batch_norms(network):
        nn.init.normal_(layer.running_mean)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    labels, config = torch.tensor([0, 2, 1, 1]), SRe2LConfig(**weights)
    expected = plain_loss(network, images, labels, config)
    got = image_loss(network, images.contiguous(memory_format=layout), labels, config)
    assert torch.allclose(got, expected, rtol=1e-10)
    (want,), (have,) = torch.autograd.grad(expected, images), torch.autograd.grad(got, images)
    assert want.abs().max() > 0
    assert torch.allclose(have, want, rtol=1e-8, atol=1e-12)


def test_statistics_far_from_zero_and_of_vectors() -> None:
    """In float32 with a mean a thousand deviations away, and for layers that normalise [N, C]."""
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(32), nn.Linear(32, 2)).eval()
    nn.init.constant_(network[0].running_mean, 990.0)
    images = 1000 + torch.randn(9, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    _, (first, second) = answer(network, images)
    mean, variance = images.double().mean((0, 2, 3)), images.double().var((0, 2, 3), correction=0)
    assert torch.allclose(first.double(), (mean - 990).norm() + (variance - 1).norm(), rtol=1e-5)
    vectors = network[1](network[0](images)).double()
    assert torch.allclose(
        second.double(), vectors.mean(0).norm() + (vectors.var(0, correction=0) - 1).norm(), rtol=1e-5
    )


def test_first_layer_is_the_first_that_runs() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.begin = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.begin(x) + 7).mean((2, 3))

    _, (first, second) = answer(Backwards().eval(), torch.zeros(2, 3, 4, 4))
    assert second > first + 5


@pytest.mark.parametrize("start", [(0, 16), (3, 7), (15, 1), (2, 13)])
@pytest.mark.parametrize("count", [16, 8, 5, 23])
def test_taps_are_the_antialiased_resize_of_a_crop(start: tuple[int, int], count: int) -> None:
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spans = torch.tensor([[start[0]], [start[1]]], dtype=torch.float64)
    weights = taps(spans[0], spans[1], count, 16)
    crop = image[:, :, start[0] : sum(start), start[0] : sum(start)]
    expected = F.interpolate(crop, (count, count), mode="bilinear", antialias=True)
    assert torch.allclose(resample(image, weights, weights), expected, atol=1e-12)


@pytest.mark.parametrize("views", ["shared", "own"])
def test_views_are_crop_flip_and_roll(views: str) -> None:
    viewer = Viewer(SRe2LConfig(jitter=5, views=views))
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    view = viewer.draw(6, torch.Generator().manual_seed(2))
    rows = 6 if views == "own" else 1
    assert [len(view.box), len(view.flipped), len(view.shift)] == [rows] * 3
    got = viewer.apply(images, view)
    boxes = viewer.crop.boxes(view.box, 16, 16).int().tolist()
    for n, image in enumerate(images):
        k = n % rows
        expected = TF.resized_crop(image[None], *boxes[k], [16, 16], antialias=True)[0]
        expected = expected.flip(2) if view.flipped[k] else expected
        assert torch.allclose(got[n], expected.roll(view.shift[k].tolist(), (1, 2)), atol=1e-5)


def test_views_by_their_settings() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    still = Viewer(SRe2LConfig(crop=False, flip=False, jitter=0, views="own"))
    assert torch.equal(still.apply(images, still.draw(4, generator)), images)
    mirror = View(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([True]), torch.tensor([[0, 0]]))
    assert torch.equal(still.apply(images, mirror), images.flip(3))
    for one_sided, least in ((False, -3), (True, 0)):
        shifts = Viewer(SRe2LConfig(jitter=3, views="own", one_sided=one_sided)).draw(500, generator).shift
        assert shifts.unique().tolist() == list(range(least, 4))
    flips = Viewer(SRe2LConfig(views="own")).draw(500, generator).flipped
    assert 200 < flips.sum() < 300


def test_total_variation_of_a_ramp() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert total_variation(ramp).item() == pytest.approx(12**0.5 + 3 + 3)


def test_steps_are_adams() -> None:
    generator = torch.Generator().manual_seed(3)
    ours = torch.randn(5, 4, generator=generator)
    theirs, moments = nn.Parameter(ours.clone()), (torch.zeros_like(ours), torch.zeros_like(ours))
    optimizer = torch.optim.Adam([theirs], betas=(0.5, 0.9))
    for step in range(1, 7):
        optimizer.param_groups[0]["lr"] = rate = 0.3 / step
        theirs.grad = torch.randn(5, 4, generator=generator)
        optimizer.step()
        adam_step(ours, theirs.grad, *moments, rate, step)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_run_is_adam_on_each_batch(data: Prepared, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss of known gradient: batches in the order of the class within the image number, cosine, clipping."""
    seen = []

    def quadratic(network: nn.Module, images: Tensor, labels: Tensor, config: SRe2LConfig) -> Tensor:
        seen.append((images.detach().clone(), labels.tolist()))
        return (images - 3).square().sum()

    monkeypatch.setattr("diver.distill.sre2l.image_loss", quadratic)
    still = {"crop": False, "flip": False, "jitter": 0, "iterations": 5, "learning_rate": 0.5}
    result = made(data, teacher, ipc=3, **still)
    assert [labels for _, labels in seen] == [[0, 1, 2]] * 15
    got = result.images.unflatten(0, (3, 3))
    least, most = (result.value_range.from_unit(torch.full((3, 1, 1), v)) for v in (0.0, 1.0))
    for batch in range(3):
        expected = nn.Parameter(seen[5 * batch][0])
        optimizer = torch.optim.Adam([expected], lr=0.5, betas=(0.5, 0.9))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
        for _ in range(5):
            optimizer.zero_grad()
            (expected - 3).square().sum().backward()
            optimizer.step()
            schedule.step()
            expected.data.clamp_(least, most)
        assert torch.allclose(got[:, batch], expected, atol=1e-5)


@pytest.mark.parametrize(("ipc", "batch", "sizes"), [(3, 100, [9]), (3, 4, [3, 3, 3]), (3, 5, [5, 4]), (1, 2, [2, 1])])
def test_batches_are_equal_and_in_the_released_order(
    data: Prepared, teacher: str, monkeypatch: pytest.MonkeyPatch, ipc: int, batch: int, sizes: list[int]
) -> None:
    seen: list[list[int]] = []

    def note(network: nn.Module, images: Tensor, labels: Tensor, config: SRe2LConfig) -> Tensor:
        seen.append(labels.tolist())
        return images.sum()

    monkeypatch.setattr("diver.distill.sre2l.image_loss", note)
    made(data, teacher, ipc=ipc, batch=batch, iterations=1)
    assert [len(labels) for labels in seen] == sizes
    assert sum(seen, []) == [0, 1, 2] * ipc


@pytest.mark.parametrize("settings", [{}, {"views": "own"}, {"clip": False, "tv": 0.1}, {"rounding": "released"}])
def test_sets_keep_their_promises_and_repeat(data: Prepared, teacher: str, settings: dict[str, object]) -> None:
    first, again = (made(data, teacher, **settings) for _ in range(2))
    assert first.digest() == again.digest()
    assert not torch.equal(first.images, made(data, teacher, seed=2, **settings).images)
    assert first.images.shape == (9, 3, 16, 16)
    assert first.labels is not None
    assert first.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert first.value_range == ValueRange.standardised(MEAN, STD)
    unit = first.value_range.to_unit(first.images)
    inside = bool(unit.min() > -1e-6 and unit.max() < 1 + 1e-6)
    assert inside == settings.get("clip", True)
    (step,) = first.steps
    assert (step.method, step.seed, step.code) == ("sre2l", 1, "abc")
    recorded = dict(step.parameters["teacher"])
    assert len(recorded.pop("sha256")) == 64
    assert recorded == {"network": "convnet", "options": OPTIONS, "dataset": "tiny", "accuracy": 61.5}


def test_images_come_to_be_recognised_with_the_statistics(data: Prepared, teacher: str) -> None:
    settings = {"iterations": 60, "batch": 9, "crop": False, "flip": False, "jitter": 0, "r_bn": 0.1, "clip": False}
    network, labels = with_statistics(), torch.arange(3).repeat_interleave(3)

    def judged(images: Tensor) -> tuple[float, float]:
        logits, distances = answer(network, images)
        return F.cross_entropy(logits, labels).item(), sum(d.item() for d in distances)

    before = judged(made(data, teacher, learning_rate=1e-9, **settings).images)
    after = judged(made(data, teacher, learning_rate=0.1, **settings).images)
    ignored = judged(made(data, teacher, learning_rate=0.1, **settings | {"r_bn": 0.0}).images)
    assert after[0] < 0.2 * before[0]
    assert after[1] < 0.8 * before[1]
    assert ignored[0] < 0.2 * before[0]
    assert ignored[1] > after[1]


def test_a_stopped_run_goes_on_to_the_same_bytes(
    data: Prepared, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    whole = made(data, teacher)
    for stop in (1, 4, 7):

        def report(done: int, total: int, note: str, stop: int = stop) -> None:
            assert total == 12
            if done == stop + 1:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop)
        config = SRe2LConfig(teacher=teacher, **TINY)
        with pytest.raises(KeyboardInterrupt):
            distill_sre2l(data, 3, config, "abc", report, folder)
        counted: list[int] = []
        resumed = distill_sre2l(data, 3, config, "abc", lambda done, *_, seen=counted: seen.append(done), folder)
        assert counted == list(range(stop + 1, 13))
        assert resumed.digest() == whole.digest()
        assert len(list(folder.glob("*.png"))) >= 2


def test_jpeg_cuts_to_eight_bits() -> None:
    unit = ValueRange("unit")
    flat = torch.full((1, 3, 16, 16), 100.9 / 255)
    assert torch.equal(as_jpeg(flat, unit), torch.full_like(flat, 100) / 255)
    grey = as_jpeg(torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), unit)
    assert grey.shape == (2, 1, 16, 16)
    assert torch.equal(grey * 255, (grey * 255).round())
    assert as_jpeg(torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1), unit).flatten().tolist() == [0, 1]
    with pytest.raises(ValueError, match="2 channels cannot be coded as JPEG; set rounding: none"):
        as_jpeg(torch.zeros(1, 2, 8, 8), unit)


def test_failures_are_named(data: Prepared, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the workflow puts its path here"):
        made(data, "teacher")
    with pytest.raises(WeightsError, match="no such file"):
        made(data, "nowhere.safetensors")
    with pytest.raises(WeightsError, match="its classes are not those of tiny"):
        made(data, write(tmp_path / "other", classes=("x", "y", "z")))
    plain = write(tmp_path / "plain", "instance")
    with pytest.raises(ValueError, match=r"no BatchNorm layers .*; train one that has, .*norm: batch, or set r_bn: 0"):
        made(data, plain)
    assert torch.isfinite(made(data, plain, r_bn=0.0).images).all()
    with pytest.raises(FloatingPointError, match="sre2l: loss is nan"):
        made(data, teacher, learning_rate=1e38, clip=False)
