"""What the command line answers: one sentence on stderr and an exit code, with nothing written."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from t2l import cli
from t2l.cli import options, pictures
from t2l.io.layer_file import open_layer_file

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [
    "generate",
    "convert",
    "build",
    "build-demo",
    "pack",
    "train",
    "train-autoencoder",
    "cache-latents",
    "train-unet",
    "export",
    "convert-model",
    "evaluate",
    "recompose",
    "split",
    "info",
]


def run(capsys, *argv: object) -> tuple[int, str]:
    """Exit code and the last line of stderr of one command."""
    try:
        code = cli.main([str(a) for a in argv])
    except SystemExit as stop:  # argparse's own way out
        code = int(stop.code or 0)
    lines = capsys.readouterr().err.strip().splitlines()
    return code, lines[-1] if lines else ""


@pytest.fixture
def broken(tmp_path):
    """Files that are no checkpoint of ours, by what is wrong with them."""
    files = {kind: tmp_path / f"{kind}.safetensors" for kind in ("truncated", "renamed", "pickle", "foreign", "empty")}
    save_file({"weight": torch.zeros(64, 64)}, files["foreign"])
    files["truncated"].write_bytes(files["foreign"].read_bytes()[:-100])
    files["renamed"].write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    files["pickle"].write_bytes(pickle.dumps({"state_dict": {}}))
    files["empty"].write_bytes(b"")
    return files


def test_python_m_t2l_is_the_command():
    result = subprocess.run([sys.executable, "-m", "t2l", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0 and "foreground, background, mask" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"usage: t2l {command}" in capsys.readouterr().out


def test_commands_that_were_renamed_are_not_in_the_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    assert "convert-model" not in listed and "build-demo" not in listed and "export" in listed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "export takes either --run DIR or a SOURCE"),
        (["x", "--run", "y"], "export takes either --run DIR or a SOURCE"),
        (["--run", "y", "layout=composite"], "export takes either --run DIR or a SOURCE"),
        (["x", "--lora"], "--lora is of a training run"),
        (["--run", "y", "--whole"], "--whole is of Stable Diffusion 1.x"),
    ],
)
def test_export_says_what_does_not_go_together(words, sentence, capsys, tmp_path):
    code, line = run(capsys, "export", *words, "--out", tmp_path / "x.safetensors")
    assert code == 2 and line.startswith(f"t2l: {sentence}")


def test_help_loads_no_torch():
    code = "import sys\nfrom t2l import cli\ncli._parser()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", [*COMMANDS, None])
def test_an_unknown_option_is_named(command, capsys):
    words = {
        "generate": ["a cat"],
        "info": ["x"],
        "convert": ["x", "y"],
        "convert-model": ["x"],
        "recompose": ["x", "y"],
        "build": ["s"],
        "pack": ["f"],
        "split": ["x"],
        "train": ["r"],
        "train-autoencoder": ["c"],
        "train-unet": ["c"],
    }.get(command, [])
    required = {
        "build": ["--out", "x"],
        "build-demo": ["--out", "x"],
        "pack": ["--out", "x"],
        "split": ["--out", "x"],
        "train-autoencoder": ["--data", "x", "--run", "x"],
        "cache-latents": ["--checkpoint", "x", "--data", "x", "--out", "x"],
        "train-unet": ["--latents", "x", "--run", "x"],
        "export": ["--run", "x", "--out", "x"],
        "convert-model": ["--out", "x"],
        "evaluate": ["--data", "x", "--json", "x"],
    }.get(command, [])
    code, line = run(capsys, *([command] if command else []), *words, *required, "--colour", "red")
    assert code == 2 and ("--colour" in line or "COMMAND" in line)


def test_an_unknown_command_is_answered_with_those_that_exist(capsys):
    code, line = run(capsys, "genrate", "a cat")
    assert code == 2 and "'genrate'" in line and all(command in line for command in COMMANDS)


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_an_empty_prompt_is_refused(prompt, capsys, tmp_path):
    code, line = run(capsys, "generate", prompt, "--out", tmp_path / "out")
    assert code == 2 and line.startswith("t2l: the prompt is empty; say what to draw")
    assert not (tmp_path / "out").exists()


def test_a_prompt_of_ten_thousand_characters_is_refused(capsys, tmp_path):
    code, line = run(capsys, "generate", "x" * 10_000, "--out", tmp_path / "out")
    assert code == 2 and line == "t2l: the prompt has 10,000 characters; at most 1,000 are taken"


@pytest.mark.parametrize("size", ["0", "7", "63", "-256", "64x63", "4097"])
def test_a_size_out_of_range_is_refused(size, capsys):
    code, line = run(capsys, "generate", "a cat", f"--size={size}")
    assert code == 2 and line.endswith(f"width and height must be from 64 to 4096 pixels, got '{size}'")


@pytest.mark.parametrize("size", ["big", "256x", "x", "64x64x64", "1e3", ""])
def test_a_size_that_is_none_says_how_one_is_written(size, capsys):
    code, line = run(capsys, "generate", "a cat", f"--size={size}")
    assert code == 2 and "size is written 256 or 640x360 (width x height)" in line


def test_sizes_are_width_by_height():
    assert options.size("640x360") == (360, 640) and options.size("72") == (72, 72)


@pytest.mark.parametrize(
    ("option", "value", "range_named"),
    [
        ("steps", "0", "from 1 to 1000"),
        ("steps", "many", "a whole number"),
        ("guidance", "-1", "from 0 to 100"),
        ("guidance", "nan", "from 0 to 100"),
        ("count", "0", "from 1 to 64"),
        ("seed", "-1", "from 0 to"),
    ],
)
def test_numbers_out_of_range_are_refused(option, value, range_named, capsys):
    code, line = run(capsys, "generate", "a cat", f"--{option}={value}")
    assert code == 2 and range_named in line and repr(value) in line


def test_words_and_options_come_in_any_order():
    args = cli._parse(["generate", "a cat", "--seed", "3", "a dog"])
    assert args.prompts == ["a cat", "a dog"] and args.seed == 3
    args = cli._parse(["train-unet", "c.json", "num_steps=3", "--latents", "l", "--run", "r", "lr=1"])
    assert args.overrides == ["num_steps=3", "lr=1"] and args.config == Path("c.json")


def test_an_output_folder_under_a_file_is_refused_before_the_checkpoint_is_read(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, line = run(capsys, "generate", "a cat", "--out", tmp_path / "file" / "out", "--checkpoint", "missing")
    assert code == 2 and "output folder" in line and f"{tmp_path / 'file'} is a file" in line


def test_a_full_disk_is_noticed_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(options.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    code, line = run(capsys, "generate", "a cat", "--out", tmp_path / "out", "--checkpoint", "missing")
    assert code == 2 and "MB are free" in line and not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_named(capsys, tmp_path):
    code, line = run(capsys, "generate", "a cat", "--out", tmp_path, "--checkpoint", tmp_path / "no.safetensors")
    assert code == 2 and line.startswith("t2l: ") and "no.safetensors" in line


def test_without_a_shipped_checkpoint_the_option_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(options, "MODELS", tmp_path)
    with pytest.raises(FileNotFoundError, match="name one with --checkpoint"):
        options.default_checkpoint()


@pytest.mark.parametrize("kind", ["truncated", "renamed", "pickle", "foreign", "empty"])
@pytest.mark.parametrize("command", ["generate", "info"])
def test_what_is_no_checkpoint_is_refused_in_one_line(command, kind, broken, capsys, tmp_path):
    out = tmp_path / "out"
    if command == "generate":
        code, line = run(capsys, "generate", "a cat", "--out", out, "--checkpoint", broken[kind])
    else:
        code, line = run(capsys, "info", broken[kind])
    assert code == 2 and line.startswith("t2l: ") and f"{kind}.safetensors" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "is not JSON"), ("[]", "must hold one JSON object"), ('{"stepz": 3}', "has no stepz; it has .*steps")],
)
@pytest.mark.parametrize("command", ["train-autoencoder --data d", "train-unet --latents d"])
def test_a_config_file_that_does_not_fit_is_named(command, text, sentence, capsys, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(text)
    code, line = run(capsys, *command.split(), config, "--run", tmp_path / "run")
    assert code == 2 and str(config) in line and re.search(sentence, line)
    assert not (tmp_path / "run").exists()


def test_an_override_of_an_unknown_name_is_answered_with_the_names(capsys, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"num_steps": 1}))
    code, line = run(capsys, "train-unet", config, "--latents", "d", "--run", tmp_path / "run", "stepz=3")
    assert code == 2 and "UNetTrainConfig has no stepz" in line


def test_the_help_of_generate_states_the_real_defaults(capsys):
    from t2l.generate import GenerateConfig

    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    text, config = " ".join(capsys.readouterr().out.split()), GenerateConfig()
    assert (
        f"sampling steps (default: {config.num_steps})" in text
        and f"1 = none (default: {config.guidance_scale:g})" in text
    )
    assert f"same pictures (default: {config.seed})" in text and f"ddim (default: {config.sampler})" in text
    assert cli._parse(["generate", "a cat"]).size is None  # what the checkpoint was trained on


def test_an_interrupt_exits_with_130(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "_checked_prompt", interrupted)
    assert run(capsys, "generate", "a cat") == (130, "t2l: interrupted; what was finished is kept")


def test_a_traceback_comes_only_when_asked_for(monkeypatch):
    monkeypatch.setenv("T2L_DEBUG", "1")
    with pytest.raises(ValueError, match="the prompt is empty"):
        cli.main(["generate", ""])


def test_errors_of_the_system_become_sentences():
    assert cli._sentence(FileNotFoundError(2, "No such file or directory", "x/y")) == "x/y: No such file or directory"
    assert cli._sentence(ValueError("two\nlines")) == "two lines"
    assert "pip install 'text2layer[" in cli._sentence(ModuleNotFoundError("No module named 'OpenEXR'", name="OpenEXR"))


def test_convert_takes_layers_from_one_editor_to_another(tmp_path, capsys):
    from t2l.compositing.stack import Stack
    from t2l.io.layer_file import open_layer_file, save_layer_file
    from t2l.layers import Layers

    pixels = torch.rand(1, 7, 8, 9, generator=torch.Generator().manual_seed(0))
    stack = Stack.from_layers(Layers.from_stacked((pixels * 255).round() / 255))
    save_layer_file(stack, tmp_path / "a.psd")
    for source, target in (("a.psd", "b.ora"), ("b.ora", "c.psd")):
        assert run(capsys, "convert", tmp_path / source, tmp_path / target)[0] == 0
    found = open_layer_file(tmp_path / "c.psd").stack
    assert all(torch.equal(a.image, b.image) for a, b in zip(found.layers, stack.layers, strict=True))
    assert run(capsys, "convert", tmp_path / "c.psd", tmp_path / "set")[0] == 0
    assert {path.name for path in (tmp_path / "set").iterdir()} >= {"c_foreground.png", "c_cutout.png"}


def test_convert_says_what_it_cannot_do(tmp_path, capsys):
    (tmp_path / "a.psd").write_text("words")
    assert run(capsys, "convert", tmp_path / "a.psd", tmp_path / "a.psd")[1].endswith("give another name")
    assert "a.psd cannot be read as a PSD" in run(capsys, "convert", tmp_path / "a.psd", tmp_path / "b.ora")[1]
    assert "b.psd does not exist" in run(capsys, "convert", tmp_path / "b.psd", tmp_path / "b.ora")[1]


@pytest.fixture
def photograph(tmp_path):
    """A red square on grey, and its mask at half the size."""
    for name, size, colours in (("square.png", 64, ("grey", "red")), ("mask.png", 32, ("black", "white"))):
        picture = Image.new("RGB", (size, size), colours[0])
        picture.paste(colours[1], (size // 4, size // 4, size * 3 // 4, size * 3 // 4))
        picture.save(tmp_path / name)
    return tmp_path / "square.png"


@pytest.mark.parametrize("ending", ["psd", "ora"])
def test_split_takes_a_picture_apart_with_a_given_mask(photograph, ending, capsys):
    out = photograph.parent / "out"
    mask = photograph.with_name("mask.png")
    assert run(capsys, "split", photograph, "--out", out, "--mask", mask, "--format", ending)[0] == 0
    layers = open_layer_file(out / f"square.{ending}").stack.to_layers()
    grey = torch.full((3,), 128 / 255)
    assert torch.allclose(layers.background[0, :, 32, 32], grey, atol=0.02), "the hole is painted in"
    assert torch.allclose(layers.foreground[0, :, 5, 5], torch.tensor([1.0, 0, 0]), atol=0.05), (
        "red goes on beyond the square"
    )
    assert layers.mask[0, 0, 32, 32] == 1 and layers.mask[0, 0, 5, 5] == 0


def test_one_bad_picture_is_named_and_does_not_stop_the_others(photograph, capsys, monkeypatch):
    from t2l.model import salient

    monkeypatch.setattr(salient, "load_salient", lambda *_: lambda x: (x[:, :1] > 0.9).float())
    (photograph.parent / "notes.png").write_text("no picture")
    files = [photograph.with_name(name) for name in ("notes.png", "square.png", "missing.png")]
    code = cli.main(["split", *map(str, files), "--out", str(photograph.parent / "out"), "--format", "png"])
    lines = capsys.readouterr().err
    assert code == 2 and "2 of 3 pictures could not be taken apart" in lines
    assert "notes.png is no picture that can be read" in lines and "missing.png" in lines
    assert (photograph.parent / "out" / "square_foreground.png").is_file()


def test_split_takes_one_mask_for_one_picture(photograph, capsys):
    code, line = run(capsys, "split", photograph, photograph, "--out", "x", "--mask", photograph)
    assert code == 2 and "--mask and --background are of one picture" in line


def test_pack_says_what_it_packed_and_why_not_the_rest(tmp_path, capsys):
    from t2l.io.image import save_layers
    from t2l.layers import Layers

    pixels = torch.rand(2, 7, 80, 96, generator=torch.Generator().manual_seed(0))
    save_layers(Layers.from_stacked(pixels), tmp_path / "in", "a")
    command = ("pack", tmp_path / "in", "--out", tmp_path / "out", "--size", 64, "processes=1")
    code, line = run(capsys, *command)
    assert code == 2 and "in holds no layered picture with a caption, and 2 other pictures" in line
    (tmp_path / "in" / "a_01.txt").write_text("a cup")
    assert cli.main([str(word) for word in command]) == 0
    said, printed = capsys.readouterr().err.splitlines(), tmp_path / "out" / "skipped.txt"
    assert said[-2:] == ["1 pictures to train on, 0 for validation, 1 skipped", f"t2l: note: {printed} says why"]
    assert printed.read_text() == "a_02: has no caption: there is no a_02.txt and no a_02.json\n"


def test_an_old_torch_is_named_and_not_a_package_called_torch_nn_attention():
    from t2l.cli import _sentence

    error = ModuleNotFoundError("No module named 'torch.nn.attention'", name="torch.nn.attention")
    assert _sentence(error).startswith("this command needs torch 2.3 or newer")
