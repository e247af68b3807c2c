"""A user's own networks from a path: what they give, and what is refused before anything slow."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2l.evaluation.clip import build_clip, clip_input
from t2l.evaluation.inception import InceptionV3, clean_input
from t2l.evaluation.judges import Judges, check_no_pickle, open_clip, open_inception
from t2l.layers import Layers
from t2l.model.saliency import saliency_model
from tests.evaluation.onnx_file import network, node

CPU = torch.device("cpu")
WIDTH = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}


def pictures(count=2, height=30, width=44, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def inception():
    torch.manual_seed(0)
    return InceptionV3().eval()


@pytest.fixture
def clip_file(tmp_path):
    """A small CLIP of OpenAI's kind under transformers' names, and the network itself."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    vision = WIDTH | {"patch_size": 8, "image_size": 32, "hidden_act": "quick_gelu"}
    config = CLIPConfig(text_config=WIDTH | {"hidden_act": "quick_gelu"}, vision_config=vision, projection_dim=24)
    model = CLIPModel(config).eval()
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", model


def test_what_is_shown_at_a_scale_has_lost_its_detail_and_keeps_its_mean():
    pixels = pictures(1, 64, 64)
    layers = Layers(pixels, pixels, torch.ones(1, 1, 64, 64))
    judges = Judges(lambda x: x, 64, CPU)
    sharp, soft = judges.features(layers), judges.features(layers, 0.25)
    assert torch.equal(sharp, pixels) and soft.shape == sharp.shape
    assert soft.std() < 0.5 * sharp.std() and abs(soft.mean() - sharp.mean()) < 0.01


def test_a_safetensors_file_under_pytorch_fids_names_gives_clean_fids_features(inception, tmp_path):
    tensors = {name: x for name, x in inception.state_dict().items() if not name.endswith("_tracked")}
    save_file(
        tensors | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, tmp_path / "i.safetensors"
    )
    with torch.inference_mode():
        found = open_inception(tmp_path / "i.safetensors", CPU)(pictures())
        assert found.shape == (2, 2048) and torch.equal(found, inception(clean_input(pictures())))


def test_a_file_without_some_of_the_weights_is_named(tmp_path):
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "i.safetensors")
    with pytest.raises(ValueError, match=r"i.safetensors does not fit its config: it lacks Conv2d_1a_3x3.bn.weight"):
        open_inception(tmp_path / "i.safetensors", CPU)


def features_file(path, shape=("n", 3, 299, 299), width=2048):
    """Means of columns and rows, padded with zeros: (N, width)."""
    nodes = [
        node("ReduceMean", ["x"], "m", axes=[1, 2], keepdims=0),
        node("Pad", ["m", "pads"], "y"),
    ]
    path.write_bytes(network(nodes, shape, tensors={"pads": [0, 0, 0, width - 299]}))
    return path


def test_an_onnx_file_is_shown_what_clean_fid_shows(tmp_path):
    pytest.importorskip("onnxruntime")
    expected = clean_input(pictures()).mean(dim=(1, 2))
    for shape in (("n", 3, 299, 299), (1, 3, 299, 299), ("n", 3, "h", "w")):
        found = open_inception(features_file(tmp_path / "f.onnx", shape), CPU)(pictures())
        torch.testing.assert_close(found[:, :299], expected)
        assert found.shape == (2, 2048) and not found[:, 299:].any()


@pytest.mark.parametrize(
    ("shape", "width", "sentence"),
    [
        (("n", 3, 299, 299), 1000, r"must give features of \(N, 2048\), it gave \(1, 1000\)"),
        (("n", 3, 224, 224), 2048, r"must take pictures of 299 x 299, it takes \(224, 224\)"),
        (("n", 4, 299, 299), 2048, r"must take one input, pictures of \(N, 3, height, width\); it takes x"),
        ((8, 3, 299, 299), 2048, "must take any number of pictures at once, or one; it takes 8"),
    ],
)
def test_an_onnx_file_of_another_kind_is_named(shape, width, sentence, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=f"f.onnx {sentence}"):
        open_inception(features_file(tmp_path / "f.onnx", shape, width), CPU)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin"])
def test_a_pickle_is_refused_with_the_line_that_converts_it(name, tmp_path, monkeypatch):
    """The line is run here, and what it leaves is read."""
    torch.save({"a": torch.arange(3.0)}, tmp_path / name)
    with pytest.raises(
        ValueError, match="is a pickle or TorchScript, which can run code .* give a .safetensors"
    ) as error:
        open_inception(tmp_path / name, CPU)
    monkeypatch.chdir(tmp_path)
    exec(str(error.value).partition('python -c "')[2].rstrip('"'))
    assert torch.equal(load_file("w-weights.safetensors")["a"], torch.arange(3.0))


def test_a_pickle_by_another_name_is_one_still(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    for open_file in (open_inception, open_clip):
        with pytest.raises(ValueError, match="w.safetensors is a pickle or TorchScript"):
            open_file(tmp_path / "w.safetensors", CPU)


def test_a_folder_and_a_missing_file_are_no_pickles(tmp_path):
    check_no_pickle(tmp_path)
    with pytest.raises(FileNotFoundError, match="the file of features .*none.safetensors does not exist"):
        open_inception(tmp_path / "none.safetensors", CPU)


def test_clip_score_is_the_cosine_of_transformers_embeddings(clip_file):
    path, model = clip_file
    from t2l.model.tokenizer import Tokenizer

    captions = ["a red cat", "a blue dog in a forest"]
    found = open_clip(path, CPU)(pictures(), captions)
    with torch.inference_mode():
        both = model(input_ids=Tokenizer()(captions), pixel_values=clip_input(pictures(), 32))
    torch.testing.assert_close(found, (both.image_embeds * both.text_embeds).sum(dim=1))
    assert found.shape == (2,)


def test_a_folder_with_a_config_is_built_as_it_says(clip_file):
    path, model = clip_file
    config = model.config.to_dict()
    config["text_config"]["hidden_act"] = config["vision_config"]["hidden_act"] = "gelu"
    before = open_clip(path.parent, CPU)(pictures(), ["a cat", "a dog"])
    (path.parent / "config.json").write_text(json.dumps(config))
    assert not torch.equal(open_clip(path.parent, CPU)(pictures(), ["a cat", "a dog"]), before)


def test_clip_is_shown_the_middle_square_as_transformers_shows_it():
    """To two grey levels: CLIPImageProcessor rounds to 8 bits after each of two passes."""
    import transformers
    from PIL import Image

    pixels = (pictures(1, 60, 90) * 255).round() / 255
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)  # its name before 5
    processor = kind(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    image = Image.fromarray((pixels[0] * 255).round().byte().movedim(0, -1).numpy())
    expected = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
    torch.testing.assert_close(clip_input(pixels, 32)[0], expected, atol=2 / 255 / 0.26, rtol=0)


def test_a_file_that_is_no_clip_is_named():
    with pytest.raises(
        ValueError, match="x is no CLIP under transformers' names, it lacks 'text_model.embeddings.token"
    ):
        build_clip({}, None, "x")


def mask_file(path, shape, nodes=None):
    path.write_bytes(network(nodes or [node("Identity", ["x"], "y")], shape))
    return path


def grey(value, height=20, width=30):
    return torch.full((2, 3, height, width), value)


@pytest.mark.parametrize("shape", [("n", 3, 16, 24), (1, 3, 16, 24), ("n", 3, "h", "w")])
def test_any_salient_object_network_gives_masks_of_the_pictures_size(shape, tmp_path):
    """The network here gives back what it is shown; the first channel counts."""
    pytest.importorskip("onnxruntime")
    mask = saliency_model(mask_file(tmp_path / "s.onnx", shape))(grey(0.75))
    torch.testing.assert_close(mask, torch.full((2, 1, 20, 30), (0.75 * 255 - 128) / 256))


def test_logits_become_probabilities(tmp_path):
    pytest.importorskip("onnxruntime")
    mask = saliency_model(mask_file(tmp_path / "s.onnx", (1, 3, 8, 8)), preset="imagenet")(grey(1.0))
    torch.testing.assert_close(mask, torch.full((2, 1, 20, 30), (1 - 0.485) / 0.229).sigmoid())


def test_a_network_without_masks_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    nodes = [node("ReduceMean", ["x"], "y", axes=[2, 3], keepdims=0)]
    model = saliency_model(mask_file(tmp_path / "s.onnx", (1, 3, 8, 8), nodes))
    with pytest.raises(
        ValueError, match=r"s.onnx must give finite masks of \(N, 1, height, width\) first; it gave \(1, 3\)"
    ):
        model(grey(0.5))


def test_judges_of_one_size_see_every_picture_at_it():
    from t2l.evaluation.judges import Judges

    judges = Judges(
        lambda x: x.flatten(1), 8, CPU, inception=lambda x: x[:, 0, 0], clip=lambda x, c: x.mean(dim=(1, 2, 3))
    )
    layers = Layers.from_stacked(torch.rand(2, 7, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert judges.features(layers).shape == (2, 3 * 64)
    assert {name: tuple(x.shape) for name, x in judges.others(layers, ["a", "b"]).items()} == {
        "clean": (2, 8),
        "clip": (2,),
    }
