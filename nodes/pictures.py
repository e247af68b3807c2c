"""Picture to Layers: a flat picture taken apart into what it shows and what lies behind."""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..t2l.compositing.split import SplitConfig, split
from ..t2l.layers import Layers
from ..t2l.model.salient import FILE, load_salient_net, mask_of
from .documents import to_documents
from .hints import hint
from .inputs import until_cancelled, validated
from .pairing import paired
from .types import LAYERS, POLARITY, layers_to_sockets, list_output, number_input, read_together, schema

NODE = "Picture to Layers"
SALIENT_BYTES = 256 << 20  # of one picture in the saliency network, at its own size
SHOWS, COVERS = 0.1, 0.9  # masks that nowhere show more than SHOWS are empty; that nowhere show less than COVERS, full


class PictureToLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="T2L_PictureToLayers",
            display_name="Picture to Layers",
            category="text2layer/layers",
            search_aliases=["remove background", "segment", "inpaint background", "photo to psd", "cutout", "matte"],
            description="Takes a flat picture apart: its subject with clean edges, and a background painted in behind "
            "it.",
            is_input_list=True,
            inputs=[
                io.Image.Input("image", tooltip="Any picture of any size, or a batch; its transparency is left out."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=f"From any segmentation node. {POLARITY}. Stretched to the image. Without it the subject "
                    "is found.",
                ),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="From any inpainting workflow; scaled to cover the image and cropped in the middle. "
                    "Without it the background is painted in.",
                ),
                number_input(
                    "dilation",
                    8,
                    0,
                    256,
                    1,
                    "How far beyond the mask the background is painted in: pixels of a picture of 512. More takes a "
                    "shadow along.",
                    optional=True,
                ),
            ],
            outputs=[
                list_output(
                    io.Image,
                    "foreground",
                    "The subject, freed of the background at its edge; its colours go on beyond.",
                ),
                list_output(io.Image, "background", "What lies behind: given, or painted in."),
                list_output(io.Mask, "mask", POLARITY),
                list_output(LAYERS, "layers", "One document for each picture."),
            ],
        )

    @classmethod
    @validated
    @paired
    def execute(cls, image: Any, mask: Any = None, background: Any = None, dilation: float = 8) -> io.NodeOutput:
        config = SplitConfig(dilation=dilation)
        found = read_together(image=image, mask=mask, background=background)
        pictures, masks, backgrounds = found["image"], found.get("mask"), found.get("background")
        salient = salient_network() if masks is None else None
        parts, bar = [], comfy.utils.ProgressBar(len(pictures))
        for i, picture in enumerate(until_cancelled(pictures.split(1))):
            shows = masks[i : i + 1] if salient is None else salient.mask(picture)
            hint_at_mask(shows, i, salient is None)
            behind = None if backgrounds is None else backgrounds[i : i + 1]
            parts.append(split(picture, shows, behind, config=config))
            bar.update(1)
        layers = Layers.cat(parts)
        return io.NodeOutput(*layers_to_sockets(layers), to_documents(layers))


class ManagedSaliency:
    """The saliency network that ships, under ComfyUI's memory management."""

    def __init__(self) -> None:
        if not FILE.is_file():
            raise FileNotFoundError(
                f"{FILE.name} is missing in {FILE.parent}; connect a mask, or install the pack again"
            )
        self.net = load_salient_net(FILE)
        self.device = mm.get_torch_device()
        self.patcher = ModelPatcher(self.net, load_device=self.device, offload_device=mm.unet_offload_device())

    def mask(self, picture: Tensor) -> Tensor:
        """The soft mask (1, 1, H, W) of a picture (1, 3, H, W), 1 = salient, on the picture's device."""
        mm.load_models_gpu([self.patcher], memory_required=SALIENT_BYTES)
        with torch.no_grad():
            return mask_of(self.net, picture, self.device)


@cache
def salient_network() -> ManagedSaliency:
    """Opened at the first picture without a mask; one for all nodes."""
    return ManagedSaliency()


def hint_at_mask(mask: Tensor, number: int, given: bool) -> None:
    """Hint at a mask that leaves nothing to take apart; the picture goes on as background or foreground alone."""
    whose = f"{NODE}: the mask of picture {number + 1}" if given else f"{NODE}: picture {number + 1}"
    if mask.max() <= SHOWS:
        found = (
            "is empty, all of it is background"
            if given
            else "shows no subject that stands out, all of it is background"
        )
        advice = "Load Image gives an empty one for a picture without transparency" if given else "connect a mask"
        hint(f"{whose} {found}; {advice}", (NODE, "empty", given))
    elif mask.min() >= COVERS:
        found = "covers the whole picture" if given else "is all subject"
        hint(f"{whose} {found}, nothing of the background is seen; Invert Mask turns one around", (NODE, "full", given))
