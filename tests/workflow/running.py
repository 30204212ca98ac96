"""How tests of the workflow call Snakemake in a copy of the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = (
    *("Snakefile", "rules", "src", "config", "profiles", "envs", "docs"),
    *("tests/data", "data/shipped", "data/published"),
)
SNAKEMAKE = Path(sys.executable).parent / "snakemake"


def copy_project(folder: Path) -> None:
    """What a clone has, as far as the workflow needs it."""
    for part in PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def run(
    folder: Path, *arguments: str, cores: str = "2", study: str = "config/test.yaml"
) -> subprocess.CompletedProcess[str]:
    """Snakemake in a copy of the project, as a user calls it."""
    environment = {**os.environ, "PATH": f"{SNAKEMAKE.parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(SNAKEMAKE), *arguments, "--configfile", study, "--cores", cores],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
