"""The workflows that take a photograph apart; workflow_pages.py has the others."""

from __future__ import annotations

from typing import Any

from workflow_layout import BLUE, GREEN, PURPLE, YELLOW, Group, Node, Workflow
from workflow_pages import mask, picture, read, saved, split, written

PHOTOGRAPH = "dandelion.ora [example]"
PAINTING = {"seed": 1, "steps": 30, "cfg": 1.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}


def apart(**wires: Any) -> Node:
    return Node("apart", "T2L_PictureToLayers", {"image": ["file", 4], **wires, "dilation": 8.0})


def kept() -> Group:
    columns = [
        [written("apart", 3, "photograph"), saved("split", 4, "subject", "cut-out")],
        [picture("background", "apart", 1), mask("mask", "apart", 2)],
    ]
    return Group("3  Keep it as PSD", GREEN, columns)


def empty_prompt() -> Node:
    return Node("nothing", "CLIPTextEncode", {"clip": ["painter", 1], "text": ""}, height=100)


PHOTOGRAPHS = [
    Workflow(
        "picture-to-layers",
        "## A photograph becomes layers\n*Picture to Layers* finds the subject, frees its edge of the old background "
        "and paints in what it hid: no prompt, no download. Put *Load Image* in the place of *Load Layers* for a "
        "photograph of yours.",
        [
            Group("1  A photograph", BLUE, [[read("file", PHOTOGRAPH)]]),
            Group("2  Take it apart", PURPLE, [[apart(), split("split", "apart", 3)]]),
            kept(),
        ],
        thumbnail=["save", "background"],
        note_height=170,
    ),
    Workflow(
        "picture-to-layers-with-core-models",
        "## The same with ComfyUI's own models\nNeeds ComfyUI 0.27 and two files: a background removal model such as "
        "*birefnet.safetensors* in models/background_removal, and Stable Diffusion 2 inpainting, "
        "*512-inpainting-ema.safetensors*, in models/checkpoints. The first finds the subject, hair and all; the "
        "second paints the background, with an empty prompt as in the paper.",
        [
            Group(
                "1  A photograph, its subject",
                BLUE,
                [
                    [read("file", PHOTOGRAPH)],
                    [
                        Node("remover", "LoadBackgroundRemovalModel", {"bg_removal_name": "birefnet.safetensors"}),
                        Node("subject", "RemoveBackground", {"bg_removal_model": ["remover", 0], "image": ["file", 4]}),
                        Node("wider", "GrowMask", {"mask": ["subject", 0], "expand": 12, "tapered_corners": True}),
                    ],
                ],
            ),
            Group(
                "2  What lies behind",
                YELLOW,
                [
                    [
                        Node("painter", "CheckpointLoaderSimple", {"ckpt_name": "512-inpainting-ema.safetensors"}),
                        empty_prompt(),
                        Node(
                            "hole",
                            "InpaintModelConditioning",
                            {
                                "positive": ["nothing", 0],
                                "negative": ["nothing", 0],
                                "vae": ["painter", 2],
                                "pixels": ["file", 4],
                                "mask": ["wider", 0],
                                "noise_mask": True,
                            },
                        ),
                    ],
                    [
                        Node(
                            "paint",
                            "KSampler",
                            {
                                "model": ["painter", 0],
                                "positive": ["hole", 0],
                                "negative": ["hole", 1],
                                "latent_image": ["hole", 2],
                                **PAINTING,
                            },
                        ),
                        Node("painted", "VAEDecode", {"samples": ["paint", 0], "vae": ["painter", 2]}),
                    ],
                ],
            ),
            Group(
                "3  Take it apart",
                PURPLE,
                [
                    [
                        apart(mask=["subject", 0], background=["painted", 0]),
                        picture("background", "apart", 1),
                        split("split", "apart", 3),  # last: newer frontends draw it higher
                    ]
                ],
            ),
            Group("4  Keep it as PSD", GREEN, [[written("apart", 3, "photograph"), picture("cut-out", "split", 4)]]),
        ],
        thumbnail=[],
        note_height=200,
        picture_of="picture-to-layers",
    ),
]
