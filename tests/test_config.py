"""The study's schema: refusals that teach, cells and paths, the generated schema."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from diver.checks import check_study, images_per_class, learns_variance
from diver.config.base import ConfigError
from diver.config.prior import PriorChoice
from diver.config.study import Study, load_study, parse_study, read_yaml
from diver.data.spec import load_dataset_spec
from diver.report import choices
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
        ("students/seeds", [0, 1, 0], ["students.seeds", "seed 0 is given twice"]),
        ("students/seeds", [2**64], ["students.seeds", "less than or equal"]),
        ("students/protocol/betas", [2, 3], ["students.protocol.betas", "less than 1"]),
        ("teacher/options", {"norm": "btch"}, ["teacher: options.norm", "'batch'"]),
        ("students/architectures/convnet/rol", "proxy", ["rol", "did you mean 'role'"]),
        ("recover/diver/method", "divr", ["recover.diver", "did you mean 'diver'"]),
        ("recover/diver/settings/gama", 1, ["recover.diver", "gama", "did you mean 'gamma'"]),
        ("recover/diver/settings/sp_low", 45, ["recover.diver", "sp_low = 45", "window is empty"]),
        ("recover/diver/applies_to", ["dn"], ["recover.diver.applies_to", "did you mean 'dm'"]),
        ("distill/dm/settings/iterations", 0, ["distill.dm", "iterations", "0"]),
        (
            "distill/dm/by_ipc",
            {50: {"iterations": 3}},
            ["by_ipc: 50 are none of the study's IPCs; give some of 2"],
        ),
        ("report/ladder", ["none", "inheritence"], ["report.ladder", "did you mean 'inheritance'"]),
        ("report/phases_of", "vae", ["report.phases_of: vae is of vae; take one of method diver"]),
        ("students/as_published", {"dm": ["predd2"]}, ["students.as_published.dm", "did you mean 'predd'"]),
        ("ipc", ["ten"], ["ipc.0", "ten"]),
        ("ipc", [2, 1, 2], ["ipc: 2 is given twice; once is enough"]),
        ("ipc_of", {"cifar10-slice": [1, 1]}, ["ipc_of.cifar10-slice: 1 is given twice"]),
        ("datasets", ["cifar10-slice"] * 2, ["datasets: cifar10-slice is given twice"]),
        ("students/protocol/epochs", {1: 5}, ["students.protocol.epochs", "no entry for IPC 2"]),
        ("students/protocol/name", "hard-icd", ["students.protocol", "did you mean 'hard-idc'"]),
        ("students/protocol/augmentation", "color_rotat", ["students.protocol.augmentation", "rotate"]),
        ("students/protocol/epoch", 3, ["students.protocol.epoch", "did you mean 'epochs'"]),
        ("students/architectures/resnet/network", "resnt", ["students.architectures.resnet.network", "resnet"]),
        (
            "students/full_data/protocol",
            {"name": "full-data", "labels": "own"},
            ["students.full_data.protocol: labels 'own'", "set labels: hard"],
        ),
        (
            "students/full_data/protocol",
            {"name": "dc-eval"},
            ["students.full_data.protocol: zca of dc-eval", "set zca: false"],
        ),
        ("students/full_data/learning_rate", {"restnet": 0.1}, ["full_data.learning_rate", "did you mean 'resnet'"]),
        (
            "teacher/protocol",
            {"name": "soft-rded"},
            ["teacher.protocol: labels 'teacher' of soft-rded", "labels: hard"],
        ),
        ("students/protocol/epochs", "many", ["students.protocol.epochs: Input should be a valid integer"]),
        ("teacher", None, ["herding needs a teacher", "`network:`", "`source:`"]),
        ("teacher", {"source": "timm:resnet18"}, ["distill.herding: a teacher of timm", "give the path"]),
        ("teacher/network", "convent", ["teacher", "convnet"]),
        (
            "recover/levels",
            {"label": "L", "method": "predd", "sweep": {"by_ipc": [{2: [10, 15]}]}},
            ["recover.levels.sweep: {2: [10, 15]} is no value for a name; make it an entry of its own"],
        ),
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


@pytest.mark.parametrize("name", ["c++", "{x}", "a/b", "..", "my set", "a\n"])
@pytest.mark.parametrize("section", ["distill", "recover", "experts", "students/architectures"])
def test_names_that_no_path_or_pattern_can_hold_are_refused(section: str, name: str) -> None:
    content = raw()
    at = content
    for key in section.split("/"):
        at = at.setdefault(key, {})
    at[name] = {} if section == "experts" else dict(next(iter(at.values())))
    with pytest.raises(ConfigError, match=re.escape(f"{section.replace('/', '.')}: {name!r} is no name; take letters")):
        parse_study(content, "study.yaml")


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


@pytest.mark.parametrize(("together", "jobs", "group"), [(True, 1, "all"), (False, 2, "resnet")])
def test_cells_and_paths(together: bool, jobs: int, group: str) -> None:
    study = parse_study(edit("students/together", together), "test")
    sets = list(set_cells(study))
    assert len(sets) == len(set(sets)) == 3 + 5 + 1
    assert SetCell("cifar10-slice", 2, "random", "diver") not in sets
    students = list(student_cells(study))
    assert len(students) == jobs * (len(sets) + 1)
    paths = [students_path(study, s) for s in students] + [set_path(study, s) for s in sets]
    assert len(paths) == len(set(paths))
    one = StudentCell(SetCell("cifar10-slice", 2, "dm", "diver"), "as-published", group)
    assert students_path(study, one) == Path(
        f"results/test/students/cifar10-slice/ipc2/dm/diver/as-published/{group}.csv"
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
    for nothing in ({"gamma": []}, {"gamma": [0.1], "sp_low": []}):
        raw["recover"]["window"]["sweep"] = nothing
        with pytest.raises(ConfigError, match="a setting with a list of values"):
            parse_study(raw, "test")
    raw["recover"]["window"]["sweep"] = {"gamma": [0.5]}
    raw["recover"]["window"]["settings"] = None
    assert parse_study(raw, "test").recover["window-0.5"].full()["gamma"] == 0.5
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


def several_datasets() -> dict[str, Any]:
    """The test study on two datasets that differ in everything that may differ."""
    content = raw()
    content["datasets"] = ["cifar10-slice", "cifar10"]
    content["ipc_of"] = {"cifar10": [1, 3]}
    content["teacher_of"] = {"cifar10": {"network": "resnet"}}
    content["shards_of"] = {"cifar10": 2}
    content["students"]["together"] = False
    content["students_of"] = {
        "cifar10": {"seeds": [7], "architectures": {"vit": {"network": "vit", "label": "ViT"}}, "as_published": {}}
    }
    content["distill"]["dm"]["datasets"] = ["cifar10-slice"]
    content["distill"]["mine"] = {
        "label": "Mine",
        "method": "released",
        "settings": {"path": "sets/{dataset}/ipc{ipc}.pt"},
        "datasets": ["cifar10"],
        "ipc": [3],
    }
    content["recover"]["vae"]["applies_to"] = None
    content["recover"]["diver"]["applies_to"] = ["dm", "mine"]
    content["recover"]["diver"]["by_stage1"] = {"mine": {"settings": {"gamma": 0.02, "tiles": 2}}}
    return content


def test_datasets_may_differ_in_ipc_entries_teacher_students_and_shards() -> None:
    study = parse_study(several_datasets(), "test")
    sets = list(set_cells(study))
    assert {cell.ipc for cell in sets if cell.dataset == "cifar10"} == {1, 3}
    assert {cell.dataset for cell in sets if cell.stage1 == "dm"} == {"cifar10-slice"}
    mine = [cell for cell in sets if cell.stage1 == "mine"]
    assert mine == [SetCell("cifar10", 3, "mine", two) for two in ("none", "vae", "diver")]
    assert study.distill["mine"].at("cifar10", 3)["path"] == "sets/cifar10/ipc3.pt"
    assert [study.recover["diver"].full(name)["gamma"] for name in ("dm", "mine")] == [0.1, 0.02]
    assert [study.teacher_at(name).network for name in study.datasets] == ["convnet", "resnet"]
    assert [study.shards_at(name) for name in study.datasets] == [1, 2]
    groups = {(cell.set.dataset, cell.group) for cell in student_cells(study)}
    assert groups == {("cifar10-slice", "convnet"), ("cifar10-slice", "resnet"), ("cifar10", "vit")}
    assert study.students_at("cifar10").seeds == [7]
    assert all(cell.scale == "matched" for cell in student_cells(study) if cell.set.dataset == "cifar10")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ("ipc_of", {"cifar1": [1]}, ["ipc_of: unknown 'cifar1'", "did you mean 'cifar10'"]),
        ("ipc_of/cifar10", [0], ["ipc_of.cifar10: at least one IPC"]),
        ("shards_of/cifar10", 0, ["shards_of.cifar10: at least 1"]),
        ("distill/dm/datasets", ["cifar"], ["distill.dm.datasets: unknown 'cifar'"]),
        ("distill/mine/ipc", [10], ["distill.mine.ipc: [10] is no IPC of its datasets"]),
        ("distill/mine/settings/path", "sets/{datset}.pt", ["distill.mine", "unknown {datset}", "{dataset} and {ipc}"]),
        ("distill/mine/by_dataset", {"cifar10": {"pat": "x"}}, ["distill.mine: pat: unknown key", "'path'"]),
        ("recover/diver/by_stage1", {"min": {}}, ["recover.diver.by_stage1: unknown 'min'"]),
        ("recover/diver/by_stage1/mine/preset", "predd-dm", ["by_stage1.mine", "method 'predd', not 'diver'"]),
        ("students_of/cifar10/protocol", {"name": "soft-rded", "epochs": {1: 1}}, ["no entry for IPC 3"]),
        ("teacher_of/cifar10", None, ["herding needs a teacher for cifar10", "teacher_of.cifar10"]),
        ("students_of/cifar10/architectures/vit/role", "proxy", ["students_of.cifar10.architectures: all are proxies"]),
        (
            "recover/predd/settings",
            {"by_ipc": {2: [1, 2]}},
            ["recover.predd.settings.by_ipc: no levels for IPC 1", "add 1: [forward_t, reverse_t]"],
        ),
    ],
)
def test_faults_of_what_differs_by_dataset(keys: str, value: Any, words: list[str]) -> None:
    content = several_datasets()
    at = content
    *path, last = keys.split("/")
    for key in path:
        at = at[key]
    at[last] = value
    with pytest.raises(ConfigError) as refusal:
        parse_study(content, "study.yaml")
    for word in words:
        assert word in str(refusal.value), str(refusal.value)


def test_systems_alone_want_their_prior_and_captions() -> None:
    content = read_yaml(ROOT / "config/edits-woof.yaml")
    content["preparations"]["captions"] = {"source": "no/{dataset}.jsonl", "names": "no/{dataset}.txt"}
    missing = check_study(content, "study.yaml", ROOT, planning=True).missing
    for key, path in {"source": "no/imagewoof5-64.jsonl", "names": "no/imagewoof5-64.txt"}.items():
        assert any(line.startswith(f"preparations.captions.{key}: no file {path}") for line in missing)
    content["preparations"]["captions"] = {}
    assert not any("captions" in line for line in check_study(content, "study.yaml", ROOT, planning=True).missing)
    content["prior"] = {"source": "shipped"}
    content["recover"] = {}
    content["report"] = {}
    with pytest.raises(ConfigError, match="none is shipped for imagewoof5-64"):
        check_study(content, "study.yaml", ROOT, planning=True)


def test_judge_of_a_trained_prior_is_for_images_like_cifar10() -> None:
    content = edit("prior", {"source": "trained", "classifier": "resnet20.th"})
    check_study(content, "study.yaml", ROOT, planning=True)
    content = read_yaml(ROOT / "config/edits-woof.yaml")
    content["prior"] = {"source": "trained", "classifier": "resnet20.th"}
    with pytest.raises(ConfigError, match=r"prior.classifier: .* those of imagewoof5-64 have 5, 3 and 64; leave it"):
        check_study(content, "study.yaml", ROOT, planning=True)


def faulty() -> tuple[dict[str, Any], list[str]]:
    """The test study with faults of every stage of checking at once, and what its refusal must name."""
    content = raw()
    content["studnets"] = {}
    content["datasets"] = ["cifar10-slice", "imagefuit", "imagewoof"]
    content["ipc"] = [2, 2000]
    content["prior"] = {"source": "shipped"}
    content["distill"]["random"]["lable"] = content["distill"]["random"].pop("label")
    content["distill"]["dm"]["settings"]["iterations"] = 0
    content["distill"]["mine"] = {"label": "M", "method": "released", "settings": {"path": "no/{dataset}-{ipc}.pt"}}
    content["recover"]["predd"]["settings"] = {"by_ipc": {2: [2, 2]}}
    content["recover"]["learned"] = {**content["recover"]["diver"], "applies_to": ["random"]}
    content["recover"]["learned"]["settings"] = {"sg_sigma": "learned"}
    content["recover"]["vae"]["settings"] = {"tiles": 5}
    content["students"]["architectures"]["resnet"]["options"] = {"widht": 8}
    content["students"]["architectures"]["convnet"] |= {"network": "convnet", "options": {"depth": 7}}
    content["recover"]["swept"] = {"label": "S", "method": "diver", "sweep": {"gamma": [0], "t_f": [1, 2]}}
    content["recover"]["diver"]["applies_to"] = ["dn"]
    content["students"]["protocol"] = {"name": "soft-rded", "epochs": 2}
    content["students"]["seeds"] = []
    content["teacher"] = None
    content["report"]["ladder"] = ["none", "inheritence"]
    return content, [
        "studnets: unknown key; did you mean 'students'?",
        "datasets: no config/datasets/imagefuit.yaml; did you mean 'imagefruit'?",
        "ipc: IPC 2000 is more than the 732 training images of imagewoof's smallest class",
        "prior.source: none is shipped for imagewoof",
        "distill.random.label: Field required",
        "distill.random.lable: unknown key; did you mean 'label'?",
        "distill.dm: iterations: Input should be greater than or equal to 1 (given: 0)",
        "distill.mine: no released set no/cifar10-slice-2.pt",
        "distill.mine: no released set no/imagewoof-2000.pt",
        "datasets: imagewoof: no folder was given",
        "herding needs a teacher",
        "recover.predd.settings.by_ipc: no levels for IPC 2000",
        "recover.learned: sg_sigma 'learned' wants a prior that predicts its variance, and shipped has none",
        "students.architectures.resnet: options.widht: unknown key; did you mean 'width'?",
        "students.architectures.convnet: convnet with depth 7 is not for cifar10-slice: images of 32 pixels",
        "recover.vae.settings.tiles: 5 does not divide the 32 pixels of cifar10-slice",
        "recover.swept.sweep: the lists of gamma, t_f differ in length",
        "recover.diver.applies_to: unknown 'dn'; did you mean 'dm'?",
        "soft-rded needs a teacher",
        "students.seeds: List should have at least 1 item",
        "report.ladder: unknown 'inheritence'; did you mean 'inheritance'?",
    ]


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the environment in the checkout, with the machine's own folder of data out of sight."""
    program = Path(sys.executable).parent / name
    kept = {key: value for key, value in os.environ.items() if key != "DIVER_DATA_FOLDER"}
    environment = {**kept, "PYTHONPATH": str(ROOT / "src"), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(program), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("by", [("diver", "check"), ("snakemake", "-n", "--configfile")], ids=lambda by: by[0])
def test_all_stages_of_checking_are_told_at_once_by_both_commands(tmp_path: Path, by: tuple[str, ...]) -> None:
    content, lines = faulty()
    path = tmp_path / "faulty.yaml"
    path.write_text(yaml.safe_dump(content))
    result = command(*by, str(path))
    message = result.stdout + result.stderr
    assert result.returncode == (2 if by[0] == "diver" else 1)
    for line in lines:
        assert message.count(line) == 1, f"{line}\n\n{message}"
    assert message.count("is refused") == 1 and "Building DAG" not in message and "Traceback" not in message


def test_what_is_missing_stops_a_run_and_not_a_plan(tmp_path: Path) -> None:
    content = raw()
    content["distill"]["mine"] = {"label": "M", "method": "released", "settings": {"path": "nowhere/{ipc}.pt"}}
    path, line = tmp_path / "missing.yaml", "distill.mine: no released set nowhere/2.pt"
    path.write_text(yaml.safe_dump(content))
    run = command("snakemake", "--cores", "1", "--configfile", str(path))
    assert run.returncode == 1 and line in run.stderr and "Building DAG" not in run.stderr
    plan = command("snakemake", "-np", "distill", "--configfile", str(path))
    assert plan.returncode == 0 and line in plan.stderr, plan.stderr
    assert "stage 1: mine on cifar10-slice, IPC 2" in plan.stdout + plan.stderr
    with pytest.raises(ConfigError, match="nowhere/2.pt"):
        check_study(content, "study.yaml", ROOT)
    assert check_study(content, "study.yaml", ROOT, planning=True).missing[0].startswith(line)


def test_the_papers_study_is_planned_without_imagenet_or_a_hub() -> None:
    checked = check_study(read_yaml(ROOT / "config/paper.yaml"), "paper", ROOT, planning=True)
    study, sets = checked.study, list(set_cells(checked.study))
    assert [checked.datasets[name].size for name in study.datasets] == [128] * 12 + [224] * 4
    assert {cell.ipc for cell in sets if cell.dataset == "imagenet1k"} == {10, 50}
    predd = {cell.stage1: study.recover["predd"].full(cell.stage1)["by_ipc"] for cell in sets if cell.stage2 == "predd"}
    assert predd == {
        "dm": {"1": [10, 15], "10": [20, 20]},
        "ncfm": {"1": [25, 30], "10": [30, 35]},
        "mtt": {"1": [10, 10], "10": [10, 10]},
        "edf": {"1": [10, 10], "10": [10, 15]},
    }
    diver = study.recover["diver"]
    assert [(diver.full(name)["gamma"], diver.full(name)["tiles"]) for name in ("dm", "ncfm")] == [(0.1, 1), (0.02, 2)]
    swept = {
        cell.dataset: cell.stage1
        for cell in sets
        if study.recover.get(cell.stage2) and study.recover[cell.stage2].swept
    }
    assert swept == {"imagefruit": "mtt"}
    # A picture of ImageNet-1K's sets would be 200,000 pixels wide.
    classes = {name: len(spec.classes) for name, spec in checked.datasets.items()}
    assert {path.parts[3] for _, path in choices.systems_rows(study, classes)} == {"imagenette-224"}
    assert {len(study.students_at(name).architectures) for name in study.datasets} == {6, 1, 3}
    plan = command("snakemake", "distill", "-n", "--quiet", "host", "--configfile", "config/paper.yaml")
    assert plan.returncode == 0, plan.stderr
    assert "train_experts" in plan.stdout + plan.stderr


def test_batch_of_an_ipc_may_come_with_the_number_of_classes() -> None:
    """RDED's batch at IPC 100 is said for the 200 classes of Tiny ImageNet alone."""
    content = edit("students/protocol", {"name": "soft-rded"})
    content |= {"datasets": ["tinyimagenet"], "ipc": [100], "prior": {"source": "trained"}}
    assert parse_study(content, "study.yaml").students.protocol.at(200).batch == 100
    check_study(content, "study.yaml", ROOT, planning=True)
    content["datasets"] = ["cifar10"]
    with pytest.raises(ConfigError, match="students.protocol.batch: no entry for IPC 100"):
        check_study(content, "study.yaml", ROOT, planning=True)


def test_more_patches_than_pixels_are_refused() -> None:
    content = edit("students/protocol", {"name": "soft-rded", "patches": 33})
    with pytest.raises(ConfigError, match="students.protocol.patches: 33 is more than the 32 pixels"):
        check_study(content, "study.yaml", ROOT, planning=True)


@pytest.mark.parametrize(
    ("entry", "settings", "words"),
    [
        ("recover/diver", {"t_r": 60}, "recover.diver.settings: t_r = 60: with respacing '50' it must lie in 0..50"),
        ("recover/diver", {"t_f": 60}, "recover.diver.settings: t_f = 60: with respacing '50' it must lie in 0..49"),
        ("recover/diver", {"sp_high": 80}, "recover.diver.settings: sp_high = 80: with respacing '50'"),
        ("recover/diver", {"respacing": "20", "gamma": 0}, "t_f = 25: with respacing '20' it must lie in 0..19"),
        ("recover/predd", {"by_ipc": {2: [60, 2]}}, "recover.predd.settings: forward_t = 60: with respacing '50'"),
        ("recover/diver", {"respacing": "fifty"}, "respacing: 'fifty' is no chain; give a number from 2 on, as '50'"),
        ("recover/diver", {"class_ids": [1, 2]}, "recover.diver.settings.class_ids: 2 given for the 10 classes"),
        ("recover/diver", {"cfg_channels": 99}, "cfg_channels: 99 is more than the 6 channels of the prior's latents"),
        ("distill/d4m", {"cfg_channels": 7}, "distill.d4m.settings.cfg_channels: 7 is more than the 6 channels"),
        ("distill/d4m", {"class_ids": [1, 2]}, "distill.d4m.settings.class_ids: 2 given for the 10 classes"),
        (
            "distill/d4m",
            {"class_ids": [*range(1, 11)]},
            "distill.d4m: class_ids: 10 given for 10 classes; prior data/s",
        ),
        ("distill/d4m", {"respacing": "ddim1"}, "respacing: 'ddim1' is no chain"),
        (
            "distill/d4m",
            {"respacing": 1001},
            "distill.d4m.settings.respacing: '1001' is longer than the prior's schedule of 1000",
        ),
        (
            "recover/diver",
            {"respacing": 1001},
            "recover.diver.settings.respacing: '1001' is longer than the prior's schedule of 1000",
        ),
    ],
)
def test_settings_outside_chain_or_classes_are_refused(entry: str, settings: dict[str, Any], words: str) -> None:
    content = raw()
    content["distill"]["d4m"] = {"label": "D4M", "method": "d4m"}
    section, name = entry.split("/")
    content[section][name]["settings"] = settings
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_study(content, "study.yaml", ROOT)
    # No index is outside of what is not used.
    content["distill"]["d4m"]["settings"] = {}
    content["recover"]["diver"]["settings"] = {"respacing": "20", "start": "gaussian", "t_r": 20, "gamma": 0}
    content["recover"]["predd"]["settings"] = {"by_ipc": {2: [2, 2], 10: [60, 60]}}
    check_study(content, "study.yaml", ROOT)


def test_words_for_a_prior_that_does_not_read_are_refused() -> None:
    for key in ("prompt", "negative_prompt"):
        for choice in ({"source": "shipped"}, {"source": "someone/prior", "family": "dit"}):
            content = {**raw(), "prior": {**choice, key: "a {}"}}
            with pytest.raises(ConfigError, match=rf"prior\.{key}: is for a prior that reads, and \S+ is none"):
                check_study(content, "study.yaml", ROOT, planning=True)
    check_study({**raw(), "prior": {"source": "someone/prior", "prompt": "a {}"}}, "study.yaml", ROOT, planning=True)


def test_levels_of_a_system_outside_its_chain_are_refused() -> None:
    content = raw()
    content["distill"]["d3hr"] = {"label": "D3HR", "method": "d3hr", "settings": {"respacing": "ddim20"}}
    content["distill"]["mgd3"] = {"label": "MGD3", "method": "mgd3", "settings": {"respacing": "20"}}
    with pytest.raises(ConfigError) as refused:
        parse_study(content, "study.yaml")
    assert "distill.d3hr: level 38 (the highest of level and kept_levels): with respacing 'ddim20'" in str(
        refused.value
    )
    assert "distill.mgd3: stop = 25: with respacing '20' it must lie below 19" in str(refused.value)
    content["distill"]["d3hr"]["settings"] |= {"kept_levels": [], "level": 19}
    content["distill"]["mgd3"]["settings"] |= {"scale": 0}
    parse_study(content, "study.yaml")


def test_datasets_that_the_prior_does_not_fit_are_refused_before_anything_is_made() -> None:
    content = {**raw(), "datasets": ["imagenette-fastai-64"]}
    content["distill"] = {name: content["distill"][name] for name in ("random", "dm")}
    content["distill"]["d4m"] = {"label": "D4M", "method": "d4m"}
    with pytest.raises(ConfigError) as refused:
        check_study(content, "study.yaml", ROOT, planning=True)
    for key in ("distill.d4m", "recover.diver"):
        assert f"{key}: prior data/shipped/cifar10-prior knows 10 classes (airplane, auto" in str(refused.value)
    for entry in (content["distill"]["d4m"], *content["recover"].values()):
        entry["settings"] = {**entry.get("settings", {}), "class_ids": [*range(10)]}
    check_study(content, "study.yaml", ROOT, planning=True)
    content["distill"]["mgd3"] = {"method": "mgd3", "label": "MGD3", "settings": {"sigma": "learned"}}
    content["datasets"] = ["fashion-mnist"]
    with pytest.raises(ConfigError) as refused:
        check_study(content, "study.yaml", ROOT, planning=True)
    for words in (
        "prior.source: data/shipped/cifar10-prior takes images of 3 channels, and fashion-mnist has 1",
        "distill.mgd3.settings.sigma: data/shipped/cifar10-prior predicts no variance",
    ):
        assert words in str(refused.value)


def test_a_prior_need_not_fit_a_dataset_without_sets_of_it() -> None:
    content = {**raw(), "datasets": ["cifar10", "fashion-mnist"]}
    content["prior"] = {**content.get("prior", {}), "source": "data/shipped/cifar10-prior"}
    content["distill"] = {name: content["distill"][name] for name in ("random", "dm")}
    content["report"] = {}
    with pytest.raises(ConfigError, match="takes images of 3 channels, and fashion-mnist has 1"):
        check_study(content, "study.yaml", ROOT, planning=True)
    for entry in content["recover"].values():
        entry["datasets"] = ["cifar10"]
    check_study(content, "study.yaml", ROOT, planning=True)


def test_soft_labels_that_no_method_of_the_study_makes_are_refused() -> None:
    content = edit("students/protocol/labels", "soft")
    with pytest.raises(
        ConfigError, match=r"protocol.labels: 'soft' is for .* of random, dm.* have hard ones; take own"
    ):
        check_study(content, "study.yaml", ROOT, planning=True)
    content["students"]["protocol"]["labels"] = "own"
    check_study(content, "study.yaml", ROOT, planning=True)


def test_what_is_known_of_classes_and_priors(tmp_path: Path) -> None:
    assert images_per_class(load_dataset_spec(ROOT / "config/datasets/imagewoof.yaml"), tmp_path) == 732
    assert images_per_class(load_dataset_spec(ROOT / "config/datasets/cifar10.yaml"), tmp_path) is None
    known = {"shipped": False, "facebook/DiT-XL-2-256": True, "SiT-XL-2-256.pt": False, "someone/prior": None}
    for source, learned in known.items():
        assert learns_variance(PriorChoice(source=source), tmp_path) is learned
    assert learns_variance(PriorChoice(source="data/shipped/cifar10-prior"), ROOT) is False
    (tmp_path / "mine/transformer").mkdir(parents=True)
    (tmp_path / "mine/transformer/config.json").write_text('{"in_channels": 4, "out_channels": 8}')
    assert learns_variance(PriorChoice(source="mine"), tmp_path) is True
