"""A checkpoint's UNet and text encoder as ComfyUI's own MODEL and CLIP, at any width.

Core's table of known models has no entry for ours, so the config that the table would give is written here; everything
built from it is core's own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_detection
import comfy.model_management as mm
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import folder_paths
from comfy import sd1_clip
from comfy.model_base import BaseModel, ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..t2l.diffusion import DiffusionConfig
from ..t2l.io.checkpoint import check_fits
from ..t2l.model.autoencoder import AutoencoderConfig
from ..t2l.model.text2layer import CheckpointParts
from ..t2l.model.text_encoder import TextEncoderConfig
from ..t2l.model.unet import UNetConfig
from ..t2l.model.vocabulary import Vocabulary
from .hints import hint
from .latent import KEPT, kept_in
from .words import VocabularyTokenizer

PREDICTIONS = {"eps": ModelType.EPS, "v": ModelType.V_PREDICTION}


class LayeredLatents(comfy.latent_formats.LatentFormat):
    """Latents of a layered autoencoder; the preview is a linear map fitted to the composite."""

    def __init__(self, parts: CheckpointParts, autoencoder: AutoencoderConfig) -> None:
        self.latent_channels = autoencoder.latent_channels
        self.scale_factor = autoencoder.latent_scale
        self.latent_rgb_factors = parts.latent_rgb_factors
        self.latent_rgb_factors_bias = parts.latent_rgb_bias


class Text2LayerConfig(comfy.supported_models_base.BASE):
    """What core's table of supported models would hold for one of our UNets."""

    def __init__(self, detected: dict, unet: UNetConfig, diffusion: DiffusionConfig, latents: LayeredLatents) -> None:
        super().__init__(detected)
        self.unet_config |= {"num_heads": unet.num_heads, "num_head_channels": -1}
        self.latent_format = latents
        self.prediction = PREDICTIONS[diffusion.prediction]
        self.sampling_settings = {
            "beta_schedule": "linear",  # core's name for Stable Diffusion's scaled-linear schedule
            "linear_start": diffusion.beta_start,
            "linear_end": diffusion.beta_end,
            "timesteps": diffusion.num_train_steps,
            "zsnr": diffusion.zero_terminal_snr,
        }

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> ModelType:
        return self.prediction

    def inpaint_model(self) -> bool:
        return False  # core takes more than four channels for an inpainting model

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> LayeredModel:
        return LayeredModel(self, self.prediction, device)


class KeptCondition(comfy.conds.CONDConstant):
    """A kept layer beside a prompt, which may stand for an area of the picture."""

    def process_cond(self, batch_size: int, area: Any = None, **kwargs: Any) -> KeptCondition:
        return self._copy_with(self.cond if area is None else self.cond.cropped(area))


class LayeredModel(BaseModel):
    """Core's model around our UNet, which may be told a layer that is kept (keep.py), by its channels or without."""

    @property
    def keep_channels(self) -> int:
        """Input channels for a kept layer; 0: the UNet was not trained to be told one."""
        return int(self.diffusion_model.in_channels) - int(self.latent_format.latent_channels)

    def concat_cond(self, **kwargs: Any) -> Tensor | None:
        if not self.keep_channels:
            return None
        noise, kept = kwargs["noise"], kept_in(kwargs)
        if kept is None:
            return noise.new_zeros(len(noise), self.keep_channels, *noise.shape[-2:])
        return kept.condition(self.latent_format, noise)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        kept = kept_in(kwargs)
        if kept is None:
            return super().extra_conds(**kwargs)
        kept.check_samples(kwargs["noise"])
        kept.told = True
        if self.keep_channels:
            return super().extra_conds(**kwargs)
        hint(
            "this checkpoint was not trained to be told a kept layer: it is put back at every step, which takes longer"
        )
        return super().extra_conds(**kwargs) | {KEPT: KeptCondition(kept)}

    def apply_model(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kept = kwargs.pop(KEPT, None)
        denoised = super().apply_model(x, t, *args, **kwargs)
        if kept is None:
            return denoised
        runs = len(kwargs.get("transformer_options", {}).get("cond_or_uncond", [0]))
        loaded = mm.loaded_models(only_currently_used=True)  # the autoencoder may push the UNet out
        latents = kept.put_back(self.latent_format.process_out(denoised), runs)
        mm.load_models_gpu(loaded)
        return self.latent_format.process_in(latents)


def build_model(parts: CheckpointParts, autoencoder: AutoencoderConfig, path: str) -> ModelPatcher:
    """The UNet as a MODEL. Raises ValueError for weights that do not fit the config; `path` begins the sentence."""
    weights = dict(parts.unet)  # core empties the dict it loads from
    if "input_blocks.0.0.weight" not in weights:
        raise ValueError(f"{path} does not fit its config: it lacks the UNet")
    latents = LayeredLatents(parts, autoencoder)
    detected = comfy.model_detection.detect_unet_config(weights, "")
    config = Text2LayerConfig(detected, parts.unet_config, parts.diffusion, latents)
    count, device = comfy.utils.calculate_parameters(weights), mm.get_torch_device()
    dtype = mm.unet_dtype(
        device=device,
        model_params=count,
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = config.get_model(weights, "", device=mm.unet_inital_load_device(count, dtype))
    check_fits(model.diffusion_model.state_dict(), weights, f"the UNet of {path}")
    model.load_model_weights(weights, "")
    return ModelPatcher(model, load_device=device, offload_device=mm.unet_offload_device())


def build_clip(parts: CheckpointParts, path: str) -> comfy.sd.CLIP:
    """The text encoder as a CLIP. Raises ValueError for weights that do not fit the config."""
    vocabulary = Vocabulary(parts.text_encoder_config.token_ids)
    tokenizer = partial(VocabularyTokenizer, vocabulary, Path(path).name)
    target = comfy.supported_models_base.ClipTarget(tokenizer, sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(parts.text_encoder),
        model_options={"clip_l_model_config": clip_config(parts.text_encoder_config)},
    )
    expected = clip.cond_stage_model.clip_l.transformer.state_dict()
    expected.pop("text_projection.weight", None)  # of CLIP's image side; a prompt never goes through it
    check_fits(expected, parts.text_encoder, f"the text encoder of {path}")
    clip.load_sd(dict(parts.text_encoder))
    return clip


def clip_config(config: TextEncoderConfig) -> dict:
    """The fields of core's CLIP config that differ between widths."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_width,
        "hidden_act": config.activation,
        "projection_dim": config.width,
    }
