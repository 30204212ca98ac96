"""`--sdm conda` through all that Snakemake does for it, with a stand-in for conda itself: conda_stand_in.py."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conda_stand_in import ACTIVATE
from tiny import copy_project, executed, replace_in, snakemake


def install_conda(folder: Path) -> Path:
    """A folder of programs with the stand-in as `conda` and as the script that activates."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    shutil.copy2(Path(__file__).with_name("conda_stand_in.py"), folder)
    conda = programs / "conda"
    conda.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/conda_stand_in.py" "$@"\n')
    conda.chmod(0o755)
    (programs / "activate").write_text(ACTIVATE)
    return programs


@pytest.fixture(scope="module")
def conda(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(install_conda(tmp_path_factory.mktemp("conda")))


def ran(folder: Path) -> dict[str, dict[str, object]]:
    """What ran in the environments of a folder, by the name of the step."""
    lines = [line for log in folder.glob(".snakemake/conda/*/ran.jsonl") for line in log.read_text().splitlines()]
    told = [json.loads(line) for line in lines]
    return {Path(one["script"]).name.split(".", 1)[1]: one for one in told if one["script"].endswith(".py")}


def test_steps_run_in_their_environments(conda: str, tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    made = snakemake(folder, "recover", "results/tiny/tables/results.csv", "--sdm", "conda", before=conda)
    assert "Activating conda environment" in made
    assert executed(folder)["recover_set"] == 1
    listed = snakemake(folder, "--list-conda-envs", "--sdm", "conda", before=conda)
    places = {
        Path(row.split()[0]).stem: folder / row.split()[-1] for row in listed.splitlines() if row.startswith("envs/")
    }
    told = ran(folder)
    wanted = {
        "prepare_data.py": "data",
        **dict.fromkeys(["distill_set.py", "recover_set.py", "train_students.py"], "torch"),
        "collect_results.py": "report",
    }
    assert told.keys() == wanted.keys()
    for step, environment in wanted.items():
        assert told[step]["prefix"] == str(places[environment]), step
        # Snakemake appends its own place to the path, for itself; what the environment has to give comes from there.
        foreign = {str(name).split(".")[0] for name in told[step]["foreign"]}
        assert foreign & {"torch", "numpy", "pandas", "safetensors", "diffusers", "pydantic", "PIL"} == set(), step


def test_environments_alone_are_created_and_a_pin_that_cannot_be_had_is_refused(conda: str, tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    snakemake(folder, "--sdm", "conda", "--conda-create-envs-only", before=conda)
    assert len(list(folder.glob(".snakemake/conda/*/bin/python"))) == 3
    assert executed(folder) == {} and not (folder / "data/prepared").exists()
    replace_in(folder / "envs/data.yaml", "- numpy==", "- numpy==0.")
    said = snakemake(folder, "data", "--sdm", "conda", before=conda, fails=True)
    assert "Could not create conda environment" in said and "numpy==0." in said
