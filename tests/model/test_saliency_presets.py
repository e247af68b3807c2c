import pytest
import torch

from t2l.model.saliency import CONTRACTS, saliency_model, shown
from tests.evaluation.onnx_file import network, node

COLOUR = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1).expand(1, 3, 20, 30)  # red, green, blue


def file_of(path, *kinds, shape=(1, 3, 8, 8)):
    """A network whose outputs are its input by one operation each."""
    names = [f"y{i}" for i in range(len(kinds))]
    path.write_bytes(network([node(kind, ["x"], name) for kind, name in zip(kinds, names, strict=True)], shape, names))
    return path


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("isnet", [0.3, -0.1, -0.3]),  # x - 0.5, to the 8 bits of @imgly's 128 and 256
        ("u2net", [(1 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.25 - 0.406) / 0.225]),  # of the brightest value
        ("birefnet", [(0.8 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]),
        ("inspyrenet", [(0.8 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]),
        ("icon", [(51 - 124.55) / 56.77, (102 - 118.90) / 55.97, (204 - 102.94) / 57.50]),  # blue first
    ],
)
def test_a_network_is_shown_what_its_authors_showed_it(preset, expected):
    x = shown(COLOUR, (8, 8), CONTRACTS[preset])
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(expected), atol=4e-3, rtol=0)


@pytest.mark.parametrize(("preset", "size"), [("isnet", 1024), ("u2net", 320), ("icon", 384)])
def test_a_file_of_any_size_is_shown_its_preset_s(preset, size, tmp_path):
    pytest.importorskip("onnxruntime")
    sizes = []
    model = saliency_model(file_of(tmp_path / "s.onnx", "Identity", shape=(1, 3, "h", "w")), preset=preset)
    with pytest.MonkeyPatch.context() as patch:
        from t2l.model import saliency

        patch.setattr(saliency, "_as_mask", lambda output, *_: sizes.append(output.shape[-2:]) or output[:, :1])
        model(COLOUR)
    assert sizes == [(size, size)]


@pytest.mark.parametrize(
    ("preset", "kinds", "value"),
    [
        ("icon", ["Identity", "Identity", "Identity", "Neg", "Identity"], (124.55 - 51) / 56.77),  # the fourth of five
        ("birefnet", ["Identity", "Neg"], (0.485 - 0.8) / 0.229),  # the last
        ("birefnet", ["Neg"], (0.485 - 0.8) / 0.229),  # an export of the last alone
    ],
)
def test_the_output_that_the_authors_read_becomes_the_mask(preset, kinds, value, tmp_path):
    pytest.importorskip("onnxruntime")
    mask = saliency_model(file_of(tmp_path / "s.onnx", *kinds), preset=preset)(COLOUR)
    torch.testing.assert_close(mask, torch.full((1, 1, 20, 30), value).sigmoid())


@pytest.mark.parametrize(
    ("name", "count", "preset"), [("a", 12, "isnet"), ("a", 7, "u2net"), ("BiRefNet-lite", 1, "birefnet")]
)
def test_a_file_says_by_its_name_or_its_outputs_which_network_it_is(name, count, preset, tmp_path):
    pytest.importorskip("onnxruntime")
    file = file_of(tmp_path / f"{name}.onnx", *["Identity"] * count)
    assert torch.equal(saliency_model(file, preset="auto")(COLOUR), saliency_model(file, preset=preset)(COLOUR))


@pytest.mark.parametrize(
    ("preset", "sentence"),
    [
        ("auto", "s.onnx does not say which network it is; give its preset: isnet, u2net"),
        ("u3net", "the saliency preset must be one of auto, isnet, .*, got 'u3net'"),
        ("icon", "s.onnx must have an output 3 for icon; it has 2"),
    ],
)
def test_a_preset_that_does_not_fit_is_a_sentence(preset, sentence, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=sentence):
        saliency_model(file_of(tmp_path / "s.onnx", "Identity", "Identity"), preset=preset)


def test_a_network_that_fails_while_it_computes_is_a_runtime_error_with_its_name(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(network([node("Reshape", ["x", "shape"], "y")], (1, 3, 8, 8), tensors={"shape": [7, 7]}))
    with pytest.raises(RuntimeError, match="net.onnx failed: .*reshape"):
        saliency_model(path, preset="isnet")(torch.zeros(1, 3, 8, 8))
