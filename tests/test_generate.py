"""Sampling: deterministic, independent of the batch, and equal to the paper's formulas."""

import pytest
import torch

from t2l.diffusion import (
    DiffusionConfig,
    add_noise,
    guided,
    scaled_linear_schedule,
)
from t2l.draws import seeded_generator
from t2l.generate import (
    GenerateConfig,
    build_scheduler,
    decode_latents,
    draw_noise,
    encode_prompts,
    generate,
    sample,
)
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text2layer import Text2Layer
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet

UNET = {
    "base_channels": 32,
    "channel_multipliers": (1, 2),
    "attention_levels": (1,),
    "num_res_blocks": 1,
    "num_heads": 2,
}
TEXT = {"width": 32, "num_layers": 1, "num_heads": 2, "hidden_width": 64, "token_ids": (320, 2368, 49406, 49407)}
AUTOENCODER = {"base_channels": 32, "channel_multipliers": (1, 1, 1), "num_res_blocks": 1, "head_channels": 8}


def tiny(prediction="eps", **autoencoder):
    torch.manual_seed(0)
    model = Text2Layer(
        autoencoder=LayeredAutoencoder(AutoencoderConfig(**(AUTOENCODER | autoencoder))).eval(),
        unet=build_unet(UNetConfig(**UNET, conditioning_width=32)).eval(),
        text_encoder=TextEncoder(TextEncoderConfig(**TEXT)).eval(),
        diffusion=DiffusionConfig(prediction=prediction),
    )
    model.text_encoder.text_model.embeddings.token_embedding.weight.data.mul_(50)  # so that the prompt matters
    return model


@pytest.fixture(scope="module")
def model():
    return tiny()


def small(**values):
    return GenerateConfig(**({"height": 64, "width": 64, "num_steps": 3} | values))


def stacked(model, prompts, config):
    return generate(model, prompts, config).layers.stacked


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(model):
    first, again, other = (stacked(model, ["a cat"], small(seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and (first - other).abs().mean() > 1e-3


def test_another_prompt_gives_another_picture_until_guidance_is_zero(model):
    cat, a = (stacked(model, [prompt], small()) for prompt in ("cat", "a"))
    assert (cat - a).abs().max() > 1e-3
    cat, a = (stacked(model, [prompt], small(guidance_scale=0)) for prompt in ("cat", "a"))
    torch.testing.assert_close(cat, a)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_picture_does_not_depend_on_its_batch(model, batch_size):
    prompts = ["a cat", "cat", "a"]
    together = stacked(model, prompts, small(seed=7, batch_size=batch_size))
    for i, prompt in enumerate(prompts):
        alone = stacked(model, [prompt], small(seed=7 + i))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["sde", "dpm", "ddim"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 101), (71, 64)])
def test_any_size_comes_out_as_asked_for_with_values_in_range(model, sampler, height, width):
    decoded = generate(model, ["a cat"], small(height=height, width=width, sampler=sampler))
    assert decoded.layers.size == (height, width) and decoded.auxiliary.shape == (1, 3, height, width)
    values = decoded.layers.stacked
    assert values.isfinite().all() and values.min() >= 0 and values.max() <= 1


def test_without_an_auxiliary_head_there_is_no_auxiliary_picture():
    assert generate(tiny(auxiliary=False), ["a cat"], small()).auxiliary is None


@pytest.mark.parametrize("prediction", ["eps", "v"])
@torch.no_grad()
def test_ddim_is_the_papers_with_guidance(prediction):
    """Song et al. 2021, Eq. 12 with sigma = 0: x_s = sqrt(a_s) x_0 + sqrt(1 - a_s) eps, written with our own
    formulas.
    """
    model, config = tiny(prediction), small(num_steps=10, sampler="ddim", guidance_scale=7.5, seed=3)
    uncond, cond = encode_prompts(model, ["", "a cat"]).chunk(2)
    alphas = scaled_linear_schedule(model.diffusion)
    x = draw_noise(model, [seeded_generator(3)], config)
    for t in range(999, 0, -100):
        now = torch.tensor([t])
        with_prompt, without = (model.unet(x, now, encoder_hidden_states=c).sample for c in (cond, uncond))
        prediction_ = guided(with_prompt, without, 7.5)
        signal, sigma = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        eps = signal * prediction_ + sigma * x if prediction == "v" else prediction_
        denoised = (x - sigma * eps) / signal
        x = add_noise(denoised, eps, torch.tensor([max(t - 100, 0)]), alphas)
    torch.testing.assert_close(sample(model, [seeded_generator(3)], cond, uncond, config), x, atol=1e-4, rtol=1e-4)
    expected = decode_latents(model, x, config).layers.stacked
    torch.testing.assert_close(stacked(model, ["a cat"], config), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("sampler", "steps", "tolerance"), [("sde", 50, 0.05), ("dpm", 25, 0.02), ("ddim", 50, 0.05)])
def test_a_perfect_model_of_one_picture_is_sampled_exactly(prediction, sampler, steps, tolerance):
    """The true answer for a data set of one picture is known at every step, so every sampler must arrive there."""
    scheduler = build_scheduler(DiffusionConfig(prediction=prediction), sampler)
    scheduler.set_timesteps(steps)
    alphas = scaled_linear_schedule()
    generator = torch.Generator().manual_seed(0)
    goal, x = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    for t in scheduler.timesteps:
        a = alphas[t]
        eps = (x - a.sqrt() * goal) / (1 - a).sqrt()
        answer = eps if prediction == "eps" else a.sqrt() * eps - (1 - a).sqrt() * goal
        x = scheduler.step(answer, t, x, generator=generator).prev_sample
    assert (x - goal).abs().mean() < tolerance


def test_sampling_begins_at_the_last_step_of_training():
    for sampler in ("sde", "dpm", "ddim"):
        scheduler = build_scheduler(DiffusionConfig(), sampler)
        scheduler.set_timesteps(25)
        assert scheduler.timesteps[0] == 999 and len(scheduler.timesteps) == 25
        torch.testing.assert_close(scheduler.alphas_cumprod, scaled_linear_schedule())


@pytest.mark.parametrize("sampler", ["sde", "dpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_any_number_of_steps_works(model, sampler, steps):
    assert stacked(model, ["a cat"], small(sampler=sampler, num_steps=steps)).isfinite().all()


def test_progress_counts_every_step_of_every_batch(model):
    seen = []
    generate(model, ["a cat"] * 3, small(batch_size=2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_half_precision_networks_give_float32_pictures():
    pixels = stacked(tiny().to(torch.bfloat16), ["a cat"], small())
    assert pixels.dtype == torch.float32 and pixels.isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 63}, "width and height must be at least 64 pixels, got 256 x 63"),
        ({"width": 0}, "at least 64 pixels, got 0 x 256"),
        ({"num_steps": 0}, "num_steps and batch_size must be at least 1, got 0 and 8"),
        ({"sampler": "euler"}, "sampler must be one of sde, dpm, ddim, got 'euler'"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**values)


def test_no_prompt_and_a_bare_text_and_too_many_steps_are_refused(model):
    with pytest.raises(ValueError, match="takes a list of at least one prompt, got"):
        generate(model, [], small())
    with pytest.raises(ValueError, match="takes a list of at least one prompt, got 'a cat'"):
        generate(model, "a cat", small())
    with pytest.raises(ValueError, match="steps must be at most 1000, got 1001"):
        generate(model, ["a cat"], small(num_steps=1001))
