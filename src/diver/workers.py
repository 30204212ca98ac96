"""Where work runs: processes side by side on a CPU, the device, and what every process tells its allocator."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Report = Callable[[int], None]

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
_PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.5


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next tensor; without effect elsewhere.

    It gives each large tensor back to the system at once otherwise, and page faults take up to half of a small
    network's time. Results do not change.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent has ended, however it did; without effect beyond Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def best_device() -> "torch.device":
    """The first GPU, if there is one; otherwise the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Set in each worker when it is forked: work is a closure, which could not be sent to it afterwards.
_work: Callable[[int, Report], Any]
_counters: Sequence[Synchronized]


def _start(work: Callable[[int, Report], Any], counters: Sequence[Synchronized]) -> None:
    global _work, _counters
    _work, _counters = work, counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _run(number: int) -> Any:
    def report(done: int) -> None:
        _counters[number].value = done

    return _work(number, report)


def side_by_side(
    work: Callable[[int, Report], Result], tasks: int, workers: int, progress: Callable[[int], None]
) -> list[Result]:
    """Results of work(0, report), ..., work(tasks - 1, report), at most `workers` at a time, in the order of the tasks.

    With one worker everything runs in this process. Otherwise workers are forked from it, so that they share its
    memory; they end with it, and the first that fails ends all and raises here. `report(done)` may be called by the
    work; `progress` gets the sum over all tasks now and then.
    """
    counts = [0] * tasks
    if workers == 1 or tasks == 1 or not hasattr(os, "fork"):
        results = []
        for number in range(tasks):

            def report(done: int, number: int = number) -> None:
                counts[number] = done
                progress(sum(counts))

            results.append(work(number, report))
        return results
    context: Any = multiprocessing.get_context("fork")
    counters = [context.Value("q", 0) for _ in range(tasks)]
    with ProcessPoolExecutor(min(workers, tasks), context, _start, (work, counters)) as pool:
        futures: list[Future[Result]] = [pool.submit(_run, number) for number in range(tasks)]
        left: set[Future[Result]] = set(futures)
        try:
            while left:
                done, left = wait(left, POLL_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                progress(sum(counter.value for counter in counters))
        except BaseException:
            for process in list(pool._processes.values()):
                process.kill()
            raise
        return [future.result() for future in futures]
