"""`--sdm conda` through all that Snakemake does for it, with a stand-in for conda itself: conda_stand_in.py."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conda_stand_in import ACTIVATE
from running import ROOT
from tiny import call, copy_tiny, executed, replace_in, snakemake


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
    folder = copy_tiny(tmp_path)
    made = snakemake(folder, "distill", "--sdm", "conda", before=conda)
    assert "Activating conda environment" in made
    assert executed(folder) == {"prepare_data": 1, "distill_set": 1}
    # Environments are made and listed also where the study's files are not.
    replace_in(folder / "config/tiny.yaml", "report: {", "report: {published: data/not-here.csv, ")
    snakemake(folder, "--sdm", "conda", "--conda-create-envs-only", before=conda)
    assert executed(folder) == {}
    listed = [
        row.split() for row in snakemake(folder, "--list-conda-envs", "--sdm", "conda", before=conda).splitlines()
    ]
    places = {Path(row[0]).stem: folder / row[-1] for row in listed if row and row[0].startswith("envs/")}
    assert places.keys() == {"data", "torch", "report"}
    assert all((place / "bin/python").exists() for place in places.values())
    told = ran(folder)
    for step, environment in {"prepare_data.py": "data", "distill_set.py": "torch"}.items():
        assert told[step]["prefix"] == str(places[environment]), step
        # Snakemake brings itself and the project's modules; what the environment has to give comes from there.
        foreign = {str(name).split(".")[0] for name in told[step]["foreign"]}
        assert "diver" in foreign
        assert foreign & {"torch", "numpy", "safetensors", "diffusers", "pydantic", "PIL", "yaml"} == set(), step


def test_what_an_environment_lacks_fails_it(conda: str, tmp_path: Path) -> None:
    """The stand-in is strict: another version than the lock's, or a package that is nowhere, makes no environment."""
    plain = (ROOT / "envs/data.yaml").read_text()
    for wrong, reason in {"numpy==0.1": "is installed here as", "no-such-package==1": "is not installed here"}.items():
        file = tmp_path / "wrong.yaml"
        file.write_text(plain.replace("      - numpy==", f"      - {wrong}\n      - numpy=="))
        create = (
            "conda",
            "env",
            "create",
            "--quiet",
            "--no-default-packages",
            "--file",
            file,
            "--prefix",
            tmp_path / "x",
        )
        said = call(tmp_path, *create, before=conda, fails=True)
        assert wrong in said and reason in said
    assert not (tmp_path / "x").exists()
