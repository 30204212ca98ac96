"""How tests of the workflow call Snakemake in a copy of the project, in which they may run and break studies."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SNAKEMAKE = str(BIN / "snakemake")
PARTS = (
    *("Snakefile", "rules", "src", "config", "profiles", "envs", "docs"),
    *("tests/data", "data/shipped", "data/published"),
)


def copy_project(folder: Path, *more: str) -> Path:
    """What a clone has, as far as the workflow needs it, and more of its files; returns the folder."""
    for part in (*PARTS, *more):
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    return folder


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, with the programs of its Python first and these variables."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **variables}


def run(
    folder: Path,
    *arguments: str,
    cores: str = "2",
    study: str = "config/test.yaml",
    program: Sequence[str] = (SNAKEMAKE,),
) -> subprocess.CompletedProcess[str]:
    """Snakemake in a copy of the project, as a user calls it."""
    return subprocess.run(
        [*program, *arguments, "--configfile", study, "--cores", cores],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )


def jobs(result: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Rules that a dry run would execute, with the number of their jobs."""
    table = [line.split() for line in (result.stdout + result.stderr).splitlines()]
    return {words[0]: int(words[1]) for words in table if len(words) == 2 and words[1].isdigit()}
