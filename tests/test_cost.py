"""What a study is reckoned to cost: counted by hand where that is possible."""

import re
from pathlib import Path

import pytest
import yaml

from diver.checks import check_study
from diver.cost import Estimate, Phase, chain_passes, load_rates, network_cost, reckon, seconds, shown
from diver.cost.counting import counts, prior_cost
from diver.data.spec import load_dataset_spec

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results.md"


def estimate(content: dict, root: Path = ROOT) -> Estimate:
    checked = check_study(content, "study", root, planning=True)
    return Estimate(checked.study, checked.datasets, load_rates(), root)


def test_networks_are_counted_at_their_size() -> None:
    spec = load_dataset_spec(ROOT / "config/datasets/cifar10.yaml")
    macs, parameters = network_cost("convnet-3", {}, spec)
    convolutions = 9 * 128 * (3 * 32**2 + 128 * 16**2 + 128 * 8**2)
    assert parameters == 320_010
    assert macs == convolutions + 128 * 4 * 4 * 10


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("cifar10", (50_000, 10_000)),
        ("cifar10-held-out", (40_000, 10_000)),
        ("fashion-mnist", (60_000, 10_000)),
        ("imagenet1k", (1_281_167, 50_000)),
        ("imagewoof5-64", (4344, 1860)),
        ("imagenette-fastai", (9469, 3925)),
    ],
)
def test_images_are_counted_before_they_are_here(tmp_path: Path, name: str, images: tuple[int, int] | None) -> None:
    assert counts(load_dataset_spec(ROOT / f"config/datasets/{name}.yaml"), tmp_path) == images


def test_passes_of_chains() -> None:
    assert chain_passes("vae", {}, 1) == 0
    assert chain_passes("predd", {"cfg_scale": 4, "by_ipc": {"1": [10, 15]}, "reverse_t": 20}, 1) == 30
    assert chain_passes("predd", {"cfg_scale": 4, "by_ipc": {"1": [10, 15]}, "reverse_t": 20}, 10) == 40
    assert chain_passes("diver", {"cfg_scale": 1, "t_r": 50}, 1) == 50
    assert chain_passes("raw", {"cfg_scale": 4, "respacing": "ddim25"}, 1) == 50


def test_jobs_operations_and_bytes_of_the_papers_study() -> None:
    made = estimate(yaml.safe_load((ROOT / "config/paper.yaml").read_text()))
    phases = made.phases
    jobs = {name: phase.jobs for name, phase in phases.items() if name != "report"}
    # Twelve subsets: seven methods at two IPCs; experts of MTT and of EDF; ImageNet-1K: two methods and four systems at
    # two IPCs; three subsets at 224: random images and six systems.
    sets = 12 * 7 * 2 + 6 * 2 + 3 * 7 * 2
    assert (jobs["data"], jobs["teachers"], jobs["experts"], jobs["distill"]) == (16, 15, 24, sets)
    assert jobs["answers"] == (6 + 5) * 2
    experts = 12 * 100 * (51 + 101) * 615_690 * 4
    assert phases["experts"].stored == pytest.approx(experts, rel=1e-6)
    subsets = 12 * 7 * (1 + 10) * 10 * 3 * 128**2 * 4
    whole = 6 * (10 + 50) * 1000 * 3 * 224**2 * 4
    larger = 3 * 7 * (10 + 50) * 10 * 3 * 224**2 * 4
    assert phases["distill"].stored == subsets + whole + larger
    table = shown(reckon(made, ["rtx4090"]))
    assert "ASSUMED rate" in table and "published 2.48 s an image" in table and "left out of data" in table


def test_systems_are_counted_by_their_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """One system at a time, so that the phases have nothing else; the shipped prior at 500 latents a class."""
    monkeypatch.setattr("diver.cost.estimate.counts", lambda *_: (50_000, 10_000))
    base = yaml.safe_load((ROOT / "config/native.yaml").read_text())
    del base["report"]
    base["recover"] = {}

    def of(name: str) -> tuple[float, float]:
        phases = estimate({**base, "distill": {name: base["distill"][name]}}).phases
        return sum(phases["systems"].macs.values()), sum(phases["distill"].macs.values())

    made = estimate({**base, "distill": {"random": base["distill"]["random"]}})
    cost = prior_cost(made.study, made.datasets["cifar10"], load_rates(), ROOT)
    assert cost is not None
    images, encoding = 10 * (1 + 10), 10 * 500 * cost.encode
    for name, steps in {"d4m": 25, "vlcp": 25, "mgd3": 50}.items():
        assert of(name) == (encoding, images * (2 * steps * cost.passes + cost.decode)), name
    assert of("d3hr")[0] == encoding + 10 * 40 * 31 * 2 * cost.passes
    assert of("minimax")[0] == encoding + 400 * 8 * 3 * cost.passes
    left_out = " ".join(estimate(base).phases["systems"].unknown)
    assert "clustering" in left_out and "captions" in left_out and "search of groups" in left_out


def test_training_a_prior_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped prior was trained with the settings that are the defaults; its card says for how long."""
    monkeypatch.setattr("diver.cost.estimate.counts", lambda *_: (50_000, 10_000))
    content = yaml.safe_load((ROOT / "config/prior-cifar10.yaml").read_text())
    made, shipped = (estimate({**content, "prior": {"source": one}}) for one in ("trained", "shipped"))
    cost = prior_cost(shipped.study, shipped.datasets["cifar10"], load_rates(), ROOT)
    assert cost == prior_cost(made.study, made.datasets["cifar10"], load_rates(), ROOT)
    assert made.phases["recover"].macs == shipped.phases["recover"].macs
    phase, rates = made.phases["prior"], load_rates()["devices"]
    assert (phase.jobs, shipped.phases["prior"].jobs) == (3, 0) and phase.stored == 2 * (924_597 + 10_687_256)
    hours = seconds(phase, rates["cpu"]) / 3600 / rates["cpu"]["parallel"]
    assert hours == pytest.approx((27 + 55) / 60, rel=0.1)
    assert seconds(phase, rates["h100"]) is None and "on the CPU" in phase.unknown[0]


def test_what_has_no_rate_is_said() -> None:
    content = yaml.safe_load((ROOT / "config/test.yaml").read_text())
    content["prior"] = {"source": "someone/prior"}
    rows = {row["phase"]: row for row in reckon(estimate(content), ["cpu"])["phases"]}
    assert "someone/prior" in rows["recover"]["left_out"][0] and rows["recover"]["hours"]["cpu"] is None
    assert rows["students"]["hours"]["cpu"] is not None or rows["students"]["left_out"]


def test_every_rate_has_its_source() -> None:
    for device in load_rates()["devices"].values():
        assert device["source"] and device["label"] and isinstance(device["assumed"], bool)
        assert {"reached", "utilisation"} & device.keys()
        assert seconds(Phase("students", macs={"fp32": 1e12}), device) > 0


def test_the_cpus_rates_give_the_embedded_studys_own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/results.md, Time: the rates are of that study, so that they have to follow it when it changes."""
    monkeypatch.setattr("diver.cost.estimate.counts", lambda *_: (50_000, 10_000))
    made = estimate(yaml.safe_load((ROOT / "config/default.yaml").read_text()))
    told = re.findall(r"^\| (teacher|stage 1|stage 2|\d+ students)\b.*\| (\d+) \|$", RESULTS.read_text(), re.MULTILINE)
    cpu = load_rates()["devices"]["cpu"]
    for name, (_, measured) in zip(("teachers", "distill", "recover", "students"), told, strict=True):
        assert seconds(made.phases[name], cpu) == pytest.approx(int(measured), rel=0.1), name


def test_what_runs_in_bf16_is_counted_so() -> None:
    """DC's real images, and all of MTT's passes; an extra network of DC costs its share."""
    base = yaml.safe_load((ROOT / "config/stage1.yaml").read_text())
    del base["report"]
    base.update(ipc=[1], recover={})
    base["distill"] |= yaml.safe_load((ROOT / "config/stage1-plain.yaml").read_text())["distill"]

    def of(name: str, **settings: object) -> dict[str, float]:
        entry = {**base["distill"][name], "settings": settings}
        return estimate({**base, "distill": {name: entry}}).phases["distill"].macs

    for name in ("dc", "dm", "mtt"):
        full, half = of(name), of(name, precision="bf16")
        assert set(full) == {"fp32"}
        assert sum(half.values()) == pytest.approx(full["fp32"], rel=1e-12)
        assert half["bf16"] > 0.9 * full["fp32"]
    assert of("dc", extra_network=True)["fp32"] == pytest.approx(of("dc")["fp32"] * 1001 / 1000, rel=1e-12)
