"""The lease of GPUs: real processes over pretended devices, what a user and a scheduler may say, what is refused."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from diver import gpu
from diver.progress import step_log
from diver.provenance import used_modules

ROOT = Path(__file__).parents[1]
SMI = """\
GPU 0: NVIDIA H100 (UUID: GPU-aaaa1111)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb2222)
  MIG 1g.5gb     Device  0: (UUID: MIG-cccc3333)
  MIG 1g.5gb     Device  1: (UUID: MIG-dddd4444)
GPU 3: NVIDIA H100 (UUID: GPU-abcd5555)
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without GPUs and scheduler, whose locks are in a folder of the test; nothing is leased yet."""
    monkeypatch.setenv(gpu.LOCKS_VARIABLE, str(tmp_path / "locks"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in list(os.environ):
        if name.startswith("SLURM_") or name == gpu.VISIBLE:
            monkeypatch.delenv(name)
    monkeypatch.setattr(gpu, "_held", {})
    return with_smi(tmp_path, "")


def with_smi(folder: Path, shown: str) -> Path:
    """Put an nvidia-smi that shows this on the path."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] || exit 9\ncat <<'END'\n{shown}END\n")
    program.chmod(0o755)
    return folder


def process(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that says something when it goes on, and ends when its input does."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# What a shell starts in the background ignores SIGINT, and so does all that it starts.
HOLD = """
    import signal, sys
    from diver.gpu import take
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(*take(int(sys.argv[1]), lambda line: 0), flush=True)
    input()
"""

# Each turn in a process of its own, as a job is; what it had and when is a line of the record.
TURNS = """
    import os, random, sys, time
    from diver.gpu import take
    record, turns, chance = sys.argv[1], int(sys.argv[2]), random.Random(int(sys.argv[3]))
    for _ in range(turns):
        count, stay = chance.choice([1, 1, 2]), chance.uniform(0, 0.02)
        child = os.fork()
        if child == 0:
            devices = take(count, lambda line: None)
            start = time.monotonic()
            time.sleep(stay)
            seen = os.environ["CUDA_VISIBLE_DEVICES"]
            line = f"{start} {time.monotonic()} {seen} {' '.join(devices)}\\n".encode()
            file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, line)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


def test_hundreds_of_leases_never_overlap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight processes at a time ask for one or two of four devices; two of them may only choose among three."""
    record = tmp_path / "record"
    workers = []
    for number in range(8):
        monkeypatch.setenv(gpu.VISIBLE, "a,b,c,d" if number < 6 else "c,d,b")
        workers.append(process(TURNS, record, 40, number))
    assert [one.wait(timeout=60) for one in workers] == [0] * 8
    lines = [line.split() for line in record.read_text().splitlines()]
    assert len(lines) == 320
    assert {len(devices) for _, _, _, *devices in lines} == {1, 2}
    assert all(seen == ",".join(devices) for _, _, seen, *devices in lines)
    used: dict[str, list[tuple[float, float]]] = {}
    for start, end, _, *devices in lines:
        for device in devices:
            used.setdefault(device, []).append((float(start), float(end)))
    assert used.keys() == set("abcd")
    for times in used.values():
        times.sort()
        assert all(end <= start for (_, end), (start, _) in zip(times, times[1:], strict=False))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_job_frees_its_devices(monkeypatch: pytest.MonkeyPatch, sent: signal.Signals) -> None:
    monkeypatch.setenv(gpu.VISIBLE, "a,b")
    holder = process(HOLD, 2)
    assert holder.stdout is not None and holder.stdout.readline() == "a b\n"
    waiting = process(HOLD, 1)
    time.sleep(0.3)
    assert waiting.poll() is None
    holder.send_signal(sent)
    holder.wait(timeout=10)
    assert waiting.communicate("\n", timeout=10)[0] == "a\n"


def test_a_device_is_kept_while_a_forked_worker_lives_and_freed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose parent alone is killed still computes; a program that it started does not count."""
    monkeypatch.setenv(gpu.VISIBLE, "a")
    holder = process(
        """
        import os, subprocess, time
        from diver.gpu import take
        take(1, lambda line: None)
        program = subprocess.Popen(["sleep", "60"])
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
        print(worker, program.pid, flush=True)
        time.sleep(60)
        """
    )
    assert holder.stdout is not None
    worker, program = map(int, holder.stdout.readline().split())
    waiting = process(HOLD, 1)
    try:
        holder.kill()
        holder.wait(timeout=10)
        time.sleep(0.4)
        assert waiting.poll() is None and not gpu._some(1, ["a"], "")
    finally:
        os.kill(worker, signal.SIGKILL)
    try:
        assert waiting.communicate("\n", timeout=10)[0] == "a\n"
    finally:
        os.kill(program, signal.SIGKILL)


def test_two_devices_are_not_overtaken_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With one device always in use by a stream of small jobs, the queue still lets the large one through."""
    monkeypatch.setenv(gpu.VISIBLE, "a,b")
    streams = [process(TURNS.replace("[1, 1, 2]", "[1]"), tmp_path / "record", 400, number) for number in range(4)]
    large = process(HOLD, 2)
    try:
        assert large.communicate("\n", timeout=20)[0] == "a b\n"
        assert any(one.poll() is None for one in streams)
    finally:
        for one in streams:
            one.kill()
            one.wait()


def test_every_device_of_the_machine_is_seen(tmp_path: Path) -> None:
    with_smi(tmp_path, SMI)
    assert gpu.visible() == ["GPU-aaaa1111", "MIG-cccc3333", "MIG-dddd4444", "GPU-abcd5555"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("3,0", ["GPU-abcd5555", "GPU-aaaa1111"]),
        ("1", ["MIG-cccc3333"]),
        ("GPU-aa, MIG-dddd4444", ["GPU-aaaa1111", "MIG-dddd4444"]),
        ("0,GPU-aaaa1111", ["GPU-aaaa1111"]),
        ("0,-1,3", ["GPU-aaaa1111"]),
        ("", []),
    ],
)
def test_a_choice_of_the_user_is_kept(
    given: str, found: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_smi(tmp_path, SMI)
    monkeypatch.setenv(gpu.VISIBLE, given)
    assert gpu.visible() == found


@pytest.mark.parametrize("given", ["7", "GPU-a", "0,GPU-ffff"])
def test_a_device_that_is_not_there_is_refused(given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_smi(tmp_path, SMI)
    monkeypatch.setenv(gpu.VISIBLE, given)
    with pytest.raises(gpu.GPUError, match="is not one of the GPUs that nvidia-smi shows: 0 "):
        gpu.take(1)


def test_without_a_gpu_jobs_run_on_the_cpu_and_those_that_need_several_do_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.take(1) == []
    assert "no GPU here: on the CPU" in capsys.readouterr().out
    with pytest.raises(gpu.GPUError, match="2 GPUs are asked for, but this machine has 0; ask for fewer"):
        gpu.take(2)
    monkeypatch.setenv(gpu.VISIBLE, "a")
    with pytest.raises(gpu.GPUError, match="this machine has 1 in CUDA_VISIBLE_DEVICES=a;"):
        gpu.take(2)


def test_a_broken_driver_is_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert gpu.visible() == []


def test_slurm_has_leased_already(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two jobs may both be told that theirs is device 0; in one job with several devices, steps share them."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv(gpu.VISIBLE, "0")
    holder = process(HOLD, 1)
    assert holder.stdout is not None and holder.stdout.readline() == "0\n"
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    assert gpu.take(1) == ["0"] and not (tmp_path / "locks").exists()
    holder.communicate("\n")
    with pytest.raises(gpu.GPUError, match="but SLURM gave job 2 1 in CUDA_VISIBLE_DEVICES=0"):
        gpu.take(2)
    monkeypatch.setenv(gpu.VISIBLE, "0,1")
    steps = [process(HOLD, 1) for _ in range(2)]
    assert sorted(one.stdout.readline() for one in steps if one.stdout) == ["0\n", "1\n"]
    for one in steps:
        one.communicate("\n")
    monkeypatch.delenv(gpu.VISIBLE)
    with_smi(tmp_path, SMI)
    assert gpu.take(1) == []


def test_a_step_has_its_device_before_it_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(gpu.VISIBLE, "a,b")
    with step_log(tmp_path / "log", 1, "step", 1):
        assert os.environ[gpu.VISIBLE] == "a"
    assert "step: GPUs: a" in (tmp_path / "log").read_text()
    assert gpu.take(1) == ["a"]
    with pytest.raises(gpu.GPUError, match="once"):
        gpu.take(2)
    for file in gpu._held.values():
        os.close(file)
    gpu._held.clear()
    with step_log(tmp_path / "log", 1, "step", 0):
        assert os.environ[gpu.VISIBLE] == ""
    monkeypatch.setenv(gpu.VISIBLE, "a,b")
    with step_log(tmp_path / "log", 1, "step"):
        assert os.environ[gpu.VISIBLE] == "a,b"
    with pytest.raises(gpu.GPUError, match="3 GPUs"), step_log(tmp_path / "log", 1, "step", 3):
        raise AssertionError("began")
    assert "failed: GPUError: 3 GPUs" in (tmp_path / "log").read_text()


def test_no_step_ties_cuda_to_devices_before_it_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA reads the visible devices once; with what the workflow sets, nothing makes it do so while a step imports."""
    script = """
        import importlib, pathlib, re, sys, torch
        def asked(*arguments): raise SystemExit("CUDA was started while importing " + name)
        torch._C._cuda_getDeviceCount = torch._C._cuda_init = asked
        torch.cuda._device_count_nvml = lambda: 1
        steps = [p.read_text() for p in sorted(pathlib.Path(sys.argv[1]).glob("*.py"))]
        steps = [text for text in steps if "snakemake.resources.gpu" in text]
        for name in sorted({name for text in steps for name in re.findall(r"^(?:from|import) (\\S+)", text, re.M)}):
            importlib.import_module(name)
        assert torch.cuda.is_available()
        print(len(steps))
    """
    setting = re.search(r'setdefault\("(\w+)", "(\w+)"\)', (ROOT / "rules/common.smk").read_text())
    assert setting is not None
    monkeypatch.setenv(setting[1], setting[2])
    one = process(script, ROOT / "src/steps")
    assert one.communicate(timeout=240)[0].strip() == str(len(LEASING))


LEASING = [p for p in sorted((ROOT / "src/steps").glob("*.py")) if "snakemake.resources.gpu" in p.read_text()]


def test_what_can_reach_a_device_leases_one() -> None:
    """A step whose code asks for the best device has its rule ask for GPUs, or it would share a leased one unseen."""
    asking = [
        step
        for step in sorted((ROOT / "src/steps").glob("*.py"))
        if any("best_device()" in p.read_text() for p in used_modules(step) if p.name != "workers.py")
    ]
    assert asking == LEASING
    rules = re.split(r"(?m)^ *rule ", "".join(p.read_text() for p in sorted((ROOT / "rules").glob("*.smk"))))
    for step in LEASING:
        (rule,) = [text for text in rules if f"src/steps/{step.name}" in text]
        assert re.search(r"resources:\n\s+gpu=STUDY.gpus", rule), step.name


SNAKEFILE = """
rule all:
    input: expand("one/{n}", n=range(8)), expand("two/{n}", n=range(3))
rule one:
    output: "one/{n}"
    resources: gpu=1
    script: "step.py"
rule two:
    output: "two/{n}"
    resources: gpu=2
    script: "step.py"
"""
STEP = """
import os, time
from pathlib import Path
from diver.progress import step_log
from diver.provenance import used_modules
with step_log(snakemake.output[0] + ".log", 1, "toy", snakemake.resources.gpu):
    start = time.monotonic()
    time.sleep(0.5)
    Path(snakemake.output[0]).write_text(f"{start} {time.monotonic()} {os.environ['CUDA_VISIBLE_DEVICES']}")
"""


def test_snakemake_gives_concurrent_jobs_distinct_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(gpu.VISIBLE, "a,b,c,d")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "step.py").write_text(STEP)
    command = [sys.executable, "-m", "snakemake", "--cores", "8", "--resources", "gpu=4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    spans: dict[str, list[tuple[float, float]]] = {}
    for number, path in enumerate([*tmp_path.glob("one/?"), *tmp_path.glob("two/?")]):
        start, end, devices = path.read_text().split()
        assert len(devices.split(",")) == (1 if number < 8 else 2)
        for device in devices.split(","):
            spans.setdefault(device, []).append((float(start), float(end)))
    assert sum(map(len, spans.values())) == 8 + 2 * 3 and spans.keys() == set("abcd")
    for times in spans.values():
        times.sort()
        assert all(end <= start for (_, end), (start, _) in zip(times, times[1:], strict=False))
    moments = sorted({start for times in spans.values() for start, _ in times})
    busy = [sum(start <= now < end for times in spans.values() for start, end in times) for now in moments]
    assert max(busy) == 4


def test_a_pool_too_small_for_a_rule_is_refused() -> None:
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2"]
    command += ["--configfile", "config/test.yaml", "--set-resources", "train_students:gpu=2"]
    done = subprocess.run([*command, "--resources", "gpu=1"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "train_students asks for 2 GPUs, but --resources gpu=1 is a smaller pool" in done.stdout + done.stderr
