"""A UNet grown by one level starts from what the smaller one knows."""

from dataclasses import replace

import torch

from t2l.diffusion import DiffusionConfig, scaled_linear_schedule
from t2l.model.grow import adds_attention, grow, grown_config, halved_noise_time, with_attention
from t2l.model.unet import UNetConfig, build_unet, config_of_unet

SMALL = UNetConfig(
    in_channels=8,
    out_channels=8,
    base_channels=32,
    channel_multipliers=(1, 2),
    attention_levels=(1,),
    num_res_blocks=1,
    num_heads=2,
    conditioning_width=32,
)
DIFFUSION = DiffusionConfig(prediction="v")
SCHEDULE = scaled_linear_schedule(DIFFUSION)


def repeated(x):
    return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def test_at_the_time_of_half_the_noise_sigma_is_half():
    a = SCHEDULE.double()
    log_sigma = 0.5 * torch.log((1 - a) / a)
    t = torch.arange(50, 1000, 50)
    earlier = halved_noise_time(SCHEDULE)[t].double()
    low = earlier.long()
    between = torch.lerp(log_sigma[low], log_sigma[low + 1], earlier - low)
    torch.testing.assert_close(between.exp(), log_sigma[t].exp() / 2, rtol=1e-4, atol=0)


def test_a_grown_unet_has_one_level_more_and_keeps_the_weights_within():
    torch.manual_seed(0)
    small = build_unet(SMALL)
    large = grow(small, SCHEDULE)
    assert config_of_unet(large) == grown_config(SMALL)
    assert grown_config(SMALL).channel_multipliers == (1, 1, 2) and grown_config(SMALL).attention_levels == (2,)
    assert torch.equal(large.down_blocks[1].resnets[0].conv1.weight, small.down_blocks[0].resnets[0].conv1.weight)
    assert torch.equal(large.up_blocks[0].resnets[0].conv1.weight, small.up_blocks[0].resnets[0].conv1.weight)


@torch.no_grad()
def test_where_the_outer_convolutions_look_at_one_cell_a_grown_unet_gives_the_small_ones_picture_twice_as_large():
    torch.manual_seed(0)
    small = build_unet(SMALL)
    for conv in (small.conv_in, small.conv_out):
        center = conv.weight[:, :, 1:2, 1:2].clone()
        conv.weight.zero_()[:, :, 1:2, 1:2] = center
    large, times = grow(small, SCHEDULE), torch.tensor([400, 900])
    large.time_embedding.load_state_dict(small.time_embedding.state_dict())
    x, conditioning = torch.randn(2, 8, 8, 8), torch.randn(2, 77, 32)
    expected = small(x, times, encoder_hidden_states=conditioning).sample
    got = large(repeated(x), times, encoder_hidden_states=conditioning).sample
    torch.testing.assert_close(got, repeated(expected), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_grown_unet_takes_its_noise_for_half_as_strong():
    torch.manual_seed(0)
    small = build_unet(SMALL)
    large, times = grow(small, SCHEDULE), torch.arange(100, 1000, 50)
    wanted = small.time_embedding(small.time_proj(halved_noise_time(SCHEDULE)[times]))
    unchanged = small.time_embedding(small.time_proj(times))
    got = large.time_embedding(large.time_proj(times))
    assert (got - wanted).square().mean() < 0.2 * (unchanged - wanted).square().mean()


@torch.no_grad()
def test_a_unet_with_more_attention_predicts_what_it_did_before():
    torch.manual_seed(0)
    small = build_unet(SMALL)
    config = replace(SMALL, attention_levels=(0, 1))
    large = with_attention(small, config)
    assert config_of_unet(large) == replace(config_of_unet(small), attention_levels=(0, 1))
    x, times, text = torch.randn(2, 8, 8, 8), torch.tensor([40, 900]), torch.randn(2, 77, 32)
    predicted = [unet(x, times, encoder_hidden_states=text).sample for unet in (small, large)]
    torch.testing.assert_close(predicted[1], predicted[0])


def test_attention_can_be_added_but_not_taken_away():
    more = replace(SMALL, attention_levels=(0, 1))
    assert adds_attention(more, SMALL)
    assert not adds_attention(SMALL, more) and not adds_attention(SMALL, SMALL)
    assert not adds_attention(replace(more, num_heads=4), SMALL)
