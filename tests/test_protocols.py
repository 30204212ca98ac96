"""Protocols: presets, departures, by IPC and classes; schedules, optimisers and averages against torch's own."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from diver.config.protocols import PRESETS, Protocol, by_ipc, family, protocol, under
from diver.config.students import Architecture, Students, Teacher
from diver.networks import create
from diver.students.optimizers import SGD, AdamW, decay_factors, flatten_parameters
from diver.students.protocol import SCHEDULES, StudentProtocol, student_protocol


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_and_depart_from_nothing(name: str) -> None:
    chosen = protocol(name)
    assert {chosen.departures(classes) for classes in (10, 100, 200, 1000)} == {""}
    # As rules and `diver protocols` pass it on.
    assert Protocol.model_validate(chosen.model_dump(mode="json")) == chosen
    for classes in (10, 100, 200, 1000):
        used = student_protocol(chosen, "convnet", 10, classes)
        assert used.epochs > 0
        assert used.rate(0) >= 0


def test_departures_and_quirks_are_named() -> None:
    chosen = protocol("dc-eval", epochs=3, momentum_reset=False)
    assert chosen.departures(10) == "epochs=3; momentum_reset=False"
    assert chosen.quirks() == "extra_epoch"
    # D3HR's loop is RDED's, with the pass that its training accuracy is of.
    assert protocol("soft-rded").quirks() == protocol("soft-d3hr").quirks() == "double_forward"
    assert protocol("hard-idc").quirks() == ""


def test_epochs_and_batch_by_ipc_and_classes() -> None:
    idc = protocol("hard-idc")
    epochs = {ipc: student_protocol(idc, "convnet", ipc, 10).epochs for ipc in (1, 2, 10, 11, 50, 100, 300, 1000)}
    assert epochs == {1: 3000, 2: 2000, 10: 2000, 11: 1500, 50: 1500, 100: 1000, 300: 500, 1000: 300}
    hundred = student_protocol(idc, "resnet_ap", 10, 100)
    # Two thirds of 2000, rounded down to hundreds.
    assert (hundred.epochs, hundred.learning_rate, hundred.batch) == (1300, 0.01, 64)
    thousand = student_protocol(idc, "resnet_ap", 10, 1000)
    assert (thousand.epochs, thousand.learning_rate, thousand.weight_decay, thousand.batch) == (2000, 0.1, 1e-4, 128)
    rded = protocol("soft-rded")
    sizes = [student_protocol(rded, "convnet", ipc, 10).batch for ipc in (1, 10, 50)]
    assert sizes == [10, 50, 100]
    assert [student_protocol(rded, "convnet", 10, classes).batch for classes in (100, 200, 1000)] == [100, 100, 100]
    # RDED's code has no batch for the IPCs between.
    for ipc, classes in ((2, 10), (20, 10), (60, 10), (5, 1000)):
        with pytest.raises(
            ValueError, match=rf"batch: no entry for IPC {ipc} \(there is one for .*give a number for all"
        ):
            student_protocol(rded, "convnet", ipc, classes)
    assert student_protocol(rded, "convnet", 20, 200).batch == 100
    assert student_protocol(protocol("soft-rded", batch=25), "convnet", 20, 10).batch == 25
    assert by_ipc({1: 3, 10: 5}, 7, "epochs") == 5


def test_departures_hold_for_any_number_of_classes() -> None:
    """What is named as a departure is what is run; what is left out is the named protocol's for so many classes."""
    conv = protocol("soft-rded", batch=25, learning_rate={"other": 0.002})
    used = student_protocol(conv, "convnet", 10, 100)
    assert (used.batch, used.learning_rate, used.epochs) == (25, 0.002, 300)
    idc = student_protocol(Protocol.model_validate({**protocol("hard-idc").model_dump(), "epochs": 5}), "vgg", 10, 1000)
    assert (idc.epochs, idc.learning_rate, idc.batch) == (5, 0.1, 128)
    own = protocol("hard-idc", epochs=5, by_classes={50: {"epochs": 7}})
    assert [student_protocol(own, "vgg", 10, classes).epochs for classes in (10, 100)] == [5, 7]
    # Also where it is what the protocol has for few classes.
    same = protocol("hard-idc", batch=64)
    assert Protocol.model_validate(same.model_dump(mode="json")).at(1000).batch == 64
    assert Protocol.model_validate({**under(protocol("hard-idc").model_dump(), {"batch"}), "batch": 64}) == same
    assert [same.departures(classes) for classes in (10, 1000)] == ["", "batch=64"]
    assert protocol("hard-idc", batch=128).departures(1000) == ""


def test_d3hrs_batches_epochs_and_tests() -> None:
    chosen = protocol("soft-d3hr")
    assert [student_protocol(chosen, "convnet", ipc, 10).batch for ipc in (1, 9, 10, 49, 50, 100)] == [
        *(15, 15, 50, 50, 100, 100)
    ]
    by_classes = [student_protocol(chosen, "vgg", 10, classes) for classes in (10, 100, 200, 1000)]
    assert [(used.batch, used.epochs) for used in by_classes] == [(50, 400), (100, 400), (50, 300), (50, 300)]
    assert student_protocol(chosen, "vgg", 10, 10).tested_epochs() == list(range(392, 401))
    assert student_protocol(chosen, "vgg", 10, 1000).tested_epochs() == list(range(292, 301))
    assert chosen.rate_for("timm:swin_tiny_patch4_window7_224") == 1e-4


def test_rates_by_kind_of_network() -> None:
    glad = protocol("glad-eval")
    rates = {name: glad.rate_for(name) for name in ("convnet-5", "vgg-11", "mobilenetv2", "timm:efficientnet_b0")}
    assert rates == {"convnet-5": 0.001, "vgg-11": 0.0001, "mobilenetv2": 0.01, "timm:efficientnet_b0": 0.01}
    assert family("timm:swin_tiny") == "swin"
    assert (family("timm:regnety_002"), family("timm:tf_efficientnet_b0")) == ("other", "efficientnet")
    assert student_protocol(glad, "vgg", 1, 10, learning_rate=0.5).learning_rate == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "glad-evl"}, "did you mean 'glad-eval'"),
        ({"augmentation": "color_flp"}, "flip"),
        ({"epochs": {}}, "at least 1"),
        ({"epochs": {1: 0}}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"batch": True}, "true and false are no numbers"),
        ({"patches": True}, "true and false are no numbers"),
        ({"labels": "softt"}, "labels"),
        ({"by_classes": {100: {"epoch": 3}}}, "did you mean 'epochs'"),
        ({"by_classes": {100: {"batch": "many"}}}, "by_classes.100.batch"),
        ({"learning_rate": {"resnet": 0.1}}, "give 'other' too"),
        ({"learning_rate": {"other": 0.1, "resnett": 0.1}}, "did you mean 'resnet'"),
        ({"learning_rate": {"other": 0.0}}, "other: a rate must be above 0"),
    ],
)
def test_refusals(given: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Protocol.model_validate(given)


def test_other_settings_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValidationError, match="resnet18-dd"):
        Architecture(network="resnet18-ddd", label="R")
    with pytest.raises(ValidationError, match="augmentation must be one of"):
        Students(architectures={}, protocol=protocol("soft-fkd", augmentation="crop_flip"))
    with pytest.raises(ValidationError, match="say which network"):
        Teacher()


def released_glad_rates(epochs: int, peak: float) -> list[float]:
    """The two chained schedulers of GLaD's loop, stepped as that loop steps them."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], peak)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-7, 1.0, total_iters=epochs // 2)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs // 2)
    current, rates = warm, []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        current.step()
        if epoch == epochs // 2:
            current = fall
    return rates


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("epochs", [10, 11, 100])
def test_glad_schedule_is_the_released_one(epochs: int) -> None:
    rates = [StudentProtocol(epochs, 0.4).rate(e) for e in range(epochs)]
    assert rates == pytest.approx(released_glad_rates(epochs, 0.4), rel=1e-6)
    assert rates[epochs // 2] == rates[epochs // 2 + 1] == 0.4


@pytest.mark.parametrize("epochs", [12, 13, 300])
def test_other_schedules(epochs: int) -> None:
    def factors(name: str) -> list[float]:
        return [SCHEDULES[name](e, epochs) for e in range(epochs)]

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * epochs // 3, 5 * epochs // 6], 0.2)
    expected = []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        steps.step()
    assert factors("idc-steps") == pytest.approx(expected)
    assert factors("cosine")[0] == factors("half-cosine")[0] == 1
    assert 0 < factors("cosine")[-1] < 0.02
    assert factors("half-cosine")[-1] == pytest.approx(0.5, abs=0.1)
    # The rate falls after the epoch numbered E // 2 + 1 has run, of E + 1.
    dropped = [SCHEDULES["dc-steps"](e, epochs) for e in range(epochs + 1)]
    assert dropped.index(0.1) == epochs // 2 + 2
    cycle = factors("one-cycle")
    assert max(cycle) == 1
    assert min(cycle) > 0


def test_tested_epochs() -> None:
    assert StudentProtocol(100, 1, evaluations=4).tested_epochs() == [25, 50, 75, 100]
    assert StudentProtocol(3, 1, evaluations=10).tested_epochs() == [1, 2, 3]
    assert StudentProtocol(100, 1, extra_epoch=True).tested_epochs() == [101]
    rded = StudentProtocol(300, 1, test_every=10, test_after=0.8)
    # The released loop validates after epochs numbered 249, 259, ... from zero, and the last.
    assert rded.tested_epochs() == [250, 260, 270, 280, 290, 300]
    fkd = StudentProtocol(25, 1, test_every=10, test_offset=1)
    assert fkd.tested_epochs() == [1, 11, 21, 25]


def test_average_is_the_mean_of_all_weights_until_its_decay_is_reached() -> None:
    chosen, average = StudentProtocol(1, 1, ema_decay=0.995), 0.0
    for update in range(150):
        average += (1 - chosen.decay(update)) * (update**2 - average)
    assert average == pytest.approx(sum(u**2 for u in range(150)) / 150)
    assert chosen.decay(198) < 0.995
    assert chosen.decay(199) == chosen.decay(10**6) == 0.995


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizers_are_torchs(kind: str, vectors: bool) -> None:
    torch.manual_seed(0)
    reference = create("convnet", 4, 3, 8, width=4, depth=1).double()
    network = copy.deepcopy(reference)
    flat, gradient = flatten_parameters(network)
    settings = StudentProtocol(1, 1.0, weight_decay=0.05, betas=(0.8, 0.95))
    decay = decay_factors(network, vectors)
    ours = {"sgd": SGD, "adamw": AdamW}[kind](flat, decay, settings)
    named = list(reference.named_parameters())
    plain = [p for name, p in named if vectors or (p.ndim > 1 and "weight" in name)]
    rest = [p for name, p in named if not any(p is q for q in plain)]
    groups = [{"params": plain}, {"params": rest, "weight_decay": 0.0}]
    theirs: torch.optim.Optimizer
    if kind == "sgd":
        theirs = torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.05)
    else:
        theirs = torch.optim.AdamW(groups, 0.1, betas=(0.8, 0.95), weight_decay=0.05)
    for rate in (0.1, 0.3, 0.2):
        x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(0, 4, (6,))
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        theirs.step()
        gradient.zero_()
        F.cross_entropy(network(x), y).backward()
        ours.step(flat, gradient, rate)
        for mine, other in zip(network.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(mine, other, atol=1e-12)
    ours.reset()
    assert all(float(tensor.abs().max()) == 0 for tensor in ours.state.values())
    assert math.isfinite(float(flat.sum()))
