"""The checkpoint in models/: it describes itself, draws layers from a prompt, and stays small."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes.demo.word_lists import word_lists
from t2l.cli.options import MODELS, default_checkpoint
from t2l.cli.pictures import _in_known_words
from t2l.generate import GenerateConfig, generate
from t2l.io.checkpoint import read_metadata
from t2l.model.text2layer import Text2Layer, load_autoencoder, read_trained_size
from t2l.model.vocabulary import Vocabulary

PROMPT = "a red teapot on a wooden table"
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model():
    return Text2Layer.load(default_checkpoint())


@pytest.fixture(scope="module")
def teapot(model):
    return generate(model, [PROMPT], GenerateConfig(**size_of(model), num_steps=10, seed=7))


def size_of(model):
    return {"height": model.trained_size, "width": model.trained_size}


def test_what_ships_is_one_checkpoint_and_small_networks_with_their_card_and_ledger_in_46_megabytes():
    files = list(MODELS.iterdir())
    assert {"README.md", "data-ledger.csv", default_checkpoint().name} <= {file.name for file in files}
    assert not [file for file in files if file.suffix in {".pt", ".pth", ".ckpt", ".bin", ".pkl"}]
    assert sum(file.stat().st_size for file in files) <= 46_000_000


def test_the_checkpoint_is_the_default_whatever_lies_beside_it():
    assert default_checkpoint().name == "text2layer-demo.safetensors"


def test_only_free_pictures_are_in_the_ledger():
    rows = (MODELS / "data-ledger.csv").read_text().splitlines()
    assert len(rows) > 300
    licences = {row.split(",")[3].strip('"') for row in rows[1:] if row.count(",") == 5}
    assert licences <= {"MIT", "CC0-1.0", "CC0", "CC-BY-3.0", "CC-BY-3.0-US", "CC-BY-4.0", "public domain"}, licences


def test_the_file_says_what_it_is(model):
    metadata = read_metadata(default_checkpoint())
    assert metadata["format"] == "text2layer" and metadata["license"]
    assert set(json.loads(metadata["config"])) == {"autoencoder", "unet", "text_encoder", "diffusion"}
    assert len(model.latent_rgb_factors) == model.autoencoder.config.latent_channels
    assert int(model.info["steps"]) > 0
    assert model.trained_size == read_trained_size(default_checkpoint()) == 256


def test_a_prompt_becomes_a_foreground_a_background_and_a_mask_that_joins_them(model, teapot):
    layers = teapot.layers
    assert layers.size == (model.trained_size, model.trained_size)
    coverage = layers.mask.mean()
    assert 0.03 < coverage < 0.8  # a thing in a place: neither nothing nor everything
    edge = (layers.mask > 0.1) & (layers.mask < 0.9)
    assert edge.float().mean() < 0.15  # inside is in and outside is out
    assert (layers.composite() - teapot.auxiliary).abs().mean() < 0.05


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(model, teapot):
    settings = size_of(model) | {"num_steps": 10}
    again = generate(model, [PROMPT], GenerateConfig(seed=7, **settings)).layers
    other = generate(model, [PROMPT], GenerateConfig(seed=8, **settings)).layers
    assert torch.equal(again.stacked, teapot.layers.stacked)
    assert (again.stacked - other.stacked).abs().mean() > 0.01


def test_another_background_phrase_changes_the_background_more_than_the_foreground(model):
    """On average over seeds: one picture may go either way."""
    config = GenerateConfig(**size_of(model), num_steps=20, sampler="dpm", seed=7)
    table, forest = (generate(model, [prompt] * 4, config).layers for prompt in (PROMPT, "a red teapot in a forest"))
    mask = torch.minimum(table.mask, forest.mask)

    def change(name, weight):
        difference = (getattr(table, name) - getattr(forest, name)).abs().mean(1, keepdim=True)
        return (difference * weight).sum() / weight.sum()

    assert change("background", torch.ones_like(mask)) > 1.5 * change("foreground", mask)


def test_previews_show_the_composite(model):
    """The linear map in the metadata explains most of the variance of the small composite."""
    layers = generate(model, [PROMPT], GenerateConfig(**size_of(model), num_steps=10, seed=3)).layers
    with torch.no_grad():
        latents = model.autoencoder.encode(layers).mean * model.autoencoder.config.latent_scale
    factors, bias = torch.tensor(model.latent_rgb_factors), torch.tensor(model.latent_rgb_bias)
    preview = torch.einsum("nchw,cr->nrhw", latents, factors) + bias.view(1, 3, 1, 1)
    small = 2 * torch.nn.functional.adaptive_avg_pool2d(layers.composite(), latents.shape[-2:]) - 1
    assert (preview - small).square().mean() < 0.5 * small.var()


def test_the_prompts_of_make_demo_use_words_it_was_trained_on(model):
    prompts = re.findall(r'^\t    "(.+)"', (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    assert len(prompts) == 4
    assert _in_known_words(model, prompts, strict=True, any_words=False) == prompts


def test_the_autoencoder_alone_opens_from_the_whole_file(model):
    alone = load_autoencoder(default_checkpoint())
    assert all(torch.equal(x, model.autoencoder.state_dict()[name]) for name, x in alone.state_dict().items())


def test_the_command_writes_every_picture_and_stays_under_two_gigabytes(tmp_path):
    script = (
        "import sys; from t2l.cli import main; code = main(sys.argv[1:]); "
        # ru_maxrss counts the parent too
        "print(code, open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    )
    command = [sys.executable, "-c", script, "generate", PROMPT, "--out", str(tmp_path / "out"), "--size", "137x101"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, "--steps", "4"], capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    code, peak = result.stdout.split()[-2:]
    assert code == "0", result.stderr
    assert int(peak) < 2_000_000  # KiB
    names = {path.name.rsplit("_", 1)[-1] for path in (tmp_path / "out").glob("*.png")}
    assert names == {"foreground.png", "background.png", "mask.png", "composite.png", "cutout.png", "sheet.png"}
    cutout = Image.open(next((tmp_path / "out").glob("*_cutout.png")))
    assert cutout.size == (137, 101) and cutout.mode == "RGBA"


def words_of_the_recipe():
    """Every list of words of the recipe that the shipped checkpoint was last trained by, without its heading."""
    lists = " ".join(word_lists(REPOSITORY / "recipes" / "demo-further.toml").split())
    return [words.strip(" .") for words in re.split("- [^:]+: |; of these things: ", lists) if words]


@pytest.mark.parametrize("path", ["models/README.md", *(f"web/docs/T2L_LoadCheckpoint{x}.md" for x in ("", "/zh"))])
def test_help_and_model_card_list_the_words_it_was_trained_on(path):
    page = " ".join((REPOSITORY / path).read_text(encoding="utf-8").split())
    assert [words for words in words_of_the_recipe() if words not in page] == []


def test_every_word_of_the_lists_is_known(model):
    known = Vocabulary(model.text_encoder.config.token_ids)
    assert known.unseen(" ".join(words_of_the_recipe())) == []
