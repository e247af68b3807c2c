"""What paints the background behind a foreground: our own fill, PatchMatch, or a user's own network from a local file.

No network is part of this project or fetched by it. Each is an Inpainter of fill.py, which paints in the hole alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compositing.fill import Inpainter, fill
from ..draws import seeded_generator
from .device import DTYPES
from .onnx import CPU, KINDS, open_session, run_session
from .tokenizer import END_ID, MAX_TOKENS, START_ID

SIDE = 512  # pixels of the shorter side for a network: what Stable Diffusion 2 inpainting and LaMa's export take
STEP = 8  # pixels along a side per latent, and per pixel of LaMa's coarsest map
STEPS = 50  # of the sampler; the paper names none
PATCH = 3  # PatchMatch's radius, as in its examples: patches of 7 x 7
PAD_ID = 0  # Stable Diffusion 2 pads prompts with "!"
WEIGHTS_OF_SD = ("vae", "text_encoder", "unet", "scheduler")  # folders that a diffusers folder is read from


def inpainter(
    name: str | Path, device: torch.device = CPU, dtype: str = "fp32", side: int = SIDE, steps: int = STEPS
) -> Inpainter:
    """What paints a hole (N, 1, H, W) in pictures (N, 3, H, W) of any size; where the hole is 0 they come back exactly.

    name: "fill"; "patchmatch" (the package pypatchmatch); a LaMa .onnx file; or Stable Diffusion inpainting, the
    paper's, as a diffusers folder or one .safetensors file with its folder of configs beside it. A network paints at
    `side` pixels of the shorter side. Raises FileNotFoundError, ModuleNotFoundError for a package that is missing,
    ValueError for another file.
    """
    if name == "fill":
        return fill
    if name == "patchmatch":
        return partial(_paint_hole, _patchmatch())
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(
            "inpainting must be fill, patchmatch, a diffusers folder, a .safetensors file or LaMa's .onnx file; "
            f"{name} is not there"
        )
    if path.suffix == ".onnx":
        return partial(_paint_hole, _lama(path, device, side))
    return partial(_paint_hole, _diffusion(path, device, dtype, side, steps))


def _paint_hole(paint: Inpainter, picture: Tensor, hole: Tensor) -> Tensor:
    """What was painted, in the hole alone. paint gets a hole of 0 and 1."""
    if not bool((hole > 0).any()):
        return picture
    painted = paint(picture.float(), (hole > 0).float()).to(picture).clamp(0, 1)
    return torch.where(hole > 0, torch.lerp(picture, painted, hole.to(picture)), picture)


def _patchmatch() -> Inpainter:
    """PatchMatch (Barnes et al. 2009) by the package pypatchmatch."""
    try:
        import patchmatch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "patchmatch needs the package pypatchmatch of the extra `data`: run `pip install 'text2layer[data]'`",
            name="patchmatch",
        ) from error

    def paint(pictures: Tensor, hole: Tensor) -> Tensor:
        return torch.cat([_one(x, h) for x, h in zip(pictures.split(1), hole.split(1), strict=True)])

    def _one(picture: Tensor, hole: Tensor) -> Tensor:
        if bool(hole.all()) or not bool(hole.any()):  # nothing to take patches from, or nothing to do
            return fill(picture, hole)
        colours = (picture[0].movedim(0, -1) * 255).round().to("cpu", torch.uint8).contiguous().numpy()
        mask = (hole[0, 0] * 255).to("cpu", torch.uint8).contiguous().numpy()
        patchmatch.set_random_seed(0)
        return torch.from_numpy(patchmatch.inpaint(colours, mask, patch_size=PATCH)).movedim(-1, 0)[None].float() / 255

    return paint


def _lama(path: Path, device: torch.device, side: int) -> Inpainter:
    """LaMa (Suvorov et al. 2022, arXiv 2109.07161) as an ONNX file.

    The public exports take a picture (1, 3, H, W) in [0, 1] and a mask (1, 1, H, W) of 0 and 1 = hole, or both as one
    input of four channels with the hole black, and give [0, 255] or [0, 1]; a grey picture without a hole tells which.
    """
    session = open_session(path, torch.get_num_threads(), device)
    inputs = session.get_inputs()
    channels = sorted(x.shape[1] for x in inputs if len(x.shape) == 4 and isinstance(x.shape[1], int))
    if channels not in ([1, 3], [4]) or len(channels) != len(inputs) or any(x.type not in KINDS for x in inputs):
        found = ", ".join(f"{x.name} {list(x.shape)}" for x in inputs)
        raise ValueError(
            f"{path} must take pictures (1, 3, H, W) and masks (1, 1, H, W), as LaMa does; it takes {found}"
        )
    fixed = [n for n in inputs[0].shape[2:] if isinstance(n, int)]
    size = (fixed[0], fixed[1]) if len(fixed) == 2 else None

    def run(picture: Tensor, hole: Tensor) -> Tensor:
        parts = {3: picture, 1: hole, 4: torch.cat([picture * (1 - hole), hole], dim=1)}
        fed = {x.name: parts[x.shape[1]].to("cpu", KINDS[x.type]).numpy() for x in inputs}
        output = torch.from_numpy(run_session(session, None, fed, path)[0]).float()
        if output.shape != picture.shape or not output.isfinite().all():
            raise ValueError(f"{path} must give finite pictures of {tuple(picture.shape)}, got {tuple(output.shape)}")
        return output

    grey = torch.full((1, 3, *(size or (64, 64))), 0.5)
    highest = 255 if run(grey, torch.zeros_like(grey[:, :1])).mean() > 2 else 1

    def paint(pictures: Tensor, hole: Tensor) -> Tensor:
        pairs = zip(pictures.cpu().split(1), hole.cpu().split(1), strict=True)
        return torch.cat([_resized_for(lambda x, h: run(x, h) / highest, *pair, side, size) for pair in pairs])

    return paint


def _diffusion(path: Path, device: torch.device, dtype: str, side: int, steps: int) -> Inpainter:
    """Stable Diffusion inpainting (Rombach et al. 2022) with an empty prompt, as the paper paints its backgrounds."""
    pipeline = _pipeline(path, DTYPES[dtype]).to(device)
    pipeline.set_progress_bar_config(disable=True)
    tokens = torch.tensor([[START_ID, END_ID, *[PAD_ID] * (MAX_TOKENS - 2)]], device=device)
    with torch.no_grad():
        prompt = pipeline.text_encoder(tokens % pipeline.text_encoder.config.vocab_size)[0]

    def run(pictures: Tensor, hole: Tensor) -> Tensor:
        size = {"height": pictures.shape[-2], "width": pictures.shape[-1], "num_inference_steps": steps}
        seen = {"image": pictures, "mask_image": hole, "prompt_embeds": prompt.expand(len(pictures), -1, -1)}
        generators = [seeded_generator(0) for _ in pictures]  # one each: a batch is painted as its pictures are alone
        painted = pipeline(**seen, **size, guidance_scale=1, output_type="pt", generator=generators)
        return painted.images.float().cpu()

    return lambda pictures, hole: _resized_for(run, pictures, hole, side, None)


def _pipeline(path: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a diffusers folder or file: weights in .safetensors alone, classes that are named here alone."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    nobody = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if path.is_file():
        return _single_file(path, dtype, StableDiffusionInpaintPipeline)
    if missing := [name for name in WEIGHTS_OF_SD if not (path / name).is_dir()]:
        raise FileNotFoundError(
            f"{path} must be a diffusers folder of Stable Diffusion inpainting; it has no {missing[0]}"
        )
    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(path / "unet", torch_dtype=dtype, **local)
        vae = AutoencoderKL.from_pretrained(path / "vae", torch_dtype=dtype, **local)
        text_encoder: Any = CLIPTextModel.from_pretrained(path / "text_encoder", **local)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as .safetensors: {' '.join(str(error).split())}") from error
    if unet.config.in_channels != 2 * vae.config.latent_channels + 1:
        raise ValueError(f"{path} is no inpainting model: its UNet takes {unet.config.in_channels} channels, not 9")
    scheduler = DDIMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
    parts = {
        "vae": vae,
        "text_encoder": text_encoder.to(dtype),
        "unet": unet,
        "scheduler": scheduler,
        "tokenizer": None,
    }
    return StableDiffusionInpaintPipeline(**parts, **nobody)


def _single_file(path: Path, dtype: torch.dtype, pipeline: Any) -> Any:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must be a .safetensors file, a diffusers folder or LaMa's .onnx file")
    beside = path.with_suffix("")
    config = {"config": str(beside)} if beside.is_dir() else {}
    try:
        return pipeline.from_single_file(
            str(path), torch_dtype=dtype, local_files_only=True, safety_checker=None, feature_extractor=None, **config
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} needs the configs of its diffusers folder (model_index.json and the folders without weights) in "
            f"{beside}, because nothing is downloaded: {' '.join(str(error).split())[:200]}"
        ) from error


def _resized_for(
    run: Callable[[Tensor, Tensor], Tensor], pictures: Tensor, hole: Tensor, side: int, size: tuple[int, int] | None
) -> Tensor:
    """Pictures painted at a network's size and brought back to their own."""
    height, width = pictures.shape[-2:]
    if size is None:
        scale = side / min(height, width)
        size = tuple(max(STEP, round(n * scale / STEP) * STEP) for n in (height, width))  # type: ignore[assignment]
    small = F.interpolate(pictures, size, mode="bilinear", antialias=True).clamp(0, 1)
    small_hole = (F.interpolate(hole, size, mode="area") > 0).float()
    return F.interpolate(run(small, small_hole), (height, width), mode="bilinear", antialias=True).clamp(0, 1)
