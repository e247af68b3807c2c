"""The report on small made-up pictures, with stand-ins for the trained model and the frozen judges."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from t2l.data.cache_folder import evenly_spaced
from t2l.data.example import Example
from t2l.data.shards import write_shard
from t2l.evaluation import drawing, judges, report
from t2l.evaluation.drawing import file_name
from t2l.evaluation.metrics import frechet_distance
from t2l.evaluation.report import EvaluateConfig, EvaluateFiles, evaluate, load_models, open_data, open_split
from t2l.evaluation.table import AUTOENCODER_METRICS, FID_METRICS, MASK_METRICS, PROBE_METRICS, markdown_table
from t2l.io.image import read_image, save_png, to_image
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.text2layer import save_autoencoder

COLOURS = {"cherry": (0.9, 0.1, 0.1), "leaf": (0.1, 0.8, 0.1), "night": (0.0, 0.0, 0.3), "snow": (0.9, 0.9, 0.9)}
PAIRS = [(thing, place) for thing in ("cherry", "leaf") for place in ("night", "snow")]
SMALL = EvaluateConfig(prompts=6, probe_examples=16, batch_size=4, saliency_count=5, saliency_real_count=2)


ISNET = EvaluateFiles(saliency="isnet.onnx")


def values_of(metrics):
    """The names of the metrics without those of standard errors."""
    return {name for name in metrics if not name.endswith("_se")}


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
    labels = {"thing": thing, "place": place}
    return Example(f"{i:04d}", picture(thing, place, i), f"{thing} in {place}", thing, f"in {place}", labels)


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
    autoencoder = LayeredAutoencoder(AutoencoderConfig(base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1))
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
    metrics = evaluate("model.safetensors", data, path, SMALL, ISNET)
    assert json.loads(path.read_text()) == json.loads(json.dumps(metrics))
    assert values_of(metrics["autoencoder"]) == AUTOENCODER_METRICS.keys()
    assert values_of(metrics["generation"]) == (PROBE_METRICS | MASK_METRICS | FID_METRICS).keys()
    values = [*metrics["autoencoder"].values(), *metrics["generation"].values()]
    assert all(isinstance(value, float) for value in values)
    assert metrics["counts"] == {"test": 10, "generated": 6, "train": 16, "saliency": 5, "saliency_real": 2}


def test_our_own_networks_find_the_subject_at_the_size_that_is_judged(data, stand_ins, tmp_path, monkeypatch):
    seen = []

    def subject(path, device):
        return lambda x: (
            seen.append((path.name, x.shape[-1])) or picture("leaf", "snow", 0).mask.expand(len(x), 1, -1, -1)
        )

    monkeypatch.setattr(judges, "load_salient", subject)
    files = EvaluateFiles(saliency="ours.safetensors", segmenter="judge.safetensors")
    metrics = evaluate("m", data, tmp_path / "a.json", replace(SMALL, judged_size=64), files)
    names = [f"mask_iou_{network}{ending}" for network in ("saliency", "segmenter") for ending in ("", "_real")]
    assert [metrics["generation"][name] for name in names] == [1, 1, 1, 1]
    assert {*seen} == {("ours.safetensors", 64), ("judge.safetensors", 64)} and metrics["counts"]["segmenter"] == 5
    with pytest.raises(ValueError, match="judged_size must be at least 8 pixels, got 4"):
        EvaluateConfig(judged_size=4)


def test_probes_learn_from_train_pictures_that_are_softened_in_turn(data, stand_ins, tmp_path, monkeypatch):
    shown, learnt, look, learn = [], [], judges.Judges.features, report.train_probe
    monkeypatch.setattr(
        judges.Judges, "features", lambda self, x, scale=1.0: shown.append((scale, len(x))) or look(self, x, scale)
    )
    monkeypatch.setattr(report, "train_probe", lambda x, labels: learnt.append((x, labels)) or learn(x, labels))
    first = evaluate("m", data, tmp_path / "a.json", SMALL)["generation"]
    before, sharp = sum(count for scale, count in shown), learnt[0][0]
    assert {scale for scale, _ in shown} == {1.0}
    second = evaluate("m", data, tmp_path / "b.json", replace(SMALL, probe_scales=(1.0, 0.5, 0.25)))["generation"]
    assert second["fid_equal_real"] == pytest.approx(first["fid_equal_real"], abs=1e-3)  # of sharp ones
    soft, labels = learnt[2]
    counts = {size: sum(count for scale, count in shown if scale == size) for size in (1.0, 0.5, 0.25)}
    floor = [i for i in evenly_spaced(16, SMALL.prompts) if i % 3]  # which are sharp for the floor of FID besides
    assert counts == {1.0: 2 * before - 16 + 6 + len(floor), 0.5: 5, 0.25: 5}  # of 16
    assert torch.equal(soft[::3], sharp[::3]) and not torch.equal(soft[1::3], sharp[1::3]) and labels == learnt[0][1]
    with pytest.raises(ValueError, match=r"probe_scales must be numbers above 0, up to 1, got \[1.0, 2.0\]"):
        EvaluateConfig(probe_scales=(1.0, 2.0))


def test_a_model_that_draws_what_is_asked_scores_as_the_real_pictures_do(data, stand_ins, tmp_path):
    metrics = evaluate("model.safetensors", data, tmp_path / "a.json", SMALL, ISNET)["generation"]
    for layer in ("foreground", "background"):
        assert metrics[f"{layer}_top1"] == metrics[f"{layer}_top1_real"] == 1
    assert metrics["mask_iou_saliency"] == metrics["mask_iou_saliency_real"] == 1
    assert metrics["fid"] < 0.1 < metrics["fid_reconstruction"]


def test_an_autoencoder_alone_needs_no_train_split_and_no_judges(data, stand_ins, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "load_models", lambda path: (stand_ins, None))
    monkeypatch.delattr(judges, "load_lite0")
    for file in (data / "train").iterdir():
        file.unlink()
    (data / "train").rmdir()
    metrics = evaluate("model.safetensors", data, tmp_path / "a.json", SMALL, ISNET)
    assert metrics["notes"] == ["an autoencoder alone draws nothing: saliency will not be used"]
    assert metrics["generation"] is None and metrics["autoencoder"]["mask_iou"] is not None


def test_a_limit_takes_fewer_pictures_and_prompts(data, stand_ins, tmp_path):
    metrics = evaluate("m", data, tmp_path / "a.json", EvaluateConfig(limit=3, batch_size=2))
    assert metrics["counts"]["test"] == metrics["counts"]["generated"] == 3
    assert metrics["generation"]["mask_iou_saliency"] is None


def test_two_evaluations_are_equal(data, stand_ins, tmp_path):
    a, b = (evaluate("m", data, tmp_path / "a.json", SMALL) for _ in range(2))
    assert a["autoencoder"] == b["autoencoder"] and a["generation"] == b["generation"]


def test_means_and_shares_have_standard_errors_in_the_file_and_the_table(data, stand_ins, tmp_path):
    metrics = evaluate("m", data, tmp_path / "a.json", SMALL, ISNET)
    for part in (metrics["autoencoder"], metrics["generation"]):
        assert {f"{name}_se" for name in values_of(part) if "fid" not in name} == part.keys() - values_of(part)
    share = metrics["generation"]["background_top1_reconstruction"]
    assert metrics["generation"]["background_top1_reconstruction_se"] == pytest.approx(
        (share * (1 - share) / 10) ** 0.5
    )
    error = metrics["autoencoder"]["mask_l1_se"]
    assert f"| autoencoder.mask_l1 | {metrics['autoencoder']['mask_l1']:.4g} ± {error:.2g} |" in markdown_table(metrics)


def fail(*args, **kwargs):
    raise AssertionError("the long work began")


def features_of(shards, indices):
    composites = torch.cat([shards[i].layers.composite() for i in indices])
    return F.adaptive_avg_pool2d(composites, 4).flatten(1)


def test_fid_is_of_sets_of_equal_count_beside_its_floor(data, stand_ins, tmp_path):
    found = evaluate("m", data, tmp_path / "a.json", SMALL)["generation"]
    test, train = open_split(data, "test"), open_split(data, "train")
    asked = [0, 1, 3, 5, 6, 8]  # 6 of 10, spread
    floor = features_of(train, [(i * 20 // 16) for i in (0, 2, 5, 8, 10, 13)])  # 6 of the 16 of 20
    assert found["fid_equal_real"] == pytest.approx(frechet_distance(floor, features_of(test, asked)), rel=1e-5)
    drawn = draw_what_was_asked(None, [test.metadata(i)["caption"] for i in asked], SimpleNamespace(seed=0, height=64))
    generated = F.adaptive_avg_pool2d(drawn.layers.composite(), 4).flatten(1)
    assert found["fid_equal"] == pytest.approx(frechet_distance(generated, features_of(test, asked)), rel=1e-5)


def test_fewer_pictures_than_features_are_said_to_be_few(data, stand_ins, tmp_path):
    notes = evaluate("m", data, tmp_path / "a.json", SMALL)["notes"]
    assert len(notes) == 1 and "FID is of 6 pictures with 48 features" in notes[0] and "mostly bias" in notes[0]


@pytest.mark.parametrize("name", ["prompts", "limit"])
def test_one_picture_makes_no_distance(name):
    with pytest.raises(ValueError, match=f"EvaluateConfig.{name} must be at least 2, as a covariance needs, got 1"):
        EvaluateConfig(**{name: 1})


def wordless(i):
    return replace(example(i), labels={})


@pytest.fixture
def own_data(tmp_path):
    """As `t2l pack` leaves it: train and validation, no words but captions, pictures of several shapes."""

    def of_a_shape(i):
        size = [(64, 80), (100, 72)][i % 2]
        stacked = F.interpolate(example(i).layers.stacked, size, mode="nearest")
        return replace(wordless(i), layers=Layers.from_stacked(stacked))

    write_shard(tmp_path / "own" / "train", 0, [of_a_shape(i) for i in range(12)])
    write_shard(tmp_path / "own" / "validation", 0, [of_a_shape(i) for i in range(12, 20)])
    return tmp_path / "own"


def test_a_packed_data_set_without_words_has_every_other_figure(own_data, stand_ins, tmp_path):
    metrics = evaluate("m", own_data, tmp_path / "a.json", SMALL, ISNET)
    assert metrics["split"] == "validation" and metrics["counts"]["test"] == 8
    assert values_of(metrics["generation"]) == (MASK_METRICS | FID_METRICS).keys()
    assert all(value is not None for value in metrics["generation"].values())
    assert "top1" not in markdown_table(metrics)


def test_a_word_that_some_pictures_lack_leaves_its_rows_out_with_a_note(data, stand_ins, tmp_path):
    write_shard(data / "test", 0, [*map(example, range(20, 29)), replace(example(29), labels={"place": "nowhere"})])
    metrics = evaluate("m", data, tmp_path / "a.json", SMALL)
    assert "foreground_top1" not in metrics["generation"] and "background_top1" in metrics["generation"]
    assert any("1 of 10 pictures in" in note and "have no thing" in note for note in metrics["notes"])


def test_the_split_that_was_asked_for_is_measured(data, own_data, stand_ins, tmp_path):
    (own_data / "validation").rename(data / "validation")
    assert evaluate("m", data, tmp_path / "a.json", SMALL)["split"] == "test"
    assert evaluate("m", data, tmp_path / "a.json", SMALL, split="validation")["counts"]["test"] == 8


def test_a_folder_of_shards_takes_its_floor_from_the_rest(data, stand_ins, tmp_path):
    metrics = evaluate("m", data / "test", tmp_path / "a.json", replace(SMALL, prompts=5))
    assert metrics["split"] is None and metrics["generation"]["fid_real"] is None
    assert metrics["generation"]["fid_equal_real"] > 0 and metrics["counts"]["test"] == 10
    metrics = evaluate("m", data / "test", tmp_path / "a.json", SMALL)
    assert metrics["generation"]["fid_equal_real"] is None
    assert any(
        "needs 6 real pictures beside those of the captions, there are 4; prompts=5" in x for x in metrics["notes"]
    )


def test_a_folder_of_shards_has_no_splits(data):
    with pytest.raises(ValueError, match="test is a folder of shards and has no splits; leave out --split validation"):
        open_data(data / "test", "validation")


def test_a_folder_without_anything_to_measure_is_named(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="the data set .*nowhere is no folder that exists"):
        open_data(tmp_path / "nowhere", None)
    with pytest.raises(FileNotFoundError, match="has no split to measure, neither test nor validation, and no shards"):
        open_data(tmp_path, None)


def test_a_users_own_judges_have_rows_of_their_own(data, stand_ins, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "open_inception", lambda *_: lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1))
    monkeypatch.setattr(
        judges, "open_clip", lambda *_: lambda x, captions: torch.tensor([0.1 * len(c) for c in captions])
    )
    metrics = evaluate("m", data, tmp_path / "a.json", SMALL, EvaluateFiles(features="i.onnx", clip="c"))
    found, test = metrics["generation"], open_split(data, "test")
    lengths = [0.1 * len(test.metadata(i)["caption"]) for i in (0, 1, 3, 5, 6, 8)]
    assert found["clip"] == found["clip_real"] == pytest.approx(sum(lengths) / 6) and found["clip_se"] > 0
    assert 0 <= found["clean_fid"] < found["fid_reconstruction"] and found["clean_fid_real"] is not None
    assert "| generation.clean_fid |" in markdown_table(metrics)


@pytest.fixture
def checkpoint(tmp_path):
    """Its bytes count where composites are exported; the networks are stand-ins."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "model.safetensors"


def test_exported_composites_come_back_as_masks_that_people_drew(data, stand_ins, checkpoint, tmp_path):
    """Perfect masks on three pictures, half of the square on a fourth, none on the rest."""
    out = tmp_path / "composites"
    evaluate(checkpoint, data, tmp_path / "a.json", SMALL, EvaluateFiles(export=out))
    rows = [json.loads(line) for line in (out / "composites.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"{i:04d}" for i in (20, 21, 23, 25, 26, 28)]
    assert all(row["seed"] == i and row["prompt"] and (out / row["file"]).is_file() for i, row in enumerate(rows))
    expected = picture(*rows[0]["prompt"].split(" in "), seed=0)
    assert torch.equal(read_image(out / rows[0]["file"]), (expected.composite() * 255).round() / 255)
    mask = expected.mask.clone()
    for row in rows[:3]:
        save_png(to_image(mask[0]), out / f"{row['key']}.mask.png")
    mask[..., 32:] = 0
    save_png(to_image(mask[0]), out / f"{rows[3]['key']}.png")
    metrics = evaluate(checkpoint, data, tmp_path / "a.json", SMALL, EvaluateFiles(masks=out))
    assert metrics["generation"]["mask_iou_human"] == pytest.approx(3.5 / 4) and metrics["counts"]["human"] == 4
    assert metrics["generation"]["mask_iou_human_se"] == pytest.approx(0.125)


def test_masks_drawn_on_other_pictures_are_refused_before_the_work(data, stand_ins, checkpoint, tmp_path, monkeypatch):
    out = EvaluateFiles(export=tmp_path / "c")
    evaluate(checkpoint, data, tmp_path / "a.json", SMALL, out)
    save_png(to_image(torch.ones(1, 64, 64)), tmp_path / "c" / "0021.mask.png")
    listed = tmp_path / "c" / "composites.jsonl"
    listed.write_text(listed.read_text().replace('"guidance_scale"', '"guidance"'))  # as it was called
    monkeypatch.setattr(report, "reconstruct", fail)
    other = replace(SMALL, generation=replace(SMALL.generation, guidance_scale=2.0))
    with pytest.raises(
        ValueError, match="'0021' was drawn with guidance_scale 3.0, now it is 2.0; masks count for the pictures"
    ):
        evaluate(checkpoint, data, tmp_path / "a.json", other, EvaluateFiles(masks=tmp_path / "c"))


@pytest.mark.parametrize(
    ("name", "size", "error", "sentence"),
    [
        ("0021.png", 32, ValueError, "0021.png is 32 x 32, the picture is 64 x 64; save the mask at its size"),
        (
            "0022.png",
            64,
            FileNotFoundError,
            "holds no mask of the 6 pictures that are drawn; the first would be 0020.mask.png",
        ),
    ],
)
def test_masks_that_do_not_fit_are_named_before_the_work(
    name, size, error, sentence, data, stand_ins, checkpoint, tmp_path, monkeypatch
):
    save_png(to_image(torch.ones(1, size, size)), tmp_path / "masks" / name)
    monkeypatch.setattr(report, "reconstruct", fail)
    with pytest.raises(error, match=sentence):
        evaluate(checkpoint, data, tmp_path / "a.json", SMALL, EvaluateFiles(masks=tmp_path / "masks"))


def test_no_two_keys_share_a_file():
    keys = ["a", "a b", "a%20b", "a-b", "雪", ".a", "%2Ea", "a|b"]
    assert len({file_name(key) for key in keys}) == len(keys)
    assert file_name("a b") == "a%20b.composite.png" and file_name("雪") == "雪.composite.png"


def test_a_card_that_is_not_there_is_refused_before_the_work(data, stand_ins, tmp_path):
    with pytest.raises(ValueError, match="device cuda:99 is not there"):
        evaluate("m", data, tmp_path / "a.json", SMALL, device="cuda:99")


def test_half_precision_gives_nearly_the_figures_of_full(data, stand_ins, tmp_path):
    full, half = (
        evaluate("m", data, tmp_path / "a.json", SMALL, dtype=dtype)["autoencoder"] for dtype in ("fp32", "bf16")
    )
    assert half["composite_psnr"] == pytest.approx(full["composite_psnr"], abs=0.1) and half != full


def test_the_table_has_every_figure_and_shows_what_was_not_measured():
    table = markdown_table({"autoencoder": {"mask_iou": 0.99123456}, "generation": None})
    assert "| autoencoder.mask_iou | 0.9912 | >= 0.99 |" in table
    assert "| generation.fid | - |" in table
    assert table.count("\n| ") == len(AUTOENCODER_METRICS | MASK_METRICS | FID_METRICS)


def test_a_missing_split_is_named(data):
    with pytest.raises(FileNotFoundError, match="has no split `held_out`: the folder .*held_out does not exist"):
        open_split(data, "held_out")


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
    metrics = evaluate("model.safetensors", data, tmp_path / "a.json", SMALL)
    assert not any(name.startswith("foreground_top1") for name in metrics["generation"])
    assert metrics["generation"]["background_top1"] is not None
    assert any("train shows no thing but 'cherry', so foreground_top1 is left out" in note for note in metrics["notes"])


def test_a_file_with_an_autoencoder_alone_is_told_from_a_whole_model(tmp_path):
    autoencoder = LayeredAutoencoder(AutoencoderConfig(base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1))
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
