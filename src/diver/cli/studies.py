"""Commands on a study's configuration."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver.cli.common import CHECKOUT, Json, UserError, known, mendable, print_json

if TYPE_CHECKING:
    import pandas as pd

    from diver.config.study import Study


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
    from diver.study import count_students, full_cells, set_cells, student_cells

    checked = check_study(read_yaml(study), str(study), home_of_studies(), planning=plan)
    loaded = checked.study
    sets, students = len(list(set_cells(loaded))), count_students(loaded)
    jobs = len([*student_cells(loaded), *full_cells(loaded)])
    if json_:
        counts = {"sets": sets, "student_jobs": jobs, "students": students}
        print_json({"study": str(study), **counts, "missing": checked.missing})
    else:
        for line in checked.missing:
            print(f"{study}: missing here: {line}", file=sys.stderr)
        print(f"{study}: valid; {sets} sets, {jobs} student jobs, {students} students")


def report(
    results: Annotated[Path, typer.Argument(help="A study's results folder, or its tidy table as CSV or Parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write tables/, figures/ and metrics.json into; the results folder.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="The study's YAML; by default the file in config/ that has the folder's name.")
    ] = None,
    json_: Json = False,
) -> None:
    """Make all tables and figures of a study again from its tidy results, training nothing.

    Works from the table alone; what needs sets or other files is made where they are, and else named as skipped.

    Example: diver report results/default --out again
    """
    from diver.config.study import load_study
    from diver.data.spec import load_dataset_spec
    from diver.report.make import make_all
    from diver.report.paper import read_students

    table, name = _tidy_table(results)
    config = study or _study_called(name)
    # Paths in a study start from the folder above its config/, as the workflow's do.
    root = config.resolve().parent.parent
    with mendable(table):
        loaded = load_study(config)
        specs = {one: load_dataset_spec(config.parent / f"datasets/{one}.yaml") for one in loaded.datasets}
        students = read_students(table)
        if missing := _lacking(students, loaded):
            raise UserError(f"{table}: {missing}; is {config} the study that it is of? Say which one by --study")
        folder = out or (results if results.is_dir() else results.parent)
        # Beside its table, a moved or another checkout's study has sets of its own.
        home = results if results.is_dir() else table.parent.parent if table.parent.name == "tables" else None
        made = make_all(loaded, specs, students, folder, root, home)
    if json_:
        print_json({"files": [str(path) for path in made.files], "skipped": made.skipped})
        return
    for path in made.files:
        print(path)
    for product, why in made.skipped.items():
        typer.echo(f"skipped: {product}: {why}", err=True)


def _tidy_table(results: Path) -> tuple[Path, str]:
    """The tidy table and the name of its study."""
    if results.is_file():
        parts = results.resolve().parts
        return results, parts[-3] if len(parts) > 2 else ""
    for form in ("csv", "parquet"):
        if (table := results / f"tables/results.{form}").exists():
            return table, results.resolve().name
    raise UserError(f"{results}: no tables/results.csv or .parquet in it; `snakemake students` makes them")


def _study_called(name: str) -> Path:
    """The study's file of that name in the current folder's config/, else in the checkout's."""
    for folder in dict.fromkeys((Path("config"), CHECKOUT / "config")):
        for path in sorted(folder.glob("*.yaml")):
            if re.search(rf"^name:\s*['\"]?{re.escape(name)}['\"]?\s*(#.*)?$", path.read_text(), re.MULTILINE):
                return path
    raise UserError(f"no study in config/ has the name {name!r}; give its YAML by --study")


def _lacking(students: "pd.DataFrame", study: "Study") -> str:
    """What of a tidy table does not fit the study, '' if all does."""
    from diver.config.study import NONE
    from diver.study import FULL

    needed = ["dataset", "ipc", "stage1", "stage2", "scale", "architecture", "role", "seed", "accuracy_last"]
    if absent := [name for name in needed if name not in students]:
        return f"no column {', '.join(absent)}"
    valid = {
        "dataset": study.datasets,
        "stage1": [FULL, *study.distill],
        "stage2": [NONE, *study.recover],
        "architecture": list(study.all_architectures()),
    }
    for column, names in valid.items():
        if strange := [name for name in students[column].unique() if name not in names]:
            return f"{column} {strange[0]!r} is not in the study {study.name!r}"
    return ""


def cost(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    device: Annotated[
        list[str] | None, typer.Option(help="Device of src/diver/cost/rates.yaml; repeatable; all.")
    ] = None,
    json_: Json = False,
) -> None:
    """Estimate jobs, operations, hours and disk of each phase of a study before anything runs.

    Operations are counted, rates stand in src/diver/cost/rates.yaml with their sources; what is assumed or missing is
    said.

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
