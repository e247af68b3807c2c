"""The shipped checkpoint drawn, encoded and scored on a card, and our nodes against ComfyUI's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from t2l import cli
from t2l.generate import GenerateConfig, generate
from t2l.model.device import DTYPES
from t2l.model.text2layer import Text2Layer
from tests.gpu.conftest import seconds_each

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parent.parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ROOT / ".comfy" / "ComfyUI"))
PROMPTS = ["a red teapot on a wooden table", "a tiger in a forest"]
FP32 = 2e-3  # of the range of a pixel: what other orders of summing add up to over the steps
HALF = 0.05  # mean difference of a pixel in half precision


@pytest.fixture
def model():
    pytest.importorskip("diffusers", reason="needs diffusers, which this Python does not have")
    return Text2Layer.load(next((ROOT / "models").glob("*.safetensors")))


@pytest.fixture
def exact():
    """float32 without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("sampler", ["ddim", "sde"])
def test_a_picture_is_the_cpus(model, exact, sampler, figures):
    config = GenerateConfig(num_steps=10, sampler=sampler)
    here = generate(model, PROMPTS, config).layers.stacked
    there = generate(model.to("cuda", torch.float32), PROMPTS, config).layers.stacked
    figures[f"picture on the card against the CPU's, fp32, {sampler}: mean difference"] = float(
        (here - there).abs().mean()
    )
    assert (here - there).abs().mean() < FP32


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_draws_nearly_the_same(model, dtype):
    config = GenerateConfig(num_steps=10, sampler="ddim")
    whole = generate(model.to("cuda", torch.float32), PROMPTS, config).layers.stacked
    half = generate(model.to("cuda", DTYPES[dtype]), PROMPTS, config).layers.stacked
    assert half.isfinite().all() and (whole - half).abs().mean() < HALF


def test_how_many_pictures_a_second(model, figures):
    model, config = model.to("cuda", torch.float16), GenerateConfig(num_steps=50)
    seconds = seconds_each(lambda: generate(model, 8 * PROMPTS[:1], config), 2)
    figures["shipped checkpoint, 256 px, 50 steps, fp16: pictures/s"] = 8 / seconds


def test_the_command_draws_on_the_card(model, tmp_path):
    assert (
        cli.main(["generate", *PROMPTS, "--device", "cuda", "--dtype", "fp16", "--steps", "5", "--out", str(tmp_path)])
        == 0
    )
    assert (tmp_path / "contact_sheet.png").is_file()


def test_our_nodes_against_stock_nodes(figures):
    pytest.importorskip("diffusers", reason="needs diffusers, which this Python does not have")
    if not (COMFYUI / "main.py").is_file():
        pytest.skip(f"needs a ComfyUI: there is none in {COMFYUI}, COMFYUI_PATH can name another")
    command = [sys.executable, "benchmarks/comfy_nodes.py", "decode", "encode", "cuda"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ratios = {name: float(ratio) for name, ratio in re.findall(r"^(.*?): ours .* ratio ([\d.]+)$", said, re.MULTILINE)}
    figures |= {f"{name}, fp16, 512 px: ours / theirs": ratio for name, ratio in ratios.items()}
    assert ratios["Decode Layers against one VAE Decode"] < 2
