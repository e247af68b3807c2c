import pytest
import torch

from t2l.diffusion import (
    DiffusionConfig,
    add_noise,
    guided,
    min_snr_weight,
    scaled_linear_schedule,
    training_target,
    velocity,
    zero_terminal_snr,
)

T = torch.tensor([0, 1, 50, 100, 250, 500, 750, 999])


@pytest.fixture
def alphas_cumprod():
    return scaled_linear_schedule().double()


def latents():
    """Clean latents and the noise drawn for them, (8, 4, 6, 6) each."""
    return torch.randn(2, 8, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def scheduler():
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def test_the_schedule_is_stable_diffusions(scheduler):
    ours = scaled_linear_schedule()
    torch.testing.assert_close(ours, scheduler.alphas_cumprod, atol=1e-6, rtol=1e-5)
    assert ours.dtype == torch.float32 and (ours.diff() < 0).all()
    assert ours[0].item() == pytest.approx(1 - 0.00085) and ours[-1].item() == pytest.approx(0.00466, abs=1e-5)


def test_the_schedule_follows_its_config():
    short = scaled_linear_schedule(DiffusionConfig(num_train_steps=2, beta_start=0.25, beta_end=0.5))
    torch.testing.assert_close(short, torch.tensor([0.75, 0.375]))


def test_noise_and_velocity_agree_with_diffusers(scheduler):
    x, noise = latents().float()
    alphas_cumprod = scaled_linear_schedule()
    torch.testing.assert_close(add_noise(x, noise, T, alphas_cumprod), scheduler.add_noise(x, noise, T))
    torch.testing.assert_close(velocity(x, noise, T, alphas_cumprod), scheduler.get_velocity(x, noise, T))


def test_the_velocity_and_noisy_latents_give_back_the_clean_ones_and_the_noise(alphas_cumprod):
    """x = sqrt(a) x_t - sqrt(1 - a) v and noise = sqrt(1 - a) x_t + sqrt(a) v (Salimans & Ho 2022, appendix D)."""
    x, noise = latents()
    x_t, v = add_noise(x, noise, T, alphas_cumprod), velocity(x, noise, T, alphas_cumprod)
    a = alphas_cumprod[T].view(-1, 1, 1, 1)
    torch.testing.assert_close(a.sqrt() * x_t - (1 - a).sqrt() * v, x)
    torch.testing.assert_close((1 - a).sqrt() * x_t + a.sqrt() * v, noise)


def test_noisy_latents_keep_unit_variance(alphas_cumprod):
    x, noise = torch.randn(2, 8, 4, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = add_noise(x, noise, T, alphas_cumprod).var(dim=(1, 2, 3))
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=0.03, rtol=0)


def test_the_target_is_the_noise_or_the_velocity(alphas_cumprod):
    x, noise = latents()
    assert torch.equal(training_target(x, noise, T, alphas_cumprod, "eps"), noise)
    expected = velocity(x, noise, T, alphas_cumprod)
    assert torch.equal(training_target(x, noise, T, alphas_cumprod, "v"), expected)


def test_guidance_extrapolates_from_uncond_through_cond():
    cond, uncond = latents()
    torch.testing.assert_close(guided(cond, uncond, 7.5), uncond + 7.5 * (cond - uncond))
    torch.testing.assert_close(guided(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guided(cond, uncond, 1.0), cond)


def test_zero_terminal_snr_ends_in_noise_alone_and_begins_where_it_did(alphas_cumprod):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    ours = scaled_linear_schedule(DiffusionConfig(prediction="v", zero_terminal_snr=True))
    assert ours[-1] == 0 and ours[0] == pytest.approx(float(alphas_cumprod[0]))
    steps = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(1 - steps), dim=0)
    torch.testing.assert_close(zero_terminal_snr(alphas_cumprod), theirs)
    with pytest.raises(ValueError, match="zero_terminal_snr needs prediction 'v'"):
        DiffusionConfig(zero_terminal_snr=True)


def test_min_snr_weights_by_hand():
    a = torch.tensor([0.5, 0.9, 0.1])  # SNR 1, 9 and 1/9
    t = torch.tensor([0, 1, 2])
    torch.testing.assert_close(min_snr_weight(t, a, 5.0, "eps"), torch.tensor([1.0, 5 / 9, 1.0]))
    torch.testing.assert_close(min_snr_weight(t, a, 5.0, "v"), torch.tensor([0.5, 0.5, 0.1]))


def test_min_snr_weights_leave_the_step_of_noise_alone_in_training():
    """With zero terminal SNR its weight once was 0: the first step of every picture was never learnt."""
    a = scaled_linear_schedule(DiffusionConfig(prediction="v", zero_terminal_snr=True))
    weights = min_snr_weight(torch.arange(len(a)), a, 5.0, "v")
    assert weights[-1] == 1 and bool((weights > 0).all())
    snr = a[:-1] / (1 - a[:-1])
    torch.testing.assert_close(weights[:-1], snr.clamp(max=5) / (snr + 1))


def test_min_snr_weights_make_eps_and_v_count_the_clean_estimate_alike(alphas_cumprod):
    """The same error of the clean estimate costs the same whatever is predicted: |x - x^|^2 min(SNR, gamma)."""
    x, noise = latents()
    x_t, wrong = add_noise(x, noise, T, alphas_cumprod), x + 0.1
    a = alphas_cumprod[T].view(-1, 1, 1, 1)
    v = (a.sqrt() * x_t - wrong) / (1 - a).sqrt()
    eps = (x_t - a.sqrt() * wrong) / (1 - a).sqrt()
    costs = []
    for kind, prediction in (("v", v), ("eps", eps)):
        error = (prediction - training_target(x, noise, T, alphas_cumprod, kind)).square().mean(dim=(1, 2, 3))
        costs.append(error * min_snr_weight(T, alphas_cumprod, 5.0, kind))
    torch.testing.assert_close(costs[0], costs[1])
    snr = alphas_cumprod[T] / (1 - alphas_cumprod[T])
    torch.testing.assert_close(costs[0], 0.01 * snr.clamp(max=5))
