"""What the templates hold: the description of every workflow and of every blueprint."""

from __future__ import annotations

from typing import Any

from workflow_layout import BLUE, GREEN, PURPLE, YELLOW, Group, Node, Workflow

DEMO = "text2layer-demo.safetensors"
OWN = "cup-and-meadow.ora [example]"  # a cut-out with a mask over a photograph
SAMPLING = {"steps": 50, "cfg": 3.0, "sampler_name": "dpmpp_2m_sde", "scheduler": "sgm_uniform"}
PLACEMENT = {
    "x": 0.0,
    "y": 0.0,
    "scale": 1.0,
    "rotation": 0.0,
    "flip_horizontal": False,
    "flip_vertical": False,
    "opacity": 1.0,
    "blend_mode": "normal",
    "feather": 0.0,
    "colour_space": "srgb",
    "shadow": 0.0,
    "shadow_softness": 1.0,
}
FOREGROUND, BACKGROUND, MASK, COMPOSITE, LAYERS, AUXILIARY, CUTOUT = range(7)  # outputs of Decode Layers


def loader() -> Node:
    return Node("load", "T2L_LoadCheckpoint", {"checkpoint": DEMO})


def words(name: str, text: str) -> Node:
    return Node(name, "CLIPTextEncode", {"clip": ["load", 1], "text": text})


def no_words() -> Node:
    return Node("nothing", "CLIPTextEncode", {"clip": ["load", 1], "text": ""}, height=100)


def canvas(batch: int = 1) -> Node:
    return Node("canvas", "EmptyLatentImage", {"width": 256, "height": 256, "batch_size": batch})


def sampler(name: str, seed: int, prompt: str, latent: str = "canvas", denoise: float = 1.0) -> Node:
    wires = {
        "model": ["load", 0],
        "positive": [prompt, 0],
        "negative": ["nothing", 0],
        "latent_image": [latent, 0],
    }
    return Node(name, "KSampler", {"seed": seed, **SAMPLING, "denoise": denoise, **wires})


def encoder(source: str, first: int, loader_output: int = 2) -> Node:
    """Foreground, background and mask are three outputs of a node, one after the other."""
    wires = {name: [source, first + i] for i, name in enumerate(("foreground", "background", "mask"))}
    return Node("encode", "T2L_EncodeLayers", {"autoencoder": ["load", loader_output], **wires})


def decoder(name: str, latent: str, label: str = "", loader_output: int = 2) -> Node:
    return Node(name, "T2L_DecodeLayers", {"autoencoder": ["load", loader_output], "latent": [latent, 0]}, label)


def picture(name: str, source: str, output: int, height: int = 0) -> Node:
    return Node(name, "PreviewImage", {"images": [source, output]}, name, height)


def mask(name: str, source: str, output: int = MASK, height: int = 0) -> Node:
    return Node(name, "MaskPreview", {"mask": [source, output]}, height=height)


def saved(source: str, output: int, prefix: str, label: str = "") -> Node:
    inputs = {"images": [source, output], "filename_prefix": f"text2layer/{prefix}"}
    return Node("save", "SaveImage", inputs, label or prefix)


def placed(name: str, front: tuple[str, int, int], back: tuple[str, int], **changes: Any) -> Node:
    """front: a node, and its outputs of foreground and mask."""
    source, foreground, shows = front
    wires = {"foreground": [source, foreground], "background": list(back), "mask": [source, shows]}
    return Node(name, "T2L_CompositeLayers", {**wires, **PLACEMENT, **changes})


def written(source: str, output: int, prefix: str, height: int = 0) -> Node:
    options = {"filename_prefix": f"text2layer/{prefix}", "format": "psd", "bits": "8", "mask_as": "layer mask"}
    return Node("psd", "T2L_SaveLayers", {"layers": [source, output], **options}, height=height)


def read(name: str, file: str = "strawberry.psd [example]", label: str = "") -> Node:
    return Node(name, "T2L_LoadLayers", {"file": file, "layer": "top"}, label)


def split(name: str, source: str, output: int = 0) -> Node:
    return Node(name, "T2L_SplitLayers", {"layers": [source, output], "layer": "top", "compositing": "srgb"})


def fitted(source: str) -> Node:
    """A document at the size that the model paints."""
    wires = {"layers": [source, 0], "autoencoder": ["load", 2]}
    return Node("fit", "T2L_FitLayers", {**wires, "fit": "keep aspect", "method": "lanczos", "size": 0})


def restored(source: str, output: int) -> Node:
    """Layers at the size that `fitted` found."""
    size = {"factor": 1.0, "width": ["fit", 1], "height": ["fit", 2], "method": "lanczos"}
    return Node("larger", "T2L_UpscaleLayers", {"layers": [source, output], **size})


def start(*prompts: Node, batch: int = 1) -> Group:
    return Group("1  Say what to paint", BLUE, [[loader()], [*prompts, no_words(), canvas(batch)]])


def painted(number: int = 2) -> Group:
    return Group(
        f"{number}  Paint, take apart", PURPLE, [[sampler("sample", 7, "prompt"), decoder("layers", "sample")]]
    )


WIDER = {"expand": 16, "tapered_corners": True}
STRAWBERRY = "a strawberry on a beach"
BUTTERFLY = "a butterfly in a meadow"
WORKFLOWS = [
    Workflow(
        "text-to-layers",
        "## Text to layers\nWrite a thing and a place, press **Run**. The small checkpoint paints 256 x 256 and knows "
        "some 120 things and 30 places: the help page of *Load Text2Layer Checkpoint* lists its words.\n\n**Mask:** "
        "white = the foreground shows.",
        [
            start(words("prompt", STRAWBERRY)),
            painted(),
            Group(
                "3  Look and keep",
                GREEN,
                [
                    [saved("layers", CUTOUT, "cutout", "cut-out"), picture("background", "layers", BACKGROUND)],
                    [picture("composite", "layers", COMPOSITE, 306), mask("mask", "layers")],
                ],
            ),
        ],
        thumbnail=["save", "composite", "background", "mask"],
        note_height=160,
        number=1,
    ),
    Workflow(
        "swap-the-background",
        "## Swap the background\nThe thing of one prompt before the place of another. Change only the second prompt: "
        "the thing stays exactly as it is.",
        [
            Group(
                "1  A thing, and another place",
                BLUE,
                [
                    [loader()],
                    [
                        words("prompt", STRAWBERRY),
                        words("place", "a robot in a forest"),
                        no_words(),
                        canvas(),
                    ],
                ],
            ),
            Group(
                "2  Paint both, take apart",
                PURPLE,
                [
                    [sampler("first", 7, "prompt"), decoder("thing layers", "first", "thing")],
                    [sampler("second", 8, "place"), decoder("place layers", "second", "place")],
                ],
            ),
            Group(
                "3  Put together",
                GREEN,
                [
                    [placed("swapped", ("thing layers", FOREGROUND, MASK), ("place layers", BACKGROUND))],
                    [saved("swapped", 0, "swapped"), picture("before", "thing layers", COMPOSITE)],
                ],
            ),
        ],
        thumbnail=["save", "before"],
    ),
    Workflow(
        "move-and-scale-the-foreground",
        "## Move and scale the foreground\n*x* and *y* are pixels to the right and down; *scale* and *rotation* turn "
        "about the thing's middle; *shadow* sets it on the ground.",
        [
            start(words("prompt", STRAWBERRY)),
            painted(),
            Group(
                "3  Move it",
                GREEN,
                [
                    [
                        placed(
                            "moved",
                            ("layers", FOREGROUND, MASK),
                            ("layers", BACKGROUND),
                            x=-48.0,
                            y=12.0,
                            scale=0.7,
                            rotation=-12.0,
                            feather=1.0,
                            shadow=0.5,
                        )
                    ],
                    [saved("moved", 0, "moved"), picture("before", "layers", COMPOSITE)],
                ],
            ),
        ],
        thumbnail=["save", "before"],
    ),
    Workflow(
        "move-the-thing-and-see-what-is-behind",
        "## Move the thing, see what is behind\nThe background was painted whole, also where the thing hides it. *x* "
        "moves the thing out of the way: no hole, nothing to fill in.",
        [
            start(words("prompt", "a penguin in the snow")),
            painted(),
            Group(
                "3  Half out of the picture",
                GREEN,
                [
                    [placed("moved", ("layers", FOREGROUND, MASK), ("layers", BACKGROUND), x=96.0)],
                    [saved("moved", 0, "moved-aside", "moved aside"), picture("before", "layers", COMPOSITE)],
                ],
            ),
            Group("4  Behind it", YELLOW, [[picture("background", "layers", BACKGROUND), mask("mask", "layers")]]),
        ],
        thumbnail=["save", "before", "background", "mask"],
    ),
    Workflow(
        "your-own-pictures",
        "## Your own pictures\nA cut-out and a photograph, through the autoencoder and back. Take your own file in "
        "*Load Layers*; or two *Load Image* in its place, and *Invert Mask* behind the mask of the cut-out: *Load "
        "Image* means it the other way round.",
        [
            Group(
                "1  Two pictures in one file",
                BLUE,
                [
                    [Node("load", "T2L_LoadAutoencoder", {"autoencoder": DEMO}), read("own", OWN)],
                ],
            ),
            Group(
                "2  Into one latent, and back",
                PURPLE,
                [[encoder("own", 1, 0)], [decoder("layers", "encode", loader_output=0)]],
            ),
            Group(
                "3  Look and keep",
                GREEN,
                [
                    [saved("layers", CUTOUT, "own-cutout", "cut-out"), picture("background", "layers", BACKGROUND)],
                    [picture("composite", "layers", COMPOSITE, 306), mask("mask", "layers")],
                ],
            ),
        ],
        thumbnail=["save", "composite", "background", "mask"],
        under_note=2,
    ),
    Workflow(
        "my-photograph-with-a-generated-thing-on-it",
        "## My photograph, with a generated thing on it\nThe photograph keeps every pixel; only the thing is painted. "
        "Take your own into *Load Layers*, or *Load Image* in its place, at any size.",
        [
            Group(
                "1  Say what to paint",
                BLUE,
                [[loader()], [words("prompt", BUTTERFLY), no_words(), canvas()]],
            ),
            Group(
                "2  Paint, take apart",
                PURPLE,
                [[sampler("sample", 7, "prompt"), decoder("layers", "sample")]],
            ),
            Group(
                "3  Thing on photograph",
                GREEN,
                [
                    [read("own", OWN, "photograph")],
                    [
                        placed(
                            "placed",
                            ("layers", FOREGROUND, MASK),
                            ("own", 2),
                            x=36.0,
                            y=-30.0,
                            scale=0.5,
                            rotation=14.0,
                        )
                    ],
                    [saved("placed", 0, "on-my-photograph", "result"), picture("cut-out", "layers", CUTOUT)],
                ],
            ),
        ],
        thumbnail=["save", "cut-out"],
    ),
    Workflow(
        "inpainting-and-what-the-small-model-cannot",
        "## Inpainting, and what the small model cannot\nOnly what is white in the mask is painted anew: here the "
        "thing, in its old place. A latent cell is 8 x 8 pixels of *both* layers and the mask, so the edge moves a "
        "little.\n\nIt **cannot** mend a detail, follow a long description or match your photograph's light: it knows "
        "things and places. *Composite Layers* keeps a photograph untouched.",
        [
            Group(
                "1  Layers, and what to paint anew",
                BLUE,
                [
                    [read("file")],
                    [loader(), encoder("file", 1), Node("grown", "GrowMask", {"mask": ["file", 3], **WIDER})],
                    [
                        words("prompt", "a hamburger on a beach"),
                        no_words(),
                        Node("inside", "SetLatentNoiseMask", {"samples": ["encode", 0], "mask": ["grown", 0]}),
                    ],
                ],
            ),
            Group(
                "2  Paint inside the mask",
                PURPLE,
                [
                    [sampler("sample", 9, "prompt", "inside"), decoder("layers", "sample")],
                ],
            ),
            Group(
                "3  Look and keep",
                GREEN,
                [
                    [saved("layers", COMPOSITE, "inpainted"), picture("background", "layers", BACKGROUND)],
                    [picture("cut-out", "layers", CUTOUT, 306), mask("mask", "layers")],
                ],
            ),
        ],
        thumbnail=["save", "cut-out", "background", "mask"],
        note_height=180,
    ),
    Workflow(
        "layered-img2img",
        "## Layered img2img\n*Encode Layers* takes foreground, background and mask into one latent; *KSampler* with "
        "*denoise* below 1 repaints all three with new words. Lower keeps more.",
        [
            Group(
                "1  Layers, and new words",
                BLUE,
                [
                    [read("file")],
                    [loader(), encoder("file", 1)],
                    [words("prompt", "a strawberry in the snow"), no_words()],
                ],
            ),
            Group(
                "2  Repaint, take apart",
                PURPLE,
                [[sampler("sample", 9, "prompt", "encode", 0.75), decoder("layers", "sample")]],
            ),
            Group(
                "3  Look and keep",
                GREEN,
                [
                    [saved("layers", COMPOSITE, "img2img"), picture("background", "layers", BACKGROUND)],
                    [picture("cut-out", "layers", CUTOUT, 306), mask("mask", "layers")],
                ],
            ),
        ],
        thumbnail=["save", "cut-out", "background", "mask"],
    ),
    Workflow(
        "batch-of-four",
        "## A batch of four\n*batch_size* of the empty latent: every output holds four pictures, *layers* gives four "
        "documents.",
        [
            start(words("prompt", BUTTERFLY), batch=4),
            painted(),
            Group(
                "3  Look and keep",
                GREEN,
                [
                    [picture("cut-outs", "layers", CUTOUT, 306), picture("backgrounds", "layers", BACKGROUND)],
                    [saved("layers", COMPOSITE, "batch"), mask("masks", "layers")],
                ],
            ),
        ],
        thumbnail=["save"],
    ),
    Workflow(
        "sticker-sheet",
        "## Sticker sheet\nFour things, each saved as a PNG with transparency. *Clean Edges* takes the old "
        "background's colours out of the edge: no grey rim on any page.",
        [
            start(words("prompt", BUTTERFLY), batch=4),
            painted(),
            Group(
                "3  Clean edges, keep",
                GREEN,
                [
                    [
                        Node(
                            "clean",
                            "T2L_CleanEdges",
                            {
                                "layers": ["layers", LAYERS],
                                "refine": 0,
                                "decontaminate": True,
                                "shrink": 0.5,
                                "feather": 0.0,
                                "layer": "top",
                            },
                        )
                    ],
                    [saved("clean", 1, "sticker", "stickers"), picture("before", "layers", COMPOSITE)],
                ],
            ),
        ],
        thumbnail=["save"],
    ),
    Workflow(
        "best-of-n",
        "## Best of four\nFour pictures; *Best of Layers* keeps the one whose layers fit together best. It knows what "
        "fits, not what is beautiful: raise *keep*.",
        [
            start(words("prompt", STRAWBERRY), batch=4),
            painted(),
            Group(
                "3  Rank",
                GREEN,
                [
                    [
                        Node(
                            "best",
                            "T2L_BestLayers",
                            {
                                "layers": ["layers", LAYERS],
                                "composite": ["layers", AUXILIARY],
                                "keep": 1,
                                "layer": "top",
                            },
                        ),
                        Node("figures", "PreviewAny", {"source": ["best", 2]}, "figures", 300),
                    ],
                ],
            ),
            Group("4  Keep", YELLOW, [[saved("best", 1, "best"), picture("all four", "layers", COMPOSITE)]]),
        ],
        thumbnail=["save"],
    ),
    Workflow(
        "save-and-reload-a-psd",
        "## Save and reload a PSD\n*Load Layers* reads the file that *Save Layers* has just written. To take in what "
        "you changed in your editor, remove the wire between them and choose the file.",
        [
            start(words("prompt", STRAWBERRY)),
            painted(),
            Group(
                "3  Save, and read it back",
                GREEN,
                [
                    [written("layers", LAYERS, "strawberry")],
                    [Node("file", "T2L_LoadLayers", {"file": ["psd", 0], "layer": "top"})],
                    [saved("file", 4, "reloaded"), mask("mask", "file", 3)],
                ],
            ),
        ],
        thumbnail=["save", "mask"],
    ),
    Workflow(
        "photoshop-round-trip",
        "## Photoshop round trip\nA PSD of any size goes in, is fitted to the model, repainted with new words, and "
        "comes out at its old size. Choose your own file: the highest visible layer is the foreground. Lower *denoise* "
        "keeps more.",
        [
            Group(
                "1  A file, and new words",
                BLUE,
                [
                    [read("file")],
                    [loader(), fitted("file"), split("split", "fit")],
                    [words("prompt", "a strawberry in the snow"), no_words(), encoder("split", 0)],
                ],
            ),
            Group(
                "2  Repaint, take apart",
                PURPLE,
                [[sampler("sample", 9, "prompt", "encode", 0.75), decoder("layers", "sample")]],
            ),
            Group(
                "3  Back to Photoshop",
                GREEN,
                [
                    [restored("layers", LAYERS), picture("cut-out", "layers", CUTOUT)],
                    [written("larger", 0, "repainted"), saved("layers", COMPOSITE, "round-trip")],
                ],
            ),
        ],
        thumbnail=["save", "cut-out"],
    ),
]
