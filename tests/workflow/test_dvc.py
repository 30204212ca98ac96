"""DVC beside Snakemake: neither redoes the other's work, results are restored as they were made, damage is found."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from running import ROOT
from tiny import PHASES, call, copy_tiny, executed, replace_in, snakemake

RECORD = dict.fromkeys(["summarise_study", "draw_rulegraph", "list_provenance", "list_run_times", "list_versions"], 1)
EVERYTHING = {
    **dict.fromkeys(["prepare_data", "distill_set", "recover_set", "collect_results", "make_tables", "make_ladder"], 1),
    **dict.fromkeys(["draw_results", "draw_vae_gallery", "measure_sets", "report_quality"], 1),
    **RECORD,
    "train_students": 2,
}
EDITED = "src/diver/report/figures.py"
# What draws with it, and the record of what was drawn.
DRAWN = dict.fromkeys(["draw_results", "make_ladder", "draw_vae_gallery", "report_quality", "draw_rulegraph"], 1)
DRAWN |= dict.fromkeys(["list_provenance", "list_run_times"], 1)
# The environment is there already.
RESTORE = ("make", "restore", "--old-file=.venv/.ready")
BUCKET, CREDENTIALS = "results", {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def commit(folder: Path, message: str) -> None:
    call(folder, "git", "add", "--all")
    call(folder, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", message)


def clone(source: Path, target: Path) -> Path:
    call(source, "git", "clone", "--quiet", source, target)
    return target


def planned(folder: Path) -> dict[str, int]:
    """Jobs by rule that Snakemake would execute."""
    table = re.findall(r"^([a-z_]+) +(\d+)$", snakemake(folder, "--dry-run", "--quiet", "host"), re.M)
    return {rule: int(count) for rule, count in table if rule not in {*PHASES, "total"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, made by `snakemake` and tracked by `dvc repro`; committed and pushed to a local remote."""
    base = tmp_path_factory.mktemp("dvc")
    made = copy_tiny(base / "study")
    replace_in(made / "params.yaml", "study: default", "study: tiny")
    call(made, "git", "init", "--quiet", "--initial-branch=main")
    call(made, "dvc", "remote", "add", "--quiet", "--default", "store", base / "store")
    commit(made, "a study")
    snakemake(made)
    assert executed(made) == EVERYTHING
    assert "Running stage 'report'" in call(made, "dvc", "repro")
    assert executed(made) == {}, "dvc repro redid what snakemake had made"
    call(made, "dvc", "push", "--quiet")
    commit(made, "made")
    return made


@pytest.fixture(scope="module")
def changed(folder: Path) -> Path:
    """The same study after an edited module and a changed setting, run by DVC; committed, pushed."""
    assert "up to date" in call(folder, "dvc", "repro")
    (folder / EDITED).write_text((folder / EDITED).read_text() + "\n# edited\n")
    assert planned(folder) == DRAWN
    # Snakemake by itself, over what DVC tracks.
    snakemake(folder, "results/tiny/figures/cross_architecture.png")
    assert executed(folder) == {"draw_results": 1}
    replace_in(folder / "config/tiny.yaml", "seeds: [0]", "seeds: [1]")
    differences = call(folder, "dvc", "params", "diff")
    assert re.search(r"config/tiny\.yaml +students\.seeds +\[0\] +\[1\]", differences)
    assert len(differences.splitlines()) == 2
    call(folder, "dvc", "repro")
    after = DRAWN | {"train_students": 2} | dict.fromkeys(["collect_results", "make_tables", "summarise_study"], 1)
    assert executed(folder) == after, "dvc repro did not do exactly what the edit and the changed setting ask for"
    snakemake(folder)
    assert executed(folder) == {}, "snakemake redid what dvc repro had made"
    call(folder, "dvc", "push", "--quiet")
    commit(folder, "changed")
    return folder


def nothing_is_redone(folder: Path) -> None:
    executed(folder)
    snakemake(folder)
    assert "up to date" in call(folder, "dvc", "repro")
    assert executed(folder) == {}


def test_older_commit_is_restored_and_nothing_is_redone(changed: Path) -> None:
    table = changed / "results/tiny/tables/results.csv"
    assert ",1,1,1," in table.read_text().splitlines()[1]
    call(changed, "git", "checkout", "--quiet", "HEAD~1")
    try:
        call(changed, *RESTORE)
        assert ",0,1,1," in table.read_text().splitlines()[1]
        nothing_is_redone(changed)
    finally:
        call(changed, "git", "checkout", "--quiet", "main")
        call(changed, "dvc", "checkout", "--quiet")


def test_fresh_clone_is_restored_and_nothing_is_redone(changed: Path, tmp_path: Path) -> None:
    copy = clone(changed, tmp_path / "clone")
    call(copy, *RESTORE)
    nothing_is_redone(copy)
    for made in (path for path in changed.glob("results/tiny/*/**/*") if path.is_file()):
        name = made.relative_to(changed)
        if name.parts[2] not in ("logs", "benchmarks"):
            assert (copy / name).read_bytes() == made.read_bytes(), name
    assert not call(copy, "git", "status", "--porcelain")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Address of an S3 server in this process, with an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


@pytest.mark.slow
def test_s3_serves_a_clone_whose_edits_are_not_taken_for_made(changed: Path, bucket: str, tmp_path: Path) -> None:
    """From an S3 remote; of what is edited before the restoring, exactly that is made again."""
    call(changed, "dvc", "remote", "add", "--quiet", "s3", f"s3://{BUCKET}/study")
    call(changed, "dvc", "remote", "modify", "--quiet", "s3", "endpointurl", bucket)
    call(changed, "dvc", "push", "--quiet", "--remote", "s3", **CREDENTIALS)
    copy = clone(changed, tmp_path / "clone")
    shutil.copy2(changed / ".dvc/config", copy / ".dvc/config")
    call(copy, "dvc", "remote", "default", "--quiet", "s3")
    call(copy, "dvc", "remote", "modify", "--quiet", "s3", "verify", "true")
    (copy / EDITED).write_text((copy / EDITED).read_text() + "\n# edited again\n")
    call(copy, *RESTORE, **CREDENTIALS)
    assert planned(copy) == DRAWN
    # Code that was committed without its results cannot have made them.
    commit(copy, "edited")
    replace_in(copy / "dvc.lock", "cmd: snakemake data", "cmd:  snakemake data")
    commit(copy, "a lock that this code did not write")
    assert "dvc.lock was not written by the code" in call(copy, *RESTORE, fails=True, **CREDENTIALS)
    # A file that the bucket has damaged is refused, since `verify` is on.
    name = yaml.safe_load((copy / "dvc.lock").read_text())["stages"]["report"]["outs"]
    digest = next(out["md5"] for out in name if out["path"] == "results/tiny/metrics.json")
    store = boto3.client("s3", endpoint_url=bucket, aws_access_key_id="test", aws_secret_access_key="test")
    key = f"study/files/md5/{digest[:2]}/{digest[2:]}"
    store.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    (copy / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    (copy / "results/tiny/metrics.json").unlink()
    assert "results/tiny/metrics.json" in call(copy, "dvc", "pull", fails=True, **CREDENTIALS)
    assert not (copy / "results/tiny/metrics.json").exists()


def test_damaged_cache_is_found_and_healed(changed: Path) -> None:
    made = changed / "results/tiny/metrics.json"
    good = made.read_bytes()
    digest = hashlib.md5(good, usedforsecurity=False).hexdigest()
    cached = changed / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    call(changed, "make", "verify", "--old-file=.venv/.ready")
    mode = cached.stat().st_mode
    cached.chmod(0o644)
    cached.write_bytes(good.replace(b"10", b"99"))
    cached.chmod(mode)
    made.unlink()
    # DVC trusts what it has written once, and brings the damage into the results.
    call(changed, "dvc", "checkout", "--quiet")
    assert made.read_bytes() != good
    assert "up to date" in call(changed, "dvc", "status")
    said = call(changed, "make", "verify", "--old-file=.venv/.ready", fails=True)
    assert f"{digest[:2]}/{digest[2:]} was damaged" in said and not cached.exists()
    call(changed, "dvc", "fetch", "--quiet")
    call(changed, "dvc", "checkout", "--quiet", "--relink")
    assert made.read_bytes() == good
    call(changed, "make", "verify", "--old-file=.venv/.ready")


def test_metrics_plots_and_graph_are_worth_reading(changed: Path) -> None:
    shown = json.loads(call(changed, "dvc", "metrics", "show", "--json"))
    metrics = shown[""]["data"]["results/tiny/metrics.json"]["data"]
    assert metrics.keys() == {"unseen", "students", "diverged"} and metrics["students"] == 2
    assert metrics["unseen"].keys() == {"cifar10-slice/ipc1/random", "cifar10-slice/ipc1/random+vae"}
    assert all(0 <= accuracy <= 100 for accuracy in metrics["unseen"].values())
    call(changed, "dvc", "plots", "show", "--out", "plots")
    page = (changed / "plots/index.html").read_text()
    for title in ("Test accuracy of students", "shipped prior's autoencoder", "shipped prior's transformer"):
        assert title in page
    vega = json.loads(call(changed, "dvc", "plots", "show", "--show-vega", "students"))
    assert vega["encoding"]["x"]["field"] == "accuracy_last" and "<DVC" not in json.dumps(vega)
    assert {point["stage2"] for point in vega["data"]["values"]} == {"none", "vae"}
    edges = re.findall(r'"(\w+)" -> "(\w+)"', call(changed, "dvc", "dag", "--dot"))
    assert {("data", "distill"), ("distill", "recover"), ("recover", "students"), ("students", "report")} <= {*edges}


MTT = {"label": "m", "method": "mtt", "settings": {"experts": "plain"}}
WIDE = {
    "name": "tiny",
    "prior": {"source": "trained"},
    "distill": {"random": {"label": "r", "method": "random"}, "mtt": MTT},
    "recover": {"vae": {"label": "v", "method": "vae"}, "diver": {"label": "d", "method": "diver"}},
    "teacher": {"network": "convnet"},
    "report": {"phases_of": "diver", "gallery": ["none"], "published": "data/published/published.csv"},
}


def test_every_file_of_a_study_is_an_out_of_its_stage(tmp_path: Path) -> None:
    """A study with everything that is optional, from a trained prior to stored answers."""
    folder = copy_tiny(tmp_path)
    study = {**yaml.safe_load((folder / "config/tiny.yaml").read_text()), **WIDE}
    study["students"]["protocol"] = {"name": "soft-fkd", "epochs": 1, "batch": 10}
    (folder / "config/tiny.yaml").write_text(yaml.safe_dump(study))
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    order = list(stages)
    owners = {
        next(iter(out)).replace("${study}", "tiny"): order.index(name)
        for name, stage in stages.items()
        for out in stage["outs"] + stage.get("metrics", [])
    }

    def stage_of(file: str) -> int:
        found = [number for out, number in owners.items() if file == out or file.startswith(f"{out}/")]
        assert len(found) == 1, f"{file} is an out of {len(found)} stages of dvc.yaml; it needs to be one of its phase"
        return found[0]

    def files_of(phase: str) -> set[str]:
        rows = snakemake(folder, phase, "--summary").splitlines()
        return {row.split("\t")[0] for row in rows if "\t" in row and not row.startswith("output_file")}

    files = {file: stage_of(file) for file in files_of("report")}
    kinds = {Path(file).parts[2] for file in files if file.startswith("results/")}
    assert {"distilled", "experts", "teachers", "recovered", "traces", "answers", "students", "quality"} <= kinds
    assert any(file.startswith("data/prior/") for file in files)
    for phase in ("distill", "recover"):
        # Snakemake's target makes all that the stage has, and nothing of a later one.
        made = files_of(phase)
        assert {file for file in made if files[file] > order.index(phase)} == set()
        assert {file for file, number in files.items() if number == order.index(phase)} - made == set()


def test_each_study_is_found_by_its_name() -> None:
    """dvc.yaml has one name for a configuration's file and for its folder of results."""
    for path in (ROOT / "config").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["name"] == path.stem, path
    assert (ROOT / "config" / f"{yaml.safe_load((ROOT / 'params.yaml').read_text())['study']}.yaml").exists()
