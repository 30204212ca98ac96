"""Work side by side: order of results, progress, failures, and that no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from diver.workers import keep_freed_memory, side_by_side


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    seen: list[int] = []

    def work(number: int, report) -> tuple[int, int]:
        time.sleep(0.05 * (3 - number))
        report(10)
        return number, os.getpid()

    found = side_by_side(work, 3, workers, seen.append)
    assert [number for number, _ in found] == [0, 1, 2]
    assert (os.getpid() in [pid for _, pid in found]) == (workers == 1)
    assert seen[-1] == 30


def test_the_first_failure_ends_all_and_is_raised() -> None:
    def work(number: int, report) -> int:
        if number == 1:
            raise ValueError("task 1 cannot")
        time.sleep(30)
        return number

    started = time.monotonic()
    with pytest.raises(ValueError, match="task 1 cannot"):
        side_by_side(work, 3, 3, lambda done: None)
    assert time.monotonic() - started < 10


def test_workers_end_with_a_killed_parent() -> None:
    script = (
        "import os, sys, time\n"
        "from diver.workers import side_by_side\n"
        "def work(number, report):\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"
        "    time.sleep(60)\n"
        "side_by_side(work, 2, 2, lambda done: None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(process.stdout.readline()) for _ in range(2)]
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_allocator_setting_is_harmless() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert sum(bytearray(b"\1" * 10_000_000)) == 10_000_000
