"""Tables in their four formats."""

from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from tidy import LABELS, LADDER, make_table

from diver.config.study import load_study, parse_study, read_yaml
from diver.report import forms, tables
from diver.report import statistics as st
from diver.report.choices import gallery_rows
from diver.report.labels import Labels, names_of
from diver.report.statistics import Cell, Interval


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    """One IPC, to be quick."""
    return make_table(ipcs=(10,))


@pytest.fixture(scope="module")
def cross(table: pd.DataFrame) -> forms.Table:
    return tables.cross_architecture(table, LABELS)


def row(found: forms.Table, **wanted: str) -> pd.Series:
    mask = pd.Series(True, index=found.display.index)
    for column, value in wanted.items():
        mask &= found.display[column.replace("_", " ")] == value
    assert mask.sum() == 1
    return found.display[mask].iloc[0]


def test_interval_text() -> None:
    assert tables.interval_text(Interval(31.24, 30.3, 32.18, 3)) == "31.2 ± 0.9"
    assert tables.interval_text(Interval(-2.0, -3.0, -1.0, 3), signed=True) == "−2.0 ± 1.0"
    assert tables.interval_text(Interval(-0.01, -1.0, 1.0, 3), signed=True) == "+0.0 ± 1.0"
    assert tables.interval_text(Interval(5.0, float("nan"), float("nan"), 1)) == "5.0 ± n/a"


def test_cross_architecture_cells_are_the_statistics(table: pd.DataFrame, cross: forms.Table) -> None:
    found = cross
    assert found.title == "Test accuracy of student architectures, CIFAR-10"
    columns = ["IPC", "Stage 1", "Stage 2", "ConvNet (proxy)", "ResNet", "ViT", "MobileNet", "unseen mean"]
    assert list(found.display.columns) == [*columns, "Δ unseen", "Δ proxy"]
    cell = Cell("cifar10", 10, "dm", "diver", "matched")
    rows = st.students_of(table, cell)
    one = row(found, IPC="10", Stage_1="DM", Stage_2="DIVER")
    vit, unseen = rows[rows.architecture == "vit"], rows[rows.role == "unseen"]
    best = vit.accuracy_best.mean(), st.seed_means(unseen, st.BEST).mean()
    assert one["ViT"] == f"{tables.interval_text(st.t_interval(vit.accuracy_last))} ({best[0]:.1f})"
    assert one["unseen mean"] == f"{tables.interval_text(st.t_interval(st.seed_means(unseen)))} ({best[1]:.1f})"
    difference = st.difference(table, cell, cell._replace(stage2="none"))
    assert difference is not None
    assert one["Δ unseen"].startswith(tables.interval_text(difference.interval, signed=True))
    assert row(found, IPC="10", Stage_1="DM", Stage_2="stage-1 set")["Δ unseen"] == ""


def test_protocol_its_departures_and_quirks_are_said(table: pd.DataFrame) -> None:
    full = table[table["stage2"] == "none"].assign(
        ipc=5000, stage1="full", protocol="full-data", departures="epochs=3", quirks="", reported="best"
    )
    both = pd.concat([table, full[full["ipc"] == 5000].drop_duplicates(["architecture", "seed"])], ignore_index=True)
    found = tables.cross_architecture(both, LABELS)
    assert any(
        "glad-eval" in line and "epochs=50; batch=25" in line and "ema_per_epoch" in line for line in found.legend
    )
    assert any(
        "full-data" in line and "the best accuracy" in line and "quirks of its released code: none" in line
        for line in found.legend
    )
    assert list(found.display["IPC"])[-1] == "5000"


def test_rows_follow_the_labels_and_name_another_scale(small: pd.DataFrame) -> None:
    found = tables.cross_architecture(small.sample(frac=1, random_state=1), LABELS)
    dm = found.display[found.display["Stage 1"] == "DM"]
    assert list(dm["Stage 2"]) == [*LABELS.stage2.values(), "DIVER, as-published scale"]


def test_unlabelled_names_are_shown_and_never_dropped(small: pd.DataFrame) -> None:
    found = tables.cross_architecture(small, Labels(stage2={"diver": "DIVER"}))
    assert len(found.display) == len(st.cells(small))
    assert {"dm", "random"} == set(found.display["Stage 1"])


def test_marks_differences_that_the_correction_does_not_leave(
    table: pd.DataFrame, small: pd.DataFrame, cross: forms.Table
) -> None:
    differences = st.compare(table, st.stage1_pairs(table))
    shown = [text for column in ("Δ unseen", "Δ proxy") for text in cross.display[column] if text]
    assert sum(text.endswith(" ~") for text in shown) == int((~differences["distinguishable"]).sum()) > 0
    assert any(line.startswith("~: not distinguishable") and "44 comparisons" in line for line in cross.legend)

    clear = small.copy()
    clear.loc[clear.stage2 == "diver", "accuracy_last"] += 500
    one = row(tables.cross_architecture(clear, LABELS), IPC="10", Stage_1="DM", Stage_2="DIVER")
    assert not one["Δ unseen"].endswith("~")


def test_diverged_students_are_counted_and_kept(small: pd.DataFrame, cross: forms.Table) -> None:
    mask = (small.stage1 == "dm") & (small.stage2 == "raw") & (small.architecture == "vit")
    bad = small.copy()
    bad.loc[mask & (small.seed < 2), ["accuracy_last", "diverged"]] = [10.0, True]
    found = tables.cross_architecture(bad, LABELS)
    one = row(found, Stage_1="DM", Stage_2="raw DiT")
    assert one["ViT"].endswith(" †2") and one["unseen mean"].endswith(" †2") and "†" not in one["ResNet"]
    assert one["ViT"].startswith(f"{bad[mask].accuracy_last.mean():.1f} ")
    assert any("†k" in line and "2 in all" in line for line in found.legend)
    assert not any("†" in line for line in cross.legend)


def test_csv_holds_last_and_best_apart(table: pd.DataFrame, cross: forms.Table, tmp_path: Path) -> None:
    forms.write_table(cross, tmp_path / "t.csv")
    read = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    mine = read[(read.stage2 == "predd") & (read.ipc == 1) & (read.stage1 == "dm")].iloc[0]
    rows = st.students_of(table, Cell("cifar10", 1, "dm", "predd", "matched")).query("architecture == 'vit'")
    assert float(mine["vit_last_mean"]) == pytest.approx(rows.accuracy_last.mean())
    assert float(mine["vit_best_peeking_at_test_mean"]) == pytest.approx(rows.accuracy_best.mean())
    assert 0 < float(mine["difference_unseen_p"]) <= float(mine["difference_unseen_p_holm"])
    assert not any("best" in column and "peeking" not in column for column in read.columns)


def test_single_seed_says_not_available() -> None:
    found = tables.cross_architecture(make_table(seeds=1, ipcs=(1,)), LABELS)
    one = row(found, Stage_1="DM", Stage_2="DIVER")
    assert "± n/a (" in one["ViT"] and one["Δ unseen"].endswith("± n/a ~")
    assert any("single seed" in line for line in found.legend)


def test_ablation_compares_with_the_set_and_with_the_row_above(table: pd.DataFrame) -> None:
    found = tables.ablation(table, LABELS, "dm", LADDER)
    assert found.title == "Ladder, CIFAR-10, DM"
    assert list(found.display["Stage 2"]) == [LABELS.stage2[name] for name in LADDER] * 2
    one = row(found, IPC="10", Stage_2="DIVER")
    cell = Cell("cifar10", 10, "dm", "diver", "matched")
    step = st.difference(table, cell, cell._replace(stage2="everywhere"))
    assert step is not None
    assert one["Δ unseen to row above"].startswith(tables.interval_text(step.interval, signed=True))
    # Four steps and three more comparisons with the set itself, two IPC, two roles.
    assert any("28 comparisons" in line for line in found.legend)
    data = found.data.set_index(["ipc", "stage2"])
    assert data.loc[(10, "diver"), "difference_step_unseen_reference_stage2"] == "everywhere"
    assert data.loc[(10, "diver"), "difference_unseen_reference_stage2"] == "none"


class Outline(HTMLParser):
    """Counts of tags, and every address that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.open, self.loaded = 0, [""], [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        self.loaded += [str(value) for key, value in attrs if key in ("src", "href")]
        self.loaded += [tag] * (tag in ("link", "script", "img", "iframe"))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_one_document_and_escapes(small: pd.DataFrame, tmp_path: Path) -> None:
    labels = Labels(LABELS.stage1, {**LABELS.stage2, "predd": "<b>P & Q"}, LABELS.architecture, LABELS.dataset)
    found = tables.cross_architecture(small, labels)
    forms.write_table(found, tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert outline.rows == len(found.display) + 1
    assert outline.loaded == [""] and outline.open == [""] and "@import" not in text and "url(" not in text
    assert "&lt;b&gt;P &amp; Q" in text and "<b>P" not in text


def test_tex_is_booktabs_and_escapes(small: pd.DataFrame) -> None:
    labels = Labels({"random": "Random", "dm": "D_M & 50%"}, LABELS.stage2, LABELS.architecture, LABELS.dataset)
    found = tables.cross_architecture(small, labels)
    text = forms.to_tex(found)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\addlinespace", r"D\_M \& 50\%", r"$\pm$", r"$\sim$"):
        assert rule in text
    assert not set("±−Δ†~") & set(text)
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(found.display)
    assert {line.replace(r"\&", "").count("&") for line in lines} == {len(found.display.columns) - 1}


def test_markdown_has_a_full_row_per_set(small: pd.DataFrame) -> None:
    labels = Labels({"random": "Random", "dm": "D|M"}, LABELS.stage2, LABELS.architecture, LABELS.dataset)
    found = tables.cross_architecture(small, labels)
    lines = [line for line in forms.to_markdown(found).splitlines() if line.startswith("|")]
    assert len(lines) == len(found.display) + 2
    assert {line.replace(r"\|", "").count("|") for line in lines} == {len(found.display.columns) + 1}
    assert r"D\|M" in lines[-1] and r" \~ |" in "".join(lines)


def test_unknown_suffix_is_refused(cross: forms.Table, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is written as .csv, .tex, .html, .md"):
        forms.write_table(cross, tmp_path / "t.xlsx")


def test_what_datasets_with_other_students_and_seeds_have_is_said(small: pd.DataFrame) -> None:
    other = small[small["seed"] == 0].assign(dataset="other")
    other["architecture"] = other["architecture"].replace("resnet", "swin")
    ceiling = small[(small.stage1 == "dm") & (small.stage2 == "none")].assign(stage1="full", ipc=5000)
    found = tables.cross_architecture(pd.concat([small, other, ceiling], ignore_index=True), LABELS)
    networks = ["ConvNet (proxy)", "ResNet", "ViT", "MobileNet", "swin"]
    assert list(found.display.columns)[4:] == [*networks, "unseen mean", "Δ unseen", "Δ proxy"]
    text = "\n".join(found.legend)
    assert "over 1 to 3 seeds;" in text
    assert "Unseen mean (CIFAR-10): average over ResNet, ViT, MobileNet within" in text
    assert "Unseen mean (other): average over ViT, MobileNet, swin within" in text
    # Other seeds, and not more of them.
    later = small.assign(dataset="other", seed=small["seed"] + 3)
    assert "over 3 seeds;" in tables.cross_architecture(pd.concat([small, later]), LABELS).legend[0]


def test_networks_of_one_label_are_told_apart() -> None:
    study = load_study("config/default.yaml")
    networks = {name: one.model_copy(update={"label": "Net"}) for name, one in study.students.architectures.items()}
    alike = study.model_copy(update={"students": study.students.model_copy(update={"architectures": networks})})
    alike.__dict__.pop("_students", None)
    names = names_of(alike, {})["architecture"]
    assert names == {name: f"Net ({name})" for name in networks}
    assert names_of(study, {})["architecture"]["vit"] == study.students.architectures["vit"].label


def test_entries_of_one_label_are_told_apart_where_they_stand_beside_each_other() -> None:
    raw = read_yaml("config/default.yaml")
    for entry in raw["recover"].values():
        entry["label"] = "Same"
    raw["distill"] |= {name: {"method": "dm", "label": "DM", "ipc": [ipc]} for name, ipc in (("dm", 10), ("few", 1))}
    study = parse_study(raw, "here")
    names = names_of(study, {})
    assert names["stage2"] == {"none": "stage-1 set", **{name: f"Same ({name})" for name in study.recover}}
    assert (names["stage1"]["dm"], names["stage1"]["few"]) == ("DM", "DM")
    titles = [title for title, _ in gallery_rows(study)]
    assert len(set(titles)) == len(study.report.gallery) and titles[0] == "DM"
