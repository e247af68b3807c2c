"""The workflows that take a photograph apart, and that keep one of its layers; workflow_pages.py has the others."""

from __future__ import annotations

from typing import Any

from workflow_layout import BLUE, GREEN, PURPLE, YELLOW, Group, Node, Workflow
from workflow_pages import (
    BUTTERFLY,
    COMPOSITE,
    OWN,
    SAMPLING,
    decoder,
    loader,
    mask,
    no_words,
    picture,
    read,
    saved,
    split,
    words,
    written,
)

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


def keeper(name: str, prompt: str, label: str, **kept: list[Any]) -> Node:
    """kept: the foreground and its mask, or the background."""
    wires = {"positive": [prompt, 0], "negative": ["nothing", 0], "autoencoder": ["load", 2], **kept}
    return Node(name, "T2L_KeepLayer", wires, label)


def painter(name: str, seed: int, kept: str) -> Node:
    """Paints the layer beside the one that is kept; a higher cfg makes streaks where a layer is put back."""
    wires = {"model": ["load", 0], **{key: [kept, i] for i, key in enumerate(("positive", "negative", "latent_image"))}}
    return Node(name, "KSampler", {"seed": seed, **SAMPLING, "cfg": 2.0, "denoise": 1.0, **wires})


PHOTOGRAPHS = [
    Workflow(
        "keep-a-layer",
        "## Keep a layer\nOne KSampler keeps the cup and paints another place, the other keeps the meadow and paints "
        "another thing. What is kept keeps every pixel. Say thing and place, and leave *denoise* at 1.",
        [
            Group(
                "1  Two layers, and words",
                BLUE,
                [
                    [loader(), read("own", OWN)],
                    [words("place", "a cup of coffee on a beach"), words("thing", BUTTERFLY), no_words()],
                ],
            ),
            Group(
                "2  Keep one",
                YELLOW,
                [
                    [
                        keeper("keep thing", "place", "the cup", foreground=["own", 1], mask=["own", 3]),
                        keeper("keep place", "thing", "the meadow", background=["own", 2]),
                    ]
                ],
            ),
            Group(
                "3  Paint the other, take apart",
                PURPLE,
                [
                    [painter("new place", 7, "keep thing"), decoder("place layers", "new place", "new place")],
                    [painter("new thing", 7, "keep place"), decoder("thing layers", "new thing", "new thing")],
                ],
            ),
            Group(
                "4  Look and keep",
                GREEN,
                [
                    [
                        saved("place layers", COMPOSITE, "new-place", "new place"),
                        picture("new", "thing layers", COMPOSITE),
                    ]
                ],
            ),
        ],
        thumbnail=["save", "new"],
        note_height=115,
    ),
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
        note_height=226,
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
