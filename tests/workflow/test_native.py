"""All diffusion-native systems through the workflow, a few steps each, to their table and picture."""

from pathlib import Path

import pandas as pd
import pytest
from running import copy_project, jobs, run

from diver.config.native import PREPARATIONS, SETTINGS
from diver.config.study import load_study
from diver.sets import DistilledSet
from diver.study import SetCell, artefact_paths, benchmark_path

pytestmark = pytest.mark.slow
STUDY = "config/test-native.yaml"
RESULTS = Path("results/test-native")
TARGETS = (f"{RESULTS}/tables/systems.md", f"{RESULTS}/figures/systems.png", f"{RESULTS}/figures/normality.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("native"))
    result = run(folder, *TARGETS, study=STUDY)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return folder


def test_every_system_makes_its_set_from_its_preparations(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    study = load_study(STUDY)
    assert {entry.method for entry in study.distill.values() if entry.is_native()} == set(SETTINGS)
    pictures = []
    for name, entry in study.distill.items():
        made = DistilledSet.read(RESULTS / f"distilled/cifar10-slice/ipc2/{name}.safetensors")
        assert made.images.shape == (20, 3, 32, 32) and made.steps[0].method == entry.method
        pictures.append(made.images)
        if not entry.is_native():
            continue
        cell = SetCell("cifar10-slice", 2, name)
        for artefact in PREPARATIONS[entry.method]:
            assert artefact_paths(study, cell)[artefact.name].exists()
            assert benchmark_path(study, artefact, cell).exists()
    assert not any(bool((a == b).all()) for i, a in enumerate(pictures) for b in pictures[:i])


def test_table_says_what_each_system_gave_and_cost(finished: Path) -> None:
    table = pd.read_csv(finished / RESULTS / "tables/systems.csv", keep_default_na=False)
    natives = table[table["native"] & (table["stage2"] == "none")].set_index("method")
    assert set(natives.index) == set(SETTINGS)
    assert (natives[["seconds_per_image", "shared_per_class"]].astype(float) > 0).all(axis=None)
    # Each has a preparation of its own, and the published numbers of the tests' file are of none of them.
    assert (natives["preparation_per_class"].astype(float) > 0).all()
    shown = (finished / RESULTS / "tables/systems.md").read_text()
    assert shown.count("no published number at this dataset") == len(SETTINGS)
    recovered = table[table["stage2"] == "diver"]
    assert list(recovered["stage1"]) == ["d4m"] and recovered["difference_unseen_mean"].astype(float).notna().all()
    for form in ("tex", "html"):
        assert (finished / RESULTS / f"tables/systems.{form}").stat().st_size > 0
    assert (finished / RESULTS / "figures/systems.svg").stat().st_size > 0


def test_changed_setting_remakes_one_system_and_its_preparation_only_if_it_matters(finished: Path) -> None:
    config = finished / STUDY
    original = config.read_text()

    def planned(old: str, new: str) -> dict[str, int]:
        assert old in original
        config.write_text(original.replace(old, new))
        try:
            return jobs(run(finished, *TARGETS, "--dry-run", study=STUDY))
        finally:
            config.write_text(original)

    stop = planned('respacing: "4", stop: 1', 'respacing: "4", stop: 0')
    assert stop["synthesize_set"] == 1 and not stop.keys() & {"find_prototypes", "encode_latents", "distill_set"}
    starts = planned('respacing: "4", stop: 1', 'respacing: "4", stop: 1, n_init: 3')
    assert (starts["find_prototypes"], starts["synthesize_set"]) == (1, 1) and "encode_latents" not in starts
