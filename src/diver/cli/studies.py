"""Commands on a study's configuration."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from diver.cli.common import CHECKOUT, Json, known, print_json


def home_of_studies() -> Path:
    """Where a study's paths start: the current folder, if it is a checkout, else the one that this code lies in."""
    return Path() if Path("config/datasets").is_dir() else CHECKOUT


def check(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    plan: Annotated[bool, typer.Option(help="Accept that data, released sets or a prior are not here yet.")] = False,
    json_: Json = False,
) -> None:
    """Check a study's configuration, its datasets and what must be here; say how many jobs it has.

    Example: diver check config/default.yaml
    """
    from diver.checks import check_study
    from diver.config.study import read_yaml
    from diver.study import set_cells, student_cells, student_groups

    checked = check_study(read_yaml(study), str(study), home_of_studies(), planning=plan)
    loaded, students = checked.study, 0
    sets, jobs = len(list(set_cells(loaded))), list(student_cells(loaded))
    for job in jobs:
        dataset = job.set.dataset
        students += len(student_groups(loaded, dataset)[job.group]) * len(loaded.students_at(dataset).seeds)
    if json_:
        counts = {"sets": sets, "student_jobs": len(jobs), "students": students}
        print_json({"study": str(study), **counts, "missing": checked.missing})
    else:
        for line in checked.missing:
            print(f"{study}: missing here: {line}", file=sys.stderr)
        print(f"{study}: valid; {sets} sets, {len(jobs)} student jobs, {students} students")


def cost(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    device: Annotated[list[str] | None, typer.Option(help="Device of src/diver/rates.yaml; repeatable; all.")] = None,
    json_: Json = False,
) -> None:
    """Estimate jobs, operations, hours and disk of each phase of a study before anything runs.

    Operations are counted, rates stand in src/diver/rates.yaml with their sources; what is assumed or missing is said.

    Example: diver cost config/paper.yaml --device rtx4090
    """
    from diver.checks import check_study
    from diver.config.study import read_yaml
    from diver.cost import Estimate, load_rates, reckon, shown

    root, rates = home_of_studies(), load_rates()
    names = [known(name, rates["devices"], "--device") for name in device or rates["devices"]]
    checked = check_study(read_yaml(study), str(study), root, planning=True)
    found = reckon(Estimate(checked.study, checked.datasets, rates, root), names)
    if json_:
        print_json(found)
    else:
        print(shown(found))


def schema(out: Annotated[Path, typer.Option(help="File to write.")] = Path("config/schema.json")) -> None:
    """Write the JSON schema of a study's configuration, for editors.

    Example: diver schema --out config/schema.json
    """
    from diver.config.study import Study

    out.write_text(json.dumps(Study.model_json_schema(), indent=2) + "\n")
    print(out)
