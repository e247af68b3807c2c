"""The command cache-latents: a data set through the frozen networks once, on one process or on several, and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.ahead import count_processors, explain_worker_death
from ..data.buckets import Size, aspect_buckets
from ..data.latents import Latents, Std, cache_latents, check_latents
from ..data.several import Data
from ..data.texts import cache_texts, check_texts
from ..layers import Layers
from ..model.autoencoder import Autoencoder
from ..model.device import DTYPES, place
from ..model.precision import bf16_is_fast, precision_context
from ..model.text2layer import load_autoencoder
from ..model.text_encoder import TextEncoder, TextEncoderConfig, fingerprint
from ..model.tokenizer import Tokenizer
from .processes import Processes
from .start import starting_text_encoder

PATIENCE = timedelta(days=14)  # for the slowest: a launcher ends all when one dies. Milliseconds must fit an int32


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What a latent cache holds."""

    size: int = 256  # pixels, height and width; with buckets the root of a picture's largest area
    bucket_step: int | None = None  # the sides of aspect buckets are multiples of it; None = every picture is square
    keep: bool = False  # each layer alone, too: for a UNet that learns to keep one and paint the other
    std: Std = "fp16"  # the posterior's: 8 bits are 2.8 % off; with none latents are the means
    num_workers: int = field(
        default_factory=lambda: min(8, count_processors())
    )  # that read pictures while a network computes
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)  # of a Stable Diffusion file

    CHANGES_NOTHING: ClassVar[tuple[str, ...]] = ("num_workers",)


def write_cache(
    autoencoder: Path,
    data: Data,
    out: Path,
    config: CacheConfig,
    text_encoder: Path | None = None,
    check: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
) -> list[str]:
    """Encode the pictures of one folder of shards or several, with a text encoder also captions; the same call resumes.

    device, dtype: as pick_device and place take them; of several processes each has a card of its own. fp32 weights
    compute in bf16 where the device is fast at it. check: pictures and captions to encode again once the cache is
    finished. Returns sentences about what that found, raises ValueError when it found more than rounding.
    """
    processes = Processes(device, PATIENCE)
    own = processes.device
    workers: dict[str, Any] = {"process": processes.rank, "processes": processes.world_size, "wait": processes.wait}
    network = load_autoencoder(autoencoder)
    buckets = _buckets(config, network.config.downscale)
    encode = latent_encoder(network, own, dtype)
    texts = None if text_encoder is None else starting_text_encoder(text_encoder, config.text_encoder)
    encode_text = None if texts is None else text_embedder(texts, own, dtype)
    kept: dict[str, Any] = {
        "buckets": buckets,
        "std": config.std,
        "workers": config.num_workers,
        "keep": config.keep,
    }
    with explain_worker_death():
        cache_latents(encode, autoencoder, data, out, config.size, **kept, **workers)
    if texts is not None and encode_text is not None:
        cache_texts(encode_text, fingerprint(texts), data, out, **workers)
    processes.wait()
    if not (check and processes.is_main):
        return []
    cached = Latents(out)
    precision = DTYPES[dtype] if dtype != "fp32" else torch.bfloat16 if bf16_is_fast(own) else torch.float32
    found = [check_latents(encode, data, cached, check, precision)]
    if encode_text is not None and cached.embeddings is not None:
        found.append(check_texts(encode_text, cached.embeddings, check))
    return found


def _buckets(config: CacheConfig, downscale: int) -> list[Size] | None:
    for name, value in {"size": config.size, "the buckets' step": config.bucket_step}.items():
        if value is not None and value % downscale:
            raise ValueError(
                f"{name} must be a multiple of {downscale}, the autoencoder's pixels per latent, got {value}"
            )
    return None if config.bucket_step is None else aspect_buckets(config.size, config.bucket_step)


def latent_encoder(
    network: Autoencoder, device: torch.device, dtype: str = "fp32"
) -> Callable[[Layers], tuple[Tensor, Tensor]]:
    """Layers -> mean and std of an autoencoder's posterior; moves the network to the device."""
    network = place(network, device, dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode(layers: Layers) -> tuple[Tensor, Tensor]:
        with precision_context(device, "auto" if dtype == "fp32" else "fp32"):  # bf16: 0.5 % of the latents' spread
            posterior = network.encode(layers.to(device, DTYPES[dtype]))
        return posterior.mean, posterior.std

    return encode


def text_embedder(network: TextEncoder, device: torch.device, dtype: str = "fp32") -> Callable[[Sequence[str]], Tensor]:
    """Captions -> what the text encoder says of them; moves the network to the device."""
    tokenizer, network = Tokenizer(), place(network.eval(), device, dtype)

    @torch.inference_mode()
    def encode(captions: Sequence[str]) -> Tensor:
        return network(tokenizer(captions).to(device))

    return encode
