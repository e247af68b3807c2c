"""CLIP score: the cosine of a picture and its caption (Hessel et al. 2021, arXiv 2104.08718, without its factor 2.5).

The paper takes ViT-L/14 (Radford et al. 2021, arXiv 2103.00020). The network is transformers' CLIPModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY_SIZE = 49408  # of CLIP's tokenizer
HEAD_WIDTH = 64  # of every attention head in OpenAI's files
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def build_clip(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: str) -> nn.Module:
    """transformers' CLIPModel for a file's tensors, its weights still to come.

    config: what a config.json beside the file holds; without one the sizes are read off the tensors and the rest is
    OpenAI's. Raises ValueError for tensors that are no CLIP under transformers' names.
    """
    from transformers import CLIPConfig, CLIPModel

    try:
        text, vision = _text_sizes(tensors), _vision_sizes(tensors)
        projection = tensors["visual_projection.weight"].shape[0]
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"{source} is no CLIP under transformers' names, it lacks {error}; take model.safetensors of a folder such "
            "as openai/clip-vit-large-patch14"
        ) from error
    if text["vocab_size"] != VOCABULARY_SIZE:
        raise ValueError(f"{source} knows {text['vocab_size']} tokens, CLIP's tokenizer has {VOCABULARY_SIZE}")
    if config is None:
        built = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    else:
        built = CLIPConfig.from_dict(dict(config))
    return CLIPModel(built).eval().requires_grad_(False)


@torch.no_grad()
def clip_score(network: Any, pixels: Tensor, ids: Tensor) -> Tensor:
    """Cosines in [-1, 1] of pictures (N, 3, H, W) in [0, 1] and captions' token ids (N, 77): (N,), on the CPU."""
    device = next(network.parameters()).device
    size = network.config.vision_config.image_size
    seen = network.vision_model(pixel_values=clip_input(pixels.to(device), size)).pooler_output
    read = network.text_model(input_ids=ids.to(device)).pooler_output
    return F.cosine_similarity(network.visual_projection(seen), network.text_projection(read)).cpu()


def clip_input(pixels: Tensor, size: int) -> Tensor:
    """The middle square of pictures (N, 3, H, W) in [0, 1] as CLIP is shown it, (N, 3, size, size)."""
    height, width = (n * size // min(pixels.shape[-2:]) for n in pixels.shape[-2:])
    x = F.interpolate(pixels.float(), (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (height - size) // 2, (width - size) // 2
    x = x[..., top : top + size, left : left + size]
    mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


def _text_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    positions = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
    sizes = {"vocab_size": vocabulary, "max_position_embeddings": positions}
    return sizes | _tower(tensors, "text_model", width)


def _vision_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, _, patch = tensors["vision_model.embeddings.patch_embedding.weight"].shape
    positions = tensors["vision_model.embeddings.position_embedding.weight"].shape[0]
    sizes = {"patch_size": patch, "image_size": patch * round((positions - 1) ** 0.5)}
    return sizes | _tower(tensors, "vision_model", width)


def _tower(tensors: Mapping[str, Tensor], name: str, width: int) -> dict[str, Any]:
    layers = {key.split(".")[3] for key in tensors if key.startswith(f"{name}.encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": tensors[f"{name}.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "hidden_act": "quick_gelu",
    }
