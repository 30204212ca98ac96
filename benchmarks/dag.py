"""Time and memory of building the workflow's graph, as it grows with the study.

The study's datasets and seeds of a grid are kept or repeated to the sizes asked for: at 1/8 an eighth of the datasets,
at 2 each dataset twice (its second specification is the first's, under another name). Each size is a dry run in a fresh
process in a copy of the workflow without results, so that all jobs are planned.

    python benchmarks/dag.py                                    config/paper.yaml at 1/8, 1/4, 1/2, 1 and 2
    python benchmarks/dag.py --study config/default.yaml --sizes 1
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "src", "config", "profiles", "envs", "data/shipped", "data/published", "tests/data")
TWIN = "-twin"


def resized(study: dict[str, Any], size: float, specs: Path) -> dict[str, Any]:
    """A study with as many datasets as a size says; twins get a specification of their own."""
    names = study["datasets"]
    kept = names[: max(1, round(size * len(names)))]
    twins = [f"{name}{TWIN}" for name in names[: max(0, round((size - 1) * len(names)))]]
    for twin in twins:
        content = yaml.safe_load((specs / f"{twin.removesuffix(TWIN)}.yaml").read_text())
        (specs / f"{twin}.yaml").write_text(yaml.safe_dump({**content, "name": twin}))

    def of(given: Any) -> Any:
        """Lists and mappings of datasets, with the kept ones and the twins of theirs."""
        if isinstance(given, list):
            some = [name for name in given if name in kept]
            return some + [twin for twin in twins if twin.removesuffix(TWIN) in given]
        more = {twin: given[twin.removesuffix(TWIN)] for twin in twins if twin.removesuffix(TWIN) in given}
        return {name: value for name, value in given.items() if name in kept} | more

    changed = {**study, "datasets": [*kept, *twins]}
    for key in ("ipc_of", "teacher_of", "students_of", "shards_of"):
        if key in study:
            changed[key] = of(study[key])
    for section in ("distill", "recover"):
        changed[section] = {}
        for name, entry in study.get(section, {}).items():
            entry = {**entry, **{key: of(entry[key]) for key in ("datasets", "by_dataset") if key in entry}}
            # Twins are no published datasets, so they take no published settings.
            if twins and section == "distill" and entry.pop("preset", None) and name in ("mtt", "edf"):
                entry["settings"] = {"experts": "plain", **entry.get("settings", {})}
            if "applies_to" in entry:
                entry["applies_to"] = [one for one in entry["applies_to"] if one in changed["distill"]]
            if [] not in (entry.get("datasets"), entry.get("applies_to")):
                changed[section][name] = entry
    # Tables name datasets and entries that a smaller study does not have.
    changed["report"] = {key: value for key, value in study.get("report", {}).items() if key != "tables"}
    return changed


def dry_run(folder: Path, study: Path) -> tuple[int, float, float, float]:
    """Jobs, seconds, seconds of CPU and peak memory in GB of a dry run."""
    command = [str(Path(sys.executable).parent / "snakemake"), "-n", "--quiet", "host", "--configfile", str(study)]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds, jobs = time.monotonic() - started, re.search(r"^total +(\d+)$", output, re.M)
    if process.returncode or jobs is None:
        raise SystemExit(f"dag: the dry run failed:\n{output[-2000:]}")
    # ru_maxrss is in KB on Linux.
    return int(jobs[1]), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=ROOT / "config/paper.yaml", help="The study at size 1.")
    parser.add_argument("--sizes", nargs="+", type=float, default=[1 / 8, 1 / 4, 1 / 2, 1, 2], help="Parts of it.")
    options = parser.parse_args()
    content = yaml.safe_load(options.study.read_text())
    print("| size | datasets | jobs | seconds | seconds of CPU | GB |\n|--:|--:|--:|--:|--:|--:|")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for part in PARTS:
                source, target = ROOT / part, folder / part
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
                elif source.exists():
                    shutil.copy2(source, target)
            study = folder / "config/sized.yaml"
            made = resized(content, size, folder / "config/datasets")
            study.write_text(yaml.safe_dump(made, sort_keys=False))
            jobs, seconds, busy, memory = dry_run(folder, study)
            print(
                f"| {size:g} | {len(made['datasets'])} | {jobs} | {seconds:.1f} | {busy:.1f} | {memory:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
