"""A copy of the project with the smallest study that goes through every phase: ten jobs."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PARTS = (
    *("Snakefile", "Makefile", "rules", "src", "config", "profiles", "envs", "tests/data", "data/shipped"),
    *("data/published", "dvc.yaml", "params.yaml", ".dvc/config", ".dvc/plots", ".dvcignore", ".gitignore"),
)
STUDY = """\
name: tiny
datasets: [cifar10-slice]
ipc: [1]
prior: {source: data/shipped/cifar10-prior}
distill:
  random: {label: Random, method: random}
recover:
  vae: {label: VAE only, method: vae}
students:
  seeds: [0]
  protocol: {epochs: 1, batch: 10, evaluations: 1}
  architectures:
    convnet: {network: convnet, label: ConvNet, options: {width: 4}}
report: {ladder_of: random, ladder: [none, vae]}
"""
SCRIPTED = re.compile(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", re.M)
# Targets, which run nothing.
PHASES = {"data", "prior", "distill", "recover", "students", "report", "all"}


def copy_project(folder: Path) -> Path:
    """The parts that the workflow reads, with the study as config/tiny.yaml."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    (folder / "config/tiny.yaml").write_text(STUDY)
    return folder


def call(folder: Path, *command: str | Path, fails: bool = False, **environment: str) -> str:
    """Run a command in a folder with this environment's programs first; its output, stdout and stderr together."""
    path = f"{environment.pop('before', '')}:{BIN}:{os.environ['PATH']}".lstrip(":")
    result = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert (result.returncode != 0) == fails, f"{command}: exit code {result.returncode}\n{result.stdout[-6000:]}"
    return result.stdout


def snakemake(folder: Path, *arguments: str, fails: bool = False, **environment: str) -> str:
    command = ("snakemake", *arguments, "--configfile", "config/tiny.yaml", "--cores", "2")
    return call(folder, *command, fails=fails, **environment)


def executed(folder: Path) -> dict[str, int]:
    """Jobs by rule that Snakemake has executed in a folder since this was last asked."""
    jobs: Counter[str] = Counter()
    for log in (folder / ".snakemake/log").glob("*.snakemake.log"):
        jobs.update(SCRIPTED.findall(log.read_text()))
        log.unlink()
    return {rule: count for rule, count in jobs.items() if rule not in PHASES}


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} lacks {old!r}"
    path.write_text(text.replace(old, new))
