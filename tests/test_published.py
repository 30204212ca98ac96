"""The file of published numbers: complete, without doubles, each with its source; faulty ones are refused."""

from pathlib import Path

import pandas as pd
import pytest

from diver.report import published
from diver.report.published import ACCURACY, COLUMNS, PublishedError, find, read_published

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data/published/published.csv"
HEAD = ",".join(COLUMNS)


@pytest.fixture(scope="module")
def numbers() -> pd.DataFrame:
    return read_published(DATA)


def test_there_is_one_file_and_it_is_sound(numbers: pd.DataFrame) -> None:
    assert [path.name for path in DATA.parent.iterdir()] == ["published.csv"]
    assert list(numbers.columns) == COLUMNS and len(numbers) > 1000
    accuracies = numbers[numbers["metric"] == ACCURACY]
    assert accuracies["mean"].between(0, 100).all() and accuracies["std"].dropna().between(0, 10).all()
    assert numbers["ipc"].map(lambda ipc: ipc in published.NO_COUNT or 0 < ipc <= 1250).all()
    assert (numbers["source"].str.len() > 5).all() and (numbers["variant"] != "").all()
    key = ["method", "variant", "dataset", "ipc", "architecture", "metric"]
    assert not numbers.duplicated([*key, "source"]).any() and not numbers.duplicated([*key, "mean", "std"]).any()


def test_names_are_written_one_way(numbers: pd.DataFrame) -> None:
    for column in ("method", "dataset", "architecture", "metric", "variant"):
        names = set(numbers[column])
        assert len({name.casefold().replace("-", "").replace(" ", "") for name in names}) == len(names), column
        assert all(name == name.strip() for name in names)


def test_every_number_of_the_two_method_papers_is_there(numbers: pd.DataFrame) -> None:
    of = numbers["source"].str.contains
    assert of(r"PReDD \(ICASSP 2026\)").sum() == 2 * 8 * 6
    assert of("Table 1, from reading notes").sum() == 18 and of("Table 6, from reading notes").sum() == 14
    assert numbers[of("SUSPECT")][["method", "ipc", "mean"]].to_numpy().tolist() == [
        ["EDF", 10, 23.2],
        ["EDF + DIVER", 10, 34.5],
    ]
    assert numbers[of("DIVER") & of("from reading notes")]["source"].str.contains("SECONDARY").all()
    (best,) = find(numbers, "MTT + DIVER", "ImageFruit", 10, "mean of 5 unseen").to_dict("records")
    assert (best["mean"], best["std"]) == (29.8, 2.0)
    (predd,) = find(numbers, "EDF + PReDD", "ImageSquawk", 10, "mean of 5 unseen").to_dict("records")
    assert predd["mean"] == 36.6


def test_find_prefers_the_named_sources_and_keeps_the_others(numbers: pd.DataFrame) -> None:
    cell = ("EDF", "ImageFruit", 10, "mean of 5 unseen")
    assert list(find(numbers, *cell)["mean"]) == [20.5, 23.2]
    assert list(find(numbers, *cell, sources=["DIVER (ICML 2026)", "PReDD"])["mean"]) == [23.2, 20.5]
    assert find(numbers, *cell, variant="hard labels").empty


def test_every_file_of_published_numbers_that_a_study_names_is_read() -> None:
    for path in (ROOT / "tests/data/published.csv", DATA):
        assert len(read_published(path)) > 0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("method,ipc,mean\nDM,1,2\n", "no column variant"),
        (f"{HEAD}\n" + "DM,v,X,1,all,top-1,1.0,,S\n" * 2, "line 3: it repeats"),
        (f"{HEAD}\nDM,v,X,1,all,top-1,1.0,,\n", "line 2: a number without a source"),
        (f"{HEAD}\nDM,v,X,one,all,top-1,1.0,,S\n", "line 2: ipc is a count"),
        (f"{HEAD}\nDM,v,X,1,all,top-1,nan,,S\n", "line 2: the mean is no number"),
        (f'{HEAD}\nDM,v,X,1,all,"{ACCURACY}",101,,S\n', "line 2: an accuracy lies between"),
        (f"{HEAD}\nDM,v,X,1,all,top-1,1.0,-2,S\n", "line 2: the spread is no number, or negative"),
        (f"{HEAD}\nDM,v,X,1,all,top-1,1.0,few,S\n", "line 2: the spread is no number, or negative"),
        (f"{HEAD}\n,v,X,1,all,top-1,1.0,,S\n", "line 2: no method"),
    ],
)
def test_faulty_published_numbers_are_refused(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(PublishedError, match=fault):
        read_published(tmp_path / "p.csv")
