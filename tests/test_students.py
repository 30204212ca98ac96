"""The student trainer against a plain loop on torch.optim, its schedule, repeatability, divergence, table rows."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.config.students import Architecture, Protocol
from diver.data.prepared import Prepared
from diver.networks import create, memory_format
from diver.networks.augment import DSA
from diver.sets import SYMMETRIC, DistilledSet, ValueRange
from diver.students import StudentError, StudentProtocol, evaluate_set, train_students
from diver.students.evaluate import student_images
from diver.students.train import _Average, flatten_parameters, sgd_step
from diver.students.train import test_accuracy as measure_accuracy

CONVNET = ("convnet", {"width": 8, "depth": 2})
Data = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def data() -> Data:
    """Three classes told apart by colour: 12 training and 90 test images of 16 x 16."""
    generator = torch.Generator().manual_seed(0)

    def split(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(3).repeat_interleave(each)
        images = torch.randn(len(labels), 3, 16, 16, generator=generator)
        images[torch.arange(len(labels)), labels] += 1.5
        return images, labels

    return (*split(4), *split(30))


def quiet(done: int, total: int, note: str) -> None:
    pass


def plain_training(network: nn.Module, data: Data, protocol: StudentProtocol, generator: torch.Generator):
    """The same protocol on torch.optim; returns the averaged network and the last loss."""
    # In the layout of the trainer: batch normalisation of few values enlarges differences in rounding.
    images, labels = data[0].to(memory_format=memory_format(network)), data[1]
    average, dsa = copy.deepcopy(network), DSA(protocol.augmentation)
    optimizer = torch.optim.SGD(network.parameters(), 1.0, protocol.momentum, weight_decay=protocol.weight_decay)
    step = 0
    for epoch in range(protocol.epochs):
        optimizer.param_groups[0]["lr"] = protocol.rate(epoch)
        whole = len(labels) <= protocol.batch
        order = torch.arange(len(labels)) if whole else torch.randperm(len(labels), generator=generator)
        for index in order.split(protocol.batch):
            optimizer.zero_grad()
            drawn = dsa.draw(len(index), generator)
            loss = F.cross_entropy(network(dsa.apply(images[index], drawn)), labels[index])
            loss.backward()
            optimizer.step()
            decay = min(protocol.ema_decay, (1 + step) / (10 + step)) if protocol.ema_warmup else protocol.ema_decay
            for mine, live in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                if live.is_floating_point():
                    mine.copy_(decay * mine + (1 - decay) * live)
            step += 1
    return average.eval(), loss.item()


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize(
    ("name", "options", "batch"),
    [
        (*CONVNET, 256),
        (*CONVNET, 5),
        ("vit", {"dim": 24, "depth": 1}, 5),
        ("mobilenet", {"width": 0.25, "repeats": 1}, 256),
    ],
)
def test_trainer_against_plain_loop(data: Data, name: str, options: dict, batch: int, warmup: bool) -> None:
    protocol = StudentProtocol(4, 0.02, batch=batch, ema_warmup=warmup, ema_decay=0.7)
    (result,) = train_students(name, options, *data, protocol, [5], progress=quiet)
    torch.manual_seed(5)
    network = create(name, 3, 3, 16, **options)
    average, loss = plain_training(network, data, protocol, torch.Generator().manual_seed(5 + 1_000_003))
    assert result.train_loss_last == pytest.approx(loss, rel=2e-3)
    expected = 100 * float((average(data[2]).argmax(1) == data[3]).float().mean())
    assert result.accuracy_last == pytest.approx(expected, abs=2.3)
    assert result.steps == 4 * math.ceil(12 / batch)
    assert result.parameters == sum(p.numel() for p in network.parameters())


def test_sgd_step_is_torch_sgd() -> None:
    torch.manual_seed(0)
    reference = create("convnet", 4, 3, 8, width=4, depth=1).double()
    network = copy.deepcopy(reference)
    flat, gradient = flatten_parameters(network)
    velocity = torch.zeros_like(flat)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9, weight_decay=5e-2)
    for rate in (0.1, 0.3, 0.2):
        x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(0, 4, (6,))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        optimizer.step()
        gradient.zero_()
        F.cross_entropy(network(x), y).backward()
        sgd_step(flat, gradient, velocity, rate, 0.9, 5e-2)
        for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-12)


def test_average_covers_batch_statistics() -> None:
    network = create("mobilenet", 3, 3, 16, width=0.25, repeats=1)
    flat, _ = flatten_parameters(network.train())
    average = _Average(network, flat)
    network(torch.randn(4, 3, 16, 16) * 5 + 3)
    live, before = network.layers[1].running_mean.clone(), average.network.layers[1].running_mean.clone()
    average.update(0.75)
    assert torch.allclose(average.network.layers[1].running_mean, 0.75 * before + 0.25 * live)
    flat.add_(1.0)
    assert not torch.equal(network.classifier.weight, average.network.classifier.weight)


def test_schedule() -> None:
    protocol = StudentProtocol(100, 0.4)
    rates = [protocol.rate(e) for e in range(100)]
    assert rates[0] == pytest.approx(0.4e-7)
    assert rates[25] == pytest.approx(0.2, rel=1e-3)
    assert max(rates) == rates[50] == pytest.approx(0.4)
    assert rates[75] == pytest.approx(0.2)
    assert 0 < rates[99] < 0.001
    assert replace(protocol, warmup_fraction=0).rate(0) == 0.4
    assert [protocol.decay(s) for s in (0, 8, 10_000)] == [0.1, 0.5, 0.995]
    assert replace(protocol, ema_warmup=False).decay(0) == 0.995
    assert replace(protocol, evaluations=4).tested_epochs() == [25, 50, 75, 100]
    assert replace(protocol, epochs=3, evaluations=10).tested_epochs() == [1, 2, 3]


def test_students_learn_and_best_is_the_largest_test(data: Data) -> None:
    protocol = StudentProtocol(40, 0.05, evaluations=40)
    (result,) = train_students(*CONVNET, *data, protocol, [0], progress=quiet)
    assert result.accuracy_last > 80
    assert result.accuracy_best >= result.accuracy_last
    assert not result.diverged
    (last_only,) = train_students(*CONVNET, *data, replace(protocol, evaluations=1), [0], progress=quiet)
    assert last_only.accuracy_best == last_only.accuracy_last == result.accuracy_last


def test_same_seed_same_student_whatever_else_is_trained(data: Data) -> None:
    protocol = StudentProtocol(6, 0.05, batch=5)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    both = train_students(*CONVNET, *data, protocol, [0, 1], progress=quiet)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(78)
    alone = train_students(*CONVNET, *data, protocol, [1], progress=quiet)
    assert replace(both[1], seconds=0) == replace(alone[0], seconds=0)
    assert both[0].train_loss_last != both[1].train_loss_last


def test_diverged_students_are_recorded(data: Data) -> None:
    (result,) = train_students(*CONVNET, *data, StudentProtocol(12, 1e20, warmup_fraction=0), [0], progress=quiet)
    assert result.diverged
    assert not math.isfinite(result.train_loss_last)
    assert result.steps < 12
    assert result.accuracy_last == pytest.approx(100 / 3)


def test_accuracy_of_a_known_network() -> None:
    """Logits are the pixels; also across more than one test batch."""
    labels = torch.arange(700) % 4
    images = F.one_hot(labels, 4).float().view(-1, 1, 2, 2)
    images[:70] = images[:70].roll(1, 3)
    assert measure_accuracy(nn.Flatten(), images, labels) == 90.0


def test_precision_reaches_the_arithmetic(data: Data) -> None:
    losses = [
        train_students(*CONVNET, *data, StudentProtocol(3, 0.05, precision=p), [0], progress=quiet)[0].train_loss_last
        for p in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_refusals(data: Data) -> None:
    x, y, tx, ty = data
    protocol = StudentProtocol(1, 0.1)
    with pytest.raises(StudentError, match="float64"):
        train_students(*CONVNET, x.double(), y, tx, ty, protocol, [0])
    with pytest.raises(StudentError, match="training labels"):
        train_students(*CONVNET, x, y[:-1], tx, ty, protocol, [0])
    with pytest.raises(StudentError, match="equal and square"):
        train_students(*CONVNET, x, y, tx[..., :8], ty, protocol, [0])
    with pytest.raises(ValueError, match="convnet"):
        train_students("convnets", {}, *data, protocol, [0])


@pytest.fixture(scope="module")
def prepared(data: Data) -> Prepared:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    unit = ValueRange.standardised(mean, std).to_unit(data[2]).clamp(0, 1)
    pixels = (unit * 255).to(torch.uint8)
    return Prepared(pixels, data[3], pixels, data[3], "coloured", ("a", "b", "c"), mean, std)


def test_rows_of_a_set(data: Data, prepared: Prepared) -> None:
    standardised = ValueRange.standardised(prepared.mean, prepared.std)
    distilled = DistilledSet(data[0], "coloured", ("a", "b", "c"), 4, standardised, data[1])
    architecture = Architecture(network="convnet", label="C", learning_rate=0.05, options=CONVNET[1])
    protocol = Protocol(epochs={4: 30, 1: 2}, evaluations=1, batch=6)
    rows = evaluate_set(distilled, prepared, architecture, protocol, [3, 4], progress=quiet)
    assert [r["seed"] for r in rows] == [3, 4]
    assert all(r["accuracy_last"] > 60 and r["epochs"] == 30 and r["protocol"] == "glad-eval" for r in rows)
    assert rows[0]["images"] == 12
    assert rows[0]["bytes"] == 12 * 3 * 16 * 16 * 4 + 12 * 8
    assert rows[0]["set_digest"] == distilled.digest()
    tests = prepared.standardised(prepared.test_images), prepared.test_labels
    same = StudentProtocol(30, 0.05, batch=6, ema_warmup=protocol.ema_warmup)
    direct = train_students(*CONVNET, *data[:2], *tests, same, [3], progress=quiet)
    assert direct[0].accuracy_last == rows[0]["accuracy_last"]


def test_scale_and_size_of_student_images(data: Data, prepared: Prepared) -> None:
    standardised = ValueRange.standardised(prepared.mean, prepared.std)
    images = torch.rand(3, 3, 16, 16) * 4 - 2
    distilled = DistilledSet(images, "coloured", ("a", "b", "c"), 1, SYMMETRIC, torch.arange(3))
    assert torch.equal(student_images(distilled, prepared, matched=False), images)
    expected = standardised.from_unit(images / 2 + 0.5)
    assert torch.allclose(student_images(distilled, prepared, matched=True), expected, atol=1e-6)
    large = replace(distilled, images=images.repeat_interleave(2, 2).repeat_interleave(2, 3))
    shrunk = student_images(large, prepared, matched=False)
    assert shrunk.shape == images.shape
    assert F.mse_loss(shrunk, images) < 0.5 * images.var()
    with pytest.raises(StudentError, match="does not belong"):
        student_images(replace(distilled, classes=("a", "b", "d")), prepared, matched=True)
