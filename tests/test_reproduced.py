"""Published accuracies beside ours: what matches, what counts as reproduced, and what departs is said."""

from dataclasses import replace

import pandas as pd
import pytest
from tidy import make_table

from diver.config.study import load_study
from diver.report.labels import Labels
from diver.report.published import ACCURACY, COLUMNS, PublishedError
from diver.report.reproduced import compare_published
from diver.study import SetCell

LABELS = Labels({"dm": "DM"}, {}, {"convnet": "ConvNet-3"}, {"cifar10": "CIFAR-10"})


def published(*means: float, method: str = "dm") -> pd.DataFrame:
    rows = [(method, "", "CIFAR-10", ipc, "ConvNet-3", ACCURACY, mean, None, "a source")
            for ipc, mean in zip((1, 10), means, strict=False)]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_row_says_ours_theirs_the_difference_and_what_departs() -> None:
    table = make_table().assign(departures="")
    mine = table[(table.stage1 == "dm") & (table.stage2 == "none") & (table.architecture == "convnet")]
    one, ten = (mine[mine.ipc == ipc]["accuracy_last"].mean() for ipc in (1, 10))
    departures = {SetCell("cifar10", 1, "dm"): "", SetCell("cifar10", 10, "dm"): "iterations 4 (20000)"}
    made = compare_published(table, published(one + 1.9, ten), {"dm": "dm"}, departures, LABELS)
    assert made.data["difference"].tolist() == pytest.approx([-1.9, 0])
    assert made.data["n"].tolist() == [3, 3]
    best = mine[mine.ipc == 1]["accuracy_best"].mean()
    assert made.data["best"].iloc[0] == pytest.approx(best)
    assert made.display["ours"].iloc[0].endswith(f" (best {best:.1f})")
    # Equal by chance under other settings is no reproduction.
    assert made.data["reproduced"].tolist() == [True, False]
    assert made.display["reproduced"].tolist() == ["yes", "settings differ"]
    far = compare_published(table, published(one + 2.1), {"dm": "dm"}, departures, LABELS)
    assert far.display["reproduced"].tolist() == ["no"] and far.display["difference"].tolist() == ["−2.1"]
    assert any("a source" in line for line in made.legend)
    short = compare_published(make_table(), published(one), {"dm": "dm"}, departures, LABELS)
    assert short.data["departures"].tolist() == ["students' epochs=50; batch=25"] and not short.data["reproduced"].any()


def test_best_of_all_tests_is_compared_where_it_is_reported_and_diverged_students_are_marked() -> None:
    table = make_table().assign(departures="", reported="best")
    mine = (table.stage1 == "dm") & (table.stage2 == "none") & (table.architecture == "convnet") & (table.ipc == 1)
    table.loc[mine & (table.seed == 0), "diverged"] = True
    last, best = table.loc[mine, "accuracy_last"].mean(), table.loc[mine, "accuracy_best"].mean()
    made = compare_published(table, published(best), {"dm": "dm"}, {SetCell("cifar10", 1, "dm"): ""}, LABELS)
    assert made.data["ours"].iloc[0] == pytest.approx(best)
    assert made.display["ours"].iloc[0].endswith(f" (last {last:.1f}) †1")
    assert any("1 in all" in line for line in made.legend)


def test_what_has_no_students_yet_has_no_row() -> None:
    table = make_table().assign(departures="")
    departures = {SetCell("cifar10", ipc, "dm"): "" for ipc in (1, 10)}
    made = compare_published(table[table.ipc == 10], published(26.0, 48.9), {"dm": "dm"}, departures, LABELS)
    assert made.data["ipc"].tolist() == [10]
    with pytest.raises(PublishedError, match="students were trained for"):
        compare_published(table[table.ipc == 5], published(26.0, 48.9), {"dm": "dm"}, departures, LABELS)


def test_rows_name_what_differs_between_them() -> None:
    table = make_table().assign(departures="")
    one, other = table, table.assign(dataset="cifar100")
    rows = [("dm", "", dataset, 10, network, ACCURACY, 40.0, None, "a source")
            for dataset in ("CIFAR-10", "CIFAR-100") for network in ("ConvNet-3", "ResNet-18")]  # fmt: skip
    theirs = pd.DataFrame(rows, columns=COLUMNS)
    departures = {SetCell(dataset, 10, "dm"): "" for dataset in ("cifar10", "cifar100")}
    networks = {"convnet": "ConvNet-3", "resnet": "ResNet-18"}
    labels = Labels({"dm": "DM"}, {}, networks, {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"})
    made = compare_published(pd.concat([one, other]), theirs, {"dm": "dm"}, departures, labels)
    assert made.keys == 4 and not made.display.iloc[:, :4].duplicated().any()
    alone = compare_published(one, theirs[theirs["architecture"] == "ConvNet-3"], {"dm": "dm"}, departures, labels)
    assert alone.keys == 2 and alone.title.endswith("CIFAR-10, ConvNet-3")


def test_nothing_to_compare_is_refused() -> None:
    departures = {SetCell("cifar10", 1, "dm"): ""}
    with pytest.raises(PublishedError, match="no published accuracy"):
        compare_published(make_table(), published(1.0, method="dc"), {"dm": "dm"}, departures, LABELS)


def test_departures_are_counted_against_the_published_settings() -> None:
    study = load_study("config/test-stage1.yaml")
    found = study.departures(study.distill["mtt"], "cifar10-slice", 1)
    assert found[:2] == ["iterations 2 (5000)", "syn_steps 2 (50)"]
    assert found[2:] == [
        "experts' width 16 (128)",
        "experts' count 2 (100)",
        "experts' epochs 8 (50)",
        "experts' learning_rate 0.05 (0.01)",
        "experts' momentum 0.9 (0.0)",
        "experts' batch 20 (256)",
    ]
    departed = {
        name: whole.departures(entry, "cifar10", ipc)
        for whole in map(load_study, ("config/stage1.yaml", "config/stage1-plain.yaml"))
        for name, entry in whole.distill.items()
        for ipc in (1, 10)
    }
    assert departed.pop("herding") == ["encoder pixels (not named)"]
    assert not any(departed.values())


def test_datasets_are_found_by_their_published_name_also_two_of_one_name() -> None:
    table = make_table().assign(departures="")
    both = pd.concat([table, table.assign(dataset="cifar10-64")], ignore_index=True)
    labels = replace(LABELS, dataset={"cifar10": "CIFAR-10, 32", "cifar10-64": "CIFAR-10, 64"})
    departures = {SetCell(name, 1, "dm"): "" for name in labels.dataset}
    names = dict.fromkeys(labels.dataset, "CIFAR-10")
    made = compare_published(both, published(26.0), {"dm": "dm"}, departures, labels, names)
    assert made.data["dataset"].tolist() == ["cifar10", "cifar10-64"]
    assert made.display["Dataset"].tolist() == ["CIFAR-10, 32", "CIFAR-10, 64"]


def test_networks_that_tables_tell_apart_are_found_by_their_published_name() -> None:
    table = make_table().assign(departures="")
    labels = replace(LABELS, architecture={"convnet": "ConvNet-3 (convnet)", "resnet": "ConvNet-3 (resnet)"})
    names = dict.fromkeys(labels.architecture, "ConvNet-3")
    departures = {SetCell("cifar10", 1, "dm"): ""}
    made = compare_published(table, published(26.0), {"dm": "dm"}, departures, labels, published_networks=names)
    assert made.data["architecture"].tolist() == ["convnet", "resnet"]
    assert made.display["Architecture"].tolist() == ["ConvNet-3 (convnet)", "ConvNet-3 (resnet)"]
