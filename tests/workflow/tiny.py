"""A copy of the project with the smallest study that goes through every phase: ten jobs."""

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

from running import BIN, copy_project

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


def copy_tiny(folder: Path) -> Path:
    """A copy of the project, with what DVC needs, and the study as config/tiny.yaml."""
    copy_project(folder, "Makefile", "dvc.yaml", "params.yaml", ".dvc/config", ".dvc/plots", ".dvcignore", ".gitignore")
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
