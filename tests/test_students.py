"""The student trainer: every protocol against a plain loop on torch.optim, repeatability, resuming, rows of a table."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver import graphs
from diver.config.protocols import protocol
from diver.config.students import Architecture
from diver.data.prepared import Prepared
from diver.data.zca import fit_whitening
from diver.networks import create, memory_format
from diver.networks.views import augmentation, draw_mix
from diver.networks.weights import Trained
from diver.sets import SYMMETRIC, WHITENING, DistilledSet, Step, ValueRange
from diver.students import (
    ReplayError,
    StudentData,
    StudentError,
    StudentProtocol,
    check_set,
    evaluate_full,
    evaluate_set,
    record_answers,
    student_protocol,
    train_students,
    train_teacher,
)
from diver.students import student as one_student
from diver.students import train as trainer
from diver.students.evaluate import set_data, student_images
from diver.students.needs import activation_bytes, couples_images, draws
from diver.students.replay import Replay
from diver.students.student import Average, Student, flatten_parameters, images_at_once
from diver.students.student import test_accuracy as measure_accuracy
from diver.students.trial import smallest_batch, try_network
from diver.tensorfile import read_tensors

CONVNET = ("convnet", {"width": 8, "depth": 2})
DROPOUT = ("vit", {"dim": 24, "depth": 1, "dropout": 0.2})
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def data() -> StudentData:
    """Three classes told apart by colour: 12 training and 90 test images of 16 x 16, and a random teacher."""
    generator = torch.Generator().manual_seed(0)

    def split(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(3).repeat_interleave(each)
        images = torch.randn(len(labels), 3, 16, 16, generator=generator)
        images[torch.arange(len(labels)), labels] += 1.5
        return images, labels

    torch.manual_seed(3)
    network = create(CONVNET[0], 3, 3, 16, **CONVNET[1]).eval().requires_grad_(False)
    teacher = Trained(network, *CONVNET, ("a", "b", "c"), 3, 16, "coloured", MEAN, STD)
    return StudentData(*split(4), *split(30), 3, MEAN, STD, torch.randn(12, 3, generator=generator), teacher)


def quiet(done: int, total: int, note: str) -> None:
    pass


def answers(data: StudentData, used: StudentProtocol) -> Replay:
    assert data.teacher is not None
    augment = augmentation(used.augmentation, size=None, mean=data.mean, std=data.std, factor=used.patches or 1)
    return record_answers(data.images, "set", data.teacher, augment, used, 7, quiet)


def small(name: str, **changes: object) -> StudentProtocol:
    """A named protocol, shortened."""
    used = student_protocol(protocol(name, batch=5), "convnet", 4, 3)
    return replace(used, **{"epochs": 6, "test_every": None, "evaluations": 2, **changes})


def plain_training(name: str, options: dict, data: StudentData, used: StudentProtocol, seed: int):
    """A protocol written out on torch.optim with the losses of its papers; returns (tested network, last loss)."""
    torch.manual_seed(seed)
    network = create(name, 3, 3, 16, **options).train()
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    average, updates, temperature = copy.deepcopy(network), 0, used.temperature
    matrices = [p for n, p in network.named_parameters() if used.decay_vectors or ("weight" in n and p.ndim > 1)]
    vectors = [p for p in network.parameters() if not any(p is q for q in matrices)]
    groups = [{"params": matrices, "weight_decay": used.weight_decay}, {"params": vectors, "weight_decay": 0.0}]

    def new_optimizer() -> torch.optim.Optimizer:
        if used.optimizer == "adamw":
            return torch.optim.AdamW(groups, 1.0, betas=used.betas)
        return torch.optim.SGD(groups, 1.0, momentum=used.momentum)

    def blend() -> None:
        nonlocal updates
        decay = min(used.ema_decay, updates / (updates + 1))
        for mine, live in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if live.is_floating_point():
                mine.copy_(decay * mine + (1 - decay) * live)
        updates += 1

    optimizer, augment = (
        new_optimizer(),
        augmentation(used.augmentation, size=None, mean=data.mean, std=data.std, factor=used.patches or 1),
    )
    count, loss = len(data.labels), torch.zeros(())
    for epoch in range(used.epochs + used.extra_epoch):
        if used.momentum_reset and epoch == used.epochs // 2 + 2:
            optimizer = new_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = used.rate(epoch)
        whole = count <= used.batch
        order = [torch.arange(count)] if whole else torch.randperm(count, generator=generator).split(used.batch)
        for number in range(len(order)):
            partner, weight = None, 1.0
            if used.labels == "replay":
                answer = data.replay.answered(epoch, number)
                x = answer.mix.apply(augment.apply(data.images[answer.index], answer.view))
                soft = answer.logits
            else:
                x, y = data.images[order[number]], data.labels[order[number]]
                x = augment.apply(x, augment.draw(len(x), generator))
                if used.mix != "none":
                    mix = draw_mix(used.mix, len(x), used.mix_alpha, used.mix_probability, generator, size=16)
                    x, partner, weight = mix.apply(x), mix.partner, mix.weight if mix.kind != "none" else 1.0
                if used.labels == "teacher":
                    soft = data.teacher.network(x)
            x = x.to(memory_format=memory_format(network))
            if used.double_forward:
                with torch.no_grad():
                    network(x)
            logits = network(x)
            if used.labels in ("teacher", "replay"):
                log_q = F.log_softmax(logits / temperature, 1)
                loss = F.kl_div(log_q, F.softmax(soft / temperature, 1), reduction="batchmean")
            elif used.labels == "soft":
                chosen = data.soft_labels[order[number]]
                loss = -(F.softmax(chosen, 1) * F.log_softmax(logits, 1)).sum(1).mean()
            else:
                loss = F.cross_entropy(logits, y)
                if partner is not None:
                    loss = loss * weight + F.cross_entropy(logits, y[partner]) * (1 - weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if used.ema_decay and not used.ema_per_epoch:
                blend()
        if used.ema_decay and used.ema_per_epoch:
            blend()
    return (average if used.ema_decay else network).eval(), loss.item()


CASES = [
    ("glad-eval", *CONVNET, {"learning_rate": 0.02}),
    ("glad-eval", *CONVNET, {"learning_rate": 0.02, "batch": 256, "ema_decay": 0.5}),
    ("glad-eval", *CONVNET, {"learning_rate": 0.02, "ema_per_epoch": False, "labels": "soft"}),
    ("glad-eval", *DROPOUT, {"learning_rate": 0.02, "batch": 256}),
    ("glad-eval", "mobilenet", {"width": 0.25, "repeats": 1}, {"learning_rate": 0.02, "batch": 256}),
    ("hard-idc", *CONVNET, {}),
    ("hard-idc", *CONVNET, {"mix": "mixup", "mix_probability": 0.5}),
    ("soft-rded", *CONVNET, {}),
    ("soft-rded", *CONVNET, {"patches": 2}),
    ("soft-d3hr", *CONVNET, {}),
    ("soft-fkd", *CONVNET, {"batch": 256}),
    ("soft-rded", "mobilenet", {"width": 0.25, "repeats": 1}, {"batch": 12}),
    ("soft-fkd", *CONVNET, {}),
    ("dc-eval", *CONVNET, {}),
    ("dc-eval-plain", *CONVNET, {}),
    ("full-data", *CONVNET, {}),
]


@pytest.fixture(params=["called", "recorded"])
def steps(request: pytest.FixtureRequest) -> str:
    """Steps as on a CPU, or recorded as on a GPU."""
    if request.param == "recorded":
        request.getfixturevalue("acted_graphs")
    return request.param


@pytest.mark.parametrize(("name", "network", "options", "changes"), CASES)
def test_protocols_against_a_plain_loop(
    data: StudentData, steps: str, name: str, network: str, options: dict, changes: dict
) -> None:
    used = small(name, **changes)
    if steps == "recorded" and options.get("dropout"):
        pytest.skip("recorded steps draw their dropout from the device's generator")
    if used.labels == "replay":
        data = replace(data, replay=answers(data, used))
    (result,) = train_students(network, options, data, used, [5], quiet)
    tested, loss = plain_training(network, options, data, used, 5)
    # Small batches under batch normalisation enlarge differences in rounding.
    assert result.train_loss_last == pytest.approx(loss, rel=2e-3, abs=1e-6)
    expected = 100 * float((tested(data.test_images).argmax(1) == data.test_labels).float().mean())
    assert result.accuracy_last == pytest.approx(expected, abs=2.3)
    passes = used.epochs + used.extra_epoch
    assert result.steps == passes * -(-12 // used.batch)


@pytest.mark.parametrize(
    ("name", "network", "options", "switch"),
    [
        ("glad-eval", *CONVNET, {"ema_per_epoch": False}),
        ("glad-eval", *CONVNET, {"ema_decay": 0.0}),
        ("dc-eval", *CONVNET, {"extra_epoch": False}),
        ("dc-eval", *CONVNET, {"momentum_reset": False}),
        ("soft-rded", "mobilenet", {"width": 0.25, "repeats": 1}, {"double_forward": False}),
        ("soft-rded", *CONVNET, {"temperature": 1.0}),
        ("soft-rded", *CONVNET, {"decay_vectors": True}),
        ("hard-idc", *CONVNET, {"mix": "none"}),
    ],
)
def test_every_switch_reaches_the_network(
    data: StudentData, name: str, network: str, options: dict, switch: dict
) -> None:
    def tested(used: StudentProtocol) -> Tensor:
        kept: list[Student] = []
        train_students(network, options, data, used, [0], quiet, keep=kept.append)
        return torch.cat([v.float().flatten() for v in kept[0].tested_network.state_dict().values()])

    used = small(name, weight_decay=0.1, learning_rate=0.02)
    assert not torch.equal(tested(used), tested(replace(used, **switch)))


def test_a_step_in_parts_is_the_step(data: StudentData, steps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = small("hard-idc", batch=12)

    def trained() -> tuple[int, Tensor]:
        kept: list[Student] = []
        train_students(*CONVNET, data, used, [0], quiet, keep=kept.append)
        return kept[0].part, kept[0].flat

    whole = trained()
    monkeypatch.setattr(
        one_student,
        "PART_BYTES",
        {"cpu": 5 * activation_bytes(create(CONVNET[0], 3, 3, 16, **CONVNET[1]), data.images[:1])},
    )
    parts = trained()
    assert (whole[0], parts[0]) == (12, 5)
    assert torch.allclose(whole[1], parts[1], atol=1e-4)


def test_average_covers_batch_statistics() -> None:
    network = create("mobilenet", 3, 3, 16, width=0.25, repeats=1)
    assert couples_images(network)
    assert not couples_images(create(CONVNET[0], 3, 3, 16, **CONVNET[1]))
    flat, _ = flatten_parameters(network.train())
    average = Average(network, flat)
    network(torch.randn(4, 3, 16, 16) * 5 + 3)
    live, before = network.layers[1].running_mean.clone(), average.network.layers[1].running_mean.clone()
    average.update(0.75)
    assert torch.allclose(average.network.layers[1].running_mean, 0.75 * before + 0.25 * live)
    flat.add_(1.0)
    assert not torch.equal(network.classifier.weight, average.network.classifier.weight)


def test_students_learn_and_best_is_the_largest_test(data: StudentData) -> None:
    used = small("glad-eval", epochs=40, learning_rate=0.05, evaluations=40, batch=256)
    (result,) = train_students(*CONVNET, data, used, [0], quiet)
    assert result.accuracy_last > 80
    assert result.accuracy_best >= result.accuracy_last
    assert not result.diverged
    (last_only,) = train_students(*CONVNET, data, replace(used, evaluations=1), [0], quiet)
    assert last_only.accuracy_best == last_only.accuracy_last == result.accuracy_last


@pytest.mark.parametrize(("network", "options"), [CONVNET, DROPOUT])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_student_is_the_same_alone_beside_others_and_after_them(
    data: StudentData, network: str, options: dict, workers: int
) -> None:
    used = small("glad-eval", learning_rate=0.05)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    together = train_students(network, options, data, used, [0, 1, 2], quiet, workers)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(78)
    alone = train_students(network, options, data, used, [1], quiet)
    assert replace(together[1], seconds=0) == replace(alone[0], seconds=0)
    assert len({r.train_loss_last for r in together}) == 3


def test_progress_counts_the_epochs_of_all_students(data: StudentData) -> None:
    for workers in (1, 2):
        seen: list[tuple[int, int]] = []
        train_students(*CONVNET, data, small("dc-eval"), [0, 1], lambda a, b, _, s=seen: s.append((a, b)), workers)
        assert seen[-1] == (14, 14)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: students on CUDA are not tested")
def test_a_gpu_trains_the_same_student(data: StudentData) -> None:
    used = small("glad-eval", learning_rate=0.05)
    moved = {name: getattr(data, name).cuda() for name in ("images", "labels", "test_images", "test_labels")}
    (there,) = train_students(*CONVNET, replace(data, **moved), used, [0], quiet)
    (here,) = train_students(*CONVNET, data, used, [0], quiet)
    assert there.train_loss_last == pytest.approx(here.train_loss_last, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: students on CUDA are not tested")
@pytest.mark.parametrize(("network", "options"), [CONVNET, DROPOUT, ("mobilenet", {"width": 0.25, "repeats": 1})])
def test_students_of_a_gpu_do_not_depend_on_each_other(data: StudentData, network: str, options: dict) -> None:
    used = small("glad-eval", learning_rate=0.02, epochs=20)
    moved = {name: getattr(data, name).cuda() for name in ("images", "labels", "test_images", "test_labels")}
    there = replace(data, **moved)
    together = train_students(network, options, there, used, [0, 1, 2], quiet)
    alone = [train_students(network, options, there, used, [seed], quiet)[0] for seed in (0, 1, 2)]
    assert [replace(r, seconds=0) for r in together] == [replace(r, seconds=0) for r in alone]
    assert len({r.train_loss_last for r in together}) == 3


def test_failure_of_a_worker_is_the_callers(data: StudentData, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Student) -> None:
        raise FloatingPointError("student broke")

    monkeypatch.setattr(Student, "run_epoch", fail)
    with pytest.raises(FloatingPointError, match="student broke"):
        train_students(*CONVNET, data, small("dc-eval"), [0, 1, 2], quiet, 2)


@pytest.mark.parametrize("name", ["glad-eval", "soft-rded", "dc-eval"])
def test_interrupted_training_goes_on_to_the_same_result(
    data: StudentData, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = small(name, epochs=8)
    undisturbed = train_students(*DROPOUT, data, used, [0, 1], quiet)
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)

    class Killed(Exception):
        pass

    def kill(done: int, total: int, note: str) -> None:
        if done >= used.passes + 3:
            raise Killed

    with pytest.raises(Killed):
        train_students(*DROPOUT, data, used, [0, 1], kill, checkpoints=tmp_path)
    ran: list[int] = []
    original = Student.run_epoch
    monkeypatch.setattr(Student, "run_epoch", lambda self: (ran.append(self.seed), original(self))[1])
    resumed = train_students(*DROPOUT, data, used, [0, 1], quiet, checkpoints=tmp_path)
    assert 0 not in ran
    assert 0 < len(ran) < used.passes
    assert [replace(r, seconds=0) for r in resumed] == [replace(r, seconds=0) for r in undisturbed]
    # A file of other settings or other data is not gone on from.
    ran.clear()
    train_students(*DROPOUT, data, replace(used, learning_rate=0.3), [0], quiet, checkpoints=tmp_path)
    assert len(ran) == used.passes


def test_killed_process_is_resumed(tmp_path: Path) -> None:
    """SIGKILL between two epochs, in a process of its own with two workers, then the same command again."""
    script = textwrap.dedent(
        """
        import sys, time, torch
        from diver.students import StudentData, StudentProtocol, train as trainer, train_students
        slow = float(sys.argv[2])
        trainer.SAVE_SECONDS = 0.0
        step = trainer.Student.run_epoch
        trainer.Student.run_epoch = lambda self: (time.sleep(slow), step(self))[1]
        torch.manual_seed(0)
        x, y = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
        data = StudentData(x, y, x, y, 3, (0.5,) * 3, (0.5,) * 3)
        found = train_students("convnet", {"width": 8, "depth": 2}, data, StudentProtocol(30, 0.05), [0, 1],
                               lambda *_: None, workers=2, checkpoints=sys.argv[1])
        print([(r.train_loss_last, r.accuracy_last) for r in found])
        """
    )
    folder = tmp_path / "points"

    def command(where: Path, slow: float) -> list[str]:
        return [sys.executable, "-c", script, str(where), str(slow)]

    with subprocess.Popen(command(folder, 0.05), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("convnet-*.safetensors"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    resumed = subprocess.run(command(folder, 0), capture_output=True, text=True, check=True).stdout
    assert resumed == subprocess.run(command(tmp_path / "new", 0), capture_output=True, text=True, check=True).stdout


def test_memory_is_bounded(data: StudentData) -> None:
    used = small("glad-eval")
    network, options = "vgg", {}
    at_once = [
        trainer.students_at_once(network, options, data32(data), used, 8, gigabytes * 2**30)
        for gigabytes in (0.7, 2.0, 100.0)
    ]
    assert at_once[0] < at_once[1] < at_once[2] == 8
    with pytest.raises(StudentError, match="raise students.memory_gb"):
        train_students(network, options, data32(data), used, [0], quiet, memory_gb=0.01)
    # 12 GB would be the activations of 250 images of a ConvNet-6 at 224 pixels.
    convnet6 = activation_bytes(create("convnet-6", 10, 3, 224), torch.zeros(1, 3, 224, 224))
    assert 1 <= images_at_once(convnet6, "cpu") * convnet6 <= 2**30 < 250 * convnet6
    assert images_at_once(10, "cpu") == 250


def test_activations_are_counted_once_and_all() -> None:
    """Inputs of the convolution, the norm, the linear layer, and two numbers a channel: the same every time."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.Tanh(), nn.Flatten(), nn.Linear(2048, 5)
    )
    found = {activation_bytes(network, torch.zeros(1, 3, 16, 16)) for _ in range(5)}
    images, maps, statistics = 3 * 16 * 16, 8 * 16 * 16, 2 * 8
    assert found == {4 * (images + 2 * maps + statistics)}
    deep = create("resnet18-dd", 10, 3, 32)
    assert len({activation_bytes(deep, torch.zeros(1, 3, 32, 32)) for _ in range(5)}) == 1


def test_masks_of_dropout_count_and_the_network_stays_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5)).eval()
    plain, state = nn.Sequential(*network[:2]), copy.deepcopy(network.state_dict())
    image, before = torch.randn(1, 3, 16, 16), torch.get_rng_state()
    found = {activation_bytes(network, image) for _ in range(3)}
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == 1 and found.pop() >= activation_bytes(plain, image) + 8 * 16 * 16
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert not network.training


class OnCuda:
    """Images that say that they are on a GPU, for what is reckoned before any is used."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.shape, self.device = images, images.shape, torch.device("cuda")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> Tensor:
        return self.images[index]


@pytest.mark.parametrize(
    ("network", "size", "fewest"),
    [("convnet-6", 224, 1), ("resnetap-10", 224, 1), ("resnet18-dd", 128, 1), ("convnet-3", 32, 5)],
)
def test_students_of_the_papers_fit_the_default_bound_on_a_gpu(network: str, size: int, fewest: int) -> None:
    images = OnCuda(torch.zeros(1, 3, size, size).expand(100, -1, -1, -1))
    labels = torch.arange(10).repeat_interleave(10)
    data = StudentData(images, labels, images.images, labels, 10, MEAN, STD)  # type: ignore[arg-type]
    used = student_protocol(protocol("hard-idc" if size == 224 else "glad-eval"), network, 10, 10)
    assert trainer.students_at_once(network, {}, data, used, 5, 8 * 2**30) >= fewest


@pytest.mark.parametrize("name", ["glad-eval", "dc-eval", "hard-idc", "soft-rded"])
def test_recorded_students_do_not_depend_on_each_other(data: StudentData, acted_graphs: None, name: str) -> None:
    used = small(name, learning_rate=0.02, epochs=7)
    together = train_students(*CONVNET, data, used, [0, 1, 2], quiet)
    alone = [train_students(*CONVNET, data, used, [seed], quiet)[0] for seed in (0, 1, 2)]
    assert [replace(r, seconds=0) for r in together] == [replace(r, seconds=0) for r in alone]
    assert len({r.train_loss_last for r in together}) == 3


@pytest.mark.parametrize("name", ["glad-eval", "soft-rded"])
def test_recorded_steps_have_the_students_own_statistics(
    data: StudentData, name: str, request: pytest.FixtureRequest
) -> None:
    """Those of batch normalisation, updated twice where the protocol goes forward twice."""
    used = small(name, epochs=1, batch=12, learning_rate=0.02)

    def states() -> list[dict[str, Tensor]]:
        kept: list[Student] = []
        train_students("mobilenet", {"width": 0.25, "repeats": 1}, data, used, [0, 1], quiet, keep=kept.append)
        return [student.tensors() for student in kept]

    called = states()
    counts = {key for key in called[0] if key.startswith("buffer.") and key.endswith("num_batches_tracked")}
    counted = [state[key] for state in called for key in counts]
    assert {int(value) for value in counted} == {2 if used.double_forward else 1}
    request.getfixturevalue("acted_graphs")
    for mine, theirs in zip(states(), called, strict=True):
        for key, value in mine.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize(
    ("network", "options", "random"),
    [(*DROPOUT, True), (DROPOUT[0], {**DROPOUT[1], "dropout": 0.0}, False), ("mobilenet", {"width": 0.25}, False)],
)
def test_networks_that_draw_are_told_and_left_as_they_were(network: str, options: dict, random: bool) -> None:
    made = create(network, 3, 3, 16, **options).train()
    before, state = {k: v.clone() for k, v in made.state_dict().items()}, torch.get_rng_state()
    assert draws(made, torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))) is random
    assert made.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_recorded_students_resume(
    data: StudentData, acted_graphs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the file of the second was written, so that they are not equally far."""
    used = small("hard-idc", epochs=8, evaluations=4)
    undisturbed = train_students(*CONVNET, data, used, [0, 1], quiet)
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    saved: list[int] = []
    save = one_student.Checkpoint.save

    def stopped(self: one_student.Checkpoint, student: Student) -> None:
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(student.epoch)
        save(self, student)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(one_student.Checkpoint, "save", stopped)
        train_students(*CONVNET, data, used, [0, 1], quiet, checkpoints=tmp_path)
    assert saved == [2, 2, 4]
    resumed = train_students(*CONVNET, data, used, [0, 1], quiet, checkpoints=tmp_path)
    assert [replace(r, seconds=0) for r in resumed] == [replace(r, seconds=0) for r in undisturbed]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_recorded_divergence_is_seen_as_it_is_otherwise(
    data: StudentData, acted_graphs: None, monkeypatch: pytest.MonkeyPatch, average: float
) -> None:
    used = small("dc-eval", learning_rate=1e20, epochs=12, ema_decay=average)
    found = train_students(*CONVNET, data, used, [0, 1], quiet)
    monkeypatch.undo()
    called = train_students(*CONVNET, data, used, [0, 1], quiet)
    assert all(r.diverged for r in found)
    assert [(r.steps, r.accuracy_last) for r in found] == [(r.steps, r.accuracy_last) for r in called]


def data32(data: StudentData) -> StudentData:
    return replace(data, images=torch.zeros(12, 3, 32, 32), test_images=torch.zeros(90, 3, 32, 32))


def test_diverged_students_are_recorded(data: StudentData) -> None:
    used = small("dc-eval", learning_rate=1e20, epochs=12, batch=256)
    (result,) = train_students(*CONVNET, data, used, [0], quiet)
    assert result.diverged
    assert result.train_loss_last != result.train_loss_last or abs(result.train_loss_last) == float("inf")
    assert result.steps < 12
    assert result.accuracy_last == pytest.approx(100 / 3)


def test_weights_that_the_last_step_ruins_are_diverged(data: StudentData) -> None:
    """The loss is of before that step, and still a number."""
    used = small("dc-eval", learning_rate=1e38, epochs=1, extra_epoch=False, batch=256, evaluations=1, momentum=0.0)
    (result,) = train_students(*CONVNET, data, replace(used, weight_decay=1e3), [0], quiet)
    assert result.diverged and result.steps == 1
    assert result.train_loss_last == pytest.approx(result.train_loss_last)


def test_a_state_goes_on_only_as_it_was_begun(
    data: StudentData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded steps have random numbers of their own, so what was begun by called ones is begun anew."""
    used, points = small("glad-eval", epochs=4), tmp_path / "points"
    train_students(*CONVNET, data, used, [0], quiet, checkpoints=points)
    (path,) = points.iterdir()
    called = read_tensors(path)[1]["key"]
    monkeypatch.setattr(graphs, "records", lambda device: True)
    monkeypatch.setattr(graphs, "record", lambda step, device: step)
    train_students(*CONVNET, data, used, [0], quiet, checkpoints=points)
    assert read_tensors(path)[1]["key"] != called


def test_accuracy_of_a_known_network() -> None:
    """Logits are the pixels; also across more than one test batch."""
    labels = torch.arange(700) % 4
    images = F.one_hot(labels, 4).float().view(-1, 1, 2, 2)
    images[:70] = images[:70].roll(1, 3)
    data = StudentData(images, labels, images, labels, 4, (0.5,), (0.5,))
    assert [measure_accuracy(nn.Flatten(), data, batch) for batch in (1, 250, 700)] == [90.0] * 3


def test_eight_bit_images_are_standardised_as_they_are_used(data: StudentData) -> None:
    pixels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    standardised = ValueRange.standardised(MEAN, STD).from_unit(pixels.float() / 255)
    used = small("full-data")
    (first,) = train_students(*CONVNET, replace(data, images=pixels), used, [0], quiet)
    (second,) = train_students(*CONVNET, replace(data, images=standardised), used, [0], quiet)
    assert first.train_loss_last == pytest.approx(second.train_loss_last, rel=1e-4)


def test_precision_reaches_the_arithmetic(data: StudentData) -> None:
    losses = [
        train_students(*CONVNET, data, small("dc-eval", precision=p), [0], quiet)[0].train_loss_last
        for p in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_refusals(data: StudentData) -> None:
    used = small("dc-eval")
    cases = [
        (replace(data, images=data.images.double()), used, "float64"),
        (replace(data, labels=data.labels[:-1]), used, "training labels"),
        (replace(data, test_images=data.test_images[..., :8]), used, "equal and square"),
        (replace(data, teacher=None), small("soft-rded"), "need a teacher"),
        (replace(data, soft_labels=None), replace(used, labels="soft"), "set labels: hard"),
        (data, small("soft-fkd"), "record_answers"),
    ]
    for given, wanted, message in cases:
        with pytest.raises(StudentError, match=message):
            train_students(*CONVNET, given, wanted, [0])
    with pytest.raises(ValueError, match="convnet"):
        train_students("convnets", {}, data, used, [0])


def test_stored_answers(data: StudentData, tmp_path: Path) -> None:
    used = small("soft-fkd")
    recorded = answers(data, used)
    recorded.write(tmp_path / "a.safetensors")
    answers(data, used).write(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    read = Replay.read(tmp_path / "a.safetensors")
    augment = augmentation("fkd", size=None, mean=MEAN, std=STD)
    for epoch in (0, 5):
        first, second = recorded.answered(epoch, 2), read.answered(epoch, 2)
        assert torch.equal(first.index, second.index)
        views = [a.mix.apply(augment.apply(data.images[a.index], a.view)) for a in (first, second)]
        assert torch.equal(*views)
        assert data.teacher is not None
        # Half precision keeps the teacher's logits for that very view.
        assert torch.allclose(data.teacher.logits(views[0]), second.logits, atol=2e-2)
    assert sorted(torch.cat([read.answered(3, b).index for b in range(3)]).tolist()) == list(range(12))
    # Some forty bytes an image and epoch with ten classes; here three.
    assert (tmp_path / "a.safetensors").stat().st_size < 6 * (12 * 31 + 3 * 17) + 1500
    read.check("set", used, True)
    for other, message in (
        (replace(used, epochs=7), "7"),
        (replace(used, mix="mixup"), "mix cutmix"),
        (replace(used, batch=6), "batch 5"),
    ):
        with pytest.raises(ReplayError, match=message):
            read.check("set", other, True)
    with pytest.raises(ReplayError, match="not other"):
        read.check("other", used, True)
    with pytest.raises(ReplayError, match="at the test images' scale"):
        read.check("set", used, False)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ReplayError, match="bad.safetensors"):
        Replay.read(tmp_path / "bad.safetensors")


@pytest.fixture(scope="module")
def prepared(data: StudentData) -> Prepared:
    unit = ValueRange.standardised(MEAN, STD).to_unit(data.test_images).clamp(0, 1)
    pixels = (unit * 255).to(torch.uint8)
    return Prepared(pixels, data.test_labels, pixels, data.test_labels, "coloured", ("a", "b", "c"), MEAN, STD)


def coloured(data: StudentData) -> DistilledSet:
    return DistilledSet(data.images, "coloured", ("a", "b", "c"), 4, ValueRange.standardised(MEAN, STD), data.labels)


def test_rows_of_a_set(data: StudentData, prepared: Prepared) -> None:
    distilled = coloured(data)
    architecture = Architecture(network="convnet", label="C", learning_rate=0.05, options=CONVNET[1])
    chosen = protocol(epochs={4: 30, 1: 2}, evaluations=1, batch=6)
    rows = evaluate_set(distilled, prepared, architecture, chosen, [3, 4], progress=quiet)
    assert [r["seed"] for r in rows] == [3, 4]
    assert all(r["accuracy_last"] > 60 and r["epochs"] == 30 and r["protocol"] == "glad-eval" for r in rows)
    assert rows[0]["departures"] == "epochs={4: 30, 1: 2}; batch=6; learning_rate=0.05"
    assert (rows[0]["quirks"], rows[0]["reported"], rows[0]["tests"]) == ("ema_per_epoch", "last", 1)
    assert rows[0]["images"] == 12
    assert rows[0]["bytes"] == 12 * 3 * 16 * 16 * 4 + 12 * 8
    assert rows[0]["set_digest"] == distilled.digest()
    inputs = replace(data, test_images=prepared.standardised(prepared.test_images))
    used = student_protocol(chosen, "convnet", 4, 3, 0.05)
    direct = train_students(*CONVNET, inputs, used, [3], quiet)
    assert direct[0].accuracy_last == rows[0]["accuracy_last"]


def test_sets_learned_on_white_images_are_evaluated_on_white_ones(data: StudentData, prepared: Prepared) -> None:
    """Where the protocol has it so, and also after stage 2, so that both are compared under the same inputs."""
    plain = coloured(data)
    learned = plain.with_images(plain.images, plain.value_range, Step("mtt", {WHITENING: {"epsilon": 0.1}}))
    recovered = learned.with_images(plain.images, plain.value_range, Step("diver"))
    zca = fit_whitening(prepared.train_images, 0.1)
    expected = zca.whiten(plain.value_range.to_unit(plain.images))
    for one in (learned, recovered):
        found = set_data(one, prepared, protocol("dc-eval"))
        assert torch.allclose(found.images, expected, atol=1e-5)
        assert torch.equal(found.test_images, zca.whiten_all(prepared.test_images))
    ordinary = protocol("dc-eval", zca=False)
    for one, chosen, matched in (
        (plain, protocol("dc-eval"), True),
        (learned, ordinary, True),
        (learned, protocol("glad-eval"), True),
        (learned, protocol("dc-eval"), False),
    ):
        found = set_data(one, prepared, chosen, matched)
        assert torch.equal(found.images, plain.images) and found.test_images.dtype == torch.uint8
    architecture = Architecture(network="convnet", label="C", options=CONVNET[1])
    for chosen, white in ((protocol("dc-eval", epochs=1), True), (protocol("dc-eval", epochs=1, zca=False), False)):
        (row,) = evaluate_set(learned, prepared, architecture, chosen, [0], progress=quiet)
        assert row["white"] == white
    for name in ("soft-fkd", "hard-idc"):
        with pytest.raises(ValueError, match="set zca: false"):
            protocol(name, zca=True)


def test_sets_that_do_not_fit_the_protocol(data: StudentData, prepared: Prepared) -> None:
    distilled = coloured(data)
    architecture = Architecture(network="convnet", label="C", options=CONVNET[1])
    soft = replace(distilled, labels=None, soft_labels=data.soft_labels)
    with pytest.raises(StudentError, match="takes hard ones; set protocol.labels to soft"):
        evaluate_set(soft, prepared, architecture, protocol("dc-eval"), [0])
    both = replace(distilled, soft_labels=data.soft_labels)
    hard = [
        evaluate_set(one, prepared, architecture, protocol("dc-eval", epochs=2), [0], progress=quiet)[0]
        for one in (both, distilled)
    ]
    assert hard[0]["train_loss_last"] == hard[1]["train_loss_last"]
    with pytest.raises(StudentError, match="set labels: hard"):
        evaluate_set(distilled, prepared, architecture, protocol("dc-eval", labels="soft"), [0])
    rows = evaluate_set(soft, prepared, architecture, protocol("dc-eval", labels="soft", epochs=2), [0], progress=quiet)
    assert "labels=soft" in rows[0]["departures"]
    assert rows[0]["bytes"] == 12 * 3 * 16 * 16 * 4 + 12 * 8 + 12 * 3 * 4
    # "own" is whichever the set has.
    for one, labels in ((soft, "soft"), (distilled, "hard")):
        own, named = (
            evaluate_set(one, prepared, architecture, protocol("dc-eval", labels=kind, epochs=2), [0], progress=quiet)
            for kind in ("own", labels)
        )
        assert own[0]["train_loss_last"] == named[0]["train_loss_last"] and "labels=own" in own[0]["departures"]
    learned = replace(distilled, steps=(Step("mtt", {"syn_lr": 0.125}),))
    for one, given, rate in ((learned, None, 0.125), (distilled, None, 0.01), (learned, 0.5, 0.5)):
        chosen = architecture.model_copy(update={"learning_rate": given})
        (row,) = evaluate_set(one, prepared, chosen, protocol("dc-eval", epochs=2), [0], progress=quiet)
        assert row["learning_rate"] == rate
    given = protocol("dc-eval", epochs=2, learning_rate={"other": 0.01})
    (row,) = evaluate_set(learned, prepared, architecture, given, [0], progress=quiet)
    assert row["learning_rate"] == 0.01 and row["departures"] == "epochs=2; learned_rate=False"
    with pytest.raises(StudentError, match="soft-rded|teacher"):
        evaluate_set(distilled, prepared, architecture, protocol("soft-rded", batch=5), [0])
    other = replace(distilled, images=distilled.images[:, :, :8, :8])
    with pytest.raises(StudentError, match="8 x 8; coloured takes 16 x 16"):
        evaluate_set(other, prepared, architecture, protocol("dc-eval"), [0])


def test_pieces_smaller_than_a_pixel_are_refused(data: StudentData, prepared: Prepared) -> None:
    check_set(coloured(data), prepared, protocol("soft-rded", patches=16))
    with pytest.raises(StudentError, match="patches 17 of soft-rded is more than the 16 pixels"):
        check_set(coloured(data), prepared, protocol("soft-rded", patches=17))


def test_a_network_is_tried_on_the_smallest_batch() -> None:
    assert [smallest_batch(*one) for one in ((12, 256), (12, 5), (12, 6), (11, 5))] == [12, 2, 6, 1]
    before = torch.get_rng_state()
    try_network(*DROPOUT, 3, [3, 16, 16], 1)
    try_network("resnet", {"norm": "batch", "width": 8}, 3, [3, 8, 8], 2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, options, size, batch, message in (
        ("resnet", {"norm": "batch", "width": 8}, 8, 1, "R cannot be trained on 1 image.*take another batch"),
        ("convnet", {"depth": 5}, 16, 2, "R cannot be made.*16 pixels are too small.*take another network"),
        ("torchvision:inception_v3", {"init_weights": False}, 96, 2, "R cannot be .*take another network"),
    ):
        with pytest.raises(StudentError, match=message):
            try_network(name, options, 3, [3, size, size], batch, "R")


def test_replayed_answers_of_another_set_are_refused(data: StudentData, prepared: Prepared) -> None:
    architecture = Architecture(network="convnet", label="C", options=CONVNET[1])
    chosen = protocol("soft-fkd", epochs=6, batch=5)
    with pytest.raises(ReplayError, match="for set set"):
        evaluate_set(
            coloured(data), prepared, architecture, chosen, [0], replay=answers(data, small("soft-fkd")), progress=quiet
        )


def test_teacher_and_ceiling_from_the_whole_training_set(prepared: Prepared) -> None:
    chosen = protocol("full-data", epochs=6, batch=10)
    teacher = train_teacher(prepared, *CONVNET, chosen, 0, quiet)
    assert teacher.accuracy is not None
    assert teacher.accuracy > 70
    logits = teacher.logits(prepared.standardised(prepared.test_images))
    found = 100 * float((logits.argmax(1) == prepared.test_labels).float().mean())
    assert found == pytest.approx(teacher.accuracy, abs=1.2)
    architecture = Architecture(network="convnet", label="C", options=CONVNET[1])
    rows = evaluate_full(prepared, architecture, chosen, [0, 1], progress=quiet)
    assert rows[0]["accuracy_last"] == teacher.accuracy
    assert (rows[0]["images"], rows[0]["protocol"]) == (90, "full-data")
    with pytest.raises(StudentError, match="teacher diverged; lower its learning_rate"):
        wild = chosen.model_copy(update={"learning_rate": {"other": 1e12}, "epochs": 1})
        train_teacher(prepared, *CONVNET, wild, 0, quiet)


def test_scale_and_size_of_student_images(data: StudentData, prepared: Prepared) -> None:
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
