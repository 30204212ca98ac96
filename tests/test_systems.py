"""The frame of the diffusion-native systems, D4M and MGD3: latents, prototypes, chains, costs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_stable_diffusion import root as stable_diffusion  # noqa: F401 (a fixture)
from torch import Tensor

from diver.config.base import ConfigError
from diver.config.native import PREPARATIONS, PUBLISHED, SETTINGS, LatentsConfig
from diver.config.native.d4m import D4MConfig
from diver.config.native.mgd3 import MGD3Config
from diver.config.prior import PriorOptions
from diver.config.recover import PRESETS, DIVERConfig
from diver.config.study import parse_study
from diver.data.prepared import Prepared
from diver.prior.base import Prior, PriorError
from diver.prior.load import load_prior
from diver.prior.stable_diffusion import StableDiffusionPrior
from diver.recover.d4m import class_texts
from diver.recover.diver import Chain
from diver.recover.latents import Latents, LatentsError, encode_latents, symmetric
from diver.recover.native import image_keys, make_images, noised
from diver.recover.prototypes import (
    PrototypesError,
    find_prototypes,
    kmeans_centres,
    minibatch_centres,
    read_prototypes,
    write_prototypes,
)
from diver.recover.sampler import KeyedNoise, run_chain
from diver.recover.systems import SYSTEMS
from diver.report.labels import Labels
from diver.report.published import ACCURACY
from diver.report.systems import NO_DATASET, NO_IPC, Cost, systems, time_of
from diver.study import SetCell, artefact_paths, benchmark_path, native_entries


@pytest.fixture
def data() -> Prepared:
    """Three classes of 16 x 16 pixels with 7, 8 and 9 training images, out of order."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([0] * 7 + [1] * 8 + [2] * 9)[torch.randperm(24, generator=generator)]
    images = torch.randint(0, 256, (24, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Prepared(
        images, labels, images[:3], torch.arange(3), "tiny", ("a", "b", "c"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    )


@pytest.fixture
def latents(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> Latents:
    path = tmp_path / "latents.npy"
    encode_latents(data, tiny_prior, LatentsConfig(dtype="float32"), "mean", path)
    return Latents.open(path, data, tiny_prior)


def made(
    system: str, data: Prepared, prior: Prior, prototypes: Tensor, folder: Path, ipc: int = 2, **settings: Any
) -> Tensor:
    """Images of D4M or MGD3 from given prototypes [classes, ipc, c, h, w]."""
    path = folder / "prototypes.safetensors"
    write_prototypes(path, prototypes, {})
    config = SETTINGS[system](**{"respacing": "5", **settings})
    return SYSTEMS[system](data, ipc, prior, config, artefacts={"prototypes": path}).images


def prototypes_of(prior: Prior, seed: int = 3, ipc: int = 2) -> Tensor:
    return torch.randn(3, ipc, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))


# Latents.


def test_latents_are_those_of_the_autoencoder_class_by_class(
    data: Prepared, latents: Latents, tiny_prior: Prior
) -> None:
    assert [len(latents.of(c)) for c in range(3)] == [7, 8, 9] and len(latents) == 24
    for c in range(3):
        at = latents.indices(c)
        assert (data.train_labels[at] == c).all()
        wanted = tiny_prior.encode(symmetric(data.train_images[at], 16), None)
        torch.testing.assert_close(latents.of(c), wanted, atol=1e-5, rtol=1e-4)


def test_latents_of_some_images_do_not_depend_on_the_batch(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> None:
    found = []
    for batch in (5, 24):
        path = tmp_path / f"{batch}.npy"
        encode_latents(data, tiny_prior, LatentsConfig(per_class=4, batch=batch), "sample", path)
        found.append(Latents.open(path, data, tiny_prior))
    assert [len(found[0].of(c)) for c in range(3)] == [4, 4, 4]
    for c in range(3):
        assert torch.equal(found[0].indices(c), found[1].indices(c))
        torch.testing.assert_close(found[0].of(c), found[1].of(c), atol=2e-3, rtol=2e-3)
    encode_latents(data, tiny_prior, LatentsConfig(per_class=4), "mean", tmp_path / "mean.npy")
    mean = Latents.open(tmp_path / "mean.npy", data, tiny_prior)
    assert not torch.allclose(mean.of(0), found[0].of(0), atol=0.01)
    assert not list(tmp_path.glob(".*"))


def test_files_that_are_no_latents_of_this_study_are_refused(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "latents.npy"
    for content in (b"", b"not numpy", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(LatentsError, match="not a file of latents"):
            Latents.open(path, data, tiny_prior)
    np.save(path, np.zeros((4, 4)))
    with pytest.raises(LatentsError, match="its rows are float64"):
        Latents.open(path, data, tiny_prior)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(LatentsError, match="not a file of latents"):
        Latents.open(path, data, tiny_prior)
    encode_latents(data, tiny_prior, LatentsConfig(), "mean", path)
    other = Prepared(**{**vars(data), "train_labels": data.train_labels.flip(0)})
    with pytest.raises(LatentsError, match="not of the training images of tiny"):
        Latents.open(path, other, tiny_prior)
    grey = Prepared(**{**vars(data), "train_images": data.train_images[:, :1]})
    with pytest.raises(PriorError, match="takes 3 channels"):
        encode_latents(grey, tiny_prior, LatentsConfig(), "mean", tmp_path / "grey.npy")


# Prototypes.


def blobs(count: int = 60) -> tuple[Tensor, Tensor]:
    """Points around three far centres, shuffled."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    points = centres.repeat(count // 3, 1) + torch.randn(count, 2, generator=generator)
    return points, centres


@pytest.mark.parametrize("kind", ["minibatch", "full"])
def test_clusters_of_separable_blobs_are_their_centres(kind: str) -> None:
    points, centres = blobs()
    found = (
        minibatch_centres(points, 3, D4MConfig(km_expand=5), last=False)[0]
        if kind == "minibatch"
        else kmeans_centres(points, 3, MGD3Config())
    )
    nearest = torch.cdist(found, centres).min(1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2] and nearest.values.max() < 1.0


def seen_by_kmeans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that mini-batch k-means gets."""
    from sklearn.cluster import MiniBatchKMeans

    sizes: list[int] = []
    fit = MiniBatchKMeans.partial_fit

    def counted(self: Any, points: Any, *rest: Any) -> Any:
        sizes.append(len(points))
        return fit(self, points, *rest)

    monkeypatch.setattr(MiniBatchKMeans, "partial_fit", counted)
    return sizes


def test_d4m_consumes_every_latent_and_the_released_omission_is_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = seen_by_kmeans(monkeypatch)
    points = blobs(33)[0]
    assert minibatch_centres(points, 3, D4MConfig(km_expand=4), last=False)[1] == 0
    assert sizes == [12, 12, 9]
    sizes.clear()
    assert minibatch_centres(points, 3, D4MConfig(km_expand=4, drop_leftover=True), last=False)[1] == 9
    assert sizes == [12, 12]
    # The released code fits what is left of the last class, if that is enough for its clusters.
    sizes.clear()
    assert minibatch_centres(points, 3, D4MConfig(km_expand=4, drop_leftover=True), last=True)[1] == 0
    assert sizes == [12, 12, 9]
    assert minibatch_centres(points[:26], 3, D4MConfig(km_expand=4, drop_leftover=True), last=True)[1] == 2


def test_class_smaller_than_a_batch_is_clustered_and_one_without_enough_is_named(latents: Latents) -> None:
    found, record = find_prototypes(latents, 3, D4MConfig(km_expand=10))
    assert found.shape == (3, 3, 4, 4, 4) and record == {"latents": 24, "left_out": 0}
    with pytest.raises(PrototypesError, match="class 0: 7 latents make no 8 clusters"):
        find_prototypes(latents, 8, D4MConfig())
    with pytest.raises(PrototypesError, match="class 0: 7 latents fill no batch of 30"):
        find_prototypes(latents, 3, D4MConfig(km_expand=10, drop_leftover=True))
    with pytest.raises(PrototypesError, match="class 0: 7 latents make no 8 modes"):
        find_prototypes(latents, 8, MGD3Config())


def test_one_prototype_is_the_mean_of_its_class_and_the_control_a_real_latent(latents: Latents) -> None:
    means = torch.stack([latents.of(c).mean(0) for c in range(3)])
    for config in (D4MConfig(km_expand=100), MGD3Config()):
        torch.testing.assert_close(find_prototypes(latents, 1, config)[0][:, 0], means, atol=1e-4, rtol=1e-3)
    control = find_prototypes(latents, 2, D4MConfig(from_prototypes=False))[0]
    for c in range(3):
        distances = torch.cdist(control[c].flatten(1), latents.of(c).flatten(1)).min(1)
        assert distances.values.max() < 1e-5 and len(set(distances.indices.tolist())) == 2


def test_prototypes_of_another_study_are_refused(tiny_prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "prototypes.safetensors"
    write_prototypes(path, prototypes_of(tiny_prior), {"latents": 24})
    assert read_prototypes(path, 3, 2, tiny_prior)[1] == {"latents": 24}
    with pytest.raises(PrototypesError, match="IPC 5"):
        read_prototypes(path, 3, 5, tiny_prior)
    path.write_bytes(b"nothing")
    with pytest.raises(PrototypesError, match=r"prototypes\.safetensors: no prototypes"):
        read_prototypes(path, 3, 2, tiny_prior)


# D4M.


def test_strength_zero_decodes_the_prototype_and_one_ignores_it(
    data: Prepared, tiny_prior: Prior, tmp_path: Path
) -> None:
    first, second = prototypes_of(tiny_prior, 3), prototypes_of(tiny_prior, 4)
    decoded = tiny_prior.decode(first.flatten(0, 1)).clamp(-1, 1)
    torch.testing.assert_close(made("d4m", data, tiny_prior, first, tmp_path, strength=0), decoded)
    whole = [made("d4m", data, tiny_prior, one, tmp_path, strength=1.0) for one in (first, second)]
    assert torch.equal(*whole)
    # Between the two it is the prototype that tells images apart, which is what D4M is about.
    parts = [made("d4m", data, tiny_prior, one, tmp_path, strength=0.4) for one in (first, second)]
    assert (parts[0] - parts[1]).abs().max() > 1e-3


def test_strength_says_how_many_steps_are_run(tiny_prior: Prior) -> None:
    clean, noise = torch.zeros(1, 4, 4, 4), KeyedNoise(1, ["0.0"])
    schedule = tiny_prior.schedule("50")
    # The published strength of 0.7 on 50 steps runs 35 of them.
    assert [noised(clean, schedule, s, noise)[1] for s in (0.0, 0.01, 0.02, 0.7, 1.0)] == [-1, -1, 0, 34, 49]
    start, first = noised(clean, schedule, 0.7, noise)
    drawn = noise.draw("start", (4, 4, 4), clean)
    torch.testing.assert_close(start, schedule.level(first).noise * drawn)


def test_d4m_is_img2img_of_the_public_library(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> None:
    """The same start and steps as diffusers' DDIM scheduler gives on the prior's levels."""
    from diffusers import DDIMScheduler

    prototypes = prototypes_of(tiny_prior)
    scheduler = DDIMScheduler(
        beta_schedule="linear", clip_sample=False, prediction_type="v_prediction", set_alpha_to_one=True
    )
    scheduler.set_timesteps(5)
    steps = scheduler.timesteps[5 - 3 :]
    noise = KeyedNoise(1, image_keys(3, 2)).draw("start", tiny_prior.latent_shape, prototypes)
    state = scheduler.add_noise(prototypes.flatten(0, 1), noise, steps[:1].repeat(6))
    table = tiny_prior.class_table(data.classes).repeat_interleave(2, 0)
    schedule = tiny_prior.schedule("ddim5")
    for k, step in zip((2, 1, 0), steps, strict=True):
        level = schedule.level(k)
        assert int(step) == int(level.timestep)
        said = tiny_prior.denoise(state, level, table, 8.0)
        velocity = level.signal * said.noise - level.noise * said.clean
        state = scheduler.step(velocity, int(step), state).prev_sample
    wanted = tiny_prior.decode(state).clamp(-1, 1)
    found = made("d4m", data, tiny_prior, prototypes, tmp_path, strength=0.7, respacing="ddim5")
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)


def test_images_depend_on_their_own_class_and_number_only(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> None:
    prototypes = prototypes_of(tiny_prior, ipc=3)
    three = made("d4m", data, tiny_prior, prototypes, tmp_path, ipc=3)
    two = made("d4m", data, tiny_prior, prototypes[:, :2], tmp_path, ipc=2, batch=4)
    torch.testing.assert_close(two, three.reshape(3, 3, 3, 16, 16)[:, :2].flatten(0, 1), atol=1e-4, rtol=1e-4)
    # One seed for every image would make equal prototypes equal images.
    same = prototypes[:, :1].expand(-1, 2, -1, -1, -1).contiguous()
    pair = made("d4m", data, tiny_prior, same, tmp_path)
    assert (pair[0] - pair[1]).abs().max() > 1e-3


def test_conditions_of_classes_are_not_repeated_for_their_images(data: Prepared, tiny_prior: Prior) -> None:
    table, asked = torch.tensor([2, 0, 1]), list[list[int]]()

    def sample(rows: Sequence[int], condition: Tensor, noise: KeyedNoise) -> Tensor:
        asked.append(condition.tolist())
        return torch.zeros(len(rows), *tiny_prior.latent_shape)

    for conditions in (table, table.repeat_interleave(2)):
        make_images(data, 2, tiny_prior, D4MConfig(batch=4), sample, conditions=conditions)
    assert asked == [[2, 2, 0, 0], [1, 1, 1, 1]] * 2


def test_classes_of_the_same_name_are_asked_for_by_their_meaning() -> None:
    """The two cranes, which the released file of prompts swaps: a bird and a machine."""
    bird, machine, tench = class_texts(["n02012849", "n03126707", "n01440764"])
    assert "wading bird" in bird and "lifts" in machine and tench == "tench, Tinca tinca"
    assert class_texts(["n03126707"]) == ["crane"] and class_texts(["cat", "dog"]) == ["cat", "dog"]


def test_d4m_asks_stable_diffusion_in_words_and_leads_away_from_its_negative_prompt(
    data: Prepared,
    stable_diffusion: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    embed = StableDiffusionPrior._embed

    def heard(self: StableDiffusionPrior, prompts: list[str], owners: list[str]) -> Tensor:
        asked.extend(prompts)
        return embed(self, prompts, owners)

    monkeypatch.setattr(StableDiffusionPrior, "_embed", heard)
    prior = load_prior(stable_diffusion, device="cpu")
    cranes = Prepared(**{**vars(data), "classes": ("n02012849", "n03126707", "cat")})
    prototypes = torch.randn(3, 1, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    images = [
        made("d4m", cranes, prior, prototypes, tmp_path, ipc=1, negative_prompt=text) for text in ("", "cartoon, anime")
    ]
    assert asked[2].startswith("cat") and "wading bird" in asked[0] and "heavy objects" in asked[1]
    assert "cartoon, anime" in asked and not torch.equal(*images)
    # One that the prior was given is not lost.
    own = load_prior(stable_diffusion, PriorOptions(negative_prompt="bad"), "cpu")
    made("d4m", cranes, own, prototypes, tmp_path, ipc=1)
    assert asked[-1] == "bad"
    # But what is asked of the system itself is not passed over.
    made("d4m", cranes, own, prototypes, tmp_path, ipc=1, negative_prompt="anime")
    assert asked[-1] == "anime"
    made("d4m", cranes, prior, prototypes, tmp_path, ipc=1)
    assert asked[-1] == "cartoon, anime, painting"


# MGD3.


def test_mgd3_pulls_towards_its_mode_until_it_stops(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> None:
    modes = prototypes_of(tiny_prior)
    settings: dict[str, Any] = {"respacing": "10", "stop": 4, "sampler": "ddim", "eta": 0.0}

    def distance(**changed: Any) -> float:
        images = made("mgd3", data, tiny_prior, modes, tmp_path, **{**settings, **changed})
        latent = tiny_prior.encode(images, None)
        target = tiny_prior.encode(tiny_prior.decode(modes.flatten(0, 1)).clamp(-1, 1), None)
        return float((latent - target).square().mean())

    free, pulled, longer = distance(scale=0.0), distance(scale=0.5), distance(scale=0.5, stop=0)
    assert longer < pulled < free


def test_without_the_pull_modes_do_not_matter(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> None:
    first, second = prototypes_of(tiny_prior, 3), prototypes_of(tiny_prior, 4)
    off = [made("mgd3", data, tiny_prior, one, tmp_path, scale=0, stop=2) for one in (first, second)]
    on = [made("mgd3", data, tiny_prior, one, tmp_path, scale=0.1, stop=2) for one in (first, second)]
    assert torch.equal(*off) and not torch.equal(*on)


def test_mgd3_is_the_stage2_preset_with_the_mode_as_the_image(
    data: Prepared, tiny_prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chain serves both: the anchor is a mode here and the latent of a set's image there."""
    modes = prototypes_of(tiny_prior)
    settings = PRESETS["mgd3"].settings
    config = DIVERConfig(**{**settings, "sg_sigma": "posterior", "vae_sample": False})
    monkeypatch.setattr("diver.recover.diver.encode", lambda images, *rest: modes.flatten(0, 1))
    noise = KeyedNoise(1, image_keys(3, 2))
    condition = tiny_prior.class_table(data.classes).repeat_interleave(2, 0)
    latent = Chain.of(tiny_prior, config).run(torch.zeros(6, 3, 16, 16), condition, noise)
    wanted = tiny_prior.decode(latent).clamp(-1, 1)
    found = made("mgd3", data, tiny_prior, modes, tmp_path, respacing="50", cfg_channels=3)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_mgd3_refuses_what_the_prior_cannot_do(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> None:
    modes = prototypes_of(tiny_prior)
    with pytest.raises(ValueError, match="sigma 'learned': .* predicts no variance"):
        made("mgd3", data, tiny_prior, modes, tmp_path, stop=1, sigma="learned")
    with pytest.raises(ValueError, match="stop = 25: with respacing '5' it must lie below 4"):
        made("mgd3", data, tiny_prior, modes, tmp_path)


# The set and the study.


def test_set_says_how_it_was_made(data: Prepared, tiny_prior: Prior, tmp_path: Path) -> None:
    path = tmp_path / "prototypes.safetensors"
    write_prototypes(path, prototypes_of(tiny_prior), {"latents": 24, "left_out": 0})
    config = D4MConfig(respacing="5")
    one = SYSTEMS["d4m"](data, 2, tiny_prior, config, artefacts={"prototypes": path}, code="abc")
    assert one.value_range.kind == "symmetric" and one.hard_labels().tolist() == [0, 0, 1, 1, 2, 2]
    assert one.images.abs().max() <= 1
    step = one.steps[0]
    assert (step.method, step.code, step.parameters["strength"]) == ("d4m", "abc", 0.7)
    assert step.parameters["prototypes"] == {"latents": 24, "left_out": 0}
    assert json.dumps(step.parameters)


def test_every_system_has_settings_preparations_and_a_function() -> None:
    assert SETTINGS.keys() == PREPARATIONS.keys() == PUBLISHED.keys() == SYSTEMS.keys()
    for system, model in SETTINGS.items():
        model(**PUBLISHED[system])


def test_published_settings_are_the_defaults() -> None:
    d4m = D4MConfig(**PUBLISHED["d4m"])
    assert (d4m.strength, d4m.cfg_scale, d4m.respacing, d4m.km_expand, d4m.drop_leftover) == (0.7, 8, "50", 1, False)
    mgd3 = MGD3Config(**PUBLISHED["mgd3"])
    assert (mgd3.scale, mgd3.stop, mgd3.cfg_scale, mgd3.sampler, mgd3.cfg_channels) == (0.1, 25, 4, "ddpm", 3)


def study(**changed: Any) -> dict[str, Any]:
    return {
        "name": "one",
        "datasets": ["cifar10"],
        "ipc": [1, 2],
        "prior": {"source": "shipped"},
        "distill": {"random": {"label": "Random", "method": "random"}, "mine": {"label": "D4M", "method": "d4m"}},
        "students": {
            "protocol": {"epochs": 2, "batch": 10},
            "seeds": [0],
            "architectures": {"net": {"network": "convnet", "label": "Net"}},
        },
        **changed,
    }


def test_study_names_its_systems_and_where_their_preparations_lie() -> None:
    loaded = parse_study(study(), "test")
    assert native_entries(loaded) == ["mine"]
    cell = SetCell("cifar10", 2, "mine")
    paths = {name: str(path) for name, path in artefact_paths(loaded, cell).items()}
    assert paths == {
        "latents": "results/one/native/cifar10/latents-sample.npy",
        "prototypes": "results/one/native/cifar10/ipc2/mine/prototypes.safetensors",
    }
    time = benchmark_path(loaded, PREPARATIONS["d4m"][1], cell)
    assert str(time) == "results/one/benchmarks/native/cifar10/ipc2/mine/prototypes.tsv"


def test_wrong_settings_of_a_system_are_named() -> None:
    for settings, message in (({"strenght": 0.5}, "did you mean 'strength'"), ({"strength": 1.5}, "strength")):
        distill = {"mine": {"label": "D4M", "method": "d4m", "settings": settings}}
        with pytest.raises(ConfigError, match=message):
            parse_study(study(distill=distill), "test")
    with pytest.raises(ConfigError, match="did you mean 'mgd3'"):
        parse_study(study(distill={"mine": {"label": "x", "method": "mgd4"}}), "test")


# The table.


def students(values: Sequence[tuple[str, str, int, float]]) -> pd.DataFrame:
    """A tidy table: (stage 1, stage 2, seed, accuracy) at CIFAR-10, IPC 1, one proxy and one unseen architecture."""
    rows = []
    for stage1, stage2, seed, accuracy in values:
        for architecture, role, shift in (("net", "unseen", 0.0), ("own", "proxy", 5.0)):
            rows.append(
                {
                    **{"dataset": "cifar10", "ipc": 1, "stage1": stage1, "stage2": stage2, "scale": "matched"},
                    **{"architecture": architecture, "role": role, "seed": seed, "diverged": False},
                    **{"accuracy_last": accuracy + shift, "accuracy_best": accuracy + shift + 1, "protocol": "p"},
                    **{"quirks": "", "reported": "last", "departures": ""},
                }
            )
    return pd.DataFrame(rows)


def test_table_of_systems_has_differences_costs_and_published_numbers(tmp_path: Path) -> None:
    values = [(a, b, seed, base + seed) for a, b, base in
              (("random", "none", 20), ("d4m", "none", 24), ("d4m", "diver", 23)) for seed in (0, 1, 2)]  # fmt: skip
    for name, seconds in (("making", 20.0), ("own", 30.0)):
        (tmp_path / f"{name}.tsv").write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:20\t1\n")
    cost = Cost(time_of([tmp_path / "making.tsv"]), time_of([tmp_path / "own.tsv"]), time_of([tmp_path / "no.tsv"]))
    published = pd.DataFrame(
        [
            {"method": "D4M", "variant": "soft", "dataset": "CIFAR-10", "ipc": "1", "architecture": "R18", "mean": 30.0,
             "std": 0.5, "source": "a paper", "metric": ACCURACY},
            {"method": "D4M", "variant": "soft", "dataset": "CIFAR-10", "ipc": "1", "architecture": "R18", "mean": 2.5,
             "std": np.nan, "source": "a paper", "metric": "seconds per image"},
            {"method": "D4M", "variant": "soft", "dataset": "ImageNet-1K", "ipc": "full", "architecture": "R18",
             "mean": 27.9, "std": np.nan, "source": "a paper", "metric": ACCURACY},
        ]
    )  # fmt: skip
    labels = Labels(
        stage1={"random": "Random", "d4m": "D4M"}, stage2={"diver": "DIVER"}, dataset={"cifar10": "CIFAR-10"}
    )
    arguments: dict[str, Any] = {
        "methods": {"random": "random", "d4m": "d4m"},
        "natives": ["d4m"],
        "costs": {SetCell("cifar10", 1, "d4m"): cost},
        "classes": {"cifar10": 10},
    }
    table = systems(students(values), labels, published=published, **arguments)
    rows = table.data.set_index(["stage1", "stage2"])
    assert rows.loc[("d4m", "none"), "difference_unseen_mean"] == pytest.approx(4)
    assert rows.loc[("d4m", "diver"), "difference_unseen_mean"] == pytest.approx(-1)
    assert rows.loc[("d4m", "none"), "seconds_per_image"] == pytest.approx(2)
    assert rows.loc[("d4m", "none"), "preparation_per_class"] == pytest.approx(3)
    assert np.isnan(rows.loc[("d4m", "none"), "shared_per_class"])
    assert rows.loc[("d4m", "none"), "unseen_best_peeking_at_test_mean"] == pytest.approx(26)
    shown = table.display.set_index(["Set", "Stage 2"])
    assert shown.loc[("D4M", ""), "unseen mean"].endswith(" (26.0)")
    diverged = systems(students(values).assign(diverged=True), labels, **arguments)
    assert "(26.0) †3" in diverged.display.to_string() and any("18 in all" in line for line in diverged.legend)
    assert shown.loc[("D4M", ""), "published"] == "30.0 ± 0.5 (R18, soft)"
    assert shown.loc[("D4M", ""), "s per image"] == "2.00"
    assert shown.loc[("D4M", ""), "shared preparation, s per class"] == "n/a"
    assert shown.loc[("D4M", "DIVER"), "published"] == "" and shown.loc[("Random", ""), "published"] == ""
    for rows_of, text in ((published[2:], NO_DATASET), (published.assign(ipc="10"), NO_IPC)):
        other = systems(students(values), labels, published=rows_of, **arguments)
        assert other.display.set_index(["Set", "Stage 2"]).loc[("D4M", ""), "published"] == text
    sized = systems(students(values), replace(labels, dataset={"cifar10": "CIFAR-10, 32"}), published=published,
                    datasets={"cifar10": "CIFAR-10"}, **arguments)  # fmt: skip
    assert "30.0 ± 0.5 (R18, soft)" in sized.display["published"].tolist()


def test_table_of_systems_has_the_ceiling_too() -> None:
    values = [(stage1, "none", seed, 20.0 + seed) for stage1 in ("random", "d4m", "full") for seed in (0, 1)]
    methods = {"random": "random", "d4m": "d4m"}
    table = systems(students(values), Labels(), methods, ["d4m"], {}, {"cifar10": 10})
    assert table.data["stage1"].tolist() == ["d4m", "full", "random"]


def test_times_of_missing_or_foreign_benchmarks_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "odd.tsv").write_text("nothing\nhere\n")
    (tmp_path / "two.tsv").write_text("s\tmax_rss\n1.0\t2.0\n3.0\t4.0\n")
    assert np.isnan(time_of([tmp_path / "odd.tsv"])) and time_of([]) == 0
    assert time_of([tmp_path / "two.tsv", tmp_path / "two.tsv"]) == 4
    assert np.isnan(time_of([tmp_path / "two.tsv", tmp_path / "absent.tsv"]))


def test_chain_of_no_steps_is_its_start(tiny_prior: Prior) -> None:
    start = torch.randn(1, *tiny_prior.latent_shape)
    assert run_chain(start, tiny_prior.schedule("5"), lambda *_: None, -1, KeyedNoise(1, [0])) is start  # type: ignore[arg-type,return-value]
