"""Tables of a publication: each cell has ours, theirs and a verdict, or says why not; all from the tidy results."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tidy import make_table
from typer.testing import CliRunner

from diver.cli import app
from diver.config.study import Study, parse_study
from diver.report.forms import Table, to_tex
from diver.report.labels import Labels, names_of
from diver.report.paper import NO_PUBLISHED, paper_table, plans, read_students
from diver.report.published import ACCURACY, COLUMNS
from diver.report.statistics import BEST, seed_means, t_interval

ROOT = Path(__file__).parents[1]
DATASETS = {"cifar10": "CIFAR-10"}


def study(**table: Any) -> Study:
    """The embedded study with one table and the architectures and seeds of the synthetic results."""
    content = yaml.safe_load((ROOT / "config/default.yaml").read_text())
    given = {"title": "Sets", "stage1": ["dm"], "stage2": ["none", "vae", "diver"], "ipc": [1], **table}
    content["report"] = {"tables": {"table_1": given}}
    return parse_study(content, "a test")


def numbers(*rows: tuple[str, str, float, str]) -> pd.DataFrame:
    """Published means: method, architecture, mean, source."""
    records = [(m, "v", "CIFAR-10", 1, a, ACCURACY, mean, 1.0, source) for m, a, mean, source in rows]
    return pd.DataFrame(records, columns=COLUMNS)


def made(chosen: Study, results: pd.DataFrame, published: pd.DataFrame, root: Path = ROOT) -> Table:
    (planned,) = plans(chosen, DATASETS).values()
    return paper_table(results, published, labels=Labels(**names_of(chosen, DATASETS)), root=root, **planned)


def test_a_cell_has_ours_theirs_and_the_verdict() -> None:
    results = make_table(ipcs=(1,))
    mine = results[(results.stage1 == "dm") & (results.scale == "matched") & (results.role == "unseen")]
    vae, diver = (t_interval(seed_means(mine[mine.stage2 == name])) for name in ("vae", "diver"))
    published = numbers(
        ("DM + VAE only", "mean of 5 unseen", vae.high - 0.01, "Table 1 of a paper"),
        ("DM + DIVER", "mean of 5 unseen", diver.high + 0.01, "Table 1 of a paper"),
        ("DM + DIVER", "mean of 5 unseen", diver.mean, "another paper"),
    )
    found = made(study(), results, published)
    assert found.title == "Sets, CIFAR-10, DM, unseen mean"
    assert found.data["ours"].tolist()[1:] == pytest.approx([vae.mean, diver.mean])
    assert found.data["agrees"].tolist() == ["", "yes", "no"]
    # The students' protocol departs from the published one, so that agreement is no reproduction.
    assert found.display["agrees"].tolist() == ["", "yes, settings differ", "no"]
    assert found.display["published"].iloc[0] == NO_PUBLISHED == found.data["published_source"].iloc[0]
    assert found.display["published"].iloc[2].endswith("± 1 [2]") and "[1]; " in found.display["published"].iloc[2]
    assert found.data["published_also"].iloc[2] == f"{diver.mean:g} (another paper)"
    assert any(line == "[2] another paper." for line in found.legend)
    preferred = made(study(sources=["another"]), results, published)
    assert preferred.data["agrees"].iloc[2] == "yes"


def test_the_accuracy_that_the_protocol_reports_is_compared() -> None:
    """Published numbers that are the best of many tests are held against ours that are."""
    results = make_table(ipcs=(1,)).assign(reported="best")
    results["accuracy_best"] = results["accuracy_last"] + 3.0
    mine = results[(results.stage1 == "dm") & (results.scale == "matched") & (results.role == "unseen")]
    diver = t_interval(seed_means(mine[mine.stage2 == "diver"], BEST))
    published = numbers(("DM + DIVER", "mean of 5 unseen", diver.mean, "a paper"))
    found = made(study(), results, published).data.iloc[2]
    assert (found["ours"], found["last"], found["best"]) == pytest.approx((diver.mean, diver.mean - 3, diver.mean))
    assert (found["reported"], found["agrees"]) == ("best", "yes")
    last = made(study(), results.assign(reported="last"), published).data.iloc[2]
    assert (last["ours"], last["reported"], last["agrees"]) == (pytest.approx(diver.mean - 3), "last", "no")


def test_what_was_not_run_says_why_and_no_cell_is_dropped(tmp_path: Path) -> None:
    results = make_table(ipcs=(1,))
    results = results[results.stage2 != "vae"]
    chosen = study(stage1=["random", "dm"])
    found = made(chosen, results, numbers(), tmp_path)
    assert len(found.display) == 2 * 3
    why = found.data.set_index(["stage1", "stage2"])["why_missing"]
    assert why["random", "vae"] == "not in the study: VAE only is not applied to Random"
    assert why["dm", "vae"] == "not run: needs the prior data/shipped/cifar10-prior"
    assert why["dm", "diver"] == ""
    (tmp_path / "data/shipped/cifar10-prior").mkdir(parents=True)
    why = made(chosen, results, numbers(), tmp_path).data.set_index(["stage1", "stage2"])["why_missing"]
    assert why["dm", "vae"] == "not run: needs the data data/prepared/cifar10.safetensors"
    (tmp_path / "data/prepared").mkdir()
    (tmp_path / "data/prepared/cifar10.safetensors").touch()
    assert made(chosen, results, numbers(), tmp_path).display["ours"].iloc[4] == "not run: no student yet"
    nothing = made(chosen, pd.DataFrame(), numbers(), tmp_path)
    assert nothing.data["ours"].isna().all() and (nothing.data["why_missing"] != "").all()
    assert NO_PUBLISHED in to_tex(nothing)


def test_missing_and_diverged_students_are_named() -> None:
    results = make_table(ipcs=(1,))
    diver = (results.stage2 == "diver") & (results.architecture == "vit")
    results.loc[(results.stage2 == "none") & (results.architecture == "vit") & (results.seed == 1), "diverged"] = True
    one = made(study(), results[~(diver & (results.seed == 2))], numbers(("DM + DIVER", "mean of 5 unseen", 1, "S")))
    assert one.display["ours"].iloc[2].endswith("(2 of 3 seeds)")
    assert any("vit seed 2" in line for line in one.legend)
    assert one.display["ours"].iloc[0].endswith("†1")
    # A mean over fewer architectures would be another quantity.
    none = made(study(), results[~diver], numbers())
    assert none.display["ours"].iloc[2] == "students missing: vit seeds 0, 1, 2"
    single = made(study(), results[results.seed == 0], numbers(("DM + DIVER", "mean of 5 unseen", 1, "S")))
    assert single.display["agrees"].iloc[2] == "one seed" and single.data["agrees"].iloc[2] == ""


def test_single_architectures_other_names_and_another_scale() -> None:
    chosen = study(
        architectures=["convnet", "vit"], published_architectures={"vit": "ViT-B"}, scale="as-published", variant="v"
    )
    found = made(chosen, make_table(ipcs=(1,)), numbers(("DM + DIVER", "ViT-B", 1, "S"), ("DM", "ViT", 2, "S")))
    assert list(found.display["Architecture"]) == ["ConvNet", "ViT"] * 3
    assert found.data["published"].notna().tolist() == [False] * 5 + [True]
    assert found.data["why_missing"].iloc[2] == "not in the study: no students at the as-published scale"
    entry = chosen.recover["diver"].model_copy(update={"published": "DIVER'"})
    renamed = chosen.model_copy(update={"recover": {**chosen.recover, "diver": entry}})
    assert plans(renamed, DATASETS)["table_1"]["cells"][-1]["method"] == "DM + DIVER'"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"stage1": ["dn"]}, "report.tables.table_1.stage1: unknown 'dn'; did you mean 'dm'?"),
        ({"stage2": ["divr"]}, "report.tables.table_1.stage2: unknown 'divr'; did you mean 'diver'?"),
        ({"ipc": [5]}, "report.tables.table_1.ipc: unknown '5'"),
        ({"datasets": ["cifar"]}, "report.tables.table_1.datasets: unknown 'cifar'; did you mean 'cifar10'?"),
        ({"architectures": "unseen"}, "report.tables.table_1.architectures: unknown 'unseen'; did you mean 'unseen"),
        ({"titel": "x"}, "report.tables.table_1.titel: unknown key; did you mean 'title'?"),
    ],
)
def test_a_table_names_what_the_study_has(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as refused:
        study(**table)
    assert words in str(refused.value)


def test_a_tables_name_can_be_a_target() -> None:
    content = yaml.safe_load((ROOT / "config/default.yaml").read_text())
    content["report"]["tables"] = {"report": {"title": "x"}}
    with pytest.raises(ValueError, match="report.tables.report: a table's name is table_"):
        parse_study(content, "a test")


def test_students_are_read_from_one_file_or_several(tmp_path: Path) -> None:
    table = make_table(ipcs=(1,))
    table.to_parquet(tmp_path / "all.parquet")
    parts = []
    for name, rows in table.groupby("stage1"):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        parts.append(tmp_path / f"{name}.csv")
    pd.testing.assert_frame_equal(read_students(tmp_path / "all.parquet"), read_students(parts))
    assert read_students([]).empty


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone without any set has: the study, its published numbers and a tidy table."""
    folder = tmp_path_factory.mktemp("clone")
    content = yaml.safe_load((ROOT / "config/default.yaml").read_text())
    content["report"]["published"] = "published.csv"
    content["distill"] = {name: content["distill"][name] for name in ("random", "dm")}
    (folder / "config/datasets").mkdir(parents=True)
    (folder / "config/study.yaml").write_text(yaml.safe_dump({**content, "name": "mine"}))
    (folder / "config/datasets/cifar10.yaml").write_text((ROOT / "config/datasets/cifar10.yaml").read_text())
    numbers(("DM", "ConvNet", 20.0, "S")).to_csv(folder / "published.csv", index=False)
    (folder / "results/mine/tables").mkdir(parents=True)
    table = make_table(ipcs=(1,))
    table.drop(table.index[(table.stage1 == "random") & table.stage2.isin(["vae", "predd"])]).to_csv(
        folder / "results/mine/tables/results.csv", index=False
    )
    return folder


def test_everything_is_made_again_from_the_tidy_table_alone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    result = CliRunner().invoke(app, ["report", "results/mine", "--out", "first"])
    assert result.exit_code == 0, result.output
    for stem in ("cross_architecture", "ablation", "table_1", "table_6", "table_8", "reproduced"):
        for form in ("csv", "tex", "html", "md"):
            assert (clone / f"first/tables/{stem}.{form}").stat().st_size > 0
    for stem in ("cross_architecture", "references", "ladder"):
        for form in ("png", "svg", "pdf"):
            assert (clone / f"first/figures/{stem}.{form}").stat().st_size > 0
    for product in ("figures/gallery", "figures/vae_gallery", "figures/phases", "tables/quality"):
        assert f"skipped: {product}: needs " in result.output
    assert not (clone / "first/figures/gallery.png").exists()
    # The same bytes from the Parquet file, and from a table alone whose study is named.
    table = pd.read_csv("results/mine/tables/results.csv", keep_default_na=False)
    table.to_parquet("alone.parquet")
    again = CliRunner().invoke(app, ["report", "alone.parquet", "--study", "config/study.yaml", "--out", "second"])
    assert again.exit_code == 0, again.output
    files = sorted(path.relative_to("first") for path in Path("first").rglob("*.*"))
    assert len(files) == 6 * 4 + 3 * 3 + 1
    assert all((Path("first") / file).read_bytes() == (Path("second") / file).read_bytes() for file in files)


def test_a_study_that_lies_elsewhere_is_reported_with_its_own_files(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone)
    shutil.copytree("results/mine", tmp_path / "mine")
    for folder, distance in ((clone / "results/mine", 1.0), (tmp_path / "mine", 2.0)):
        (folder / "quality").mkdir()
        names = {"dataset": "cifar10", "ipc": 1, "stage1": "dm", "stage2": "none"}
        measures = dict.fromkeys(("high_frequency", "high_frequency_ratio", "coverage", "coverage_by_class"), 0.5)
        about = {"neighbours": 5, "extractor": "e", "extractor_accuracy": "", "reference_images": 9}
        rest = {"density": 1.0, "frechet": distance, "reference_seed": 0, "reference_high_frequency": 0.5}
        pd.DataFrame([names | measures | about | rest]).to_csv(folder / "quality/cifar10.csv", index=False)
    try:
        result = CliRunner().invoke(app, ["report", str(tmp_path / "mine"), "--out", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        assert pd.read_csv(tmp_path / "out/tables/quality.csv")["frechet"].tolist() == [2.0]
    finally:
        shutil.rmtree(clone / "results/mine/quality")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["results"], "no tables/results.csv or .parquet in it"),
        (["other/tables/results.csv"], "no study in config/ has the name 'other'"),
        (["results/mine", "--study", str(ROOT / "config/test.yaml")], "dataset 'cifar10' is not in the study 'test'"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    clone: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone)
    (clone / "other/tables").mkdir(parents=True, exist_ok=True)
    (clone / "other/tables/results.csv").write_text("dataset\n")
    result = CliRunner().invoke(app, ["report", *arguments])
    assert result.exit_code != 0 and words in str(result.exception)
