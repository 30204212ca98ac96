"""profiles/slurm as it is, against a real SLURM of this machine with pretended GPUs: distinct devices, killed jobs."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
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
STUDY = "config/pretended.yaml"


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


def wait_for(rule: str, count: int, process: subprocess.Popen[bytes], besides: list[str]) -> list[str]:
    """The jobs of a rule, once so many others than `besides` run."""
    while process.poll() is None:
        found = [number for number in running(rule) if number not in besides]
        if len(found) >= count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{rule}: {count} jobs never ran at a time")


def test_profile_runs_a_study_and_killed_jobs_again(cluster: None, tmp_path: Path) -> None:
    """Two stage-1 methods side by side; one job is cancelled and the other killed, and both are submitted again."""
    folder = copy_project(tmp_path)
    study = yaml.safe_load((folder / "config/test.yaml").read_text())
    study["name"] = "pretended"
    del study["distill"]["herding"]
    study["recover"] = {"vae": study["recover"]["vae"]}
    study["students"].update(as_published={})
    study["report"] = {}
    (folder / STUDY).write_text(yaml.safe_dump(study))
    command = [SNAKEMAKE, "distill", "--profile", "profiles/slurm", "--configfile", STUDY]
    # Only the pace differs from what a user types.
    command += ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=said, stderr=subprocess.STDOUT)
    try:
        first, second = wait_for("distill_set", 2, process, [])[:2]
        shown = [ask("scontrol", "show", "job", number, "--details", "--oneliner") for number in (first, second)]
        devices = [re.findall(r"GRES=gpu:pretended:1\(IDX:(\d)\)", line) for line in shown]
        assert sorted(map(len, devices)) == [1, 1] and devices[0] != devices[1], shown
        ask("scancel", first)
        # The other one dies as on a node that fails: all its processes at once.
        while not (listed := processes(second)):
            assert second in running("distill_set")
        for pid in listed:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=240) == 0
    except BaseException:
        print((folder / "said").read_text()[-6000:])
        raise
    finally:
        if process.poll() is None:
            process.kill()
    said = (folder / "said").read_text()
    assert len(re.findall(r"Trying to restart job \d+\.", said)) == 2
    sets = folder / "results/pretended/distilled/cifar10-slice/ipc2"
    assert sorted(path.name for path in sets.iterdir()) == ["dm.safetensors", "random.safetensors"]
    shown = [line for line in ask("scontrol", "show", "job", "--oneliner").splitlines() if "Comment=rule_" in line]
    asked = {"gpu:1" in line for line in shown if "rule_distill_set_" in line}
    assert len(shown) == 5 and asked == {True}, shown
    assert not any("gpu" in line for line in shown if "rule_prepare_data_" in line)
    # The steps have what SLURM gave them.
    logs = [path.read_text() for path in (folder / "results/pretended/logs/distill").iterdir()]
    given = [re.search(r"GPUs of SLURM's job (\d+): (\d)$", text, re.M) for text in logs]
    assert len(given) == 2 and all(given), logs
