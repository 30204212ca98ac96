"""Steps of fixed shapes as CUDA graphs: recorded once, replayed with one launch.

On networks this small, starting a step's hundreds of operations takes longer than they do. A step that works in place
on tensors that stay where they are is recorded the first time and afterwards started as a whole. Elsewhere it is
called.
"""

import contextlib
import functools
import gc
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])

# Before they are recorded, operations have to have run: they choose their kernels and make workspaces when they do.
WARM_UP = 2
# A function is fused anew for so many shapes of what it is given; beyond that it stays as it is.
SHAPES = 64


def records(device: torch.device) -> bool:
    """Whether steps on the device are recorded: on a GPU, unless DIVER_GRAPHS=0 is in the environment."""
    return device.type == "cuda" and os.environ.get("DIVER_GRAPHS") != "0"


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """What is done goes on a stream of its own: nothing that is recorded may depend on the device's default stream.

    Convolutions take cuDNN's reproducible algorithms. Memory of what earlier runs recorded is free again.
    """
    if device.type != "cuda":
        yield
        return
    # A recorded step and the object that it belongs to hold each other.
    gc.collect()
    outside, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream), _reproducible():
        yield
    outside.wait_stream(stream)


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for what is asked for on the default stream: a library may keep a workspace for each stream it ran on."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """An older recording that is destroyed while another is made would spoil it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Random numbers that operations take from the device's own generator come from this one of the device, if given.

    What is recorded meanwhile takes its numbers from it for ever, and not from where others that run at the same time
    take theirs.
    """
    if generator is None:
        yield
        return
    shared = torch.cuda.default_generators[generator.device.index or 0]
    own = shared.graphsafe_get_state()
    shared.graphsafe_set_state(generator)
    try:
        yield
    finally:
        shared.graphsafe_set_state(own)


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that repeats, on the same memory, the operations of one call of `step`, which is called for it."""
    current = torch.cuda.current_stream(device)
    # A library's workspace may belong to a stream: steps that run side by side must not be recorded on one.
    side = _recording_stream(device) if current == torch.cuda.default_stream(device) else current
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with _nothing_collected(), torch.cuda.device(device), torch.cuda.graph(graph, stream=side):
        step()
    return graph.replay


def compiled(function: Function, device: torch.device, wanted: bool = True, on_cpu: bool = False) -> Function:
    """On a GPU the function with its small operations fused, which takes some ten seconds when it is first called.

    DIVER_COMPILE=0 or 1 in the environment decides instead of `wanted`, and 1 fuses on a CPU what gains there (on_cpu).
    Without a C compiler, which makes the fused operations, nothing is fused.
    """
    gains = device.type == "cuda" or on_cpu
    chosen = os.environ.get("DIVER_COMPILE", str(int(wanted and device.type == "cuda"))) != "0"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not (gains and chosen and compiler):
        return function
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    return torch.compile(function, dynamic=False)  # type: ignore[return-value]


@contextlib.contextmanager
def _kept(state: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Values and random numbers are afterwards as they were before."""
    before = [tensor.detach().clone() for tensor in state]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)


class Graphed:
    """A step without arguments and results, which reads and writes tensors that stay where they are.

    The step's Python code runs while it is recorded and then no more: what changes from call to call has to be in
    tensors, and nothing may wait for the device (no `item`, no copy from the CPU).
    state: all that the step reads and changes. Recording leaves its values, and random numbers, as they were.
    """

    def __init__(self, step: Callable[[], None], state: Iterable[Tensor], device: torch.device) -> None:
        self._step, self._state, self._device = step, list(state), device
        self._replay: Callable[[], None] | None = None if records(device) else step

    def __call__(self) -> None:
        if self._replay is None:
            with _kept(self._state, self._device):
                self._replay = record(self._step, self._device)
        self._replay()
