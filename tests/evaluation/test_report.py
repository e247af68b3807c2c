"""The report on small made-up pictures, with stand-ins for the trained model and the frozen judges."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from t2l.data.example import Example
from t2l.data.shards import write_shard
from t2l.evaluation import drawing, judges, report
from t2l.evaluation.figures import AUTOENCODER_FIGURES, FID_FIGURES, MASK_FIGURES, PROBE_FIGURES, markdown_table
from t2l.evaluation.report import EvaluateConfig, EvaluateFiles, evaluate, load_models, open_split
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text2layer import save_autoencoder

COLOURS = {"cherry": (0.9, 0.1, 0.1), "leaf": (0.1, 0.8, 0.1), "night": (0.0, 0.0, 0.3), "snow": (0.9, 0.9, 0.9)}
PAIRS = [(thing, place) for thing in ("cherry", "leaf") for place in ("night", "snow")]
SMALL = EvaluateConfig(prompts=6, probe_examples=16, batch_size=4, saliency_count=5, saliency_real_count=2)


ISNET = EvaluateFiles(saliency="isnet.onnx")


def values_of(figures):
    """The names of the figures without those of standard errors."""
    return {name for name in figures if not name.endswith("_se")}


def picture(thing, place, seed, size=64):
    """A square of the thing's colour over the place's colour, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    foreground, background = (
        (
            torch.tensor(COLOURS[name]).view(1, 3, 1, 1) + 0.05 * torch.randn(1, 3, size, size, generator=generator)
        ).clamp(0, 1)
        for name in (thing, place)
    )
    mask = torch.zeros(1, 1, size, size)
    mask[..., 16:48, 16:48] = 1
    return Layers(foreground, background, mask)


def example(i):
    thing, place = PAIRS[i % len(PAIRS)]
    return Example(f"{i:04d}", picture(thing, place, i), f"{thing} in {place}", thing, f"in {place}", thing, place)


@pytest.fixture
def data(tmp_path):
    write_shard(tmp_path / "data" / "train", 0, [example(i) for i in range(20)])
    write_shard(tmp_path / "data" / "test", 0, [example(i) for i in range(20, 30)])
    return tmp_path / "data"


def draw_what_was_asked(model, prompts, config, progress=None):
    layers = [picture(*p.split(" in "), seed=config.seed + i, size=config.height) for i, p in enumerate(prompts)]
    return SimpleNamespace(layers=Layers.cat(layers))


@pytest.fixture
def stand_ins(monkeypatch):
    """An untrained autoencoder, a model that draws what it is asked for, and judges that see colours."""
    autoencoder = LayeredAutoencoder(AutoencoderConfig(base_channels=32, channel_multipliers=(1,), num_res_blocks=1))
    part = torch.nn.Linear(1, 1)
    model = SimpleNamespace(trained_size=64, autoencoder=autoencoder, unet=part, text_encoder=part)
    monkeypatch.setattr(report, "load_models", lambda path: (autoencoder, model))
    monkeypatch.setattr(drawing, "generate", draw_what_was_asked)
    monkeypatch.setattr(judges, "load_lite0", lambda device: lambda pixels: F.adaptive_avg_pool2d(pixels, 4).flatten(1))
    monkeypatch.setattr(
        judges,
        "saliency_model",
        lambda path, *options: lambda x: picture("leaf", "snow", 0).mask.expand(len(x), 1, -1, -1),
    )
    return autoencoder


def test_every_figure_is_measured_and_written(data, stand_ins, tmp_path):
    path = tmp_path / "figures.json"
    figures = evaluate("model.safetensors", data, path, SMALL, ISNET)
    assert json.loads(path.read_text()) == figures
    assert values_of(figures["autoencoder"]) == AUTOENCODER_FIGURES.keys()
    assert values_of(figures["generation"]) == (PROBE_FIGURES | MASK_FIGURES | FID_FIGURES).keys()
    values = [*figures["autoencoder"].values(), *figures["generation"].values()]
    assert all(isinstance(value, float) for value in values)
    assert figures["counts"] == {"test": 10, "generated": 6, "train": 16, "saliency": 5, "saliency_real": 2}


def test_a_model_that_draws_what_is_asked_scores_as_the_real_pictures_do(data, stand_ins, tmp_path):
    figures = evaluate("model.safetensors", data, tmp_path / "a.json", SMALL, ISNET)["generation"]
    for layer in ("foreground", "background"):
        assert figures[f"{layer}_top1"] == figures[f"{layer}_top1_real"] == 1
    assert figures["mask_iou_saliency"] == figures["mask_iou_saliency_real"] == 1
    assert figures["fid"] < 0.1 < figures["fid_reconstruction"]


def test_an_autoencoder_alone_needs_no_train_split_and_no_judges(data, stand_ins, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "load_models", lambda path: (stand_ins, None))
    monkeypatch.delattr(judges, "load_lite0")
    for file in (data / "train").iterdir():
        file.unlink()
    (data / "train").rmdir()
    figures = evaluate("model.safetensors", data, tmp_path / "a.json", SMALL)
    assert figures["generation"] is None and figures["autoencoder"]["mask_iou"] is not None


def test_a_limit_takes_fewer_pictures_and_prompts(data, stand_ins, tmp_path):
    figures = evaluate("m", data, tmp_path / "a.json", EvaluateConfig(limit=3, batch_size=2))
    assert figures["counts"]["test"] == figures["counts"]["generated"] == 3
    assert figures["generation"]["mask_iou_saliency"] is None


def test_two_evaluations_are_equal(data, stand_ins, tmp_path):
    a, b = (evaluate("m", data, tmp_path / "a.json", SMALL) for _ in range(2))
    assert a["autoencoder"] == b["autoencoder"] and a["generation"] == b["generation"]


def test_the_table_has_every_figure_and_shows_what_was_not_measured():
    table = markdown_table({"autoencoder": {"mask_iou": 0.99123456}, "generation": None})
    assert "| autoencoder.mask_iou | 0.9912 | >= 0.99 |" in table
    assert "| generation.fid | - |" in table
    assert table.count("\n| ") == len(AUTOENCODER_FIGURES | MASK_FIGURES | FID_FIGURES)


def test_a_missing_split_is_named(data):
    with pytest.raises(FileNotFoundError, match="has no split `held_out`: the folder .*held_out does not exist"):
        open_split(data, "held_out")


def fail(*args, **kwargs):
    raise AssertionError("the long work began")


@pytest.mark.parametrize("name", ["folder", "file/figures.json"])
def test_an_unwritable_json_path_is_refused_before_the_work(data, stand_ins, tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(report, "reconstruct", fail)
    with pytest.raises(OSError, match=f"{name} cannot be written"):
        evaluate("model.safetensors", data, tmp_path / name, SMALL)


def test_a_missing_train_split_is_refused_before_the_work(data, stand_ins, tmp_path, monkeypatch):
    (data / "train").rename(data / "elsewhere")
    monkeypatch.setattr(report, "reconstruct", fail)
    with pytest.raises(FileNotFoundError, match="has no split `train`"):
        evaluate("model.safetensors", data, tmp_path / "a.json", SMALL)


def test_a_train_split_of_one_thing_leaves_its_rows_out_with_a_note(data, stand_ins, tmp_path):
    write_shard(data / "train", 0, [example(i) for i in range(2)])
    figures = evaluate("model.safetensors", data, tmp_path / "a.json", SMALL)
    assert not any(name.startswith("foreground_top1") for name in figures["generation"])
    assert figures["generation"]["background_top1"] is not None
    assert any("train shows no thing but 'cherry', so foreground_top1 is left out" in note for note in figures["notes"])


def test_a_file_with_an_autoencoder_alone_is_told_from_a_whole_model(tmp_path):
    autoencoder = LayeredAutoencoder(AutoencoderConfig(base_channels=32, channel_multipliers=(1,), num_res_blocks=1))
    save_autoencoder(autoencoder, tmp_path / "autoencoder.safetensors")
    loaded, model = load_models(tmp_path / "autoencoder.safetensors")
    assert model is None and loaded.config == autoencoder.config


def test_a_missing_checkpoint_is_refused_before_the_work(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="the checkpoint .*none.safetensors does not exist"):
        evaluate(tmp_path / "none.safetensors", data, tmp_path / "a.json", SMALL)


def test_damaged_weights_are_named_instead_of_measured(data, stand_ins, tmp_path):
    stand_ins.post_quant_conv.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="the autoencoder gave pictures with values that are not finite"):
        evaluate("model.safetensors", data, tmp_path / "a.json", SMALL)
    assert not (tmp_path / "a.json").exists()


def test_a_limit_of_one_is_refused():
    with pytest.raises(ValueError, match="limit must be at least 2, as a covariance needs, got 1"):
        EvaluateConfig(limit=1)
