"""Judges and metrics on another device than the data: on fake CUDA tensors, which know their device and hold no
numbers.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from t2l.evaluation import metrics
from t2l.evaluation.clip import clip_score
from t2l.evaluation.inception import InceptionV3, clean_input
from t2l.evaluation.judges import Judges
from t2l.layers import Layers
from t2l.model.autoencoder import AutoencoderConfig, LayeredAutoencoder
from t2l.model.efficientnet import EfficientNetLite0

CUDA = torch.device("cuda")
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture
def fake():
    with FakeTensorMode() as mode:
        try:
            on_card(lambda: torch.nn.Linear(1, 1))(torch.ones(1, 1, device=CUDA))
        except (RuntimeError, AssertionError):
            pytest.skip("this torch makes no fake CUDA tensors where there is no driver")
        yield mode


def on_card(build, dtype=torch.float32):
    """A network born there: `to` cannot move fake parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with CUDA:
            return build().eval()
    finally:
        torch.set_default_dtype(before)


def layers(size=64):
    return Layers.from_stacked(torch.rand(2, 7, size, size))


@pytest.mark.parametrize("size", [64, 48])
def test_judges_on_a_card_look_at_pictures_from_the_cpu_and_answer_there(size, fake):
    from transformers import CLIPConfig, CLIPModel

    vision = TOWER | {"patch_size": 8, "image_size": 32}
    clip = on_card(lambda: CLIPModel(CLIPConfig(text_config=TOWER, vision_config=vision, projection_dim=24)))
    lite0, inception = on_card(EfficientNetLite0), on_card(InceptionV3)
    judges = Judges(
        lite0,
        64,
        CUDA,
        inception=lambda x: inception(clean_input(x)),
        clip=lambda x, captions: clip_score(clip, x, torch.zeros(len(captions), 77, dtype=torch.long)),
    )
    seen = {"lite0": judges.features(layers(size))} | judges.others(layers(size), ["a cat", "a dog"])
    assert {name: (x.device.type, tuple(x.shape)) for name, x in seen.items()} == {
        "lite0": ("cpu", (2, 1280)),
        "clean": ("cpu", (2, 2048)),
        "clip": ("cpu", (2,)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_autoencoder_on_a_card_is_measured_there_in_float32(dtype, fake, monkeypatch):
    monkeypatch.setattr(metrics, "check_finite", lambda *_: None)  # it looks at numbers
    config = AutoencoderConfig(base_channels=32, channel_multipliers=(1,), num_res_blocks=1)
    found, predicted = metrics.reconstruct(on_card(lambda: LayeredAutoencoder(config), dtype), layers())
    assert predicted.foreground.device.type == "cuda" and predicted.foreground.dtype == torch.float32
    assert all(x.device.type == "cuda" and x.dtype == torch.float32 for x in found.values())


def test_a_tensor_on_the_wrong_device_would_be_seen(fake):
    with pytest.raises(RuntimeError, match="cuda"):
        on_card(InceptionV3)(clean_input(layers().composite()))
