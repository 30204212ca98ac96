"""Commands on a study's configuration."""

import json
from pathlib import Path
from typing import Annotated

import typer

from diver.cli.common import Json, print_json


def check(study: Annotated[Path, typer.Argument(help="A study's YAML file.")], json_: Json = False) -> None:
    """Check a study's configuration and say how many jobs it has.

    Example: diver check config/default.yaml
    """
    from diver.config.study import load_study
    from diver.study import set_cells, student_cells, student_groups

    loaded = load_study(study)
    sets, jobs, groups = len(list(set_cells(loaded))), list(student_cells(loaded)), student_groups(loaded)
    students = sum(len(groups[job.group]) for job in jobs) * len(loaded.students.seeds)
    if json_:
        print_json({"study": str(study), "sets": sets, "student_jobs": len(jobs), "students": students})
    else:
        print(f"{study}: valid; {sets} sets, {len(jobs)} student jobs, {students} students")


def schema(out: Annotated[Path, typer.Option(help="File to write.")] = Path("config/schema.json")) -> None:
    """Write the JSON schema of a study's configuration, for editors.

    Example: diver schema --out config/schema.json
    """
    from diver.config.study import Study

    out.write_text(json.dumps(Study.model_json_schema(), indent=2) + "\n")
    print(out)
