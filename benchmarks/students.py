"""Our student trainer beside the same protocol written the usual way, in one run, with the arithmetic floor.

The usual way (`plain`): for every seed a DataLoader over a TensorDataset, torch.optim, torch's schedulers, averaging
by parameter, a DataLoader for the test images, and all cores for one network. Ours: the students of a job side by
side. `stack`: the seeds as one network with stacked weights (torch.func), training steps only. Network, augmentation,
batches, schedule and number of tests are the same. On a CPU each side runs in a fresh process; importing torch is left
out. On a GPU all run in this one after two epochs that are not timed, which start the device and, for the sides so
called, compile; `first` is what these took.

The floor is what the same additions and multiplications (counted by torch) would take at the rate of a large matrix
product, measured beside it on as many cores. Images are random, for only time is compared; `--accuracy` compares
what comes out, on a set of yours.

    python benchmarks/students.py                         ConvNet-3, ResNet-18, ViT: IPC 10, five seeds, 32 pixels
    python benchmarks/students.py --networks convnet-3 --sides plain ours ours-bf16 stack
    python benchmarks/students.py --accuracy SET --prepared data/prepared/cifar10.safetensors --networks convnet-3

`--kernels` shows, on a GPU, what the steps of one student of ours are made of instead: how long each takes and which of
its operations take how much of that.

Fewer epochs than the protocol's 1000 are run, with as many fewer test images, so that both keep their shares; on a GPU
only of the plain loop, and ours runs them all.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diver import graphs
from diver.config.protocols import protocol
from diver.networks import create
from diver.networks.augment import DSA
from diver.students import StudentData, StudentProtocol, student_protocol, train_students
from diver.students.student import Student
from diver.students.together import Runner

CLASSES, SIZE, EPOCHS, TESTS, GPU_EPOCHS = 10, 32, 1000, 10_000, 200
# GLaD's transformer for small images: patches of 4, six layers.
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "convnet-3": ("convnet-3", {}, 10),
    "resnet18-dd": ("resnet18-dd", {}, 4),
    "vit": ("vit-glad", {"patch": 4, "depth": 6}, 4),
}


def random_data(ipc: int, tests: int, device: torch.device) -> StudentData:
    torch.manual_seed(0)
    labels, test_labels = torch.arange(CLASSES).repeat_interleave(ipc), torch.arange(tests) % CLASSES
    images, test_images = torch.randn(len(labels), 3, SIZE, SIZE), torch.randn(tests, 3, SIZE, SIZE)
    images, labels, test_images, test_labels = (t.to(device) for t in (images, labels, test_images, test_labels))
    return StudentData(images, labels, test_images, test_labels, CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3)


def run_ours(name: str, used: StudentProtocol, seeds: list[int], data: StudentData, cores: int) -> list[float]:
    network, options, _ = NETWORKS[name]
    results = train_students(network, options, data, used, seeds, lambda *_: None, workers=cores, memory_gb=40)
    return [r.accuracy_last for r in results]


def run_plain(name: str, used: StudentProtocol, seeds: list[int], data: StudentData, cores: int) -> list[float]:
    """GLaD's evaluation, as its loop is usually written."""
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(cores)
    kind, options, _ = NETWORKS[name]
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        network = create(kind, data.classes, 3, data.images.shape[-1], **options).to(data.images.device)
        dsa, average = DSA(used.augmentation), copy.deepcopy(network).eval()
        optimizer = torch.optim.SGD(
            network.parameters(), used.learning_rate, used.momentum, weight_decay=used.weight_decay
        )
        half = max(1, used.epochs // 2)
        warm, fall = LinearLR(optimizer, 1e-7, 1.0, half), CosineAnnealingLR(optimizer, half)
        loader = DataLoader(TensorDataset(data.images, data.labels), used.batch, shuffle=True)
        for epoch in range(used.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(network(dsa.apply(x, dsa.draw(len(x), generator))), y)
                loss.backward()
                optimizer.step()
                loss.item()
            decay = min(used.ema_decay, epoch / (epoch + 1))
            with torch.no_grad():
                for mine, live in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                    if live.is_floating_point():
                        mine.lerp_(live, 1 - decay)
            (warm if epoch <= half else fall).step()
        right = 0
        with torch.no_grad():
            for x, y in DataLoader(TensorDataset(data.test_images, data.test_labels), 128):
                right += (average(data.floats(x)).argmax(1) == y).sum().item()
        found.append(100 * right / len(data.test_labels))
    return found


def run_stack(name: str, used: StudentProtocol, seeds: list[int], data: StudentData, cores: int) -> list[float]:
    """All seeds as one stack of weights: a vectorised gradient and SGD; neither average nor test."""
    from torch.func import functional_call, grad, stack_module_state, vmap

    torch.set_num_threads(cores)
    kind, options, _ = NETWORKS[name]
    networks = [create(kind, data.classes, 3, SIZE, **options).to(data.images.device) for _ in seeds]
    weights, buffers = stack_module_state(networks)
    base = copy.deepcopy(networks[0]).to("meta")
    generators, dsa = [torch.Generator().manual_seed(s) for s in seeds], DSA(used.augmentation)

    def loss(w: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(base, (w, b), (x,)), data.labels)

    gradient = vmap(grad(loss), randomness="different")
    velocity = {key: torch.zeros_like(value) for key, value in weights.items()}
    weights = {key: value.detach() for key, value in weights.items()}
    for epoch in range(used.epochs):
        x = torch.stack([dsa.apply(data.images, dsa.draw(len(data.images), g)) for g in generators])
        for key, g in gradient(weights, buffers, x).items():
            velocity[key].mul_(used.momentum).add_(g).add_(weights[key], alpha=used.weight_decay)
            weights[key].sub_(velocity[key], alpha=used.rate(epoch))
    return []


SIDES: dict[str, tuple[Callable[..., list[float]], str]] = {
    "plain": (run_plain, "fp32"),
    "ours": (run_ours, "fp32"),
    "ours-bf16": (run_ours, "bf16"),
    "ours-compiled": (run_ours, "fp32"),
    "ours-bf16-compiled": (run_ours, "bf16"),
    "stack": (run_stack, "fp32"),
}


def work_flop(name: str, data: StudentData, used: StudentProtocol, seeds: int) -> float:
    """Additions and multiplications of all training steps and tests, counted by torch on one image of no content."""
    from torch.utils.flop_counter import FlopCounterMode

    kind, options, _ = NETWORKS[name]
    counts = []
    with torch.device("meta"):
        network, x = create(kind, data.classes, 3, SIZE, **options), torch.empty(2, 3, SIZE, SIZE)
        for backward in (False, True):
            with FlopCounterMode(display=False) as counter:
                out = network(x)
                if backward:
                    F.cross_entropy(out, torch.zeros(2, dtype=torch.long)).backward()
            counts.append(counter.get_total_flops() / 2)
    return seeds * (counts[1] * used.epochs * len(data.images) + counts[0] * len(data.test_images))


def matrix_rate(precision: str, cores: int, device: torch.device, seconds: float = 1.0) -> float:
    """Operations a second of a large matrix product, on as many cores (one product on each) or on the GPU."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    # As torch's convolutions are on a GPU by default.
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        a @ b
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()
            done += 1
        return done * 2 * size**3 / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = False


def short_protocol(precision: str, epochs: int) -> StudentProtocol:
    return student_protocol(protocol("glad-eval", epochs=epochs, precision=precision), "resnet", 10, CLASSES)


def epochs_of(side: str, name: str, device: torch.device, compared: bool) -> int:
    """Epochs that are run by default; the same on all sides where their accuracies are compared."""
    if device.type != "cuda":
        return NETWORKS[name][2]
    # Ours makes and records its steps once, which a part of the epochs would count several times.
    return GPU_EPOCHS if compared or side == "plain" else EPOCHS


def one_side(arguments: argparse.Namespace, side: str, name: str) -> tuple[float, list[float]]:
    """Seconds of one side in a fresh process, and its accuracies."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", f"{side}:{name}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.cores)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    seconds, accuracies = json.loads(output.splitlines()[-1])
    return seconds, accuracies


def timed(
    arguments: argparse.Namespace, side: str, name: str, epochs: int, device: torch.device
) -> tuple[float, list[float]]:
    """Seconds of one side in this process, and its accuracies."""
    runner, precision = SIDES[side]
    os.environ["DIVER_COMPILE"] = str(int(side.endswith("compiled")))
    used = short_protocol(precision, epochs)
    if arguments.accuracy:
        data, used = real_data(arguments, used, device)
    else:
        data = random_data(arguments.ipc, max(1, TESTS * epochs // EPOCHS), device)
    started = time.perf_counter()
    accuracies = runner(name, used, list(range(arguments.seeds)), data, arguments.cores)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, accuracies


def show_kernels(side: str, name: str, ipc: int, device: torch.device, most: int = 25) -> None:
    """Microseconds of a recorded step of one student, and of its operations on the device, the longest first."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    os.environ["DIVER_COMPILE"] = str(int(side.endswith("compiled")))
    network, options, _ = NETWORKS[name]
    with graphs.own_stream(device):
        used = short_protocol(SIDES[side][1], EPOCHS)
        student = Student(network, options, random_data(ipc, 100, device), used, 0)
        runner, (images, target) = Runner(student, None), next(student.batches())
        knobs = torch.tensor([1e-3, 0.01], device=device)

        def steps(count: int) -> float:
            began = time.perf_counter()
            for _ in range(count):
                runner.run(images, target, knobs)
            torch.cuda.synchronize()
            return (time.perf_counter() - began) / count

        steps(20)
        seconds = steps(200)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            steps(10)
    found = [row for row in profiled.key_averages() if row.device_type == DeviceType.CUDA]
    rows = sorted(found, key=lambda row: -row.device_time_total)
    total, count = (sum(getattr(row, key) for row in rows) / 10 for key in ("device_time_total", "count"))
    print(f"{name},{side}: a step takes {1e6 * seconds:.0f} us; {count:.0f} operations, {total:.0f} us", flush=True)
    for row in rows[:most]:
        print(f"{row.device_time_total / 10:9.1f} us {row.count / 10:6.1f} times  {row.key[:120]}")


def run_only(arguments: argparse.Namespace) -> None:
    side, name = arguments.only.split(":")
    epochs = arguments.epochs or NETWORKS[name][2]
    print(json.dumps(timed(arguments, side, name, epochs, torch.device("cpu"))))


def real_data(
    arguments: argparse.Namespace, used: StudentProtocol, device: torch.device
) -> tuple[StudentData, StudentProtocol]:
    """A set of the caller's with the dataset's test images."""
    from diver.data.prepared import Prepared
    from diver.sets import DistilledSet
    from diver.students import set_data

    data = set_data(
        DistilledSet.read(arguments.accuracy), Prepared.read(arguments.prepared), protocol("glad-eval"), device=device
    )
    return data, used


def interval(values: list[float]) -> str:
    """Mean and half width of the 95 % t-interval."""
    from diver.report.statistics import t_interval

    found = t_interval(values)
    return f"{found.mean:.2f} ± {found.half_width:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sides", nargs="+", default=["plain", "ours", "ours-bf16"], choices=list(SIDES))
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="epochs to run; by default a few, by network")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--accuracy", help="a distilled set: compare accuracies on it instead of random images")
    parser.add_argument("--prepared", help="its prepared dataset")
    parser.add_argument("--kernels", action="store_true", help="on a GPU: what a step of ours is made of")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run_only(arguments)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.kernels:
        if device.type != "cuda":
            parser.error("--kernels wants a GPU, and torch sees none")
        for name in arguments.networks:
            for side in arguments.sides:
                if side.startswith("ours"):
                    show_kernels(side, name, arguments.ipc, device)
        return
    rates = {p: matrix_rate(p, arguments.cores, device) for p in sorted({SIDES[s][1] for s in arguments.sides})}
    for precision, rate in rates.items():
        print(f"matrix rate, {precision}, {device}, {arguments.cores} cores: {rate / 1e9:.0f} GFLOP/s", flush=True)
    print(
        "network,side,epochs,seeds,seconds,seconds_for_1000_epochs,times_faster,floor_seconds,share_of_floor,first,"
        "accuracy"
    )
    for name in arguments.networks:
        plain = None
        for side in arguments.sides:
            first = 0.0
            epochs = arguments.epochs or epochs_of(side, name, device, bool(arguments.accuracy))
            data = random_data(arguments.ipc, max(1, TESTS * epochs // EPOCHS), torch.device("cpu"))
            flop = work_flop(name, data, short_protocol("fp32", epochs), arguments.seeds)
            if device.type == "cuda":
                first, _ = timed(arguments, side, name, 2, device)
                seconds, accuracies = timed(arguments, side, name, epochs, device)
            else:
                seconds, accuracies = one_side(arguments, side, name)
            per = seconds * EPOCHS / epochs
            plain = per if side == "plain" else plain
            faster = f"{plain / per:.2f}" if plain else ""
            floor = flop / rates[SIDES[side][1]]
            shown = interval(accuracies) if arguments.accuracy and accuracies else ""
            print(
                f"{name},{side},{epochs},{arguments.seeds},{seconds:.2f},{per:.1f},{faster},"
                f"{floor:.2f},{floor / seconds:.0%},{first:.1f},{shown}",
                flush=True,
            )


if __name__ == "__main__":
    main()
