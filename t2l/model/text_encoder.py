"""CLIP's text transformer (Radford et al. 2021) at any width and depth: token ids -> conditioning.

A small model need not store CLIP's 49,408 rows: `token_ids` names the tokens of its captions, each gets a row, and
every other token shares row 0, the learnt "unknown". `full_vocabulary` puts the rows back for programs that want the
whole table, `compact_vocabulary` takes them out again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import shown
from ..config import check_ranges, config_to_dict
from .tokenizer import END_ID, MAX_TOKENS, START_ID, VOCABULARY_SIZE

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")  # what transformers and ComfyUI both know
TABLE = "text_model.embeddings.token_embedding.weight"


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """What a TextEncoder is built from; the defaults are CLIP ViT-L/14's, the text encoder of SD 1.x."""

    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    hidden_width: int = 3072  # inside each MLP
    activation: str = "quick_gelu"
    token_ids: tuple[int, ...] | None = None  # ids with a row of their own; None = all of CLIP's vocabulary

    def __post_init__(self) -> None:
        check_ranges(self, width=(1, 8192), num_layers=(1, 64), num_heads=(1, 256), hidden_width=(1, 65536))
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"TextEncoderConfig.activation must be one of {', '.join(ACTIVATIONS)}, got {shown(self.activation)}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"TextEncoderConfig.width must be a multiple of num_heads, got {self.width} and {self.num_heads}"
            )
        ids = self.token_ids or ()
        if len(ids) >= VOCABULARY_SIZE:
            raise ValueError(
                "TextEncoderConfig.token_ids lists every token; leave it out where the vocabulary is whole"
            )
        if len(set(ids)) < len(ids) or any(not 0 <= i < VOCABULARY_SIZE for i in ids):
            raise ValueError(
                f"TextEncoderConfig.token_ids must be different ids from 0 to {VOCABULARY_SIZE - 1}, got {shown(ids)}"
            )

    @property
    def num_rows(self) -> int:
        """Rows of the token table on disk."""
        return VOCABULARY_SIZE if self.token_ids is None else 1 + len(self.token_ids)


class TextEncoder(nn.Module):
    """Token ids (N, 77) -> conditioning (N, 77, width): the last hidden state after the final layer norm.

    Attention is causal and the padding is not masked, as in Stable Diffusion and ComfyUI. The state dict has
    transformers' names under `text_model.`.
    """

    rows: Tensor | None  # (49408,), the row of every id

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _build_clip(config)
        self.register_buffer(
            "rows", None if config.token_ids is None else row_of_id(config.token_ids), persistent=False
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.text_model(input_ids=ids if self.rows is None else self.rows[ids]).last_hidden_state


@torch.no_grad()
def add_tokens(encoder: TextEncoder, token_ids: Iterable[int]) -> None:
    """Give tokens that share the row of the unknown one rows of their own, in place; old ids keep theirs.

    A new row starts as the unknown token's, so the encoder says of every text what it said before, and training goes on
    from there. Noise would only take that away: rows need none to part, each gets the gradients of its own captions.
    An encoder with CLIP's whole vocabulary has nothing to add.
    """
    if encoder.config.token_ids is None or encoder.rows is None:
        return
    listed = set(encoder.config.token_ids)
    new = tuple(i for i in dict.fromkeys(token_ids) if i not in listed)
    all_ids = encoder.config.token_ids + new
    encoder.config = replace(encoder.config, token_ids=all_ids)
    table: Any = encoder.text_model.embeddings.token_embedding
    table.weight = nn.Parameter(torch.cat([table.weight, table.weight[:1].expand(len(new), -1)]))
    table.num_embeddings = encoder.text_model.config.vocab_size = encoder.config.num_rows
    encoder.rows = row_of_id(all_ids).to(encoder.rows.device)


def fingerprint(encoder: TextEncoder) -> str:
    """SHA-256 of all that decides what an encoder says: its config, and its weights to float16.

    To float16, so that a checkpoint of ours made from a float32 file has the fingerprint of that file.
    """
    digest = hashlib.sha256(json.dumps(config_to_dict(encoder.config)).encode())
    for name, weight in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + weight.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def row_of_id(token_ids: tuple[int, ...]) -> Tensor:
    """The row of each of CLIP's ids in a compact table, (49408,): 0 = unknown, 1 + i for token_ids[i]."""
    rows = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
    rows[torch.tensor(token_ids, dtype=torch.long)] = torch.arange(1, 1 + len(token_ids))
    return rows


def full_vocabulary(state: dict[str, Tensor], config: TextEncoderConfig) -> dict[str, Tensor]:
    """The state dict with CLIP's whole token table (49408, width): listed rows in their places, unknown elsewhere."""
    if config.token_ids is None:
        return dict(state)
    return state | {TABLE: state[TABLE][row_of_id(config.token_ids)]}


def compact_vocabulary(state: dict[str, Tensor], config: TextEncoderConfig) -> dict[str, Tensor]:
    """The inverse of `full_vocabulary`: only the unknown token's row and those of config.token_ids."""
    if config.token_ids is None:
        return dict(state)
    listed = set(config.token_ids)
    unknown = next(i for i in range(VOCABULARY_SIZE) if i not in listed)
    return state | {TABLE: state[TABLE][torch.tensor([unknown, *config.token_ids])]}


def clip_config(config: TextEncoderConfig) -> Any:
    """The config of transformers' CLIPTextModel for the same network."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    ids = range(VOCABULARY_SIZE) if config.token_ids is None else (None, *config.token_ids)
    start, end = (ids.index(i) if i in ids else 0 for i in (START_ID, END_ID))
    return CLIPTextConfig(
        vocab_size=config.num_rows,
        hidden_size=config.width,
        intermediate_size=config.hidden_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=config.activation,
        projection_dim=config.width,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )


def _build_clip(config: TextEncoderConfig) -> Any:
    from transformers.models.clip.modeling_clip import CLIPTextModel

    clip = CLIPTextModel(clip_config(config))
    return getattr(clip, "text_model", clip)  # transformers 4 wraps once more
