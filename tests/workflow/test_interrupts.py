"""A study that is killed at random moments, again and again, goes on to the bytes of one that nobody disturbed.

`make test` kills a small study three times. DIVER_INTERRUPTS=20 does so twenty times, DIVER_INTERRUPTS_STUDY=test takes
the whole test study, DIVER_INTERRUPTS_SEED other moments.
"""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from running import SNAKEMAKE, copy_project, environment

pytestmark = pytest.mark.slow
TIMES = int(os.environ.get("DIVER_INTERRUPTS", "3"))
WHOLE = os.environ.get("DIVER_INTERRUPTS_STUDY", "small") == "test"
SEED = int(os.environ.get("DIVER_INTERRUPTS_SEED", "0"))
STUDY = "config/interrupted.yaml"
RESULTS = "results/interrupted"
# Which signal, and whether it goes to Snakemake alone or also to its jobs, as from a terminal or a machine that stops.
KINDS = [
    (signal.SIGKILL, True),
    (signal.SIGINT, False),
    (signal.SIGTERM, False),
    (signal.SIGKILL, False),
    (signal.SIGINT, True),
    (signal.SIGTERM, True),
]
# What says how long something took, on which no two runs agree, or holds digests of such files.
TIMED = ("logs", "benchmarks", "record")
# Everything, or the tables and one figure.
DRAWN = ("tables/cross_architecture.md", "figures/gallery.png")
TARGETS = () if WHOLE else tuple(f"{RESULTS}/{name}" for name in DRAWN)


def write_study(folder: Path) -> None:
    """The test study, or one of its stage-1 sets with two treatments."""
    study = yaml.safe_load((folder / "config/test.yaml").read_text())
    study["name"] = Path(RESULTS).name
    if not WHOLE:
        study["distill"] = {"dm": study["distill"]["dm"]}
        study["recover"] = {name: study["recover"][name] for name in ("inheritance", "diver")}
        study["report"]["gallery"] = ["none", "diver"]
        study["students"].update(as_published={})
        del study["students"]["full_data"]
    (folder / STUDY).write_text(yaml.safe_dump(study))


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Snakemake at the head of a session, whose output is the file `said`."""
    with (folder / "said").open("wb") as said:
        command = [SNAKEMAKE, *TARGETS, *arguments, "--configfile", STUDY, "--cores", "2"]
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment(),
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )


def heed_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(folder: Path, *arguments: str) -> None:
    """Run Snakemake to its end, which must be a good one."""
    process = start(folder, *arguments)
    try:
        assert process.wait(timeout=900) == 0, (folder / "said").read_text()[-5000:]
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind where a test has failed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def started(folder: Path) -> int:
    """How many jobs the running Snakemake has begun."""
    return len(re.findall(r"^Job \d+:", (folder / "said").read_text(), re.M))


def of_session(leader: int) -> Iterator[int]:
    """Living processes of a session."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(words[3]) == leader and words[0] not in "ZX":
                yield int(folder.name)


def interrupt(folder: Path, chance: random.Random, sent: signal.Signals, to_all: bool) -> bool:
    """Run, and send the signal at a random moment; False if the study was finished before."""
    process = start(folder)
    try:
        return strike(folder, process, chance, sent, to_all)
    finally:
        stop(process)


def strike(
    folder: Path, process: subprocess.Popen[bytes], chance: random.Random, sent: signal.Signals, to_all: bool
) -> bool:
    wanted, pause = chance.randint(1, 5), chance.uniform(0, 4)
    while process.poll() is None and started(folder) < wanted:
        time.sleep(0.05)
    deadline = time.monotonic() + pause
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if process.poll() is not None:
        assert process.returncode == 0, (folder / "said").read_text()[-5000:]
        return False
    if to_all:
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    if process.wait(timeout=600) == 0:
        # It had done its last job.
        return False
    # No job goes on by itself, in the way of the next run: one that was still importing ends where it would begin.
    deadline = time.monotonic() + 120
    while (left := list(of_session(process.pid))) and time.monotonic() < deadline:
        time.sleep(0.05)
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in left]
    assert not left, f"still running after {sent.name}: {commands}"
    if sent == signal.SIGKILL:
        # It could not give back its lock of the folder.
        finish(folder, "--unlock")
    return True


def outcome(folder: Path) -> dict[str, str]:
    """Digest of each result, without times and without what a killed process left half-written beside it."""
    found = {}
    for path in sorted((folder / RESULTS).rglob("*")):
        name = path.relative_to(folder / RESULTS)
        if path.is_dir() or name.parts[0] in TIMED or name.name.startswith("."):
            continue
        content = path.read_bytes()
        if path.suffix in (".csv", ".parquet"):
            table = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
            content = table.drop(columns="seconds", errors="ignore").to_csv().encode()
        found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc: Linux only")
def test_interrupted_study_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    folder, chance = copy_project(tmp_path), random.Random(SEED)
    write_study(folder)
    finish(folder)
    expected = outcome(folder)
    assert {"tables/cross_architecture.md", "figures/gallery.png", "distilled/cifar10-slice/ipc2/dm.safetensors"} <= {
        *expected
    }

    def forget() -> None:
        for made in (RESULTS, "data/prepared", ".snakemake"):
            shutil.rmtree(folder / made)

    forget()
    done, ends = 0, 0
    while done < TIMES:
        sent, to_all = KINDS[done % len(KINDS)]
        if interrupt(folder, chance, sent, to_all):
            done += 1
            print(f"{done}: {sent.name}{' to all' if to_all else ''}", flush=True)
        else:
            assert outcome(folder) == expected
            ends += 1
            forget()
    finish(folder)
    assert outcome(folder) == expected
    finish(folder)
    assert "Nothing to be done" in (folder / "said").read_text()
    print(f"{done} interrupts, {ends + 1} studies brought to the same {len(expected)} files")
