"""The tensors that a config asks for, by name and shape, to measure a checkpoint before anything is built. Names are
those of our files, ldm's and transformers'. tests/model/test_measure.py compares them with the networks.
"""

from __future__ import annotations

from ..io.header import Entry
from .text_encoder import MAX_TOKENS, TextEncoderConfig
from .unet import UNetConfig

Shapes = dict[str, Entry]


def unet_shapes(config: UNetConfig) -> Shapes:
    """A UNet's tensors under ldm's names."""
    widths, width, times = config.widths, config.widths[0], 4 * config.widths[0]
    found = _linear("time_embed.0", width, times) | _linear("time_embed.2", times, times)
    found |= _conv("input_blocks.0.0", config.in_channels, width, 3)
    skips, number = [width], 1
    for level, out in enumerate(widths):
        for _ in range(config.num_res_blocks):
            found |= _block(f"input_blocks.{number}", width, out, level, config)
            width, number = out, number + 1
            skips.append(width)
        if level < len(widths) - 1:
            found |= _conv(f"input_blocks.{number}.0.op", width, width, 3)
            number += 1
            skips.append(width)
    for place in (0, 2):
        found |= _res_block(f"middle_block.{place}", width, width, times)
    found |= _transformer("middle_block.1", width, config.conditioning_width)
    return (
        found | _way_up(config, skips) | _norm("out.0", widths[0]) | _conv("out.2", widths[0], config.out_channels, 3)
    )


def _way_up(config: UNetConfig, skips: list[int]) -> Shapes:
    """The output blocks; skips: the widths that come from the way down, the last first used."""
    found: Shapes = {}
    width, number = config.widths[-1], 0
    for level in reversed(range(len(config.widths))):
        out = config.widths[level]
        for i in range(config.num_res_blocks + 1):
            found |= _block(f"output_blocks.{number}", width + skips.pop(), out, level, config)
            width = out
            if level > 0 and i == config.num_res_blocks:
                slot = 2 if level in config.attention_levels else 1
                found |= _conv(f"output_blocks.{number}.{slot}.conv", out, out, 3)
            number += 1
    return found


def text_encoder_shapes(config: TextEncoderConfig) -> Shapes:
    """CLIP's text transformer under transformers' names."""
    width, model = config.width, "text_model."
    found = {f"{model}embeddings.token_embedding.weight": Entry((config.num_rows, width))}
    found[f"{model}embeddings.position_embedding.weight"] = Entry((MAX_TOKENS, width))
    for i in range(config.num_layers):
        layer = f"{model}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _linear(f"{layer}self_attn.{name}", width, width)
        found |= _norm(f"{layer}layer_norm1", width) | _norm(f"{layer}layer_norm2", width)
        found |= _linear(f"{layer}mlp.fc1", width, config.hidden_width)
        found |= _linear(f"{layer}mlp.fc2", config.hidden_width, width)
    return found | _norm(f"{model}final_layer_norm", width)


def _block(name: str, width: int, out: int, level: int, config: UNetConfig) -> Shapes:
    """A residual block and, where the level attends to the prompt, a transformer."""
    found = _res_block(f"{name}.0", width, out, 4 * config.widths[0])
    attends = level in config.attention_levels
    return found | _transformer(f"{name}.1", out, config.conditioning_width) if attends else found


def _res_block(name: str, width: int, out: int, times: int) -> Shapes:
    found = _norm(f"{name}.in_layers.0", width) | _conv(f"{name}.in_layers.2", width, out, 3)
    found |= _linear(f"{name}.emb_layers.1", times, out)
    found |= _norm(f"{name}.out_layers.0", out) | _conv(f"{name}.out_layers.3", out, out, 3)
    return found if width == out else found | _conv(f"{name}.skip_connection", width, out, 1)


def _transformer(name: str, width: int, conditioning: int) -> Shapes:
    found, block = _norm(f"{name}.norm", width), f"{name}.transformer_blocks.0"
    for end in ("proj_in", "proj_out"):
        found |= _conv(f"{name}.{end}", width, width, 1)
    for attention, keys in (("attn1", width), ("attn2", conditioning)):
        for part, inside in (("to_q", width), ("to_k", keys), ("to_v", keys)):
            found[f"{block}.{attention}.{part}.weight"] = Entry((width, inside))
        found |= _linear(f"{block}.{attention}.to_out.0", width, width)
    for i in (1, 2, 3):
        found |= _norm(f"{block}.norm{i}", width)
    return found | _linear(f"{block}.ff.net.0.proj", width, 8 * width) | _linear(f"{block}.ff.net.2", 4 * width, width)


def _conv(name: str, width: int, out: int, kernel: int) -> Shapes:
    return {f"{name}.weight": Entry((out, width, kernel, kernel)), f"{name}.bias": Entry((out,))}


def _linear(name: str, width: int, out: int) -> Shapes:
    return {f"{name}.weight": Entry((out, width)), f"{name}.bias": Entry((out,))}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": Entry((width,)), f"{name}.bias": Entry((width,))}
