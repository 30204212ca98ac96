"""The study's schema: refusals that teach, cells and paths, the generated schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from diver.config.base import ConfigError
from diver.config.study import Study, load_study, parse_study
from diver.study import SetCell, StudentCell, set_cells, set_path, student_cells, students_path

ROOT = Path(__file__).parents[1]
STUDIES = sorted(p for p in (ROOT / "config").glob("*.yaml"))


def raw(name: str = "test") -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_study_is_valid(path: Path) -> None:
    study = load_study(path)
    for dataset in study.datasets:
        assert (ROOT / f"config/datasets/{dataset}.yaml").exists()


def test_schema_file_is_current() -> None:
    assert json.loads((ROOT / "config/schema.json").read_text()) == Study.model_json_schema(), "run: diver schema"


def test_every_field_has_a_description() -> None:
    for name, model in Study.model_json_schema()["$defs"].items():
        for field, content in model.get("properties", {}).items():
            assert content.get("description"), f"{name}.{field}"


def edit(keys: str, value: Any) -> dict[str, Any]:
    content = raw()
    at = content
    *path, last = keys.split("/")
    for key in path:
        at = at[key]
    at[last] = value
    return content


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ("studnets", {}, ["studnets", "did you mean 'students'"]),
        ("students/protocol/epoch", 3, ["students.protocol.epoch", "did you mean 'epochs'"]),
        ("students/architectures/convnet/rol", "proxy", ["rol", "did you mean 'role'"]),
        ("recover/diver/method", "divr", ["recover.diver", "did you mean 'diver'"]),
        ("recover/diver/settings/gama", 1, ["recover.diver", "gama", "did you mean 'gamma'"]),
        ("recover/diver/settings/sp_low", 45, ["recover.diver", "sp_low = 45", "window is empty"]),
        ("recover/diver/applies_to", ["dn"], ["recover.diver.applies_to", "did you mean 'dm'"]),
        ("distill/dm/settings/iterations", 0, ["distill.dm", "iterations", "0"]),
        ("report/ladder", ["none", "inheritence"], ["report.ladder", "did you mean 'inheritance'"]),
        ("students/as_published", {"dm": ["predd2"]}, ["students.as_published.dm", "did you mean 'predd'"]),
        ("ipc", ["ten"], ["ipc.0", "ten"]),
        ("students/protocol/epochs", {1: 5}, ["students.protocol.epochs", "no entry for IPC 2"]),
        ("students/protocol/name", "hard-icd", ["students.protocol", "did you mean 'hard-idc'"]),
        ("students/protocol/augmentation", "color_rotat", ["students.protocol.augmentation", "rotate"]),
        ("students/protocol/epoch", 3, ["students.protocol.epoch", "did you mean 'epochs'"]),
        ("students/architectures/resnet/network", "resnt", ["students.architectures.resnet.network", "resnet"]),
        ("teacher", None, ["herding needs a teacher", "`network:`", "`source:`"]),
        ("teacher", {"source": "timm:resnet18"}, ["distill.herding: a teacher of timm", "give the path"]),
        ("teacher/network", "convent", ["teacher", "convnet"]),
        ("distill/full", {"label": "F", "method": "random"}, ["distill.full", "choose another"]),
    ],
)
def test_faults_are_named_with_key_and_remedy(keys: str, value: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_study(edit(keys, value), "study.yaml")
    message = str(refusal.value)
    assert message.startswith("study.yaml is refused")
    for word in words:
        assert word in message, message


def test_a_protocol_without_its_teacher_is_refused_before_anything_runs() -> None:
    content = edit("students/protocol", {"name": "soft-rded", "epochs": 2})
    assert parse_study(content, "study.yaml").students.protocol.temperature == 20
    del content["teacher"], content["distill"]["herding"]
    with pytest.raises(ConfigError, match="soft-rded needs a teacher"):
        parse_study(content, "study.yaml")


def test_all_faults_come_at_once() -> None:
    content = edit("studnets", {})
    content["students"]["seeds"] = []
    with pytest.raises(ConfigError) as refusal:
        parse_study(content, "study.yaml")
    assert "studnets" in str(refusal.value) and "students.seeds" in str(refusal.value)


@pytest.mark.parametrize(("content", "word"), [("- a\n", "mapping"), ("a: [", "study.yaml"), (None, "study.yaml")])
def test_unreadable_studies(tmp_path: Path, content: str | None, word: str) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=word):
        load_study(path)


def test_cells_and_paths() -> None:
    study = parse_study(raw(), "test")
    sets = list(set_cells(study))
    assert len(sets) == len(set(sets)) == 3 + 5 + 1
    assert SetCell("cifar10-slice", 2, "random", "diver") not in sets
    students = list(student_cells(study))
    assert len(students) == 2 * (len(sets) + 1)
    paths = [students_path(study, s) for s in students] + [set_path(study, s) for s in sets]
    assert len(paths) == len(set(paths))
    one = StudentCell(SetCell("cifar10-slice", 2, "dm", "diver"), "as-published", "resnet")
    assert students_path(study, one) == Path(
        "results/test/students/cifar10-slice/ipc2/dm/diver/as-published/resnet.csv"
    )


def test_settings_by_ipc_and_defaults() -> None:
    study = load_study(ROOT / "config/default.yaml")
    assert study.recover["diver"].full()["gamma"] == 0.1
    assert study.recover["predd"].full()["by_ipc"] == {"1": [10, 15], "10": [20, 20]}
    content = edit("distill/dm/by_ipc", {2: {"iterations": 3}})
    entry = parse_study(content, "test").distill["dm"]
    assert (entry.at("cifar10", 1)["iterations"], entry.at("cifar10", 2)["iterations"]) == (2, 3)


def test_sweeps_become_entries_in_order() -> None:
    raw = yaml.safe_load((ROOT / "config/test.yaml").read_text())
    raw["recover"]["gamma"] = {"label": "DIVER, gamma", "method": "diver", "sweep": {"gamma": [0, 0.02, 0.1]}}
    raw["recover"]["window"] = {"label": "window", "method": "diver", "sweep": {"sp_low": [0, 20], "sp_high": [49, 30]}}
    study = parse_study(raw, "test")
    assert study.sweeps() == {
        "gamma": ["gamma-0", "gamma-0.02", "gamma-0.1"],
        "window": ["window-0-49", "window-20-30"],
    }
    assert study.recover["gamma-0.02"].full()["gamma"] == 0.02
    assert study.recover["window-20-30"].label == "window 20 to 30"
    raw["recover"]["window"]["sweep"]["sp_high"] = [49]
    with pytest.raises(ConfigError, match="differ in length"):
        parse_study(raw, "test")
    raw["recover"]["window"]["sweep"] = {"sp_low": [0], "sp_hihg": [49]}
    with pytest.raises(ConfigError, match="sp_hihg"):
        parse_study(raw, "test")


def test_presets_are_started_from_and_departed_from() -> None:
    raw = yaml.safe_load((ROOT / "config/test.yaml").read_text())
    raw["recover"]["paper"] = {"label": "paper", "preset": "diver-paper-ncfm", "settings": {"sg_sigma": "posterior"}}
    entry = parse_study(raw, "test").recover["paper"]
    assert (entry.method, entry.full()["gamma"], entry.full()["sg_sigma"]) == ("diver", 0.02, "posterior")
    raw["recover"]["paper"]["preset"] = "diver-papr"
    with pytest.raises(ConfigError, match="did you mean 'diver-paper'"):
        parse_study(raw, "test")
    raw["recover"]["paper"] = {"label": "paper", "preset": "predd-dm", "method": "diver"}
    with pytest.raises(ConfigError, match="one of method 'predd'"):
        parse_study(raw, "test")


def test_a_study_of_proxies_alone_is_refused() -> None:
    raw = yaml.safe_load((ROOT / "config/test.yaml").read_text())
    del raw["students"]["architectures"]["resnet"]
    with pytest.raises(ConfigError, match="all are proxies"):
        parse_study(raw, "test")


def test_a_released_set_needs_its_file() -> None:
    raw = yaml.safe_load((ROOT / "config/test.yaml").read_text())
    raw["distill"]["dc"] = {"label": "DC", "method": "released", "by_ipc": {10: {"path": "x.pt"}}}
    with pytest.raises(ConfigError, match=r"distill\.dc\.by_ipc\.2\.path"):
        parse_study(raw, "test")
