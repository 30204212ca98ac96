"""EDITS and VLCP: clusters to prototypes in words and pictures, and these to images."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_stable_diffusion import root as stable_diffusion  # noqa: F401 (a fixture)

from diver.config.native.base import LatentsConfig
from diver.config.native.edits import EDITSConfig, VLCPConfig
from diver.config.prior import PriorOptions
from diver.config.study import load_study
from diver.config.text import SENTENCES, MergeConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.prior.load import load_prior
from diver.recover.edits import image_prototypes, synthesise_edits, synthesise_vlcp, text_conditions
from diver.recover.latents import Latents, encode_latents, symmetric
from diver.recover.texts import TextPrototype, captions_by_place, edits_texts, read_texts, vlcp_texts, write_texts
from diver.study import SetCell, artefact_paths
from diver.text.captions import image_names, write_captions
from diver.text.merge import names_class
from diver.text.prepare import Embedded
from diver.text.resources import TextError
from diver.text.tokens import Counter

ROOT = Path(__file__).parents[1]
IPC = 2


@pytest.fixture(scope="module")
def data() -> Prepared:
    """Three classes of eight images 3x16x16, half of each dark."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[::2] //= 4
    labels = torch.arange(24) // 8
    return Prepared(images, labels, images[:3], labels[::8], "tiny", ("cat", "dog", "owl"), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def captions(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions of all images but the first of each class."""
    path = tmp_path_factory.mktemp("captions") / "captions.jsonl"
    names = image_names(data.train_labels, data.classes)
    said = {
        name: f"a {name.split('/')[0]} in the {'dark wood' if i % 2 == 0 else 'bright snow'}, number {i}"
        for i, name in enumerate(names)
        if i % 8
    }
    write_captions(path, said)
    return path


@pytest.fixture(scope="module")
def embedded(data: Prepared, captions: Path) -> Embedded:
    """Features that say whether an image, and its caption, is dark."""
    by_place = captions_by_place(captions, image_names(data.train_labels, data.classes))
    positions = torch.tensor(sorted(by_place))
    generator = torch.Generator().manual_seed(1)
    images, texts = (torch.eye(4)[positions % 2] + 0.01 * torch.randn(21, 4, generator=generator) for _ in range(2))
    return Embedded(positions, images, texts, tuple(by_place[p] for p in positions.tolist()), {})


def test_prototypes_are_of_one_cluster_and_its_captions(data: Prepared, tiny_prior: Prior, embedded: Embedded) -> None:
    found = edits_texts(embedded, data, IPC, tiny_prior, EDITSConfig(k_image=3, k_text=3))
    count = Counter.of(SENTENCES)
    assert [(one.label, one.number) for one in found] == [(c, i) for c in range(3) for i in range(IPC)]
    for one in found:
        assert all(data.train_labels[list(one.images)] == one.label) and len(one.images) == 3
        assert len({place % 2 for place in one.images}) == 1 and one.captioned == one.images
        assert names_class(one.text, data.classes[one.label]) and count(one.text) <= 77
        assert ("dark wood" if one.images[0] % 2 == 0 else "bright snow") in one.text
    one, two = found[0], found[1]
    assert set(one.images).isdisjoint(two.images) and 0 not in one.images + two.images


@pytest.mark.parametrize(
    ("settings", "by", "text", "captioned"),
    [
        ({"text": "class_name"}, "class name", r"^cat$", 1),
        ({"text": "best_caption"}, "nearest caption", r"^a cat in the (dark wood|bright snow), number \d$", 1),
        ({"k_text": 4}, "extractive", r"^a picture of a cat, .*(dark wood|bright snow)", (3, 4)),
    ],
)
def test_text_is_chosen_by_a_setting(
    data: Prepared, tiny_prior: Prior, embedded: Embedded, settings: dict[str, Any], by: str, text: str, captioned: Any
) -> None:
    for one in edits_texts(embedded, data, IPC, tiny_prior, EDITSConfig(**settings))[:IPC]:
        assert one.by == by and re.search(text, one.text)
        assert len(one.captioned) in (captioned if isinstance(captioned, tuple) else (captioned,))


def test_too_few_captions_name_the_class(data: Prepared, tiny_prior: Prior, embedded: Embedded) -> None:
    with pytest.raises(TextError, match="class cat: 7 of 7 captioned images are left for 8 clusters; caption more"):
        edits_texts(embedded, data, 8, tiny_prior, EDITSConfig())


def test_image_prototype_is_the_mean_of_its_latents(data: Prepared, tiny_prior: Prior) -> None:
    found = [TextPrototype(0, 0, "", "", "", (1, 3, 4, 6, 7), ()), TextPrototype(0, 1, "", "", "", (3,), ())]
    means = image_prototypes(found, data, tiny_prior, EDITSConfig(batch=2))
    latents = tiny_prior.encode(symmetric(data.train_images[[1, 3, 4, 6, 7]], 16), None)
    assert torch.allclose(means[0], latents.mean(0), atol=1e-5)
    assert torch.allclose(means[1], latents[1], atol=1e-5)
    assert not torch.allclose(
        means, image_prototypes(found, data, tiny_prior, EDITSConfig(latents="sample")), atol=1e-3
    )


def test_vlcp_takes_centres_and_a_caption_of_the_cluster(
    data: Prepared, tiny_prior: Prior, captions: Path, tmp_path: Path
) -> None:
    encode_latents(data, tiny_prior, LatentsConfig(dtype="float32"), "sample", tmp_path / "latents.npy")
    latents = Latents.open(tmp_path / "latents.npy", data, tiny_prior)
    by_place = captions_by_place(captions, image_names(data.train_labels, data.classes))
    config = VLCPConfig(contamination=0)
    found = vlcp_texts(latents, by_place, data, IPC, tiny_prior, config)
    for c in range(3):
        one, two = found[IPC * c : IPC * c + 2]
        assert sorted(one.images + two.images) == [p for p in by_place if p // 8 == c]
        for each in (one, two):
            assert each.captioned[0] in each.images and by_place[each.captioned[0]] == each.text
    # The mean of a cluster's members is the centre of k-means.
    from sklearn.cluster import KMeans

    kept = latents.of(0)[1:].flatten(1)
    centres = KMeans(IPC, n_init=10, random_state=config.seed).fit(kept.double().numpy()).cluster_centers_
    means = image_prototypes(found[:IPC], data, tiny_prior, config).flatten(1)
    assert torch.allclose(means, torch.from_numpy(centres).float(), atol=1e-4)
    named = vlcp_texts(latents, by_place, data, IPC, tiny_prior, VLCPConfig(contamination=0, text="class_name"))
    assert [one.text for one in named] == ["cat", "cat", "dog", "dog", "owl", "owl"]


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_set_is_made_of_prototypes(
    data: Prepared, tiny_prior: Prior, embedded: Embedded, tmp_path: Path, strength: float
) -> None:
    config = EDITSConfig(respacing="ddim4", strength=strength, cfg_scale=2, batch=4)
    found = edits_texts(embedded, data, IPC, tiny_prior, config)
    write_texts(tmp_path / "texts.jsonl", found)
    assert read_texts(tmp_path / "texts.jsonl", data, IPC) == found
    made = synthesise_edits(data, IPC, tiny_prior, config, artefacts={"texts": tmp_path / "texts.jsonl"}, code="c")
    again = synthesise_edits(
        data, IPC, tiny_prior, config.model_copy(update={"batch": 3}), artefacts={"texts": tmp_path / "texts.jsonl"}
    )
    assert torch.allclose(made.images, again.images, atol=1e-4)
    decoded = tiny_prior.decode(image_prototypes(found, data, tiny_prior, config)).clamp(-1, 1)
    assert torch.allclose(made.images, decoded, atol=1e-4) == (strength == 0)
    step = made.steps[0]
    assert (step.method, step.code, step.parameters["condition"]) == ("edits", "c", "class")
    assert step.parameters["texts"] == [one.text for one in found] and step.parameters["texts_replaced"] == 0
    other = synthesise_vlcp(
        data, IPC, tiny_prior, VLCPConfig(strength=0), artefacts={"texts": tmp_path / "texts.jsonl"}
    )
    assert other.steps[0].method == "vlcp"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "5 prototypes, not 2 of each of 3 classes"),
        (lambda rows: [{**rows[0], "images": [24]}, *rows[1:]], r"prototype 0 of class 0 has images outside 0..23"),
        (lambda rows: [{**rows[0], "images": []}, *rows[1:]], "has images outside"),
        (lambda rows: [{"text": "alone"}], "not a file of text prototypes"),
    ],
)
def test_texts_at_fault_are_refused(
    data: Prepared, tiny_prior: Prior, embedded: Embedded, tmp_path: Path, change: Any, said: str
) -> None:
    path = tmp_path / "texts.jsonl"
    write_texts(path, edits_texts(embedded, data, IPC, tiny_prior, EDITSConfig(text="class_name")))
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(TextError, match=said):
        read_texts(path, data, IPC)


def test_a_class_prior_cannot_read(tiny_prior: Prior) -> None:
    assert text_conditions([TextPrototype(0, 0, "a cat", "", "", (0,), ())], tiny_prior) is None


def test_stable_diffusion_reads_the_texts(
    data: Prepared,
    embedded: Embedded,
    stable_diffusion: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The text is the prompt as it stands, counted by the prior's own tokenizer; the negative prompt is what the
    settings say, else the prior's, and without either D4M's."""
    options = PriorOptions(prompt="wrapped {} in", negative_prompt="bad")
    prior, plain = (load_prior(stable_diffusion, one, "cpu") for one in (options, PriorOptions()))
    config = EDITSConfig(respacing="ddim4", text="best_caption", merge=MergeConfig(max_tokens=16))
    found = edits_texts(embedded, data, IPC, prior, config)
    # Each letter is a token there, and the text encoder takes 16.
    assert all(len(one.text) > 0 and len(prior.tokenizer(one.text).input_ids) <= 16 for one in found)
    conditions = text_conditions(found, prior)
    assert conditions is not None and torch.allclose(conditions, plain.class_table([one.text for one in found]))
    sets = []
    for name, texts in (("own", found), ("other", [replace(one, text="fed owl") for one in found])):
        write_texts(tmp_path / f"{name}.jsonl", texts)
        artefacts = {"texts": tmp_path / f"{name}.jsonl"}
        sets.append(synthesise_edits(data, IPC, prior, config, artefacts=artefacts))
    assert sets[0].steps[0].parameters["condition"] == "text"
    assert not torch.allclose(sets[0].images, sets[1].images, atol=1e-3)
    artefacts, released = {"texts": tmp_path / "own.jsonl"}, "cartoon, anime, painting"
    for asked, text, said in (
        *((plain, "bad", "bad"), (prior, "", ""), (plain, None, released), (plain, released, released)),
        (prior, None, "bad"),
    ):
        sets.append(
            synthesise_edits(data, IPC, asked, config.model_copy(update={"negative_prompt": text}), artefacts=artefacts)
        )
        assert sets[-1].steps[0].parameters["negative_prompt"] == said
    assert torch.equal(sets[0].images, sets[2].images) and torch.equal(sets[0].images, sets[6].images)
    assert torch.equal(sets[4].images, sets[5].images)
    for other in (sets[3], sets[4]):
        assert not torch.allclose(sets[2].images, other.images, atol=1e-3)


def test_the_ablation_grid_is_a_study() -> None:
    study = load_study(ROOT / "config/edits-ablation.yaml")
    entries = {name: entry.at("cifar10", 10) for name, entry in study.distill.items() if entry.method == "edits"}
    grid = {(found["features"], found["k_image"], found["text"]) for found in entries.values()}
    assert len(entries) == 18 and grid == {
        (features, k, text)
        for features in ("image", "concat", "gsq")
        for k in (1, 5)
        for text in ("class_name", "best_caption", "merged")
    }
    name = next(iter(entries))
    paths = artefact_paths(study, SetCell(study.datasets[0], study.ipc[0], name))
    assert list(paths) == ["captions", "features", "texts"]


def test_packages_of_weights_are_those_of_the_lock() -> None:
    pinned = re.findall(r"([\w-]+)==([\w.]+)", (ROOT / "envs/text.post-deploy.sh").read_text())
    lock = (ROOT / "requirements.lock").read_text()
    assert len(pinned) == 3
    for name, version in pinned:
        assert re.search(rf"^{name}=={re.escape(version)} ", lock, re.MULTILINE), name
