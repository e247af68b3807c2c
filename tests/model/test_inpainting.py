"""Inpainters by name and by file: whatever paints, nothing outside of the hole changes."""

import json
import sys

import pytest
import torch

from t2l.compositing.fill import fill
from t2l.model.inpainting import inpainter
from tests.evaluation.onnx_file import node, two_inputs

CPU = torch.device("cpu")


def pictures(count=2, height=30, width=44):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def hole_in(x):
    hole = torch.zeros_like(x[:, :1])
    hole[..., 8:20, 10:30] = 1
    return hole


def check(paint, x, hole):
    painted = paint(x, hole)
    assert torch.equal(painted * (1 - hole), x * (1 - hole)) and 0 <= painted.min() and painted.max() <= 1
    assert torch.equal(painted, paint(x, hole)) and torch.equal(paint(x, hole * 0), x)
    return painted


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory):
    """Stable Diffusion 2 inpainting's parts, tiny and random, without a tokenizer: an empty prompt needs none."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("inpainting")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, **blocks).save_pretrained(folder / "vae")
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    UNet2DConditionModel(
        sample_size=64,
        in_channels=9,
        block_out_channels=(8,),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        **kinds,
    ).save_pretrained(folder / "unet")
    text = CLIPTextConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    return folder


def test_stable_diffusion_paints_inside_the_hole_and_a_batch_as_its_pictures_alone(diffusers_folder):
    paint, x = inpainter(diffusers_folder, side=64, steps=2), pictures()
    hole = hole_in(x)
    painted = check(paint, x, hole)
    assert (painted - x).abs().sum() > 0
    torch.testing.assert_close(painted[1:], paint(x[1:], hole[1:]), atol=1e-4, rtol=0)


def test_what_was_in_the_hole_is_not_seen_by_stable_diffusion(diffusers_folder):
    """At 64 x 64 the network's size is the picture's, so that no pixel of the hole is mixed into its neighbours."""
    paint, x = inpainter(diffusers_folder, side=64, steps=2), pictures(1, 64, 64)
    hole = hole_in(x)
    other = torch.where(hole > 0, 1 - x, x)
    masked = [paint(each, hole) for each in (x, other)]
    assert torch.equal(*masked)


def test_a_folder_of_an_ordinary_stable_diffusion_is_refused(diffusers_folder, tmp_path):
    for part in diffusers_folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "unet").unlink()
    from diffusers import UNet2DConditionModel

    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    UNet2DConditionModel(block_out_channels=(8,), norm_num_groups=4, **kinds).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="is no inpainting model: its UNet takes 4 channels, not 9"):
        inpainter(tmp_path)


def test_weights_that_can_run_code_are_not_read(diffusers_folder, tmp_path):
    for part in diffusers_folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "vae").unlink()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((diffusers_folder / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match="cannot be read as .safetensors"):
        inpainter(tmp_path)


@pytest.mark.parametrize("size", [(64, 64), ("h", "w")])
@pytest.mark.parametrize("highest", [1, 255])
def test_lama_by_both_ranges_of_its_exports(tmp_path, size, highest):
    """A network that gives the picture with 1 in the hole: max(picture, mask), in [0, 1] or [0, 255]."""
    pytest.importorskip("onnxruntime")
    nodes = [node("Max", ["image", "mask"], "most"), node("Mul", ["most", "highest"], "y")]
    (tmp_path / "lama.onnx").write_bytes(two_inputs(nodes, size, {"highest": float(highest)}))
    paint, x = inpainter(tmp_path / "lama.onnx"), pictures()
    hole = hole_in(x)
    painted = check(paint, x, hole)
    assert painted[..., 12:16, 14:26].min() > 0.99


def test_a_network_that_takes_no_mask_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    from tests.evaluation.onnx_file import network

    (tmp_path / "isnet.onnx").write_bytes(network([node("Identity", ["x"], "y")], [1, 3, 64, 64]))
    with pytest.raises(
        ValueError, match=r"must take pictures .* and masks .* as LaMa does; it takes x \[1, 3, 64, 64\]"
    ):
        inpainter(tmp_path / "isnet.onnx")


def test_patchmatch_by_its_package():
    pytest.importorskip("patchmatch")
    x = pictures()
    check(inpainter("patchmatch"), x, hole_in(x))
    check(inpainter("patchmatch"), x, torch.ones_like(x[:, :1]))


def test_without_its_package_patchmatch_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "patchmatch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'text2layer\[data\]'"):
        inpainter("patchmatch")


def test_fill_is_the_default_and_other_names_are_answered(tmp_path):
    assert inpainter("fill") is fill
    with pytest.raises(FileNotFoundError, match="must be fill, patchmatch, a diffusers folder, .* lama is not there"):
        inpainter("lama")
    (tmp_path / "weights.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match="must be a .safetensors file, a diffusers folder or LaMa's .onnx file"):
        inpainter(tmp_path / "weights.ckpt")
    with pytest.raises(FileNotFoundError, match="it has no vae"):
        inpainter(tmp_path)


def test_one_file_without_its_configs_says_where_they_belong(tmp_path):
    (tmp_path / "sd2.safetensors").write_bytes(len(b"{}").to_bytes(8, "little") + json.dumps({}).encode())
    with pytest.raises(
        ValueError, match="needs the configs of its diffusers folder .* in .*sd2, because nothing is downloaded"
    ):
        inpainter(tmp_path / "sd2.safetensors")
