import pytest
import torch

from t2l.model.discriminator import DiscriminatorConfig, PatchDiscriminator


def small(**values):
    return PatchDiscriminator(DiscriminatorConfig(base_channels=8, **values))


def test_the_default_has_ldms_names_and_shapes():
    with torch.device("meta"):
        state = PatchDiscriminator().state_dict()
    convolutions = {name: tuple(x.shape) for name, x in state.items() if x.ndim == 4}
    assert convolutions == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.5.weight": (256, 128, 4, 4),
        "main.8.weight": (512, 256, 4, 4),
        "main.11.weight": (1, 512, 4, 4),
    }
    biased = {name for name in state if name.endswith("bias")}
    assert biased == {f"main.{i}.bias" for i in (0, 3, 6, 9, 11)}  # a convolution before BatchNorm has none


@pytest.mark.parametrize("in_channels", [1, 3, 7])
def test_it_gives_a_logit_per_patch(in_channels):
    logits = small(in_channels=in_channels)(torch.zeros(2, in_channels, 64, 48))
    assert logits.shape == (2, 1, 64 // 8 - 2, 48 // 8 - 2)


def test_a_logit_judges_70_by_70_pixels():
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    small().eval()(x)[0, 0, 7, 7].backward()
    seen = x.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [70, 70]


def test_weights_start_as_in_pix2pix():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        main = PatchDiscriminator().main
    assert main[5].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert main[6].weight.mean().item() == pytest.approx(1, abs=0.01)
    assert main[6].bias.abs().max() == 0


def test_a_config_without_layers_is_refused():
    with pytest.raises(ValueError, match="must be at least 1, got .*num_layers=0"):
        DiscriminatorConfig(num_layers=0)
