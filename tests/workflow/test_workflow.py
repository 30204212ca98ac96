"""The whole workflow on a slice of real data, as a user runs it."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from running import SNAKEMAKE, jobs, run


def test_tables_and_figures_are_made(finished: Path) -> None:
    results = finished / "results/test"
    for stem in ("cross_architecture", "ablation", "quality", "reproduced", "table_1", "table_6", "table_8"):
        for form in ("csv", "tex", "html", "md"):
            assert (results / f"tables/{stem}.{form}").stat().st_size > 0
    for stem in ("gallery", "vae_gallery", "cross_architecture", "ladder", "references", "phases", "quality"):
        for form in ("png", "svg", "pdf"):
            assert (results / f"figures/{stem}.{form}").stat().st_size > 0


def test_tidy_table_has_a_row_per_student(finished: Path) -> None:
    table = pd.read_csv(finished / "results/test/tables/results.csv")
    # Nine sets and one of them at a second scale, and the whole training set.
    assert len(table) == (10 + 1) * 2 * 2
    keys = ["dataset", "ipc", "stage1", "stage2", "scale", "architecture", "seed"]
    assert not table.duplicated(keys).any()
    assert table["accuracy_last"].between(0, 100).all()
    assert (table["accuracy_best"] >= table["accuracy_last"]).all()
    assert pd.read_parquet(finished / "results/test/tables/results.parquet").shape == table.shape


def test_second_run_does_nothing(finished: Path) -> None:
    result = run(finished)
    assert "Nothing to be done" in result.stdout + result.stderr


def test_lost_set_is_made_again_with_the_same_bytes(finished: Path) -> None:
    path = finished / "results/test/recovered/cifar10-slice/ipc2/dm/diver.safetensors"
    before = path.read_bytes()
    path.unlink()
    assert run(finished, str(path.relative_to(finished))).returncode == 0
    assert path.read_bytes() == before


def test_changed_module_reruns_its_rules_and_no_more(finished: Path) -> None:
    module = finished / "src/diver/recover/predd.py"
    original = module.read_text()
    module.write_text(original + "\n# edited\n")
    try:
        planned = jobs(run(finished, "--dry-run", "--quiet", "host"))
    finally:
        module.write_text(original)
    assert {"recover_set", "train_students"} <= planned.keys()
    assert not planned.keys() & {"distill_set", "prepare_data"}


def test_changed_setting_reruns_only_its_set(finished: Path) -> None:
    config = finished / "config/test.yaml"
    original = config.read_text()
    config.write_text(original.replace("forward_t: 2", "forward_t: 3"))
    try:
        result = run(finished, "--dry-run")
    finally:
        config.write_text(original)
    planned = jobs(result)
    # PReDD is applied to both stage-1 sets.
    assert (planned["recover_set"], planned["train_students"]) == (2, 2)
    assert not planned.keys() & {"distill_set", "prepare_data", "trace_phases"}


def test_a_job_for_each_network_is_planned_where_a_study_asks_for_it(finished: Path) -> None:
    config = finished / "config/test.yaml"
    original = config.read_text()
    config.write_text(original.replace("together: true", "together: false"))
    try:
        planned = jobs(run(finished, "--dry-run"))
    finally:
        config.write_text(original)
    # Nine sets and one of them at a second scale, two networks each, and both on all images.
    assert (planned["train_students"], planned["train_on_all_images"]) == (20, 2)
    assert not planned.keys() & {"distill_set", "recover_set"}


def test_a_changed_name_in_tables_and_bound_on_memory_retrain_nothing(finished: Path) -> None:
    config = finished / "config/test.yaml"
    original = config.read_text()
    study = yaml.safe_load(original)
    for architecture in study["students"]["architectures"].values():
        architecture["label"] += " renamed"
    study["students"]["memory_gb"] = 2.5
    config.write_text(yaml.safe_dump(study, sort_keys=False))
    try:
        planned = jobs(run(finished, "--dry-run"))
    finally:
        config.write_text(original)
    assert "make_tables" in planned and not planned.keys() & {"train_students", "train_on_all_images", "recover_set"}


def test_typo_in_the_configuration_is_refused_before_the_dag(finished: Path) -> None:
    config = finished / "config/test.yaml"
    original = config.read_text()
    config.write_text(original.replace("gallery:", "galery:"))
    try:
        result = run(finished, "--dry-run")
    finally:
        config.write_text(original)
    assert result.returncode != 0
    message = result.stdout + result.stderr
    assert "report.galery: unknown key; did you mean 'gallery'?" in message
    assert "Building DAG" not in message


@pytest.mark.parametrize("program", [(SNAKEMAKE,), (sys.executable, "-m", "snakemake")])
def test_a_run_without_its_files_is_refused_and_a_plan_is_not(finished: Path, program: tuple[str, ...]) -> None:
    study = "config/edits-woof.yaml"
    result = run(finished, study=study, program=program)
    message = result.stdout + result.stderr
    assert result.returncode != 0 and "no file data/raw/captions/imagewoof5-64.jsonl" in message
    assert "Building DAG" not in message
    planned = run(finished, "--dry-run", study=study, program=program)
    assert planned.returncode == 0 and "caption_images" in planned.stdout + planned.stderr


def test_soft_labels_by_stored_answers_and_by_a_teacher(finished: Path) -> None:
    study = finished / "config/test-soft.yaml"
    result = run(finished, "students", study=str(study))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    stored = pd.read_csv(finished / "results/test-soft/tables/results.csv")
    assert list(stored["protocol"].unique()) == ["soft-fkd"]
    assert list(stored["departures"].unique()) == ["epochs=3; batch=10"]
    assert (finished / "results/test-soft/answers/cifar10-slice/ipc2/random/none/matched.safetensors").exists()
    assert not list((finished / "results/test-soft/checkpoints").rglob("*.safetensors"))
    study.write_text(study.read_text().replace("soft-fkd", "soft-rded").replace("batch: 10", "batch: 5"))
    planned = jobs(run(finished, "students", "--dry-run", study=str(study)))
    # The teacher stays as it is; what is stored is not asked for.
    assert not planned.keys() & {"train_teacher", "record_answers", "distill_set"}
    assert run(finished, "students", study=str(study)).returncode == 0
    online = pd.read_csv(finished / "results/test-soft/tables/results.csv")
    assert list(online["quirks"].unique()) == ["double_forward"]
    assert list(online["departures"].unique()) == ["epochs=3; batch=5"]
    assert not (online["train_loss_last"] == stored["train_loss_last"]).any()


def test_every_stage1_method_and_the_table_of_published_accuracies(finished: Path) -> None:
    from diver.sets import DistilledSet

    study, table = finished / "config/test-stage1.yaml", "results/test-stage1/tables/reproduced.md"
    result = run(finished, table, study=str(study))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    shown = (finished / table).read_text()
    assert "experts' count 2 (100)" in shown and "settings differ" in shown
    rows = pd.read_csv(finished / "results/test-stage1/tables/reproduced.csv")
    assert list(rows["stage1"]) == ["dc", "mtt"] and list(rows["published"]) == [28.3, 46.3]
    assert not rows["reproduced"].any()
    sets = finished / "results/test-stage1/distilled/cifar10-slice/ipc1"
    mtt, edf = (DistilledSet.read(sets / f"{name}.safetensors") for name in ("mtt", "edf"))
    assert edf.soft_labels is not None and mtt.soft_labels is None
    students = pd.read_csv(finished / "results/test-stage1/tables/results.csv").set_index("stage1")
    assert set(students.loc["mtt", "learning_rate"]) == {mtt.steps[0].parameters["syn_lr"]}
    pictures = finished / "results/test-stage1/runs/cifar10-slice/ipc1/dc"
    assert len(list(pictures.glob("*.png"))) == 3 and not list(pictures.glob("*.safetensors"))
    # One set of experts serves both, and a changed setting of one method leaves the others' sets alone.
    study.write_text(study.read_text().replace("{iterations: 2, crop: false", "{iterations: 3, crop: false"))
    planned = jobs(run(finished, "distill", "--dry-run", study=str(study)))
    assert planned["distill_set"] == 1 and "train_experts" not in planned


def test_a_changed_picture_of_a_released_folder_is_seen(finished: Path) -> None:
    from PIL import Image

    from diver.data.spec import load_dataset_spec

    classes = load_dataset_spec(finished / "config/datasets/cifar10-slice.yaml").classes
    pictures = [finished / "released" / name / "0.png" for name in classes]
    for path in pictures:
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    study = yaml.safe_load((finished / "config/test.yaml").read_text())
    released = {"label": "R", "method": "released", "settings": {"path": str(finished / "released")}}
    study.update(name="test-folder", ipc=[1], distill={"r": released}, recover={}, report={})
    study["students"]["as_published"] = {}
    path = finished / "config/test-folder.yaml"
    path.write_text(yaml.safe_dump(study))
    target = "results/test-folder/distilled/cifar10-slice/ipc1/r.safetensors"
    made = run(finished, target, study=str(path))
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-6000:]
    assert jobs(run(finished, target, "--dry-run", study=str(path))) == {}
    Image.new("RGB", (32, 32), "red").save(pictures[3])
    assert jobs(run(finished, target, "--dry-run", study=str(path)))["distill_set"] == 1


def test_released_set_is_recovered_in_shards_and_swept(finished: Path) -> None:
    """The same stage-1 images as a released file: recovered by two jobs a set, with a sweep, to its table."""
    from diver.sets import DistilledSet

    made = DistilledSet.read(finished / "results/test/distilled/cifar10-slice/ipc2/dm.safetensors")
    released = {"data": [[made.images, made.labels]], "accs_all_exps": {"ConvNet": [0.1, 0.2], "LeNet": [0.1]}}
    torch.save(released, finished / "released.pt")
    study = yaml.safe_load((finished / "config/test.yaml").read_text())
    diver = study["recover"]["diver"]
    study.update(
        name="test-shards",
        shards=2,
        distill={"dc": {"label": "DC", "method": "released", "settings": {"path": "released.pt"}}},
        recover={"gamma": {**diver, "label": "gamma", "applies_to": ["dc"], "sweep": {"gamma": [0, 0.1]}}},
        report={"ladder_of": "dc", "ladder": ["none", "gamma-0"], "gallery": ["gamma-0"], "phases_of": "gamma-0"},
    )
    study["students"].update(as_published={}, seeds=[0, 1])
    study["students"]["architectures"]["convnet"] = {"network": "convnet-3", "label": "ConvNet", "role": "proxy"}
    del study["students"]["full_data"]
    path = finished / "config/test-shards.yaml"
    path.write_text(yaml.safe_dump(study))
    results = "results/test-shards"
    result = run(finished, f"{results}/tables/recorded.md", f"{results}/figures/sweeps.png", study=str(path))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    folder = finished / results
    recovered = folder / "recovered/cifar10-slice/ipc2/dc"
    assert len(list((recovered / "gamma-0.1").glob("shard-*-of-2.safetensors"))) == 2
    # Unsharded, from the set that was distilled here, the images are the same bit for bit.
    whole = DistilledSet.read(finished / "results/test/recovered/cifar10-slice/ipc2/dm/diver.safetensors")
    assert torch.equal(DistilledSet.read(recovered / "gamma-0.1.safetensors").images, whole.images)
    assert "| 15.0 ± 63.5 (2) |" in (folder / "tables/recorded.md").read_text()
    assert (folder / "figures/sweeps.png").stat().st_size > 0
