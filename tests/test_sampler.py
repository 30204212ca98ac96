"""The reverse chain: identities, parity with diffusers, closed-form guidance, keyed noise."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diver.config.recover import DIVERConfig, PReDDConfig, RawConfig
from diver.config.report import CHAINS
from diver.prior.base import Denoised, Prior, PriorError
from diver.prior.dit import DiTPrior
from diver.prior.schedule import Schedule, linear_path, respace
from diver.recover.diver import dit_schedule
from diver.recover.run import Recovery, recover
from diver.recover.sampler import Denoiser, Guidance, KeyedNoise, add_noise, ddim_step, log_variance, run_chain
from diver.recover.trace import trace_diver
from diver.setfile import Rows
from diver.sets import DistilledSet

ALPHAS = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
SCHEDULE = respace(ALPHAS, "50")


def toy_denoiser(state: Tensor, k: int) -> Denoised:
    """A smooth, nonlinear stand-in for a network."""
    alpha = SCHEDULE.alpha(k)
    noise = torch.tanh(state) * (1 - alpha) ** 0.5 + 0.1 * state.roll(1, -1)
    return Denoised(noise, (state - (1 - alpha) ** 0.5 * noise) / alpha**0.5, None)


def start(n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_respacing_matches_the_known_timesteps() -> None:
    assert SCHEDULE.timesteps[:3].tolist() == [0, 20, 41]
    assert [int(SCHEDULE.timesteps[k]) for k in (25, 30, 35, 40, 49)] == [510, 612, 714, 816, 999]
    assert SCHEDULE.alpha(25) ** 0.5 == pytest.approx(0.265, abs=5e-4)
    assert respace(ALPHAS, "ddim50").timesteps.tolist() == list(range(0, 1000, 20))
    window = sum(SCHEDULE.posterior_variance(k) ** 0.5 for k in range(25, 41))
    assert window == pytest.approx(7.74, abs=0.05)


@pytest.mark.parametrize("bad", ["1", "1001", "fifty", "ddim", "-3"])
def test_respacing_refuses(bad: str) -> None:
    with pytest.raises(ValueError, match="respacing"):
        respace(ALPHAS, bad)


def test_a_level_without_signal_is_refused_where_a_chain_has_it(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    rescaled = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction").alphas_cumprod
    prior = replace(tiny_prior, alphas_cumprod=rescaled.double(), prediction_type="v_prediction")
    with pytest.raises(PriorError, match="no signal at timestep 999, .* as 'ddim50', which leaves its top out"):
        recover(tiny_set, prior, "raw", RawConfig(respacing="5"))
    for method, config in (
        ("raw", RawConfig(respacing="ddim5")),
        ("predd", PReDDConfig(respacing="5", forward_t=2, reverse_t=4)),
    ):
        assert recover(tiny_set, prior, method, config).images.isfinite().all()


def test_ddim_equals_diffusers_in_float64() -> None:
    reference = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    reference.set_timesteps(50)
    schedule = respace(reference.alphas_cumprod, "ddim50")
    ours = theirs = start()
    for k in range(49, -1, -1):
        alpha = schedule.alpha(k)
        for_ours, for_theirs = torch.sin(ours), torch.sin(theirs)
        clean = (ours - (1 - alpha) ** 0.5 * for_ours) / alpha**0.5
        ours = ddim_step(clean, for_ours, None, schedule, k, 0.0)
        theirs = reference.step(for_theirs, int(schedule.timesteps[k]), theirs).prev_sample
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_eta_one_is_the_ancestral_step() -> None:
    noise = KeyedNoise(0, range(3))
    ddim = run_chain(start(), SCHEDULE, toy_denoiser, 30, noise, stepper="ddim", eta=1.0)
    ddpm = run_chain(start(), SCHEDULE, toy_denoiser, 30, noise, stepper="ddpm")
    # The ancestral variance at index 1 and below differs only in the clipped last step.
    assert torch.allclose(ddim, ddpm, atol=1e-8)


@pytest.mark.parametrize("residual", ["pred_x0", "x_t"])
@pytest.mark.parametrize("sigma", ["posterior", "none"])
def test_closed_form_guidance_equals_autograd(residual: str, sigma: str) -> None:
    anchor, state, clean = start(seed=1), start(seed=2), start(seed=3)
    guidance = Guidance(anchor, 0.3, 0, 49, residual, sigma)  # type: ignore[arg-type]
    spread = SCHEDULE.posterior_variance(30) ** 0.5 if sigma == "posterior" else 1.0
    x = (clean if residual == "pred_x0" else state).clone().requires_grad_()
    potential = 0.3 * spread / 2 * (x - anchor).square().sum()
    (gradient,) = torch.autograd.grad(potential, x)
    assert torch.allclose(guidance.pull(state, clean, spread), gradient, atol=1e-12)


def test_window_is_inclusive_and_exact() -> None:
    anchor = start(seed=1)
    for low, high in [(25, 40), (0, 0), (49, 49)]:
        free, guided = [], []
        noise = KeyedNoise(0, range(3))
        run_chain(start(), SCHEDULE, toy_denoiser, 49, noise, observe=lambda k, c, s, out=free: out.append((k, s)))
        run_chain(
            start(),
            SCHEDULE,
            toy_denoiser,
            49,
            noise,
            guidance=Guidance(anchor, 0.1, low, high),
            observe=lambda k, c, s, out=guided: out.append((k, s)),
        )
        first_difference = next(k for (k, a), (_, b) in zip(free, guided, strict=True) if not torch.equal(a, b))
        assert first_difference == high
        active = [k for k in range(50) if Guidance(anchor, 0.1, low, high).active(k)]
        assert active == list(range(low, high + 1))


def normal_denoiser(state: Tensor, k: int) -> Denoised:
    """The exact denoiser of unit-normal data."""
    alpha = SCHEDULE.alpha(k)
    return Denoised((1 - alpha) ** 0.5 * state, alpha**0.5 * state, None)


def test_guidance_brings_the_result_nearer_to_the_anchor() -> None:
    anchor, noise = start(seed=1), KeyedNoise(0, range(3))
    distance = [
        (run_chain(start(), SCHEDULE, normal_denoiser, 49, noise, guidance=Guidance(anchor, g, 25, 40)) - anchor).norm()
        for g in (0.0, 0.05, 0.1)
    ]
    assert distance[0] > distance[1] > distance[2]


def test_inject_clean_keeps_the_state_consistent() -> None:
    """Moving the predicted clean latent all the way to the anchor makes the step a DDIM step to the anchor."""
    anchor, noise = start(seed=1), KeyedNoise(0, range(3))
    end = run_chain(
        start(), SCHEDULE, toy_denoiser, 0, noise, guidance=Guidance(anchor, 1.0, 0, 0, "pred_x0", "none", "clean")
    )
    assert torch.allclose(end, anchor, atol=1e-10)


def test_learned_sigma_needs_a_network_that_predicts_it() -> None:
    guidance = Guidance(start(), 0.1, 0, 49, sigma="learned")
    with pytest.raises(ValueError, match="learned"):
        run_chain(start(), SCHEDULE, toy_denoiser, 49, KeyedNoise(0, range(3)), guidance=guidance)


def test_learned_variance_interpolates_between_posterior_and_beta() -> None:
    for raw, expected in [(-1.0, SCHEDULE.posterior_variance(30)), (1.0, SCHEDULE.beta(30))]:
        variance = log_variance(SCHEDULE, 30, torch.full((1,), raw, dtype=torch.float64)).exp()
        assert float(variance) == pytest.approx(expected, rel=1e-12)


def test_keyed_noise_does_not_depend_on_the_batch() -> None:
    like = torch.zeros(1)
    together = KeyedNoise(7, range(4)).draw("start", (4, 4, 4), like)
    alone = torch.cat([KeyedNoise(7, [i]).draw("start", (4, 4, 4), like) for i in range(4)])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, KeyedNoise(8, range(4)).draw("start", (4, 4, 4), like))
    assert not torch.equal(together, KeyedNoise(7, range(4)).draw("posterior", (4, 4, 4), like))


def test_add_noise_keeps_unit_variance() -> None:
    z, n = start(2000, 1), start(2000, 2)
    assert float(add_noise(z, n, SCHEDULE, 15).var()) == pytest.approx(1.0, abs=0.02)


# --- flow matching: the same chain on the linear path ---

FLOW = linear_path("50")


def velocity_denoiser(state: Tensor, k: int) -> Denoised:
    """A made-up network that answers a velocity."""
    level, velocity = FLOW.level(k), torch.sin(state)
    return Denoised(state - level.signal * velocity, state + level.noise * velocity, None)


def test_chain_on_the_linear_path_is_eulers_method() -> None:
    ours = run_chain(start(), FLOW, velocity_denoiser, 49, KeyedNoise(0, range(3)))
    state = start()
    for _ in range(50):
        state = state + torch.sin(state) / 50
    assert torch.allclose(ours, state, atol=1e-12)


def test_linear_path_ends_in_noise_and_keeps_its_shares() -> None:
    assert (FLOW.level(49).signal, FLOW.level(49).noise, FLOW.level(49).timestep) == (0, 1, 0)
    assert FLOW.alpha(24) == pytest.approx(0.5) and FLOW.level(24).timestep == pytest.approx(0.5)
    assert FLOW.nearest(0.5) == 24
    assert FLOW.scale(24) == pytest.approx(0.5**0.5) and SCHEDULE.scale(24) == pytest.approx(1)


def test_inherited_state_has_the_spread_of_the_index_where_it_starts() -> None:
    z, n = start(2000, 1), start(2000, 2)
    for level, at in [(24, 49), (24, 24), (10, 30)]:
        assert float(add_noise(z, n, FLOW, level, at).std()) == pytest.approx(FLOW.scale(at), rel=0.02)


def test_ancestral_steps_do_not_depend_on_the_scale_of_a_path() -> None:
    """The linear path and the diffusion with the same shares of signal give the same clean latents."""
    alphas = torch.tensor([FLOW.alpha(k) for k in range(49)], dtype=torch.float64)
    same = Schedule(torch.arange(49), alphas.sqrt(), (1 - alphas).sqrt())
    anchor = start(seed=3)

    def scaled(schedule: Schedule) -> Denoiser:
        # The network sees the state at unit variance, whatever the path.
        return lambda state, k: normal_of(state / schedule.scale(k), schedule, k)

    def normal_of(unit: Tensor, schedule: Schedule, k: int) -> Denoised:
        clean = torch.tanh(unit)
        level = schedule.level(k)
        return Denoised((unit * schedule.scale(k) - level.signal * clean) / level.noise, clean, None)

    ends = []
    for schedule in (FLOW, same):
        guidance = Guidance(anchor, 0.1, 20, 40)
        state = start() * schedule.scale(48)
        noise = KeyedNoise(0, range(3))
        ends.append(run_chain(state, schedule, scaled(schedule), 48, noise, stepper="ddpm", guidance=guidance))
    assert torch.allclose(ends[0], ends[1], atol=1e-9)


def test_levels_by_noise_are_those_of_dits_schedule() -> None:
    reference = dit_schedule("50")
    assert [reference.nearest(reference.alpha(k)) for k in (0, 25, 40)] == [0, 25, 40]
    k = FLOW.nearest(reference.alpha(25))
    assert FLOW.level(k).noise / FLOW.level(k).signal == pytest.approx(0.964 / 0.265, rel=0.06)


# --- the methods, on a tiny random prior ---


def test_diver_without_guidance_and_truncated_is_predd(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    predd = recover(tiny_set, tiny_prior, "predd", PReDDConfig(forward_t=20, reverse_t=15))
    diver = recover(tiny_set, tiny_prior, "diver", DIVERConfig(t_f=20, t_r=15, gamma=0, sampler="ddpm"))
    assert torch.equal(predd.images, diver.images)


def test_diver_with_neither_is_raw(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    raw = recover(tiny_set, tiny_prior, "raw", RawConfig())
    diver = recover(tiny_set, tiny_prior, "diver", DIVERConfig(start="gaussian", gamma=0))
    assert torch.equal(raw.images, diver.images)


def test_mode_guidance_is_diver_from_gaussian_with_another_anchor(tiny_prior: DiTPrior, tiny_set: DistilledSet) -> None:
    """MGD3: z_{k-1} = mu_k - lambda sigma_k (x0hat - m) + sigma_k n for k > t_stop, from pure noise."""
    config = DIVERConfig(start="gaussian", sampler="ddpm", sp_low=26, sp_high=49, vae_sample=False)
    ours = recover(tiny_set, tiny_prior, "diver", config).images
    schedule, labels = respace(tiny_prior.alphas_cumprod, "50"), tiny_set.hard_labels()
    images, _, noise = Recovery(Rows.of(tiny_set), tiny_prior, "diver", config).load(range(len(labels)))
    mode = tiny_prior.encode(images, None)
    z = noise.draw("start", tiny_prior.latent_shape, mode)
    for k in range(49, -1, -1):
        a, b = schedule.alpha(k), schedule.alpha(k - 1)
        said = tiny_prior.denoise(z, schedule.level(k), labels, 4.0)
        beta, sigma = 1 - a / b, schedule.posterior_variance(k) ** 0.5
        mean = b**0.5 * beta / (1 - a) * said.clean + (a / b) ** 0.5 * (1 - b) / (1 - a) * z
        z = mean + (sigma * noise.draw(f"step {k}", tiny_prior.latent_shape, z) if k else 0)
        if k > 25:
            z = z - 0.1 * sigma * (said.clean - mode)
    assert torch.allclose(tiny_prior.decode(z), ours, atol=1e-5)


def test_one_at_a_time_equals_all_at_once(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    for method, config in [("diver", DIVERConfig), ("predd", PReDDConfig), ("raw", RawConfig)]:
        together = recover(tiny_set, tiny_prior, method, config(batch=50)).images
        alone = recover(tiny_set, tiny_prior, method, config(batch=1)).images
        assert (together - alone).abs().max() < 1e-5


def test_same_seed_same_bytes_other_seed_other_images(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    first, again, other = (recover(tiny_set, tiny_prior, "diver", DIVERConfig(seed=s)) for s in (1, 1, 2))
    assert first.digest() == again.digest()
    assert not torch.allclose(first.images, other.images)


def test_index_base_shifts_every_index(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    zero = recover(tiny_set, tiny_prior, "diver", DIVERConfig(t_f=24, sp_low=24, sp_high=39))
    one = recover(tiny_set, tiny_prior, "diver", DIVERConfig(index_base=1))
    assert torch.equal(zero.images, one.images)


def test_cfg_channels_guides_only_the_first(tiny_prior: Prior) -> None:
    z, y = torch.randn(2, *tiny_prior.latent_shape), torch.tensor([0, 1])
    level = tiny_prior.schedule("1000").level(500)
    plain, full, some = (tiny_prior.denoise(z, level, y, *cfg).noise for cfg in [(1.0,), (4.0,), (4.0, 3)])
    assert torch.allclose(some[:, :3], full[:, :3]) and torch.allclose(some[:, 3:], plain[:, 3:], atol=1e-6)
    assert not torch.allclose(full[:, 3:], plain[:, 3:], atol=1e-6)


def test_indices_outside_the_schedule_are_refused(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    for config in (DIVERConfig(t_f=50), DIVERConfig(t_r=51), DIVERConfig(sp_high=50), DIVERConfig(respacing="20")):
        with pytest.raises(ValueError, match=r"must lie in 0\.\."):
            recover(tiny_set, tiny_prior, "diver", config)


def test_trace_ends_in_the_recovered_image(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    config = DIVERConfig()
    trace = trace_diver(tiny_set, tiny_prior, config)
    assert trace.indices.tolist() == list(range(49, -1, -1))
    recovered = recover(tiny_set, tiny_prior, "diver", config).images[:: tiny_set.ipc]
    # The last DDIM step goes to the predicted clean latent itself.
    assert torch.allclose(trace.images[-1], recovered, atol=1e-5)


def test_trace_is_of_as_many_classes_as_are_shown(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    """Every step of every class of a large set would fill any memory."""
    firsts = tiny_set.images[:: tiny_set.ipc].repeat(2, 1, 1, 1)
    six = replace(tiny_set, images=firsts, labels=torch.arange(6), classes=tuple("abcdef"), ipc=1)
    trace = trace_diver(six, tiny_prior, DIVERConfig(class_ids=[0, 1, 2, 0, 1, 2]))
    assert trace.images.shape[:2] == (50, CHAINS)


def test_trace_of_tiles_has_whole_images(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    config = DIVERConfig(tiles=2)
    trace = trace_diver(tiny_set, tiny_prior, config)
    recovered = recover(tiny_set, tiny_prior, "diver", config.model_copy(update={"output_size": 32}))
    assert trace.images.shape[1:] == (3, 3, 32, 32)
    assert torch.allclose(trace.images[-1], recovered.images[:: tiny_set.ipc], atol=1e-5)


def test_anchor_controls_change_the_anchor_and_nothing_else(tiny_prior: Prior, tiny_set: DistilledSet) -> None:
    plain, blurred, noisy = (
        recover(tiny_set, tiny_prior, "diver", DIVERConfig(**settings)).images
        for settings in ({}, {"anchor_blur": 1.0}, {"anchor_noise": 0.5})
    )
    assert not torch.allclose(plain, blurred) and not torch.allclose(plain, noisy)
    # Nor is a blur too wide for what is not there.
    for settings in ({"anchor_blur": 1.0}, {"anchor_noise": 0.5}, {"anchor_blur": 6.0}):
        unguided = recover(tiny_set, tiny_prior, "diver", DIVERConfig(gamma=0, **settings)).images
        assert torch.equal(unguided, recover(tiny_set, tiny_prior, "diver", DIVERConfig(gamma=0)).images)
    DIVERConfig(anchor_blur=5)
    with pytest.raises(ValueError, match=r"anchor_blur = 6: reaches past the 16 pixels .* at most 5$"):
        recover(tiny_set, tiny_prior, "diver", DIVERConfig(anchor_blur=6))
