"""InceptionV3 and Clean-FID's resize, against torchvision's blocks and Pillow."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from t2l.evaluation.inception import InceptionV3, clean_input, inception_weights


def pictures(count=2, height=40, width=56):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def spiced(network):
    """With statistics and gains that no two channels share, so that a wrong order shows."""
    generator = torch.Generator().manual_seed(1)
    for name, x in network.state_dict().items():
        if "bn" in name and x.is_floating_point():
            x.copy_(torch.rand(x.shape, generator=generator) + 0.5)
    return network.eval()


def test_features_are_those_of_torchvisions_blocks_with_tensorflows_pools(monkeypatch):
    """The reference: torchvision's network, whose average pools leave padding out, the last one giving way to a
    maximum.
    """
    inception = pytest.importorskip("torchvision").models.inception
    reference = spiced(inception.Inception3(num_classes=1008, aux_logits=False, init_weights=False))
    last = [False]
    reference.Mixed_7c.register_forward_pre_hook(lambda *_: last.__setitem__(0, True))

    def pool(x, kernel_size, stride, padding):
        if last[0]:
            return F.max_pool2d(x, kernel_size, stride, padding)
        return F.avg_pool2d(x, kernel_size, stride, padding, count_include_pad=False)

    monkeypatch.setattr(inception, "F", SimpleNamespace(avg_pool2d=pool, max_pool2d=F.max_pool2d, relu=F.relu))
    reference.fc = torch.nn.Identity()
    ours = InceptionV3().eval()
    ours.load_state_dict(inception_weights(reference.state_dict(), "x"), strict=False)
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        expected = reference(x)
        torch.testing.assert_close(ours(x) / expected.abs().max(), expected / expected.abs().max())


def test_names_are_those_of_pytorch_fids_file():
    inception = pytest.importorskip("torchvision").models.inception
    theirs = inception.Inception3(num_classes=1008, aux_logits=True, init_weights=False).state_dict()
    wanted = {name: x.shape for name, x in InceptionV3().state_dict().items() if not name.endswith("_tracked")}
    assert {name: x.shape for name, x in inception_weights(theirs, "x").items()} == wanted


def test_torchvisions_own_weights_are_refused():
    with pytest.raises(
        ValueError, match="a.safetensors has torchvision's weights, with 1000 classes; FID is defined with"
    ):
        inception_weights({"fc.weight": torch.zeros(1000, 2048)}, "a.safetensors")


@pytest.mark.parametrize("size", [(40, 56), (400, 310)])
def test_the_resize_is_pillows_of_an_8_bit_picture_without_rounding_after_it(size):
    """As clean-fid 0.1.35 does: every channel as float, Image.resize with BICUBIC, clipped to [0, 255]."""
    pixels = pictures(1, *size)
    channels = (pixels[0] * 255).round().numpy().astype(np.float32)
    resized = [
        np.asarray(Image.fromarray(x).resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255) for x in channels
    ]
    expected = (torch.from_numpy(np.stack(resized)) - 128) / 128
    torch.testing.assert_close(clean_input(pixels)[0], expected, atol=1e-4, rtol=0)  # of [-1, 1]
