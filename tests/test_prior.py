"""The prior: training that resumes exactly, loading that explains itself, and the shipped product."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from torch import Tensor

from diver.config.prior import DiTTraining, VAETraining
from diver.data.prepared import Prepared
from diver.networks import create
from diver.prior.base import PriorError
from diver.prior.card import write_card
from diver.prior.dit import DiTPrior, noise_of
from diver.prior.judge import agreement, load_classifier, require_judged, sample_classes
from diver.prior.load import load_prior
from diver.prior.schedule import Level
from diver.prior.train import keyed_generator, reconstruction_psnr, train_dit, train_vae, warm_constant_decay

SHIPPED = Path(__file__).parents[1] / "data/shipped/cifar10-prior"
VAE = VAETraining(widths=[8, 8], latent_channels=2, steps=6, batch=4, warmup=1)
DIT = DiTTraining(width=16, depth=1, heads=2, steps=6, batch=4, warmup=1)


def images(n: int = 12) -> Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_resumed_training_equals_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diver.prior.train.CHECKPOINT_EVERY", 3)
    whole, _ = train_vae(images(), VAE, 0, tmp_path / "whole.ckpt", tmp_path / "whole.csv")
    # Stop by an error at step 4, after the checkpoint of step 3.
    import diver.prior.train as module

    def failing(seed: int, step: int) -> torch.Generator:
        if step == 4:
            raise KeyboardInterrupt
        return keyed_generator(seed, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "keyed_generator", failing)
        train_vae(images(), VAE, 0, tmp_path / "part.ckpt", tmp_path / "part.csv")
    resumed, _ = train_vae(images(), VAE, 0, tmp_path / "part.ckpt", tmp_path / "part.csv")
    assert torch.equal(weights(whole), weights(resumed))


def test_a_snapshot_that_was_not_written_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diver.prior.train.CHECKPOINT_EVERY", 2)
    vae, _ = train_vae(images(), VAE, 0, tmp_path / "v.ckpt", tmp_path / "v.csv")
    config = DIT.model_copy(update={"snapshots": [2, 4]})
    made = [vae, images(), torch.arange(12) % 3, 3, config, 0, tmp_path / "d.ckpt", tmp_path / "d.csv"]
    killed = train_dit(*made)
    assert next(killed)[0] == 2 and next(killed)[0] == 4
    killed.close()
    assert [step for step, *_ in train_dit(*made)] == [4, 6]


def test_a_checkpoint_of_another_training_is_not_gone_on_from(tmp_path: Path) -> None:
    """Else a changed setting would give the old weights, and facts that tell the new setting."""
    checkpoint, curve = tmp_path / "v.ckpt", tmp_path / "v.csv"
    first, _ = train_vae(images(), VAE, 0, checkpoint, curve)
    others: dict[str, dict[str, Any]] = {
        "settings": {"config": VAE.model_copy(update={"kl_weight": 0.5})},
        "widths": {"config": VAE.model_copy(update={"widths": [16, 8]})},
        "seed": {"seed": 1},
        "data": {"images": images(11)},
        "code": {"code": "another"},
    }
    for name, other in others.items():
        given = {"images": images(), "config": VAE, "seed": 0, **other}
        found, _ = train_vae(**given, checkpoint=checkpoint, curve=curve)
        fresh, _ = train_vae(**given, checkpoint=tmp_path / name, curve=curve)
        assert torch.equal(weights(found), weights(fresh)), name
    again, _ = train_vae(images(), VAE, 0, checkpoint, curve)
    assert torch.equal(weights(again), weights(first))


def test_trained_parts_make_a_pipeline(tmp_path: Path) -> None:
    x, y = images(), torch.arange(12) % 3
    vae, _ = train_vae(x, VAE, 0, tmp_path / "v.ckpt", tmp_path / "v.csv")
    config = DIT.model_copy(update={"snapshots": [2]})
    products = list(train_dit(vae, x, y, 3, config, 0, tmp_path / "d.ckpt", tmp_path / "d.csv"))
    assert [step for step, *_ in products] == [2, 6]
    assert not torch.equal(weights(products[0][1]), weights(products[1][1]))
    from diver.prior.train import dit_scheduler

    DiTPipeline(products[-1][1], vae, dit_scheduler()).save_pretrained(tmp_path / "prior")
    prior = load_prior(tmp_path / "prior")
    assert isinstance(prior, DiTPrior)
    assert (prior.classes, prior.null_class, prior.image_size) == (3, 3, 8)
    assert prior.prediction_type == "v_prediction"
    sampled, labels = sample_classes(prior, 2, 4.0, seed=0)
    assert sampled.shape == (6, 3, 8, 8) and labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert sampled.min() >= 0 and sampled.max() <= 1


def test_latents_have_unit_variance(tmp_path: Path) -> None:
    x = images()
    vae, _ = train_vae(x, VAE, 0, tmp_path / "v.ckpt", tmp_path / "v.csv")
    posterior = vae.encode(x.float() / 127.5 - 1).latent_dist
    variance = posterior.mean.var() + posterior.var.mean()
    assert float(variance.detach() * vae.config.scaling_factor**2) == pytest.approx(1, rel=1e-3)


def test_schedule_before_the_decay_does_not_depend_on_the_length() -> None:
    for step in range(60):
        assert warm_constant_decay(step, 100, 10, 0.3) == warm_constant_decay(step, 200, 10, 0.3)
    assert warm_constant_decay(0, 100, 10, 0.3) == pytest.approx(0.1)
    assert warm_constant_decay(99, 100, 10, 0.3) == pytest.approx(1 / 30)


def test_velocity_converts_to_the_noise_of_diffusers() -> None:
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02)
    clean, noise = torch.randn(2, 4, 4, 4).double(), torch.randn(2, 4, 4, 4).double()
    step = torch.tensor([300, 300])
    noisy, velocity = scheduler.add_noise(clean, noise, step), scheduler.get_velocity(clean, noise, step)
    alpha = float(scheduler.alphas_cumprod[300])
    level = Level(300, alpha**0.5, (1 - alpha) ** 0.5)
    assert torch.allclose(noise_of(velocity, noisy, level, "v_prediction"), noise, atol=1e-6)
    assert torch.equal(noise_of(noise, noisy, level, "epsilon"), noise)


def test_other_predictions_are_refused_when_a_prior_is_read(tiny_prior: DiTPrior) -> None:
    """Minimax took them for velocities, and a chain met them after all preparations."""
    with pytest.raises(PriorError, match=r"prediction type 'sample' is not supported; epsilon and v_prediction are"):
        replace(tiny_prior, prediction_type="sample")


def test_guidance_of_one_is_the_conditional_estimate(tiny_prior: DiTPrior) -> None:
    z, y = torch.randn(2, *tiny_prior.latent_shape), torch.tensor([0, 2])
    level = tiny_prior.schedule("1000").level(400)
    plain = tiny_prior.denoise(z, level, y, 1.0).noise
    assert torch.allclose(tiny_prior.denoise(z, level, y, 1.0 + 1e-9).noise, plain, atol=1e-5)
    null = torch.full_like(y, tiny_prior.null_class)
    unconditional = tiny_prior.denoise(z, level, null, 1.0).noise
    expected = unconditional + 4 * (plain - unconditional)
    assert torch.allclose(tiny_prior.denoise(z, level, y, 4.0).noise, expected, atol=1e-5)


@pytest.mark.parametrize("source", ["/no/such/prior", "nowhere", "a/b/c"])
def test_missing_prior_is_named(source: str) -> None:
    with pytest.raises(PriorError, match=source):
        load_prior(source)


def test_directory_that_is_no_prior_is_named(tmp_path: Path) -> None:
    with pytest.raises(PriorError, match="model_index.json"):
        load_prior(tmp_path)


def test_classifier_loads_tensors_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create("resnet20")
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "ok.th")
    judge = load_classifier(tmp_path / "ok.th")
    x = torch.rand(4, 3, 32, 32)
    share, half = agreement(judge, x, judge.predict(x))
    assert (share, half) == (100.0, 0.0)
    (tmp_path / "bad.th").write_bytes(b"not a file of weights")
    with pytest.raises(PriorError, match=r"bad\.th"):
        load_classifier(tmp_path / "bad.th")


def test_judge_refuses_a_prior_of_other_images(tiny_prior: DiTPrior) -> None:
    require_judged(load_prior("data/shipped/cifar10-prior"))
    with pytest.raises(PriorError, match=r"10 classes, 3 channels and 32 pixels, and it has .*; name a prior"):
        require_judged(tiny_prior)


def test_psnr_of_an_exact_autoencoder_is_large(tmp_path: Path) -> None:
    class Exact:
        def encode(self, x: Tensor) -> "Exact":
            self.x = x
            return self

        latent_dist = property(lambda self: self)

        def mode(self) -> Tensor:
            return self.x

        def decode(self, z: Tensor) -> "Exact":
            self.sample = z + 2 / 255 * 10
            return self

    # Off by ten grey levels everywhere: 20 log10(255 / 10).
    dark = torch.randint(0, 200, (4, 3, 8, 8), dtype=torch.uint8)
    assert reconstruction_psnr(Exact(), dark) == pytest.approx(28.13, abs=0.01)  # type: ignore[arg-type]


def test_shipped_prior_is_small_loads_and_says_what_it_is() -> None:
    files = [p for p in SHIPPED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 25e6
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    pipeline = DiTPipeline.from_pretrained(SHIPPED)
    assert pipeline.transformer.config.num_embeds_ada_norm == 10
    prior = load_prior(SHIPPED)
    assert isinstance(prior, DiTPrior)
    assert (prior.image_size, prior.image_channels, prior.classes) == (32, 3, 10)
    card = (SHIPPED / "README.md").read_text()
    for word in ("training images", "steps", "wall time", "Hardware", "Command", "dB", "guidance", "loss.png"):
        assert word in card, word


def test_a_card_claims_nothing_of_another_datasets_training(tmp_path: Path) -> None:
    images, labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    data = Prepared(images, labels, images, labels, "toy", ("a", "b"), (0.5,), (0.5,))
    facts = {"parameters": 1, "seconds": 60, "settings": {"steps": 1, "batch": 1, "label_dropout": 0.1}}
    write_card(tmp_path / "README.md", data, facts, facts, {"psnr_test_db": 20.0, "agreement": {}}, 5)
    card = (tmp_path / "README.md").read_text()
    assert "Prior for toy" in card and "cifar10" not in card and "other work" not in card
