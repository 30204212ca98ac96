"""The record of a study: what it is, what each file was made by, in which environment, and how long it took."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from diver.config.study import NONE, Study
from diver.study import count_students, set_cells

FILE_COLUMNS = ["file", "rule", "code", "bytes", "sha256"]
CHAIN_COLUMNS = ["file", "step", "method", "seed", "code", "parameters"]
TIME_COLUMNS = ["rule", "jobs", "seconds", "longest", "memory_mb"]


def facts(study: Study, datasets: Mapping[str, str]) -> list[tuple[str, str]]:
    """What the study consists of, as (what, text). `datasets`: displayed names."""
    stage2 = [f"{one.label} ({name}: {one.method})" for name, one in study.recover.items()]
    networks = [f"{one.label} ({name}: {one.network}, {one.role})" for name, one in study.all_architectures().items()]
    protocols = {dataset: _protocol(study, dataset) for dataset in study.datasets}
    alike = len(set(protocols.values())) == 1
    texts = dict.fromkeys(protocols.values()) if alike else [f"{name}: {text}" for name, text in protocols.items()]
    return [
        ("Datasets", ", ".join(datasets.get(name, name) for name in study.datasets)),
        ("Images per class", "; ".join([", ".join(map(str, study.ipc)), *_others(study)])),
        ("Stage 1", "; ".join(f"{one.label} ({name}: {one.method})" for name, one in study.distill.items())),
        ("Stage 2", "; ".join(stage2) or NONE),
        ("Prior", study.prior.source),
        ("Students", "; ".join(networks)),
        ("Protocol", "; ".join(texts)),
        ("Sets", str(len(list(set_cells(study))))),
        ("Students to train", str(count_students(study))),
    ]


def _protocol(study: Study, dataset: str) -> str:
    students = study.students_at(dataset)
    return f"{students.protocol.name}, seeds {', '.join(map(str, students.seeds))}"


def _others(study: Study) -> list[str]:
    return [f"{dataset}: {', '.join(map(str, ipcs))}" for dataset, ipcs in study.ipc_of.items()]


def outcome(results: pd.DataFrame) -> list[tuple[str, str]]:
    """What the tidy table of students holds, as (what, text)."""
    protocols = ", ".join(map(str, dict.fromkeys(results["protocol"])))
    return [
        ("Trained students in the table", str(len(results))),
        ("Diverged", str(int(results["diverged"].sum()))),
        ("Protocols", protocols),
    ]


def files_of(artifacts: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """A row per file: path, rule, digest of the rule's code, size, SHA-256. `artifacts`: file, rule and code each."""
    rows = []
    for one in artifacts:
        path = Path(one["file"])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        rows.append([one["file"], one["rule"], one["code"], path.stat().st_size, digest])
    return pd.DataFrame(rows, columns=FILE_COLUMNS)


def chains_of(paths: Sequence[str]) -> pd.DataFrame:
    """A row per link of the chain of methods that made each set, as the header of its file has them."""
    rows = []
    for path in paths:
        for number, step in enumerate(chain(path), 1):
            given = "; ".join(f"{key} {value}" for key, value in sorted(step["parameters"].items()) if key != "seed")
            seed = "" if step["seed"] is None else step["seed"]
            rows.append([path, number, step["method"], seed, step["code"], given])
    return pd.DataFrame(rows, columns=CHAIN_COLUMNS)


def chain(path: str | Path) -> list[dict[str, Any]]:
    """The steps in the header of a set's file; none for another file. No tensor library is needed."""
    if Path(path).suffix != ".safetensors":
        return []
    with Path(path).open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    texts = head.get("__metadata__", {}).values()
    return next((found["steps"] for text in texts if "steps" in (found := json.loads(text))), [])


def versions(environments: Sequence[str | Path]) -> pd.DataFrame:
    """What runs here: Python, the system, and each package that the environments pin beside the installed version."""
    rows = [
        ["Python", platform.python_version(), ""],
        ["system", f"{platform.system()} {platform.machine()}", ""],
    ]
    pinned: dict[str, dict[str, list[str]]] = {}
    for path in map(Path, environments):
        for group in yaml.safe_load(path.read_text())["dependencies"]:
            for text in group["pip"] if isinstance(group, dict) else []:
                name, _, version = text.partition("==")
                pinned.setdefault(name, {}).setdefault(version, []).append(path.stem)
    for name, found in sorted(pinned.items()):
        texts = [f"{version} ({', '.join(stems)})" for version, stems in found.items()]
        rows.append([name, _installed(name), "; ".join(texts)])
    return pd.DataFrame(rows, columns=["package", "here", "pinned (environments)"])


def _installed(name: str) -> str:
    try:
        return metadata.version(name.partition("[")[0])
    except metadata.PackageNotFoundError:
        return "not installed"


def run_times(folder: str | Path) -> pd.DataFrame:
    """A row per kind of job from Snakemake's benchmark files under `folder`, the slowest first."""
    root = Path(folder)
    records = []
    for path in sorted(root.rglob("*.tsv")):
        kind = path.relative_to(root).parts[0].removesuffix(".tsv")
        table = pd.read_csv(path, sep="\t", na_values=["NA", "-"])
        for row in table.to_dict("records"):
            records.append([kind, row["s"], row.get("max_rss")])
    frame = pd.DataFrame(records, columns=["rule", "s", "rss"])
    grouped = frame.groupby("rule").agg(
        jobs=("s", "size"),
        seconds=("s", "sum"),
        longest=("s", "max"),
        memory_mb=("rss", "max"),
    )
    found = grouped.sort_values("seconds", ascending=False).reset_index().round(1)
    return found[TIME_COLUMNS]
