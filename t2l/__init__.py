"""Text2Layer: a prompt becomes foreground, background, mask and composite (after Zhang et al. 2023, arXiv 2307.09781).

The names below load their modules when they are first used, so `import t2l` itself loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compositing.stack import Stack as Stack
    from .data.shards import Shards as Shards
    from .diffusion import DiffusionConfig as DiffusionConfig
    from .generate import GenerateConfig as GenerateConfig
    from .generate import generate as text_to_layers  # noqa: F401
    from .io.layer_file import open_layer_file as open_layer_file
    from .io.layer_file import save_layer_file as save_layer_file
    from .layers import Layers as Layers
    from .model.autoencoder import AutoencoderConfig as AutoencoderConfig
    from .model.autoencoder import LayeredAutoencoder as LayeredAutoencoder
    from .model.text2layer import Text2Layer as Text2Layer

_HOMES = {  # `t2l.generate` is the module: a function of that name would vanish once somebody imports the module
    "AutoencoderConfig": "model.autoencoder",
    "DiffusionConfig": "diffusion",
    "GenerateConfig": "generate",
    "LayeredAutoencoder": "model.autoencoder",
    "Layers": "layers",
    "Shards": "data.shards",
    "Stack": "compositing.stack",
    "Text2Layer": "model.text2layer",
    "open_layer_file": "io.layer_file",
    "save_layer_file": "io.layer_file",
    "text_to_layers": "generate",
}
__all__ = list(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"t2l has no {name}; it has {', '.join(__all__)}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), "generate" if name == "text_to_layers" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _HOMES)
