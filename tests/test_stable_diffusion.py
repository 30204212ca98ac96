"""Stable Diffusion as a prior: what it computes is what diffusers' own pipelines compute."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diver.config.prior import PriorOptions, VAETraining
from diver.config.recover import DIVERConfig, PReDDConfig
from diver.prior.base import PriorError
from diver.prior.classes import describe
from diver.prior.load import load_prior
from diver.prior.schedule import Level
from diver.prior.stable_diffusion import StableDiffusionPrior
from diver.prior.train import build_vae
from diver.recover.run import recover
from diver.sets import UNIT, DistilledSet

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH, WIDTH = 16, 16
LETTERS = "abcdefghijklmnopqrstuvwxyz,_"
PROMPTS = PriorOptions(prompt="a {} on", negative_prompt="bad")


def tiny_tokenizer(path: Path) -> CLIPTokenizer:
    """Every letter is a token, inside a word and at its end, and so is the word cat."""
    words = [START, END, *LETTERS, *(letter + "</w>" for letter in LETTERS), "ca", "cat</w>"]
    ends = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **ends})
    )
    return CLIPTokenizer.from_pretrained(str(path))


def tiny_text_encoder(words: int, width: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in Stable Diffusion 1.5's layout and noise schedule; latents 4x8x8, images 3x16x16."""
    folder = tmp_path_factory.mktemp("stable-diffusion")
    tokenizer = tiny_tokenizer(folder / "handmade")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    StableDiffusionPipeline(
        vae=build_vae(VAETraining(widths=[8, 8], latent_channels=4), 3),
        text_encoder=tiny_text_encoder(len(tokenizer), WIDTH),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "prior")
    # The released files are older than what transformers writes now: names of tensors, and a tokenizer of two lists.
    shutil.rmtree(folder / "prior/tokenizer")
    shutil.copytree(folder / "handmade", folder / "prior/tokenizer")
    weights = folder / "prior/text_encoder/model.safetensors"
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(weights).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder / "prior"


def load(path: Path, options: PriorOptions = PROMPTS) -> StableDiffusionPrior:
    prior = load_prior(path, options, "cpu")
    assert isinstance(prior, StableDiffusionPrior)
    return prior


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_directory_of_stable_diffusion_is_recognised_and_frozen(root: Path) -> None:
    prior = load(root)
    assert (prior.latent_shape, prior.image_size, prior.image_channels) == ((4, 8, 8), 16, 3)
    assert not prior.learns_variance
    for part in (prior.network, prior.text_encoder, prior.vae):
        assert not part.training and not any(p.requires_grad for p in part.parameters())


def test_noise_levels_are_those_of_the_release(root: Path) -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    schedule = load(root).schedule("ddim50")
    assert len(schedule) == 50 and schedule.level(49).timestep == 980
    for k in (0, 20, 49):
        expected = float((1 - betas).cumprod(0)[20 * k])
        assert schedule.alpha(k) == pytest.approx(expected, rel=1e-4)


def test_classes_are_asked_for_in_words(root: Path) -> None:
    prior = load(root)
    table = prior.class_table(["cat", "big_dog", "n01440764"])
    assert table.shape == (3, LENGTH, WIDTH) and table.dtype == torch.float32
    assert not torch.allclose(table[0], table[1], atol=1e-2)
    plain = load(root, PriorOptions())
    names = ["a cat on", "a big dog on", f"a {describe('n01440764')} on"]
    assert torch.allclose(table, plain.class_table(names), atol=1e-6)
    assert not torch.allclose(plain.class_table(["cat"]), table[:1], atol=1e-2)


def test_null_is_the_negative_prompt_embedded_once(root: Path) -> None:
    prior = load(root)
    assert prior.null.shape == (1, LENGTH, WIDTH) and prior.null is prior.null
    assert torch.allclose(prior.null, load(root, PriorOptions()).class_table(["bad"]), atol=1e-6)
    assert not torch.allclose(prior.null, load(root, PriorOptions()).null, atol=1e-2)


def test_a_prompt_that_is_cut_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior = load(root, PriorOptions())
    # Fourteen letters fit between the two ends.
    table = prior.class_table(["cat", "abcdefghijklmno", "abcdefghijklmnz"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "class abcdefghijklmno is cut after 16 of 17 tokens" in said[0]
    assert torch.equal(table[1], table[2])


def test_guided_estimate_equals_the_parts_computation(root: Path) -> None:
    prior = load(root)
    level, z, classes = prior.schedule("50").level(30), normal(2, 4, 8, 8), ["cat", "dog"]
    pipeline = StableDiffusionPipeline.from_pretrained(root)

    def states(prompts: list[str]) -> Tensor:
        ids = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return pipeline.text_encoder(ids)[0]

    with torch.no_grad():
        both = torch.cat([states([f"a {name} on" for name in classes]), states(["bad", "bad"])])
        at = torch.full((4,), int(level.timestep))
        conditional, unconditional = pipeline.unet(torch.cat([z, z]), at, encoder_hidden_states=both).sample.chunk(2)
    assert (conditional - unconditional).abs().max() > 1e-3
    got = prior.denoise(z, level, prior.class_table(classes), 7.5)
    expected = unconditional + 7.5 * (conditional - unconditional)
    assert torch.allclose(got.noise, expected, rtol=0, atol=1e-6)
    assert torch.allclose(level.signal * got.clean + level.noise * got.noise, z, atol=1e-5)
    assert got.log_variance is None


def test_a_scale_of_one_takes_one_pass(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = load(root)
    sizes, forward = [], prior.network.forward

    def counted(latents: Tensor, *args: Any, **settings: Any) -> Any:
        sizes.append(len(latents))
        return forward(latents, *args, **settings)

    monkeypatch.setattr(prior.network, "forward", counted)
    level, z, table = prior.schedule("50").level(30), normal(2, 4, 8, 8), prior.class_table(["cat", "dog"])
    plain = prior.denoise(z, level, table, 1.0).noise
    assert torch.allclose(prior.denoise(z, level, table, 1 + 1e-9).noise, plain, atol=1e-5)
    assert sizes == [2, 4]


def test_velocities_become_noise(root: Path) -> None:
    prior = load(root)
    velocity = dataclasses.replace(prior, prediction_type="v_prediction")
    level, z, table = Level(300, 0.8, 0.6), normal(1, 4, 8, 8), prior.class_table(["cat"])
    output = prior.denoise(z, level, table, 1.0).noise
    got = velocity.denoise(z, level, table, 1.0)
    assert torch.allclose(got.noise, 0.8 * output + 0.6 * z, atol=1e-6)
    assert torch.allclose(got.clean, 0.8 * z - 0.6 * output, atol=1e-5)


def test_half_precision_keeps_states_and_table_in_float32(root: Path) -> None:
    prior = load(root, PROMPTS.model_copy(update={"precision": "bf16"}))
    level, z, table = prior.schedule("50").level(30), normal(2, 4, 8, 8), prior.class_table(["cat", "dog"])
    assert prior.dtype == torch.bfloat16 and table.dtype == torch.float32
    got = prior.denoise(z, level, table, 2.0).noise
    exact = load(root).denoise(z, level, table, 2.0).noise
    assert got.dtype == torch.float32 and torch.allclose(got, exact, atol=0.1)


def test_a_chain_from_an_image_equals_the_img2img_pipeline(root: Path) -> None:
    prior = load(root)
    pipeline = StableDiffusionImg2ImgPipeline(
        **StableDiffusionPipeline.from_pretrained(root).components, requires_safety_checker=False
    )
    # The pipeline's constructor would move the timesteps by one.
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, steps_offset=0, set_alpha_to_one=True, clip_sample=False
    )
    pipeline.set_progress_bar_config(disable=True)
    clean = prior.encode(normal(2, 3, 16, 16).clamp(-1, 1), None)
    expected = pipeline(
        prompt=["a cat on", "a dog on"],
        negative_prompt=["bad", "bad"],
        image=clean,
        strength=0.4,
        num_inference_steps=50,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    schedule, table, first = prior.schedule("ddim50"), prior.class_table(["cat", "dog"]), 19
    level = schedule.level(first)
    z = level.signal * clean + level.noise * normal(*clean.shape, seed=3)
    for k in range(first, -1, -1):
        estimate, below = prior.denoise(z, schedule.level(k), table, 5.0), schedule.level(k - 1)
        z = below.signal * estimate.clean + below.noise * estimate.noise
    assert (z - clean).abs().max() > 0.1
    assert torch.allclose(z, expected, rtol=0, atol=1e-4)


def test_class_numbers_are_refused(root: Path) -> None:
    with pytest.raises(PriorError, match="class_ids"):
        load(root).class_table(["cat"], [3])


@pytest.mark.parametrize("prompt", ["a {name}", "a {", "{} and {}", "{.x}"])
def test_a_prompt_that_cannot_be_filled_in_is_named(root: Path, prompt: str) -> None:
    with pytest.raises(PriorError, match="prompt"):
        load(root, PriorOptions(prompt=prompt)).class_table(["cat"])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})


def smaller(path: Path) -> None:
    words = json.loads((path / "vocab.json").read_text())
    (path / "vocab.json").write_text(json.dumps({word: i for word, i in words.items() if "ca" not in word}))
    (path / "merges.txt").write_text("#version: 0.2\n")


@pytest.mark.parametrize(
    ("part", "damage", "said"),
    [
        ("unet", shutil.rmtree, "unet: cannot be loaded"),
        ("text_encoder", shutil.rmtree, "text_encoder: cannot be loaded"),
        ("tokenizer", shutil.rmtree, "tokenizer: cannot be loaded"),
        ("scheduler", shutil.rmtree, "scheduler: cannot be loaded"),
        ("unet/diffusion_pytorch_model.safetensors", half, "unet: cannot be loaded"),
        ("unet/diffusion_pytorch_model.safetensors", without_a_tensor, "unet: .*no tensor"),
        ("text_encoder/model.safetensors", half, "text_encoder: cannot be loaded"),
        ("text_encoder/model.safetensors", without_a_tensor, "text_encoder: .*no tensor"),
        ("tokenizer/vocab.json", half, "tokenizer: cannot be loaded"),
        ("tokenizer/merges.txt", Path.unlink, "tokenizer: cannot be loaded"),
        ("tokenizer", smaller, "vocabulary: tokenizer has 58, text_encoder 60"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    root: Path, tmp_path: Path, part: str, damage: Callable[[Path], None], said: str
) -> None:
    shutil.copytree(root, tmp_path / "prior")
    damage(tmp_path / "prior" / part)
    with pytest.raises(PriorError, match=said):
        load(tmp_path / "prior")


def test_parts_of_different_models_are_refused(root: Path, tmp_path: Path) -> None:
    build_vae(VAETraining(widths=[8, 8], latent_channels=6), 3).save_pretrained(tmp_path / "other")
    with pytest.raises(PriorError, match="latent channels: unet has 4, autoencoder 6"):
        load(root, PriorOptions(autoencoder=str(tmp_path / "other")))
    shutil.copytree(root, tmp_path / "prior")
    tiny_text_encoder(60, 8).save_pretrained(tmp_path / "prior/text_encoder")
    with pytest.raises(PriorError, match="width of a token: unet has 16, text_encoder 8"):
        load(tmp_path / "prior")


def test_diver_runs_on_prompts(root: Path) -> None:
    """Class names are prompts, and a chain that begins where its start was noised to is img2img."""
    prior = load(root)
    images = torch.rand(4, 3, prior.image_size, prior.image_size, generator=torch.Generator().manual_seed(2))
    source = DistilledSet(images, "toy", ("cat", "dog"), 2, UNIT, torch.tensor([0, 0, 1, 1]))
    chain: dict[str, Any] = {"respacing": "4", "t_f": 2, "sp_low": 1, "sp_high": 2, "cfg_scale": 3.0}
    guided = recover(source, prior, "diver", DIVERConfig(t_r=4, **chain))
    assert guided.images.shape == images.shape and guided.steps[-1].parameters["prior"] == str(root)
    free = recover(source, prior, "diver", DIVERConfig(t_r=4, gamma=0, **chain)).images
    assert not torch.equal(free, guided.images)
    img2img = recover(source, prior, "diver", DIVERConfig(t_r=3, gamma=0, **chain)).images
    truncated = PReDDConfig(forward_t=2, reverse_t=3, sampler="ddim", respacing="4", cfg_scale=3.0)
    predd = recover(source, prior, "predd", truncated).images
    assert torch.equal(img2img, predd)
    other = dataclasses.replace(source, classes=("cat", "horse"))
    assert not torch.equal(recover(other, prior, "diver", DIVERConfig(t_r=4, gamma=0, **chain)).images[2:], free[2:])
