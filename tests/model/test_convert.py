"""What `t2l export` makes of a run folder."""

import pytest
import torch

from t2l import cli
from t2l.diffusion import DiffusionConfig
from t2l.io.checkpoint import read_metadata, read_tensors, write_tensors
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text2layer import Text2Layer, load_autoencoder, read_parts
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.unet import UNetConfig, build_unet


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    autoencoder = LayeredAutoencoder(AutoencoderConfig(base_channels=32, channel_multipliers=(1,), num_res_blocks=1))
    widths = {"base_channels": 32, "channel_multipliers": (1,), "attention_levels": (0,)}
    unet = build_unet(UNetConfig(**widths, num_res_blocks=1, num_heads=2, conditioning_width=32))
    text = TextEncoder(TextEncoderConfig(width=32, num_layers=1, num_heads=2, hidden_width=64, token_ids=(1, 2)))
    return Text2Layer(autoencoder.eval(), unet.eval(), text.eval(), DiffusionConfig())


def export(folder, capsys, *options):
    """The exit code and what was said."""
    code = cli.main(["export", "--run", str(folder), "--out", str(folder / "out.safetensors"), *options])
    return code, capsys.readouterr().err.strip()


def test_full_weights_are_exported_in_full_and_rounded_by_default(model, tmp_path, capsys):
    model.save(tmp_path / "snapshot.safetensors", torch.float32)
    snapshot, _ = read_tensors(tmp_path / "snapshot.safetensors")
    for options, dtype in ((("--dtype", "fp32"), torch.float32), ((), torch.float16)):
        assert export(tmp_path, capsys, *options) == (0, "")
        found, _ = read_tensors(tmp_path / "out.safetensors")
        assert all(torch.equal(x, snapshot[name].to(dtype)) and x.dtype == dtype for name, x in found.items())


@pytest.mark.parametrize(("dtype", "said"), [(torch.float16, "float16"), (torch.bfloat16, "bfloat16")])
def test_a_rounded_snapshot_exported_in_full_says_that_it_is_rounded(dtype, said, model, tmp_path, capsys):
    model.save(tmp_path / "snapshot.safetensors", dtype)
    code, line = export(tmp_path, capsys, "--dtype", "fp32")
    sentence = f"holds {said}, so the float32 weights of {tmp_path}/out.safetensors are rounded to that"
    assert code == 0 and line == f"t2l: note: {tmp_path}/snapshot.safetensors {sentence}"
    assert export(tmp_path, capsys) == (0, "")


def test_every_reader_takes_a_snapshot_of_either_precision(model, tmp_path):
    path = tmp_path / "snapshot.safetensors"
    for dtype in (torch.float32, torch.float16):
        model.save(path, dtype)
        whole, alone = Text2Layer.load(path), load_autoencoder(path)
        assert torch.equal(whole.unet.conv_in.weight, model.unet.conv_in.weight.to(dtype).float())
        assert torch.equal(alone.encoder.first.weight, model.autoencoder.encoder.first.weight.to(dtype).float())
        assert read_parts(path).unet["input_blocks.0.0.weight"].dtype == dtype


def test_the_lora_of_a_run_is_exported_alone(model, tmp_path, capsys):
    model.save(tmp_path / "snapshot.safetensors")
    write_tensors(tmp_path / "lora.safetensors", {"lora_unet_x.lora_up.weight": torch.rand(3, 2)}, {"license": "x"})
    assert export(tmp_path, capsys, "--lora") == (0, "")
    (there, about), (found, _) = (read_tensors(tmp_path / f"{name}.safetensors") for name in ("lora", "out"))
    assert found.keys() == there.keys() and read_metadata(tmp_path / "out.safetensors") == about
    assert all(torch.equal(x, there[name].half()) and x.dtype == torch.float16 for name, x in found.items())


def test_a_run_without_a_lora_says_so(model, tmp_path, capsys):
    model.save(tmp_path / "snapshot.safetensors")
    code, line = export(tmp_path, capsys, "--lora")
    assert code == 2 and "holds no lora.safetensors, which a run with lora_rank writes beside its snapshot" in line
