"""Masks, pictures and latents of every shape, and lists beside batches, in a real ComfyUI server."""

import json

import numpy as np
import pytest

DEMO = "text2layer-demo.safetensors"
PLACEMENT = {"x": 0.0, "y": 0.0, "scale": 1.0, "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False}
PLACEMENT |= {"opacity": 1.0, "blend_mode": "normal", "feather": 0.0, "colour_space": "srgb"}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def picture(color, batch=1, size=64):
    return node("EmptyImage", width=size, height=size, batch_size=batch, color=color)


def foreign(shape, **settings):
    return node("ForeignTensor", tensor=json.dumps({"shape": shape} | settings))


def joined(mask=None, front=None, count=1):
    """Red over blue -> a document for each picture -> what they show."""
    return {
        "front": front or picture(0xFF0000, count),
        "back": picture(0x0000FF),
        "mask": mask or node("SolidMask", value=1.0, width=64, height=64),
        "join": node(
            "T2L_JoinLayers", foreground=["front", 0], background=["back", 0], mask=["mask", 0 if not mask else 1]
        ),
        "split": node("T2L_SplitLayers", layers=["join", 0]),
        "seen": node("PreviewImage", images=["split", 3]),
    }


# --- Masks and pictures ----------------------------------------------------------------------------------------------

MASKS = [[64, 64], [1, 64, 64], [2, 64, 64], [1, 64, 64, 1], [2, 64, 64, 1], [2, 1, 64, 64], [64, 64, 1], [32, 48, 1]]


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_a_mask_with_an_axis_of_length_1_is_one_mask_for_each_picture(server, shape):
    """(1, 64, 64, 1) made 64 documents of stripes."""
    result = server.run(joined(foreign(shape, value=0.3)))
    assert result.error is None and len(result.pictures["seen"]) == (2 if shape[0] == 2 else 1)
    assert all((shown[..., 0] == 76).all() and shown.shape[:2] == (64, 64) for shown in result.pictures["seen"])


@pytest.mark.parametrize(
    ("dtype", "value", "red"),
    [("bool", 1, 255), ("uint8", 51, 51), ("int64", 1, 255), ("float16", 0.2, 51), ("bfloat16", 1.0, 255)]
    + [("float64", 7.0, 255), ("float32", -2.0, 0)],
)
def test_masks_of_any_number_type_are_read(server, dtype, value, red):
    result = server.run(joined(foreign([1, 64, 64], dtype=dtype, value=value)))
    assert result.error is None and (abs(result.pictures["seen"][0][..., 0].astype(int) - red) <= 1).all()


@pytest.mark.parametrize("shape", [[64, 64, 3], [64, 64], [1, 64, 64, 1], [1, 64, 64, 4]], ids=str)
def test_a_picture_without_a_batch_or_of_other_channels_is_one_picture(server, shape):
    result = server.run(joined(front=foreign(shape)))
    assert result.error is None and [x.min() for x in result.pictures["seen"]] == [255]


STRANGE = [
    ({"shape": [1, 3, 64, 64]}, r"(1, 3, 64, 64)"),
    ({"shape": [1, 1, 3, 64, 64]}, r"(1, 1, 3, 64, 64)"),
    ({"shape": [0, 64, 64]}, r"(0, 64, 64)"),
    ({"shape": [1, 0, 64]}, r"(1, 0, 64)"),
    ({"shape": [64]}, r"(64,)"),
    ({"shape": [1, 64, 64], "kind": "meta"}, r"(1, 64, 64) (meta)"),
    ({"shape": [1, 64, 64], "kind": "sparse"}, r"(1, 64, 64) (sparse_coo)"),
    ({"shape": [1, 64, 64], "kind": "list"}, r"a list"),
    ({"shape": [1, 64, 64], "dtype": "complex64"}, r"(1, 64, 64) (complex64)"),
]


@pytest.mark.parametrize(("tensor", "got"), STRANGE, ids=str)
def test_what_is_no_mask_and_no_picture_is_refused_in_a_sentence(server, tensor, got):
    error = server.run(joined(node("ForeignTensor", tensor=json.dumps(tensor)))).error
    assert f"Join Layers: mask needs a MASK of shape (N, H, W), got {got}; " in error
    error = server.run(joined(front=node("ForeignTensor", tensor=json.dumps(tensor)))).error
    assert f"Join Layers: foreground needs an IMAGE of shape (N, H, W, 3), got {got}; " in error


def test_a_picture_of_two_channels_is_refused_in_a_sentence(server):
    assert (
        "got (1, 64, 64, 2); connect a picture of 1, 3 or 4 channels"
        in server.run(joined(front=foreign([1, 64, 64, 2]))).error
    )


# --- Lists beside batches --------------------------------------------------------------------------------------------


def listed(count=3):
    """Pictures in a list: the foregrounds of as many documents, each taken apart by itself."""
    return joined(count=count) | {"seen": node("PreviewImage", images=["split", 0])}


def onto(kind, **others):
    """Nodes that join what is in a list with what is in a batch."""
    inputs = {"foreground": ["split", 0], "mask": ["split", 2], "background": ["split", 1]} | others
    load = node("T2L_LoadAutoencoder", autoencoder=DEMO)
    return {
        "composite": {
            "node": node("T2L_CompositeLayers", **inputs, **PLACEMENT),
            "seen": node("PreviewImage", images=["node", 0]),
        },
        "join": {
            "node": node("T2L_JoinLayers", **inputs),
            "apart": node("T2L_SplitLayers", layers=["node", 0]),
            "seen": node("PreviewImage", images=["apart", 3]),
        },
        "encode": {
            "load": load,
            "node": node("T2L_EncodeLayers", autoencoder=["load", 0], **inputs),
            "decode": node("T2L_DecodeLayers", autoencoder=["load", 0], latent=["node", 0]),
            "seen": node("PreviewImage", images=["decode", 3]),
        },
        "tiled": {
            "load": load,
            "node": node("T2L_EncodeLayersTiled", autoencoder=["load", 0], tile_size=64, overlap=0, **inputs),
            "decode": node("T2L_DecodeLayers", autoencoder=["load", 0], latent=["node", 0]),
            "seen": node("PreviewImage", images=["decode", 3]),
        },
    }[kind]


KINDS = ["composite", "join", "encode", "tiled"]


@pytest.mark.parametrize("socket", ["foreground", "background", "mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_three_beside_a_batch_of_three_is_three(server, kind, socket):
    """Each of the three in the list met the whole batch: nine."""
    batch = {"batch": foreign([3, 64, 64] if socket == "mask" else [3, 64, 64, 3])}
    graph = listed() | batch | onto(kind, **{socket: ["batch", int(socket == "mask")]})
    result = server.run(graph)
    assert result.error is None and len(result.pictures["seen"]) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_one_picture_serves_a_list_and_a_list_serves_itself(server, kind, count):
    result = server.run(listed(count) | {"one": picture(0x00FF00)} | onto(kind, background=["one", 0]))
    assert result.error is None and len(result.pictures["seen"]) == count


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_beside_a_batch_of_another_number_is_refused(server, kind):
    error = server.run(listed() | {"two": picture(0x00FF00, 2)} | onto(kind, background=["two", 0])).error
    assert "background must hold one picture, or one for each of the 3 of the list beside it, got a batch of 2" in error


def test_each_of_a_list_meets_its_own_of_the_batch(server):
    """Foregrounds of three brightnesses, in a list and in a batch: the difference is black."""
    graph = listed() | {
        "dark": picture(0x202020),
        "grey": picture(0x808080),
        "two": node("ImageBatch", image1=["dark", 0], image2=["grey", 0]),
        "light": picture(0xE0E0E0),
        "front": node("ImageBatch", image1=["two", 0], image2=["light", 0]),
    }
    graph |= onto("composite", background=["front", 0])
    graph["node"]["inputs"]["blend_mode"] = "difference"
    result = server.run(graph)
    assert result.error is None and [x.max() for x in result.pictures["seen"]] == [0, 0, 0]


def test_a_batch_alone_stays_a_batch(server):
    graph = {
        "front": picture(0xFF0000, 3),
        "mask": node("SolidMask", value=1.0, width=64, height=64),
        "node": node(
            "T2L_CompositeLayers", foreground=["front", 0], background=["front", 0], mask=["mask", 0], **PLACEMENT
        ),
        "second": node("ImageFromBatch", image=["node", 0], batch_index=1, length=2),
        "seen": node("PreviewImage", images=["second", 0]),
    }
    assert len(server.run(graph).pictures["seen"]) == 2


# --- Latents ---------------------------------------------------------------------------------------------------------


def square(width=97, height=97, **changes):
    """A white square, x 8 to 39 and y 32 to 63 (whole cells), encoded; what `changes` makes of the latent under the
    name `changed`.
    """
    return {
        "load": node("T2L_LoadAutoencoder", autoencoder=DEMO),
        "black": node("SolidMask", value=0.0, width=width, height=height),
        "white": node("SolidMask", value=1.0, width=32, height=32),
        "shape": node("MaskComposite", destination=["black", 0], source=["white", 0], x=8, y=32, operation="add"),
        "picture": node("MaskToImage", mask=["shape", 0]),
        "encode": node(
            "T2L_EncodeLayers",
            autoencoder=["load", 0],
            foreground=["picture", 0],
            background=["picture", 0],
            mask=["shape", 0],
        ),
        "decode": node("T2L_DecodeLayers", autoencoder=["load", 0], latent=["changed", 0]),
        "seen": node("PreviewImage", images=["decode", 1]),
        **changes,
    }


def flip(source, way="y-axis: horizontally"):
    return node("LatentFlip", samples=[source, 0], flip_method=way)


def turn(source, degrees):
    return node("LatentRotate", samples=[source, 0], rotation=f"{degrees} degrees")


def crop(source, x, y):
    return node("LatentCrop", samples=[source, 0], width=64, height=64, x=x, y=y)


def enlarge(source, by):
    return node("LatentUpscaleBy", samples=[source, 0], upscale_method="bislerp", scale_by=by)


def enlarge_to(source, width, height):
    sizes = {"width": width, "height": height}
    return node("LatentUpscale", samples=[source, 0], upscale_method="bilinear", crop="disabled", **sizes)


def is_at(shown, edges, scale=1.0):
    """Whether the square lies between these columns and rows: its middle to a pixel, its edges as soft as they are
    painted.
    """
    found = []
    for axis in (0, 1):
        profile = shown[..., 0].mean(axis=axis)
        found += np.nonzero(profile > profile.max() / 2)[0][[0, -1]].tolist()
    off = np.subtract(found, edges)
    return abs(off).max() <= 3 * scale and abs(off.reshape(2, 2).mean(axis=1)).max() <= max(1.5, scale)


CHANGES = [  # size, nodes; then width and height, first and last column and row of the square
    ((97, 97), {"changed": flip("encode")}, (97, 97), (57, 88, 32, 63)),
    ((97, 97), {"changed": flip("encode", "x-axis: vertically")}, (97, 97), (8, 39, 33, 64)),
    ((97, 90), {"changed": turn("encode", 90)}, (90, 97), (26, 57, 8, 39)),
    ((97, 90), {"changed": turn("encode", 180)}, (97, 90), (57, 88, 26, 57)),
    ((97, 90), {"changed": turn("encode", 270)}, (90, 97), (32, 63, 57, 88)),
    ((100, 97), {"flipped": flip("encode"), "changed": turn("flipped", 90)}, (97, 100), (33, 64, 60, 91)),
    ((100, 100), {"changed": enlarge("encode", 2.0)}, (200, 200), (16, 79, 64, 127)),
    ((100, 100), {"changed": enlarge("encode", 1.5)}, (150, 150), (12, 59, 48, 95)),
    ((100, 100), {"changed": enlarge_to("encode", 200, 200)}, (200, 200), (16, 79, 64, 127)),
    ((100, 100), {"larger": enlarge("encode", 2.0), "changed": flip("larger")}, (200, 200), (120, 183, 64, 127)),
    ((97, 97), {"changed": crop("encode", 8, 24)}, (64, 64), (0, 31, 8, 39)),
    ((97, 97), {"changed": crop("encode", 0, 40)}, (64, 57), (8, 39, 0, 23)),
    (
        (97, 97),
        {"cut": crop("encode", 0, 40), "changed": flip("cut", "x-axis: vertically")},
        (64, 57),
        (8, 39, 33, 56),
    ),
    (
        (97, 97),
        {"three": node("RepeatLatentBatch", samples=["encode", 0], amount=3), "changed": flip("three")},
        (97, 97),
        None,
    ),
    ((96, 64), {"changed": flip("encode")}, (96, 64), (56, 87, 32, 63)),
]


@pytest.mark.parametrize(("size", "changes", "expected", "edges"), CHANGES)
def test_a_changed_latent_shows_the_picture_in_place_and_size(server, size, changes, expected, edges):
    """Padding came into the picture, and its own last columns were cut off."""
    result = server.run(square(*size, **changes))
    assert result.error is None
    shown = result.pictures["seen"]
    assert {x.shape[:2] for x in shown} == {expected[::-1]} and len(shown) == (3 if edges is None else 1)
    assert is_at(shown[-1], edges or (57, 88, 32, 63), max(expected) / max(size))


def test_a_composite_of_latents_keeps_the_place_and_the_size_of_both(server):
    changes = square(
        97,
        97,
        changed=node("LatentComposite", samples_to=["under", 0], samples_from=["encode", 0], x=16, y=0, feather=0),
    )
    under = {"foreground": ["dark", 0], "background": ["dark", 0], "mask": ["black_mask", 0]}
    changes |= {
        "dark": picture(0x000000, size=130),
        "black_mask": node("SolidMask", value=0.0, width=130, height=130),
        "under": node("T2L_EncodeLayers", autoencoder=["load", 0], **under),
    }
    result = server.run(changes)
    assert result.error is None and result.pictures["seen"][0].shape[:2] == (130, 130)
    assert is_at(result.pictures["seen"][0], (24, 55, 32, 63))


def test_a_sampler_between_keeps_place_and_size(server):
    """KSampler copies what the latent knows; one step of hardly any noise leaves the square where it is."""
    graph = square(97, 90)
    graph |= {
        "load": node("T2L_LoadCheckpoint", checkpoint=DEMO),
        "prompt": node("CLIPTextEncode", clip=["load", 1], text="a robot"),
        "turned": turn("encode", 90),
        "changed": node(
            "KSampler",
            model=["load", 0],
            positive=["prompt", 0],
            negative=["prompt", 0],
            latent_image=["turned", 0],
            seed=1,
            steps=1,
            cfg=1.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=0.02,
        ),
    }
    for name in ("encode", "decode"):
        graph[name]["inputs"]["autoencoder"] = ["load", 2]
    result = server.run(graph)
    assert result.error is None and result.pictures["seen"][0].shape[:2] == (97, 90)
    assert is_at(result.pictures["seen"][0], (26, 57, 8, 39))
