"""What comes by a wire passes no check of core's: every number, choice and text is looked at in the node."""

import pytest

from tests.comfy.test_documents import GREY, made
from tests.comfy.test_files import node

PLACEMENT = {
    "x": 0.0, "y": 0.0, "scale": 1.0, "rotation": 0.0, "flip_horizontal": False, "flip_vertical": False,
    "opacity": 1.0, "blend_mode": "normal", "feather": 0.0, "colour_space": "srgb",
}  # fmt: skip
SOCKET = {"FLOAT": 0, "INT": 1, "STRING": 2, "BOOLEAN": 3, "COMBO": 4}


def composited(**wired):
    """Composite Layers with some inputs from wires: name -> (type of the wire, JSON)."""
    picture = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    values = {f"v_{name}": node("ForeignValue", value=value) for name, (_, value) in wired.items()}
    wires = {name: [f"v_{name}", SOCKET[kind]] for name, (kind, _) in wired.items()}
    pictures = {"foreground": ["p", 0], "background": ["p", 0], "mask": ["m", 0]}
    return {
        "p": picture,
        "m": node("SolidMask", value=1.0, width=8, height=8),
        **values,
        "c": node("T2L_CompositeLayers", **pictures, **(PLACEMENT | wires)),
        "s": node("PreviewImage", images=["c", 0]),
    }


@pytest.mark.parametrize(
    ("wired", "sentence"),
    [
        ({"feather": ("FLOAT", "1000000.0")}, "feather must be a number from 0 to 256, got 1000000.0"),
        ({"scale": ("FLOAT", "1e-300")}, "scale must be a number from 0.01 to 16, got 1e-300"),
        ({"x": ("FLOAT", "1e308")}, "x must be a number from -16384 to 16384, got 1e+308"),
        ({"rotation": ("FLOAT", "nan")}, "rotation must be a number from -360 to 360, got nan"),
        ({"y": ("FLOAT", "inf")}, "y must be a number from -16384 to 16384, got inf"),
        ({"opacity": ("FLOAT", "tensor")}, "opacity must be a number from 0 to 1, got a Tensor"),
        ({"opacity": ("FLOAT", '"half"')}, "opacity must be a number from 0 to 1, got 'half'"),
        ({"flip_vertical": ("BOOLEAN", "[1]")}, "flip_vertical must be true or false, got a list"),
        ({"blend_mode": ("COMBO", '"dissolve"')}, "blend_mode must be one of normal, multiply, "),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_node_and_input(server, wired, sentence):
    assert f"Composite Layers: {sentence}" in server.run(composited(**wired)).error


def test_values_in_their_range_are_taken(server):
    assert (
        server.run(composited(feather=("FLOAT", "2"), x=("FLOAT", "3.5"), flip_vertical=("BOOLEAN", "true"))).error
        is None
    )


@pytest.mark.parametrize(
    ("kind", "inputs", "wire", "value", "sentence"),
    [
        (
            "T2L_UpscaleLayers",
            {"factor": 2.0, "width": 0, "height": 0, "method": "area"},
            ("factor", "FLOAT"),
            "0.0",
            "Upscale Layers: factor must be a number from 0.05 to 16, got 0.0",
        ),
        (
            "T2L_UpscaleLayers",
            {"factor": 2.0, "width": 0, "height": 0, "method": "area"},
            ("width", "INT"),
            "2.5",
            "Upscale Layers: width must be a whole number from 0 to 16384, got 2.5",
        ),
        (
            "T2L_BestLayers",
            {"keep": 1},
            ("keep", "INT"),
            "0",
            "Best of Layers: keep must be a whole number from 1 to 4096, got 0",
        ),
        (
            "T2L_CleanEdges",
            {"refine": 0, "decontaminate": True, "shrink": 0.0, "feather": 0.0},
            ("refine", "INT"),
            "-1",
            "Clean Edges: refine must be a whole number from 0 to 64, got -1",
        ),
        (
            "T2L_SplitLayers",
            {},
            ("layer", "STRING"),
            "[]",
            "Split Layers: layer must be a text of at most 100,000 characters",
        ),
    ],
)
def test_every_node_looks_at_its_numbers_and_texts(server, kind, inputs, wire, value, sentence):
    graph = made({"color": GREY}) | {"value": node("ForeignValue", value=value)}
    wires = {wire[0]: ["value", SOCKET[wire[1]]]}
    graph |= {
        "node": node(kind, layers=["made", 0], **(inputs | wires)),
        "said": node("PreviewAny", source=["node", 0]),
    }
    assert sentence in server.run(graph).error
