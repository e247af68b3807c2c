"""The nodes of the pack. Each is a declaration and one call into t2l; pixels and sockets meet in types.py."""

from comfy_api.v0_0_2 import ComfyExtension, io

from .edges import BestLayers, CleanEdges, RecomposeCheck, UpscaleLayers
from .files import LoadLayers, SaveLayers
from .fit import FitLayers
from .images import ImagesToLayers
from .keep import KeepLayer
from .latent import DecodeLayers, DecodeLayersTiled, EncodeLayers, EncodeLayersTiled
from .layers import CompositeLayers, JoinLayers, SplitLayers
from .load import LoadAutoencoder, LoadCheckpoint, register_folders
from .pictures import PictureToLayers
from .preview import register_route

NODES: list[type[io.ComfyNode]] = [
    LoadCheckpoint,
    LoadAutoencoder,
    EncodeLayers,
    EncodeLayersTiled,
    DecodeLayers,
    DecodeLayersTiled,
    KeepLayer,
    JoinLayers,
    SplitLayers,
    CompositeLayers,
    SaveLayers,
    LoadLayers,
    FitLayers,
    CleanEdges,
    RecomposeCheck,
    UpscaleLayers,
    BestLayers,
    ImagesToLayers,
    PictureToLayers,
]

register_folders()
register_route()


class Text2LayerExtension(ComfyExtension):
    """What ComfyUI's loader asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
