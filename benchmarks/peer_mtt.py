"""Trajectory matching's gradient beside the public code of MTT and beside the usual way: agreement, and time.

    python benchmarks/peer_mtt.py [--peer CHECKOUT] [--ipc 1] [--steps 50]

The peer is a checkout of the mtt-distillation repository. Its network and its ReparamModule are used as they are; its
inner loop, which stands inside a main function, is written here again. `plain` is the same loop on this project's
network by `torch.func.functional_call`, one graph over all steps. `twice` is ours without derivatives in a direction:
each step is differentiated twice. All start from the same parameters and take the same images, without augmentation.

First the gradients of images and step size are compared, with each other and with `plain` in float64. Then each side
is timed in fresh processes, in turn, by CPU time on one thread; the least counts. Ours does what every step of the
study does first (`keep_freed_memory`); the other two are left as they are. The floor is what the convolutions of an
iteration take by themselves, eleven passes for the adjoint and nine for the usual way, which keeps every step's graph.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from diver.distill.flat import FlatNetwork
from diver.distill.mtt import matching_loss
from diver.distill.trajectory import Training, parts, trajectory_gradient
from diver.workers import keep_freed_memory

CLASSES, CHANNELS, SIZE, WIDTH, DEPTH = 10, 3, 32, 128, 3
OURS, OTHERS = ("adjoint", "truncated", "unrolled", "twice"), ("peer", "plain")
# Loss, gradient of the images, gradient of the step size.
Found = tuple[Tensor, Tensor, Tensor]
Logits = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Problem:
    network: FlatNetwork
    start: Tensor
    target: Tensor
    images: Tensor
    labels: Tensor
    rate: Tensor
    steps: int

    def final(self, end: Tensor) -> Tensor:
        return matching_loss(end, self.start, self.target)


def problem(ipc: int, steps: int, dtype: torch.dtype = torch.float32) -> Problem:
    torch.manual_seed(0)
    network = FlatNetwork(CLASSES, CHANNELS, SIZE, WIDTH, DEPTH)
    labels = torch.arange(CLASSES).repeat_interleave(ipc)
    images, start = torch.randn(len(labels), CHANNELS, SIZE, SIZE), network.initial(1)
    target = start + 0.01 * torch.randn_like(start)
    rate = torch.tensor(0.01).to(dtype)
    return Problem(network, start.to(dtype), target.to(dtype), images.to(dtype), labels, rate, steps)


def usual_way(logits: Logits, given: Problem) -> Found:
    images, rate = given.images.clone().requires_grad_(), given.rate.clone().requires_grad_()
    theta = given.start.clone().requires_grad_()
    for _ in range(given.steps):
        loss = F.cross_entropy(logits(theta, images), given.labels)
        theta = theta - rate * torch.autograd.grad(loss, theta, create_graph=True)[0]
    loss = given.final(theta)
    of_images, of_rate = torch.autograd.grad(loss, [images, rate])
    return loss.detach(), of_images, of_rate


def ours(side: str, given: Problem) -> Found:
    images, count = given.images.clone().requires_grad_(), len(given.images)
    targets = F.one_hot(given.labels, CLASSES).to(images)
    pieces = parts(torch.arange(count), given.network)
    training = Training(given.network, lambda _: ((images[j], targets[j], len(j) / count) for j in pieces))
    mode, slopes = ("adjoint", None) if side == "twice" else (side, training.slopes)
    found = trajectory_gradient(
        given.start, training.losses, given.steps, given.rate, [images], given.final, mode, slopes
    )
    return found.loss, found.leaves[0], found.rate


def peer_logits(checkout: str) -> Logits:
    sys.path.insert(0, checkout)
    from networks import ConvNet  # the checkout's own modules
    from reparam_module import ReparamModule

    network = ConvNet(CHANNELS, CLASSES, WIDTH, DEPTH, "relu", "instancenorm", "avgpooling", (SIZE, SIZE))
    flat = ReparamModule(network)
    return lambda theta, images: flat(images, flat_param=theta)


def plain_logits(given: Problem) -> Logits:
    module = given.network.module(given.start)
    names = [name for name, _ in module.named_parameters()]

    def logits(theta: Tensor, images: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, given.network.parts(theta), strict=True)), (images,))

    return logits


def run(side: str, given: Problem, checkout: str | None) -> Callable[[], Found]:
    if side in OURS:
        return lambda: ours(side, given)
    logits = peer_logits(str(checkout)) if side == "peer" else plain_logits(given)
    return lambda: usual_way(logits, given)


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def one_side(side: str, arguments: argparse.Namespace) -> float:
    if side in OURS:
        keep_freed_memory()
    run(side, problem(arguments.ipc, 2), arguments.peer)()
    return timed(run(side, problem(arguments.ipc, arguments.steps), arguments.peer))


def conv_seconds(ipc: int) -> dict[str, float]:
    """CPU seconds per step of the convolutions alone: of the adjoint, and of the usual way."""
    keep_freed_memory()
    spent = {"adjoint": 0.0, "usual": 0.0}
    for block in range(DEPTH):
        inner, size = (WIDTH if block else CHANNELS), SIZE >> block
        x = torch.randn(10 * ipc, inner, size, size).to(memory_format=torch.channels_last)
        weight = torch.randn(WIDTH, inner, 3, 3)
        y = F.conv2d(x, weight, padding=1)

        def backward(wanted: int, x: Tensor = x, weight: Tensor = weight, y: Tensor = y) -> Tensor:
            mask = [wanted == 0, wanted == 1, False]
            return torch.ops.aten.convolution_backward(
                y, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
            )[wanted]

        forward, of_x, of_weight = (
            min(timed(work) for _ in range(8))
            for work in (
                lambda x=x, weight=weight: F.conv2d(x, weight, padding=1),
                lambda backward=backward: backward(0),
                lambda backward=backward: backward(1),
            )
        )
        # Nothing is asked of the first block's input but the images' gradient, which has no passes of its own here.
        if block:
            spent["adjoint"] += 4 * forward + 4 * of_x + 3 * of_weight
            spent["usual"] += 3 * forward + 3 * of_x + 3 * of_weight
        else:
            spent["adjoint"] += 3 * forward + 2 * of_weight
            spent["usual"] += 2 * forward + 2 * of_weight
    return spent


def compare(sides: list[str], arguments: argparse.Namespace) -> None:
    steps = min(arguments.steps, arguments.compared)
    exact = usual_way(plain_logits(given := problem(arguments.ipc, steps, torch.float64)), given)
    given, first = problem(arguments.ipc, steps), None
    print(f"{steps} steps; relative differences of loss, gradient of the images, of the step size")
    for side in sides:
        found = run(side, given, arguments.peer)()
        first = first or found
        for name, wanted in ((sides[0], first), ("float64", exact)):
            distances = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
            print(f"{side:>10} to {name:<8} " + "  ".join(f"{distance:.1e}" for distance in distances), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of the mtt-distillation repository")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50, help="steps of the student per iteration")
    parser.add_argument("--compared", type=int, default=10, help="steps for the comparison of gradients, at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", default=[*OTHERS, *OURS], choices=[*OTHERS, *OURS])
    parser.add_argument("--only", choices=[*OTHERS, *OURS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        print(json.dumps(one_side(arguments.only, arguments)))
        return
    sides = [side for side in arguments.sides if side != "peer" or arguments.peer]
    print(f"IPC {arguments.ipc}, width {WIDTH}, {SIZE} pixels, one thread")
    if arguments.compared:
        compare(sides, arguments)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side in sides:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", side]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds[side].append(json.loads(output.splitlines()[-1]))
    print(f"seconds per iteration of {arguments.steps} steps, and how many times faster than {sides[0]}")
    for side in sides:
        print(f"{side:>10} {min(seconds[side]):8.2f}  {min(seconds[sides[0]]) / min(seconds[side]):.2f}")
    floor = conv_seconds(arguments.ipc)
    print(f"convolutions alone: adjoint {floor['adjoint'] * arguments.steps:.2f}", end=", ")
    print(f"usual way {floor['usual'] * arguments.steps:.2f}")


if __name__ == "__main__":
    main()
