"""A step ends with the Snakemake that started it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from diver import progress
from diver.progress import WORKFLOW_VARIABLE, reporter

STEP = """
    import os, sys, time
    from diver.progress import step_log
    with step_log(sys.argv[1], 1, "step"):
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(60)
"""
# Starts the step as Snakemake does, with its own number in the environment.
WORKFLOW = f"""
    import os, subprocess, sys
    os.environ["{WORKFLOW_VARIABLE}"] = str(os.getpid())
    subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]])
"""


def python(script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), **variables}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_step_ends_with_a_killed_workflow(tmp_path: Path) -> None:
    with python(WORKFLOW, str(tmp_path / "log"), textwrap.dedent(STEP)) as workflow:
        assert workflow.stdout is not None
        step = int(workflow.stdout.readline())
        assert Path(f"/proc/{step}").exists()
        workflow.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{step}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{step}").exists()


def test_a_step_whose_workflow_has_ended_does_not_begin(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    step = python(STEP, str(tmp_path / "log"), **{WORKFLOW_VARIABLE: str(gone.pid)})
    said, fault = step.communicate(timeout=30)
    assert step.returncode == 1 and not said and "Snakemake ended before the step began" in fault
    assert not (tmp_path / "log").exists()


def test_time_left_is_of_what_was_done_since_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on at 300 of 400 with a second each has 96 seconds left at 304, not one."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    report = reporter("DM", every=0.0)
    for done in (301, 302, 303, 304):
        now += 1.0
        report(done, 400)
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[-1]) == ("DM: 301/400 0:01 spent", "DM: 304/400 0:04 spent, 1 s each, 1:36 left")
    report = reporter("DM", every=0.0)
    now += 2.0
    report(1, 10)
    assert capsys.readouterr().err == "DM: 1/10 0:02 spent, 2 s each, 0:18 left\n"
    for _ in range(19):
        now += 0.05
    report(20, 100)
    assert "a second" in capsys.readouterr().err


def test_each_part_of_a_work_has_a_rate_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second network's first epoch took 4 seconds, not the first network's ten as well."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    report = reporter("students", every=0.0)
    for done, seconds in ((1, 1.0), (10, 9.0), (0, 1.0), (1, 4.0), (1, 6.0), (2, 10.0)):
        now += seconds
        report(done, 10)
    lines = [line.partition("spent")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines[1:4] == [", 1 s each, 0:00 left", "", ", 4 s each, 0:36 left"]
    assert lines[5] == ", 10 s each, 1:20 left"
    now += 3.0
    report(1, 4)
    assert capsys.readouterr().err.endswith("0:34 spent, 3 s each, 0:09 left\n")
