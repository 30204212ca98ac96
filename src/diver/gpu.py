"""Which GPUs a job may use: distinct ones for the jobs of a machine, leased by locks of files.

Snakemake's `--resources gpu=4` bounds how many jobs run at a time, but tells none of them which device is its own. Here
a job takes as many devices as it asked for, tells CUDA to see no others, and keeps them until it and every process that
it forked have ended: the locks are the kernel's, so that a job that is killed, however, leaves nothing behind.

A device is called by its UUID as nvidia-smi shows it, whatever a user's CUDA_VISIBLE_DEVICES calls it. A job that needs
several takes all at once or none, and jobs that choose among the same devices wait in a queue: none holds a device
while it waits for another, and one that needs two is not overtaken for ever by those that need one.

A scheduler that gave a job its devices (SLURM) has leased them already; several steps in one such job share them as
above.
"""

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# One folder for all users of the machine; TMPDIR, which jobs often have to themselves, must not divide them.
LOCKS = "/tmp/diver-gpu"
LOCKS_VARIABLE = "DIVER_GPU_LOCKS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.1
# What ends CUDA's reading of the list of visible devices.
NO_DEVICE = ("", "-1", "NoDevFiles")

Say = Callable[[str], None]

# Devices of this process and the open files that lock them; forked workers share the files, and with them the lease.
_held: dict[str, int] = {}


class GPUError(RuntimeError):
    """A job cannot have the GPUs that it asks for; says what there is and what to do."""


def installed() -> dict[int, list[str]]:
    """UUIDs by nvidia-smi's numbers: of a GPU, or of its instances if it is divided (MIG); {} where there is none."""
    try:
        call = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[int, list[str]] = {}
    whole: dict[int, str] = {}
    number = -1
    for line in call.stdout.splitlines():
        head, name = re.match(r"GPU (\d+):", line), re.search(r"\(UUID: ([^)\s]+)\)", line)
        if head:
            number = int(head[1])
        if name and head:
            found[number], whole[number] = [], name[1]
        elif name and number in found:
            found[number].append(name[1])
    return {number: instances or [whole[number]] for number, instances in found.items()}


def visible() -> list[str]:
    """Devices that this process may choose from: all, or those of CUDA_VISIBLE_DEVICES.

    Numbers are nvidia-smi's, and UUIDs may be shortened. Raises GPUError for one that nvidia-smi does not show. Where
    there is no nvidia-smi, the names are taken as they are given.
    """
    machine, given = installed(), os.environ.get(VISIBLE)
    every = [name for names in machine.values() for name in names]
    if given is None:
        return every
    chosen: list[str] = []
    for word in map(str.strip, given.split(",")):
        if word in NO_DEVICE:
            break
        if not machine:
            named = [word]
        elif word.isdigit():
            named = machine.get(int(word), [])[:1]
        else:
            named = [name for name in every if name.startswith(word)]
        if len(named) != 1:
            shown = ", ".join(f"{number} ({' '.join(names)})" for number, names in machine.items())
            raise GPUError(f"{VISIBLE}={given}: {word!r} is not one of the GPUs that nvidia-smi shows: {shown}")
        chosen += named
    return list(dict.fromkeys(chosen))


def _lock_file(name: str) -> int:
    """Open a file of the folder of locks, of whatever user; it is never removed, which another might be waiting for."""
    folder = Path(os.environ.get(LOCKS_VARIABLE, LOCKS))
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)
    path = folder / re.sub(r"[^\w.-]", "_", name)
    try:
        # Linux refuses O_CREAT for another user's file in a folder that all may write to.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _locked(name: str) -> int | None:
    """An open file that locks a name; None if another process has it."""
    file = _lock_file(name)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _some(count: int, pool: list[str], prefix: str) -> dict[str, int]:
    """`count` devices that are free, or none at all."""
    taken: dict[str, int] = {}
    for name in pool:
        file = _locked(f"{prefix}{name}.lock")
        if file is not None:
            taken[name] = file
        if len(taken) == count:
            return taken
    for file in taken.values():
        os.close(file)
    return {}


def take(count: int, say: Say = print) -> list[str]:
    """Lease `count` GPUs until this process ends, and make CUDA see these only; wait while others have them.

    With 0, CUDA sees none. One GPU where the machine has none is no fault: the job runs on the CPU, and says so. Must
    be called before CUDA is initialised. Raises GPUError where more are asked for than there are.
    """
    if count == len(_held) > 0:
        return list(_held)
    torch = sys.modules.get("torch")
    if _held or (torch is not None and torch.cuda.is_initialized()):
        raise GPUError("GPUs are taken once, before CUDA is used")
    if count == 0:
        os.environ[VISIBLE] = ""
        return []
    job = os.environ.get("SLURM_JOB_ID")
    # A scheduler that gave no devices has none, or leaves it to the jobs: nothing is ours to lease.
    pool = [] if job and VISIBLE not in os.environ else visible()
    if not pool and count == 1:
        say("no GPU here: on the CPU")
        return []
    if count > len(pool):
        there = f"SLURM gave job {job}" if job else "this machine has"
        narrowed = f" in {VISIBLE}={os.environ[VISIBLE]}" if VISIBLE in os.environ else ""
        raise GPUError(
            f"{count} GPUs are asked for, but {there} {len(pool)}{narrowed}; ask for fewer "
            "(`gpus:` in the study, or --set-resources RULE:gpu=N)"
        )
    if job and count == len(pool):
        say(f"GPUs of SLURM's job {job}: {' '.join(pool)}")
        return pool
    prefix = f"slurm-{job}-" if job else ""
    queue = hashlib.sha256(" ".join(sorted(pool)).encode()).hexdigest()[:16]
    turn = _lock_file(f"{prefix}{queue}.queue")
    try:
        found = _wait(turn, count, pool, prefix, say)
    finally:
        os.close(turn)
    _held.update(found)
    os.environ[VISIBLE] = ",".join(found)
    say(f"GPUs: {' '.join(found)}")
    return list(found)


def _wait(turn: int, count: int, pool: list[str], prefix: str, say: Say) -> dict[str, int]:
    """Wait for the turn among those who want the same devices, and then for enough of these to be free."""
    started, waiting = time.monotonic(), f"waiting for {count} of {len(pool)} GPUs"
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(waiting)
        fcntl.flock(turn, fcntl.LOCK_EX)
    else:
        if found := _some(count, pool, prefix):
            return found
        say(waiting)
    while not (found := _some(count, pool, prefix)):
        time.sleep(POLL_SECONDS)
    say(f"waited {time.monotonic() - started:.0f} s")
    return found
