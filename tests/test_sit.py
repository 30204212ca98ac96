"""SiT as a prior: velocities, guidance and whole chains are those of the published network and its own convention.

There, time runs from noise (0) to data (1), the network is told it, and answers the velocity data - noise.
"""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from plain_dit import PlainDiT, random_weights
from torch import Tensor

from diver.config.prior import PriorOptions, VAETraining
from diver.config.recover import DIVERConfig, PReDDConfig, RawConfig
from diver.prior.base import PriorError
from diver.prior.dit import DiTPrior, SiTPrior
from diver.prior.load import load_prior
from diver.prior.train import build_vae
from diver.recover.diver import Chain, dit_schedule
from diver.recover.run import recover
from diver.recover.sampler import KeyedNoise
from diver.sets import DistilledSet

CLASSES, SIZE = 3, 4


@pytest.fixture(scope="module")
def plain() -> PlainDiT:
    """Latents 4x4x4; like the released network it has eight output channels, of which four are used."""
    return random_weights(PlainDiT(64, 2, 1, CLASSES, SIZE))


@pytest.fixture(scope="module")
def folder(plain: PlainDiT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network under two names, and autoencoders of images 3x16x16."""
    path = tmp_path_factory.mktemp("sit")
    for name in ("SiT-tiny.pt", "0400000.pt"):
        torch.save(plain.state_dict(), path / name)
    torch.manual_seed(0)
    build_vae(VAETraining(widths=[8, 8, 8], latent_channels=4), 3).save_pretrained(path / "vae")
    build_vae(VAETraining(widths=[8, 8, 8], latent_channels=6), 3).save_pretrained(path / "six")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(path / "taesd")
    return path


@pytest.fixture(scope="module")
def sit(folder: Path) -> SiTPrior:
    prior = load_prior(folder / "SiT-tiny.pt", PriorOptions(autoencoder=str(folder / "vae")), "cpu")
    assert isinstance(prior, SiTPrior)
    return prior


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def velocity(plain: PlainDiT, x: Tensor, t: float, y: Tensor) -> Tensor:
    return plain(x, torch.full((len(x),), t), y)[:, :4]


def guided(plain: PlainDiT, x: Tensor, t: float, y: Tensor, scale: float) -> Tensor:
    """Guidance on three of four channels, as SiT's released sampler has it."""
    own, null = velocity(plain, x, t, y), velocity(plain, x, t, torch.full_like(y, CLASSES))
    return torch.cat([null[:, :3] + scale * (own[:, :3] - null[:, :3]), own[:, 3:]], dim=1)


# --- reading ---


def test_a_file_is_recognised_by_its_name_or_by_what_is_said(folder: Path, sit: SiTPrior) -> None:
    options = PriorOptions(autoencoder=str(folder / "vae"))
    with pytest.raises(PriorError, match="0400000.pt: say whether it is DiT or SiT"):
        load_prior(folder / "0400000.pt", options, "cpu")
    told = load_prior(folder / "0400000.pt", options.model_copy(update={"family": "sit"}), "cpu")
    assert isinstance(told, SiTPrior) and told.facts["family"] == sit.facts["family"] == "sit"
    assert isinstance(load_prior(folder / "0400000.pt", options.model_copy(update={"family": "dit"}), "cpu"), DiTPrior)
    with pytest.raises(PriorError, match="SiT-tiny.pt: a single file is read as DiT or SiT"):
        load_prior(folder / "SiT-tiny.pt", options.model_copy(update={"family": "stable-diffusion"}), "cpu")
    with pytest.raises(PriorError, match="computes as published"):
        load_prior(folder / "SiT-tiny.pt", options.model_copy(update={"dit_arithmetic": "diffusers"}), "cpu")
    assert (sit.latent_shape, sit.image_size, sit.null_class) == ((4, SIZE, SIZE), 16, CLASSES)
    assert not sit.learns_variance and not any(p.requires_grad for p in sit.network.parameters())


def test_autoencoder_of_other_latents_is_refused(folder: Path) -> None:
    with pytest.raises(PriorError, match="network takes 4 latent channels, the autoencoder has 6"):
        load_prior(folder / "SiT-tiny.pt", PriorOptions(autoencoder=str(folder / "six")), "cpu")


def test_tiny_autoencoder_has_no_posterior_and_unit_scale(folder: Path, tiny_set: DistilledSet) -> None:
    prior = load_prior(folder / "SiT-tiny.pt", PriorOptions(autoencoder=str(folder / "taesd"), vae_chunk=2), "cpu")
    vae = AutoencoderTiny.from_pretrained(folder / "taesd")
    assert vae.config.scaling_factor == 1.0 and prior.image_size == 16
    images = normal(5, 3, 16, 16).clamp(-1, 1)
    with torch.inference_mode():
        latents = vae.encode(images).latents
        decoded = vae.decode(latents).sample
    assert latents.shape == (5, *prior.latent_shape)
    assert torch.allclose(prior.encode(images, normal(5, 4, SIZE, SIZE)), latents, atol=1e-6)
    assert torch.allclose(prior.decode(latents), decoded, atol=1e-5)
    recovered = recover(tiny_set, prior, "diver", DIVERConfig(cfg_channels=3)).images
    assert recovered.shape == (6, 3, 16, 16) and recovered.isfinite().all()


# --- what the network says ---


@pytest.mark.parametrize("k", [0, 24, 49])
def test_estimates_are_those_of_the_velocity(sit: SiTPrior, plain: PlainDiT, k: int) -> None:
    level, x, y = sit.schedule("50").level(k), normal(2, 4, SIZE, SIZE), torch.tensor([0, 2])
    t = 1 - (k + 1) / 50
    assert level.timestep == pytest.approx(t, abs=1e-12)
    expected = velocity(plain, x, t, y)
    assert (expected - velocity(plain, x, t + 0.1, y)).abs().max() > 1e-2
    said = sit.denoise(x, level, y, 1.0)
    # x = t * data + (1 - t) * noise, and the velocity is data - noise.
    assert torch.allclose(said.clean - said.noise, expected, atol=1e-5)
    assert torch.allclose(said.clean, x + (1 - t) * expected, atol=1e-5)
    assert torch.allclose(said.noise, x - t * expected, atol=1e-5)
    assert said.log_variance is None


def test_guided_estimates_are_those_of_the_guided_velocity(sit: SiTPrior, plain: PlainDiT) -> None:
    level, x, y = sit.schedule("50").level(20), normal(3, 4, SIZE, SIZE), torch.tensor([0, 1, 2])
    expected = guided(plain, x, 1 - 21 / 50, y, 4.0)
    said = sit.denoise(x, level, y, 4.0, cfg_channels=3)
    assert torch.allclose(said.clean - said.noise, expected, atol=1e-4)
    everywhere = sit.denoise(x, level, y, 4.0)
    assert (everywhere.clean - everywhere.noise - expected)[:, 3].abs().max() > 1e-2


def test_the_deterministic_chain_is_eulers_method(sit: SiTPrior, plain: PlainDiT, tiny_set: DistilledSet) -> None:
    x = KeyedNoise(1, range(6)).draw("start", sit.latent_shape, torch.zeros(1))
    start, steps = x, 50
    for i in range(steps):
        x = x + guided(plain, x, i / steps, tiny_set.labels, 4.0) / steps
    assert (x - start).abs().max() > 1
    config = RawConfig(respacing=str(steps), cfg_scale=4.0, cfg_channels=3)
    found = recover(tiny_set, sit, "raw", config).images
    expected = sit.decode(x)
    assert (expected - sit.decode(start)).abs().max() > 0.1
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)


# --- the methods ---


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("diver", DIVERConfig(respacing="20", t_f=10, t_r=20, sp_low=10, sp_high=16, cfg_channels=3)),
        ("diver", DIVERConfig(respacing="20", t_f=10, t_r=20, sp_low=10, sp_high=16, level_by="noise", eta=0.5)),
        ("predd", PReDDConfig(respacing="20", forward_t=8, reverse_t=8)),
        ("predd", PReDDConfig(respacing="20", forward_t=8, reverse_t=20)),
        ("raw", RawConfig(respacing="20", eta=1.0)),
    ],
)
def test_every_method_runs(sit: SiTPrior, tiny_set: DistilledSet, method: str, config: RawConfig) -> None:
    images = recover(tiny_set, sit, method, config).images
    assert images.shape == (6, 3, 16, 16) and images.isfinite().all()
    assert not torch.allclose(images[0], images[1], atol=1e-2)


@pytest.mark.parametrize("inject", ["sample", "clean"])
def test_guidance_pulls_towards_the_anchor(sit: SiTPrior, inject: str) -> None:
    images, noise = normal(4, 3, 16, 16).clamp(-1, 1), KeyedNoise(1, range(4))
    anchor, y = sit.encode(images, None), torch.tensor([0, 1, 2, 0])
    settings = {"respacing": "20", "t_f": 10, "t_r": 20, "sp_low": 0, "sp_high": 19, "cfg_scale": 1.0}
    distances = []
    for gamma in (0.0, 0.1, 0.5):
        config = DIVERConfig(**settings, gamma=gamma, sg_inject=inject, vae_sample=False)
        distances.append(float((Chain.of(sit, config).run(images, y, noise) - anchor).norm()))
    assert distances[0] > 1.1 * distances[1] > 1.2 * distances[2]


def test_levels_are_found_by_index_or_by_noise(sit: SiTPrior) -> None:
    by_index, by_noise = (Chain.of(sit, DIVERConfig(level_by=by)) for by in ("index", "noise"))
    assert (by_index.t_f, by_index.window) == (25, (25, 40))
    assert (by_noise.t_f, by_noise.window) != (25, (25, 40))
    # The nearest of fifty levels: what is noise in the state at the given index of DiT's schedule.
    for k, found in [(25, by_noise.t_f), (25, by_noise.window[0]), (40, by_noise.window[1])]:
        wanted = dit_schedule("50").alpha(k)
        here, beside = by_noise.schedule.alpha(found), [by_noise.schedule.alpha(found + i) for i in (-1, 1)]
        assert min(beside) < wanted < max(beside) and abs(here - wanted) < 0.05
    # What is not used may lie outside.
    for used in ({"start": "gaussian", "sp_low": 10, "sp_high": 16}, {"t_f": 10, "gamma": 0}):
        Chain.of(sit, DIVERConfig(**{"respacing": "20", "t_r": 20, "level_by": "noise", **used}))
    images, noise, y = normal(2, 3, 16, 16).clamp(-1, 1), KeyedNoise(1, range(2)), torch.tensor([0, 1])
    assert not torch.allclose(by_index.run(images, y, noise), by_noise.run(images, y, noise), atol=1e-2)


def test_a_gaussian_start_below_the_top_has_the_spread_of_states_there(
    sit: SiTPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    predict = SiTPrior.predict
    monkeypatch.setattr(SiTPrior, "predict", lambda self, x, *rest: (seen.append(x), predict(self, x, *rest))[1])
    images, noise, y = normal(2, 3, 16, 16).clamp(-1, 1), KeyedNoise(1, range(2)), torch.tensor([0, 1])
    for t_r in (20, 10):
        config = DIVERConfig(respacing="20", start="gaussian", t_r=t_r, gamma=0, cfg_scale=1)
        Chain.of(sit, config).run(images, y, noise)
    # Half way on the linear path: half the image and half the noise.
    torch.testing.assert_close(seen[20], 0.5**0.5 * seen[0])
