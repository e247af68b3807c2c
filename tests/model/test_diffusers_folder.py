"""A checkpoint as a diffusers folder and back: the same weights, and the same outputs in diffusers' own classes."""

import json
import shutil

import pytest
import torch

from t2l.diffusion import DiffusionConfig
from t2l.io.checkpoint import read_metadata, read_tensors
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig
from t2l.model.diffusers_folder import folder_to_file, save_folder, vae_from_ldm, vae_to_ldm
from t2l.model.from_sd import unet_from_sd
from t2l.model.systems import build_autoencoder
from t2l.model.text2layer import Text2Layer
from t2l.model.text_encoder import TextEncoder, TextEncoderConfig
from t2l.model.tokenizer import END_ID, START_ID, Tokenizer
from t2l.model.unet import UNetConfig, build_unet

UNET = {
    "base_channels": 32,
    "channel_multipliers": (1, 2),
    "attention_levels": (1,),
    "num_res_blocks": 1,
    "num_heads": 2,
}
TEXT = {"width": 32, "num_layers": 1, "num_heads": 2, "hidden_width": 64}


def model(layout="joint", channels=4, **values):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"base_channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1, "head_channels": 8}
        autoencoder = build_autoencoder(
            AutoencoderConfig(layout=layout, latent_channels=channels, **(small | values))
        ).eval()
        unet = build_unet(UNetConfig(**UNET, in_channels=channels, out_channels=channels, conditioning_width=32)).eval()
        text = TextEncoder(TextEncoderConfig(**TEXT, token_ids=(320, 2368, START_ID, END_ID))).eval()
    return Text2Layer(
        autoencoder,
        unet,
        text,
        DiffusionConfig(prediction="v"),
        [[0.5, 0.25, 0.0]] * channels,
        [0.0] * 3,
        {"system": "CaT2I-AE-SD"},
    )


@pytest.fixture(scope="module")
def ours():
    return model()


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers") / "folder"
    save_folder(ours, path)
    return path


@pytest.mark.parametrize(
    ("layout", "channels", "values"),
    [("joint", 4, {}), ("separate", 12, {}), ("composite", 4, {}), ("joint", 4, {"norm": "none"})],
)
def test_there_and_back_is_the_same_file(layout, channels, values, tmp_path):
    before = model(layout, channels, **values)
    before.save(tmp_path / "before.safetensors", torch.float32)
    save_folder(before, tmp_path / "folder")
    folder_to_file(tmp_path / "folder", tmp_path / "after.safetensors")
    (old, old_metadata), (new, new_metadata) = (
        read_tensors(tmp_path / f"{x}.safetensors") for x in ("before", "after")
    )
    assert old.keys() == new.keys() and all(torch.equal(x, new[name]) for name, x in old.items())
    assert old_metadata == new_metadata
    assert (tmp_path / "folder" / "vae").exists() == (values == {})
    Text2Layer.load(tmp_path / "after.safetensors")


@torch.no_grad()
def test_diffusers_and_transformers_read_the_folder_and_give_the_same(ours, folder):
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    generator = torch.Generator().manual_seed(0)
    x, image = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(2, 3, 16, 16, generator=generator)
    ids = Tokenizer()(["a cat, two dogs", "HELLO  world"])
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert torch.tensor(
        words(["a cat, two dogs", "HELLO  world"], padding="max_length", max_length=77).input_ids
    ).equal(ids)
    conditioning = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(ids).last_hidden_state
    torch.testing.assert_close(conditioning, ours.text_encoder(ids), atol=1e-5, rtol=1e-5)
    t = torch.tensor([1, 900])
    eps = UNet2DConditionModel.from_pretrained(folder / "unet")(x, t, encoder_hidden_states=conditioning).sample
    torch.testing.assert_close(eps, ours.unet(x, t, encoder_hidden_states=conditioning).sample)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    torch.testing.assert_close(
        vae.encode(2 * image - 1).latent_dist.mean,
        ours.autoencoder.encode(Layers.flat(image)).mean,
        atol=1e-5,
        rtol=1e-5,
    )
    composed = 2 * ours.autoencoder.decode(x, clamp=False).auxiliary - 1
    torch.testing.assert_close(vae.decode(x).sample, composed, atol=1e-5, rtol=1e-5)
    schedule = DDIMScheduler.from_pretrained(folder / "scheduler").config
    assert schedule.prediction_type == "v_prediction" and schedule.beta_end == 0.012


def test_a_folder_of_stable_diffusion_becomes_a_file_to_start_from(stable_diffusion, folder, tmp_path):
    (plain := tmp_path / "plain").mkdir()
    for part in ("unet", "vae", "text_encoder", "model_index.json"):
        (plain / part).symlink_to(folder / part)
    folder_to_file(plain, tmp_path / "sd.safetensors")
    assert read_metadata(tmp_path / "sd.safetensors") == {"format": "pt"}
    unet = unet_from_sd(tmp_path / "sd.safetensors", UNetConfig(**UNET, conditioning_width=32))
    expected = model().unet.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in unet.state_dict().items())


def test_names_of_a_full_size_autoencoder_there_and_back_are_the_same():
    from diffusers import AutoencoderKL

    down, up = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    with torch.device("meta"):
        widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
        theirs = AutoencoderKL(down_block_types=down, up_block_types=up, **widths).state_dict()
        ours = build_autoencoder(AutoencoderConfig(layout="composite")).state_dict()
    ldm = vae_to_ldm(theirs, 4, 2)
    assert {name: x.shape for name, x in ldm.items()} == {name: x.shape for name, x in ours.items()} and len(ldm) == 248
    back = vae_from_ldm(ldm, 4, 2)
    assert {name: x.shape for name, x in back.items()} == {name: x.shape for name, x in theirs.items()}


def test_diffusers_first_names_of_the_attention_are_known():
    state = {
        f"encoder.mid_block.attentions.0.{name}.weight": torch.zeros(4, 4)
        for name in ("query", "key", "value", "proj_attn")
    }
    assert list(vae_to_ldm(state, 4, 2)) == [
        f"encoder.mid.attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out")
    ]


def test_a_folder_that_is_there_is_kept_and_half_a_folder_never_appears(ours, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder exists already; name a folder that does not"):
        save_folder(ours, tmp_path / "folder")
    broken = model()
    broken.unet.conv_out.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="1 weights are not finite"):
        save_folder(broken, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "is not a diffusers folder: it has no model_index.json"),
        (
            {"_class_name": "StableDiffusionXLPipeline"},
            "is a StableDiffusionXLPipeline of diffusers; a StableDiffusionPipeline",
        ),
        ({"_class_name": "StableDiffusionPipeline"}, "the diffusers folder lacks .*unet/config.json"),
    ],
)
def test_a_folder_of_something_else_is_refused(index, message, tmp_path):
    if index is not None:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        folder_to_file(tmp_path, tmp_path / "x.safetensors")


def test_stable_diffusion_2_in_a_folder_is_refused(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "unet" / "config.json").write_text('{"use_linear_projection": true}')
    with pytest.raises(ValueError, match="unet is of Stable Diffusion 2 or later; 1.x is needed"):
        folder_to_file(tmp_path, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("part", "config", "message"),
    [
        ("unet", {"block_out_channels": 3}, "unet/config.json is not what diffusers writes: "),
        ("unet", {"block_out_channels": [0, 1]}, "unet/config.json is not what diffusers writes: "),
        ("unet", {"layers_per_block": 40_000}, "UNetConfig.num_res_blocks must lie from 1 to 16"),
        ("unet", {"down_block_types": None}, "unet/config.json is not what diffusers writes: "),
        (
            "vae",
            {"layers_per_block": 10**9},
            "vae/config.json is not what diffusers writes: it has . levels of 1000000000",
        ),
        ("vae", {"block_out_channels": None}, "vae/config.json is not what diffusers writes: "),
    ],
)
def test_a_config_of_a_stranger_is_checked(part, config, message, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "text2layer.safetensors").unlink(missing_ok=True)
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(ValueError, match=message):
        folder_to_file(copy, tmp_path / "x.safetensors")
