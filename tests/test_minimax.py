"""Minimax Diffusion: its two terms and memories, DiffFit's parameters, the fine-tuned prior as a directory."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn

from diver.config.native import LatentsConfig
from diver.config.native.minimax import MinimaxConfig
from diver.config.prior import DiTTraining, PriorOptions
from diver.config.recover import RawConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior, PriorError
from diver.prior.classes import read_labels, write_labels
from diver.prior.dit import DiTPrior, SiTPrior
from diver.prior.load import load_prior
from diver.prior.schedule import Level
from diver.prior.train import build_dit, keyed_generator
from diver.recover import tuning as module
from diver.recover.latents import Latents, encode_latents
from diver.recover.minimax import FACTS, plain_network, read_tuned, synthesise_minimax, write_tuned
from diver.recover.raw import raw_map
from diver.recover.sampler import KeyedNoise
from diver.recover.tuning import (
    Memories,
    Tuning,
    batch_rows,
    clean_of,
    finetune,
    is_tuned,
    minimax_terms,
    noised_at_random,
    similarities,
    target_of,
    variance_bound,
)

CPU = torch.device("cpu")


@pytest.fixture
def data() -> Prepared:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (36, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.arange(3).repeat(12)
    return Prepared(images, labels, images[:3], labels[:3], "tiny", ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def source(tiny_prior: Prior) -> str:
    return tiny_prior.name


@pytest.fixture
def latents(tmp_path: Path, data: Prepared, tiny_prior: Prior) -> Latents:
    path = tmp_path / "latents.npy"
    encode_latents(data, tiny_prior, LatentsConfig(), "mean", path)
    return Latents.open(path, data, tiny_prior)


def settings(**changes: Any) -> MinimaxConfig:
    return MinimaxConfig(**{"steps": 6, "tuning_batch": 6, "ema_decay": 0.5, "respacing": "4", **changes})


def tuned(source: str, latents: Latents, data: Prepared, config: MinimaxConfig, **options: Any) -> Prior:
    prior = load_prior(source)
    finetune(latents, data, prior, config, **options)
    return prior


def weights(prior: Prior) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in prior.network.state_dict().items()}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_memories_hold_the_latest() -> None:
    memories = Memories(2, 64, 3, CPU)
    real, predicted = normal(100, 3), normal(100, 3, seed=1).requires_grad_()
    for i in range(100):
        memories.push([1], real[i : i + 1], predicted[i : i + 1])
    assert [memories.held(0), memories.held(1)] == [0, 64]
    held = {tuple(row) for row in memories.real[1].tolist()}
    assert held == {tuple(row) for row in real[-64:].tolist()}
    assert not memories.predicted.requires_grad


def test_terms_are_zero_on_the_first_visit_and_as_defined_later() -> None:
    memories = Memories(3, 4, 8, CPU)
    clean, labels = normal(5, 2, 2, 2), [0, 1, 0, 1, 1]
    assert [float(term) for term in minimax_terms(clean, labels, memories)] == [0, 0]
    memories.push([0, 0, 2], normal(3, 2, 2, 2, seed=1), normal(3, 2, 2, 2, seed=2))
    pull, push = minimax_terms(clean, labels, memories)
    # Class 1 has no memory, and counts as one of the two classes of the batch.
    mine = clean[[0, 2]].flatten(1).numpy()

    def cosines(rows: Tensor) -> np.ndarray:
        other = rows[0, :2].numpy()
        return mine @ other.T / np.linalg.norm(mine, axis=1)[:, None] / np.linalg.norm(other, axis=1)

    assert float(pull) == pytest.approx((1 - cosines(memories.real).min()) / 2, rel=1e-5)
    assert float(push) == pytest.approx(cosines(memories.predicted).max() / 2, rel=1e-5)


def test_gradient_of_the_terms_flows_through_the_prediction_only() -> None:
    memories = Memories(1, 4, 8, CPU)
    leaves = [normal(2, 8, seed=s).requires_grad_() for s in (1, 2)]
    memories.push([0, 0], *leaves)
    clean = normal(2, 8).requires_grad_()
    sum(minimax_terms(clean, [0, 0], memories)).backward()
    assert clean.grad is not None and clean.grad.abs().max() > 0
    assert all(leaf.grad is None for leaf in leaves)


def test_tuned_parameters_are_difffits(source: str) -> None:
    prior = load_prior(source)
    tuning = Tuning(prior, settings(), 3, torch.arange(3))
    names = {name.split(".", 2)[2] for name in tuning.parameters if name.startswith("transformer_blocks.1.")}
    assert names == {
        "norm1.emb.timestep_embedder.linear_1.bias",
        "norm1.emb.timestep_embedder.linear_2.bias",
        "norm1.emb.class_embedder.embedding_table.weight",
        "norm1.linear.bias",
        *(f"attn1.{name}.bias" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        "ff.net.0.proj.bias",
        "ff.net.2.bias",
    }
    others = {name for name in tuning.parameters if "transformer_blocks" not in name}
    # Two blocks, the first half of which is one.
    scales = {"scales.0.attention", "scales.0.feed_forward"}
    assert others == {"pos_embed.proj.bias", "proj_out_1.bias", "proj_out_2.bias", *scales}
    assert is_tuned("norm.weight", torch.ones(4)) and not is_tuned("norm1.linear.weight", torch.ones(4, 4))


def test_frozen_parameters_stay_and_the_others_move(source: str, latents: Latents, data: Prepared) -> None:
    before = weights(load_prior(source))
    after = weights(tuned(source, latents, data, settings(scales=False)))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if is_tuned(name, before[name])}
    # With factors, only the layers that they are multiplied into change as well.
    after = weights(tuned(source, latents, data, settings()))
    more = {name for name in before if not torch.equal(before[name], after[name])} - moved
    assert more == {"transformer_blocks.0.attn1.to_out.0.weight", "transformer_blocks.0.ff.net.2.weight"}


def test_folding_the_factors_keeps_the_function(source: str) -> None:
    prior = load_prior(source)
    scales = module.Scales(prior.network)
    for i, factor in enumerate(scales.factors.values()):
        factor.data = 1 + 0.3 * normal(len(factor), seed=i)
    given = (normal(3, 4, 4, 4), Level(500, 0.5, 0.5), torch.arange(3))
    with torch.no_grad():
        plain, _ = load_prior(source).predict(*given)
        scaled, _ = prior.predict(*given)
        scales.fold()
        folded, _ = prior.predict(*given)
    assert (scaled - plain).abs().max() > 1e-4
    torch.testing.assert_close(folded, scaled)


def test_the_average_is_what_is_kept(source: str, latents: Latents, data: Prepared) -> None:
    """With decay 0 the average is the last state; with decay near 1 it is the first."""
    before = weights(load_prior(source))
    name = "transformer_blocks.0.attn1.to_q.bias"
    moved, still = (
        (weights(tuned(source, latents, data, settings(ema_decay=decay)))[name] - before[name]).abs().max()
        for decay in (0.0, 0.9999)
    )
    assert moved > 100 * still


def test_without_weights_it_is_plain_fine_tuning(source: str, latents: Latents, data: Prepared) -> None:
    config = settings(lambda_pos=0, lambda_neg=0, scales=False, ema_decay=0)
    mine = weights(tuned(source, latents, data, config))
    prior = load_prior(source)
    assert isinstance(prior, DiTPrior)
    chosen = [p for name, p in prior.network.named_parameters() if is_tuned(name, p)]
    for parameter in chosen:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(chosen, 1e-3, weight_decay=0)
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    rows, values = torch.arange(len(latents)), torch.from_numpy(latents.rows["latent"].astype(np.float32))
    for step in range(6):
        generator = keyed_generator(config.seed, step)
        at = batch_rows(rows, 6, config.seed, step)
        clean, labels = values[at], torch.arange(3).repeat_interleave(12)[at]
        noise = torch.randn(clean.shape, generator=generator)
        timestep = torch.randint(1000, (6,), generator=generator)
        labels = torch.where(torch.rand(6, generator=generator) < 0.1, 3, labels)
        answer = prior.network(scheduler.add_noise(clean, noise, timestep), timestep, class_labels=labels).sample
        loss = nn.functional.mse_loss(answer, scheduler.get_velocity(clean, noise, timestep))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in prior.network.state_dict().items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5)


def predicted(prior: Prior) -> Tensor:
    """Clean latents that a prior predicts of noise at a middle level, for every class."""
    noisy, labels = normal(48, 4, 4, 4, seed=5), torch.arange(3).repeat(16)
    return prior.denoise(noisy, prior.schedule("50").level(35), labels, 1.0).clean.flatten(1)


def mean_cosine(prior: Prior) -> float:
    """Mean similarity of different predictions of a class."""
    found = predicted(prior)
    cosines = [similarities(found[c::3], found[c::3]) for c in range(3)]
    return float(torch.stack([(one.sum() - 16) / 240 for one in cosines]).mean())


def spread_latents() -> Latents:
    """Twelve latents of each of three classes, about a centre of the class."""
    rows = np.zeros(36, np.dtype([("index", "<i8"), ("label", "<i8"), ("latent", "<f4", (4, 4, 4))]))
    rows["index"], rows["label"] = np.arange(36), np.arange(3).repeat(12)
    rows["latent"] = normal(3, 4, 4, 4, seed=9).repeat_interleave(12, 0) + normal(36, 4, 4, 4, seed=8)
    return Latents(rows, ((0, 12), (12, 24), (24, 36)))


def test_diversity_and_representativeness_do_what_they_are_for(source: str, data: Prepared) -> None:
    latents = spread_latents()

    def trained(lambda_pos: float, lambda_neg: float) -> Prior:
        config = settings(steps=120, learning_rate=3e-3, ema_decay=0.9, lambda_pos=lambda_pos, lambda_neg=lambda_neg)
        return tuned(source, latents, data, config)

    def to_real(prior: Prior) -> float:
        found = predicted(prior)
        return float(torch.stack([similarities(found[c::3], latents.of(c).flatten(1)).min() for c in range(3)]).mean())

    plain, diverse, representative = trained(0, 0), trained(0, 1), trained(5, 0)
    print(mean_cosine(plain), mean_cosine(diverse), to_real(plain), to_real(representative))
    assert mean_cosine(diverse) < mean_cosine(plain) - 0.1
    assert to_real(representative) > to_real(plain) + 0.02


@pytest.mark.parametrize("steps", [7, 6])
def test_a_killed_run_goes_on_with_the_same_result(
    source: str, latents: Latents, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    config, path = settings(steps=9), tmp_path / "state.safetensors"
    whole = load_prior(source)
    expected = finetune(latents, data, whole, config)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(module, "LOG_EVERY", 4)
    monkeypatch.setattr(Tuning, "step", _killed_after(steps, Tuning.step))
    with pytest.raises(KeyboardInterrupt):
        finetune(latents, data, load_prior(source), config, checkpoint=path)
    monkeypatch.setattr(Tuning, "step", Tuning.step.__wrapped__)  # type: ignore[attr-defined]
    resumed = load_prior(source)
    found, curve = finetune(latents, data, resumed, config, checkpoint=path)
    assert found == expected[0]
    assert [row[0] for row in curve] == [4, 8, 9]
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    # Another run's checkpoint is not taken.
    other = load_prior(source)
    finetune(latents, data, other, settings(steps=9, seed=2), checkpoint=path)
    assert any(not torch.equal(value, weights(other)[name]) for name, value in weights(whole).items())


def _killed_after(steps: int, step: Any) -> Any:
    def one(self: Tuning, *given: Any) -> Any:
        if self.done == steps:
            raise KeyboardInterrupt
        return step(self, *given)

    one.__wrapped__ = step  # type: ignore[attr-defined]
    return one


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_target_and_clean_latent_agree_with_the_prior(tiny_prior: Prior, kind: str) -> None:
    """The clean latent of a perfect answer is the one that was noised, and of any answer what `denoise` says."""
    assert isinstance(tiny_prior, DiTPrior)
    prior: Any = SiTPrior(tiny_prior.vae, tiny_prior.network, "flow")
    if kind != "flow":
        prior = replace(tiny_prior, prediction_type=kind)
    clean, unit = normal(3, 4, 4, 4), normal(3, 4, 4, 4, seed=1)
    at = noised_at_random(prior, clean, unit, torch.Generator().manual_seed(3))
    torch.testing.assert_close(clean_of(prior, target_of(prior, clean, unit, at), at), clean, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        answer = prior.network(at.state, timestep=at.told, class_labels=torch.arange(3)).sample
    mine = clean_of(prior, answer, at)
    for i in range(3):
        level = Level(float(at.told[i]), float(at.signal[i]), float(at.noise[i]))
        theirs = prior.denoise(at.state[i : i + 1], level, torch.tensor([i]), 1.0).clean
        torch.testing.assert_close(mine[i : i + 1], theirs, rtol=1e-3, atol=1e-3)


def learning_variance(tmp_path: Path) -> Prior:
    """A tiny prior that predicts noise and variance, as DiT-XL/2 does."""
    torch.manual_seed(0)
    config = dict(build_dit(DiTTraining(width=16, depth=2, heads=2, patch=2), 4, 4, 3).config)
    network = DiTTransformer2DModel.from_config({**config, "out_channels": 8})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    from diver.config.prior import VAETraining
    from diver.prior.train import build_vae

    vae = build_vae(VAETraining(widths=[8, 8, 8], latent_channels=4), 3)
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    DiTPipeline(network, vae, scheduler).save_pretrained(tmp_path / "learned")
    return load_prior(tmp_path / "learned")


def test_a_learned_variance_is_trained_by_its_bound_alone(tmp_path: Path, latents: Latents, data: Prepared) -> None:
    prior = learning_variance(tmp_path)
    assert isinstance(prior, DiTPrior) and prior.learns_variance
    clean, unit = normal(6, 4, 4, 4).double(), normal(6, 4, 4, 4, seed=1).double()
    at = noised_at_random(prior, clean, unit, torch.Generator().manual_seed(3))
    raw = normal(6, 4, 4, 4, seed=2).double().clamp(-1, 1).requires_grad_()
    said = (clean + 0.1 * unit).requires_grad_()
    bound = variance_bound(prior, clean, said, raw, at)
    alphas = prior.alphas_cumprod.numpy()
    for i in range(6):
        # The divergence of two normals, from their means and variances.
        t = int(at.index[i])  # type: ignore[index]
        beta = 1 - alphas[t] / alphas[t - 1]
        variance = beta * (1 - alphas[t - 1]) / (1 - alphas[t])
        fraction = (raw[i].detach().double().numpy() + 1) / 2
        other = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(variance))
        gap = alphas[t - 1] ** 0.5 * beta / (1 - alphas[t]) * (said - clean)[i].detach().double().numpy()
        expected = (np.log(other / variance) - 1 + (variance + gap**2) / other).mean() / 2 / np.log(2)
        assert float(bound[i].detach()) == pytest.approx(expected, rel=1e-6)
    bound.sum().backward()
    assert raw.grad is not None and raw.grad.abs().max() > 0 and said.grad is None
    before = weights(prior)
    finetune(latents, data, prior, settings())
    moved = weights(prior)["proj_out_2.bias"] - before["proj_out_2.bias"]
    assert (moved.view(-1, 8)[:, 4:].abs() > 0).all()


def test_the_product_is_a_prior_like_any_other(source: str, latents: Latents, data: Prepared, tmp_path: Path) -> None:
    named = {str(number): name for number, name in enumerate(data.classes)}
    write_labels(Path(source), named)
    prior = tuned(source, latents, data, settings())
    # As one that was given by a path from elsewhere.
    prior.name = "elsewhere/prior"
    write_tuned(prior, tmp_path / "tuned", {"tuned_parameters": 1, "latents": 36})
    read, found = read_tuned(tmp_path / "tuned", prior)
    given = (normal(3, 4, 4, 4), prior.schedule("50").level(30), torch.arange(3), 4.0)
    torch.testing.assert_close(read.denoise(*given).noise, prior.denoise(*given).noise)
    assert found["options"] == {"family": "dit", "dit_arithmetic": "diffusers"}
    assert read_labels(tmp_path / "tuned") == named
    pipeline = DiTPipeline.from_pretrained(tmp_path / "tuned", local_files_only=True)
    assert pipeline.transformer.config.num_embeds_ada_norm == 3
    assert torch.equal(pipeline.scheduler.alphas_cumprod.double(), prior.alphas_cumprod)  # type: ignore[attr-defined]

    config = settings(seed=3)
    made = synthesise_minimax(data, 2, prior, config, artefacts={"tuned": tmp_path / "tuned/model_index.json"})
    assert made.images.shape == (6, 3, 16, 16) and made.steps[-1].method == "minimax"
    # It samples as the ancestral form of raw sampling does.
    raw = raw_map(read, RawConfig(respacing="4", eta=1.0), 2)
    noise = KeyedNoise(3, ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"])
    expected = read.decode(raw(normal(6, 4, 4, 4), torch.arange(3).repeat_interleave(2), noise)).clamp(-1, 1)
    torch.testing.assert_close(made.images, expected, rtol=1e-3, atol=1e-3)

    (tmp_path / "tuned" / FACTS).unlink()
    with pytest.raises(PriorError, match=r"minimax\.json: no record of a fine-tuned prior"):
        read_tuned(tmp_path / "tuned", prior)


def test_a_tuned_prior_computes_and_runs_as_its_source(source: str, tmp_path: Path) -> None:
    """Also one whose files set the constant of the published normalisation; its autoencoder in the same chunks."""
    root = Path(shutil.copytree(source, tmp_path / "source"))
    config = root / "transformer/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "norm_eps": 1e-6}))
    given = (normal(3, 4, 4, 4), Level(500, 0.5, 0.5), torch.arange(3))
    for arithmetic in ("diffusers", "published"):
        prior = load_prior(root, PriorOptions(vae_chunk=2, dit_arithmetic=arithmetic), "cpu")
        write_tuned(prior, tmp_path / arithmetic, {})
        read, found = read_tuned(tmp_path / arithmetic, prior)
        assert (found["options"]["dit_arithmetic"], read.vae_chunk) == (arithmetic, 2)
        torch.testing.assert_close(read.predict(*given)[0], prior.predict(*given)[0])


def test_names_of_two_classes_stand_for_neither(source: str, tmp_path: Path) -> None:
    named = Path(shutil.copytree(source, tmp_path / "named"))
    write_labels(named, {"0": "crane", "1": "goldfish, fish", "2": "crane"})
    prior = load_prior(named)
    assert isinstance(prior, DiTPrior) and prior.labels == {"goldfish, fish": 1, "goldfish": 1, "fish": 1}


def test_shared_embedders_are_written_to_every_block(source: str) -> None:
    """A network whose blocks share one embedder, as DiT-XL/2's do, is written with a copy in each."""
    from diver.prior.dit import embed_once, share_embedders

    prior = load_prior(source)
    first, second = (block.norm1.emb for block in prior.network.transformer_blocks)
    second.load_state_dict(first.state_dict())
    given = (normal(3, 4, 4, 4), Level(500, 0.5, 0.5), torch.arange(3))
    expected, _ = prior.predict(*given)
    share_embedders(prior.network)
    embed_once(prior.network)
    tuning = Tuning(prior, settings(scales=False), 3, torch.arange(3))
    assert sum("class_embedder" in name for name in tuning.parameters) == 1
    plain = plain_network(prior)
    found = plain(given[0], timestep=torch.full((3,), 500), class_labels=given[2]).sample
    torch.testing.assert_close(prior.predict(*given)[0], expected)
    assert isinstance(prior, DiTPrior)
    torch.testing.assert_close(0.5 * found + 0.5 * given[0], expected)


def test_other_priors_and_diverging_losses_are_refused(source: str, latents: Latents, data: Prepared) -> None:
    class Other(nn.Module):
        name = "another"

    with pytest.raises(PriorError, match="another: Minimax fine-tunes class-conditional transformers"):
        Tuning(Other(), settings(), 3, torch.arange(3))  # type: ignore[arg-type]
    noise = load_prior(source)
    assert isinstance(noise, DiTPrior)
    noise.alphas_cumprod[-1] = 0
    Tuning(noise, settings(), 3, torch.arange(3))
    noise.prediction_type = "epsilon"
    with pytest.raises(PriorError, match="no signal at its top, .* take a prior that predicts velocities"):
        Tuning(noise, settings(), 3, torch.arange(3))
    with pytest.raises(ValueError, match="loses most steps to rounding; read it with precision: fp32"):
        Tuning(load_prior(source, PriorOptions(precision="bf16")), settings(), 3, torch.arange(3))
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        tuned(source, latents, data, settings(learning_rate=1e30, steps=20))


def test_epochs_take_every_latent_once() -> None:
    rows = torch.arange(10, 30)
    first = torch.cat([batch_rows(rows, 5, 0, step) for step in range(4)])
    second = torch.cat([batch_rows(rows, 5, 0, step) for step in range(4, 8)])
    assert first.sort().values.tolist() == second.sort().values.tolist() == rows.tolist()
    assert not torch.equal(first, second)
    assert len(batch_rows(rows, 50, 0, 3)) == 20
