"""Logs and progress of a step: everything goes to its log file, and a line now and then to the terminal."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from diver import gpu
from diver.workers import end_with_parent, keep_freed_memory

TERMINAL_EVERY = 15.0

# The process of Snakemake that a step belongs to; the workflow's helpers set it.
WORKFLOW_VARIABLE = "DIVER_WORKFLOW_PROCESS"

Progress = Callable[[int, int, str], None]


def end_with_workflow() -> None:
    """Never outlive a Snakemake that was killed: the next one makes the same files again, in the same places."""
    if workflow := os.environ.get(WORKFLOW_VARIABLE):
        end_with_parent()
        try:
            os.kill(int(workflow), 0)
        except ProcessLookupError:
            sys.exit("Snakemake ended before the step began")


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def paced(seconds: float) -> str:
    """How fast something goes that takes so many seconds: '3.9 s each', '12 a second'."""
    return f"{seconds:.3g} s each" if seconds >= 1 or not seconds else f"{1 / seconds:.3g} a second"


def reporter(label: str, every: float = TERMINAL_EVERY) -> Progress:
    """A callback (done, total, note) that prints rate and time left to stderr at most once in `every` seconds.

    A first report of several done tells neither, as they may have been done before a stop, by another process. A count
    that goes back is of the next part of the work: its rate is its own.
    """
    terminal, started, last = sys.stderr, time.monotonic(), time.monotonic()
    part, latest = started, (0, started)
    begun: tuple[float, int] | None = None

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last, part, begun, latest
        now = time.monotonic()
        if done < latest[0]:
            part, begun = latest[1], None
        # By what was done since the first report: a run that goes on has done some before it started.
        then, before = begun = begun or ((part, 0) if done == 1 else (now, done))
        latest = done, now
        pace = (now - then) / (done - before) if done > before else None
        line = f"{label}: {done}/{total} {note} ".replace("  ", " ")
        line += f"{clock(now - started)} spent"
        if pace is not None:
            line += f", {paced(pace)}, {clock(pace * (total - done))} left"
        if sys.stderr is not terminal:
            print(line, file=sys.stderr, flush=True)
        if now - last >= every:
            print(line, file=terminal, flush=True)
            last = now

    return report


@contextmanager
def step_log(path: str | Path, threads: int, label: str, gpus: int | None = None) -> Iterator[Progress]:
    """Send output to `path`, give torch `threads` threads, yield the progress callback; a failure ends the log.

    Before that, take `gpus` GPUs for this process (`diver.gpu`); None leaves them as they are.
    """
    end_with_workflow()
    keep_freed_memory()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    report = reporter(label)
    with Path(path).open("w") as log, redirect_stdout(log), redirect_stderr(log):
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        try:
            if gpus is not None:
                gpu.take(gpus, lambda line: print(f"{label}: {line}", flush=True))
            yield report
        except BaseException as error:
            print(f"failed: {type(error).__name__}: {error}", flush=True)
            raise
