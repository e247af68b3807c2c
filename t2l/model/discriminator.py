"""ldm's PatchGAN discriminator (Isola et al. 2017, pix2pix; Esser et al. 2021, VQGAN), with its parameter names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """What a PatchDiscriminator is built from. The defaults are ldm's."""

    in_channels: int = 3
    base_channels: int = 64  # width after the first convolution; doubles up to 8 times
    num_layers: int = 3  # convolutions of stride 2; a logit then judges 70 x 70 pixels

    def __post_init__(self) -> None:
        if min(self.in_channels, self.base_channels, self.num_layers) < 1:
            raise ValueError(f"every value of DiscriminatorConfig must be at least 1, got {self}")


class PatchDiscriminator(nn.Module):
    """Pictures (N, in_channels, H, W) in [-1, 1] -> a logit per patch, high = real: (N, 1, H/8 - 2, W/8 - 2)."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        width = config.base_channels
        layers: list[nn.Module] = [nn.Conv2d(config.in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, config.num_layers + 1):
            out = config.base_channels * min(2**n, 8)
            stride = 2 if n < config.num_layers else 1
            layers += [
                nn.Conv2d(width, out, 4, stride=stride, padding=1, bias=False),  # BatchNorm has the bias
                nn.BatchNorm2d(out),
                nn.LeakyReLU(0.2),
            ]
            width = out
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.main(pictures)


def init_weights(module: nn.Module) -> None:
    """pix2pix's start: convolutions from N(0, 0.02), BatchNorm gains from N(1, 0.02), its biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
