"""A copy of the project in a folder of its own, in which a test may run and break studies."""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "rules", "src", "config", "profiles", "envs", "tests/data", "data/shipped", "data/published")
BIN = Path(sys.executable).parent
SNAKEMAKE = str(BIN / "snakemake")


def copy_project(folder: Path) -> Path:
    """What a study needs, copied; returns the folder."""
    for part in PARTS:
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
