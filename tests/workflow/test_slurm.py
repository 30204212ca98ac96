"""profiles/slurm as it is: the whole test study in a real SLURM of this machine with pretended GPUs, jobs killed."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SNAKEMAKE, copy_project, environment

LOOPBACK = Path(__file__).parent / "slurm_loopback.sh"
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "munged")
LACKING = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"no SLURM here: {', '.join(LACKING)} missing (slurm-wlm, munge)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting a SLURM takes root"),
    pytest.mark.skipif(Path("/etc/slurm/slurm.conf").exists(), reason="this machine has a SLURM of its own"),
]
STUDY = "config/test.yaml"
RESULTS = "results/test"


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    path = environment(PATH=f"{os.environ['PATH']}:/usr/sbin")
    try:
        begun = subprocess.run([LOOPBACK, "start", folder, "4"], env=path, capture_output=True, text=True, timeout=60)
        assert begun.returncode == 0, begun.stderr
        yield
    finally:
        subprocess.run([LOOPBACK, "stop", folder], env=path, timeout=60)


def running(rule: str) -> list[str]:
    """SLURM's numbers of the running jobs of a rule."""
    lines = ask("squeue", "--noheader", "--states=RUNNING", "--format=%i %k").splitlines()
    return [line.split()[0] for line in lines if f"rule_{rule}_" in line]


def processes(number: str) -> list[int]:
    """Processes of a running job on this machine, its batch script included."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"\0SLURM_JOB_ID={number}\0".encode() in b"\0" + (folder / "environ").read_bytes() + b"\0":
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def devices() -> dict[str, str]:
    """The device of each running job that has one."""
    shown = ask("scontrol", "show", "job", "--details", "--oneliner").splitlines()
    found = [re.search(r"JobId=(\d+) .*JobState=RUNNING .*GRES=gpu:pretended:1\(IDX:(\d)\)", line) for line in shown]
    return {one[1]: one[2] for one in found if one}


def test_profile_runs_the_study_and_killed_jobs_again(cluster: None, tmp_path: Path) -> None:
    """Up to four steps side by side; one job is cancelled and another killed, and both are submitted again."""
    folder = copy_project(tmp_path)
    command = [SNAKEMAKE, "--profile", "profiles/slurm", "--configfile", STUDY]
    # Only the pace differs from what a user types.
    command += ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=said, stderr=subprocess.STDOUT)
    ended: list[str] = []
    together = 0
    deadline = time.monotonic() + 1800
    try:
        while process.poll() is None:
            assert time.monotonic() < deadline, "the study took half an hour"
            held = devices()
            assert len(set(held.values())) == len(held), held
            together = max(together, len(held))
            if not ended and len(found := running("train_students")) > 1:
                ended = found[:2]
                end_differently(*ended)
            time.sleep(0.5)
        assert process.returncode == 0
    except BaseException:
        print((folder / "said").read_text()[-6000:])
        raise
    finally:
        if process.poll() is None:
            process.kill()
    assert together > 1
    said = (folder / "said").read_text()
    assert len(re.findall(r"Trying to restart job \d+\.", said)) == 2
    made = folder / RESULTS
    assert {"cross_architecture.md", "table_1.md"} <= {path.name for path in (made / "tables").iterdir()}
    assert (made / "figures/gallery.png").exists()
    shown = [line for line in ask("scontrol", "show", "job", "--oneliner").splitlines() if "Comment=rule_" in line]
    for rule, with_gpu in {"recover_set": True, "train_students": True, "prepare_data": False}.items():
        asked = {"gpu:1" in line for line in shown if f"rule_{rule}_" in line}
        assert asked == {with_gpu}, (rule, shown)
    # The steps have what SLURM gave them.
    for phase in ("distill", "recover", "students"):
        logs = [path.read_text() for path in (made / "logs" / phase).rglob("*.log")]
        assert logs and all(re.search(r"GPUs of SLURM's job \d+: \d$", text, re.M) for text in logs), (phase, logs)


def end_differently(first: str, second: str) -> None:
    """Cancel a running job, and let another one die as on a node that fails: all its processes at once."""
    ask("scancel", first)
    while not (listed := processes(second)):
        assert second in running("train_students")
    for pid in listed:
        os.kill(pid, signal.SIGKILL)
