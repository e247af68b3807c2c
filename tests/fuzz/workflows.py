"""Workflows as strangers may share them: one of our nodes with some inputs that no frontend of ours would give it."""

import json
import random

from tests.fuzz.mutate import STRANGE, strange_json

DEMO = "text2layer-demo.safetensors"
TYPES = "IMAGE MASK LATENT LAYERS T2L_AUTOENCODER UPSCALE_MODEL FLOAT INT STRING BOOLEAN COMBO CONDITIONING".split()
WIDGETS = "FLOAT INT STRING BOOLEAN COMBO".split()
DTYPES = ["float16", "bfloat16", "float64", "int64", "uint8", "bool", "complex64", "float8_e4m3fn", "uint16", "bits8"]
KINDS = ["", "", "", "meta", "sparse", "nested", "quantised", "expanded", "expanded", "noise", "grad"]
SIDES = [0, 1, 2, 3, 7, 8, 16, 33, 64]
HUGE = [4096, 16384, 65536, 10**6, 2**31]
FILLS = [0.5, 0, 1, -1, 2, 255, 1e30, "nan", "inf", "-inf"]
NAMES = [
    "a" * 100_001, "a/" * 40_000, "../x", "/etc/x", "C:\\x", "con", "nul.psd", "\0", "\ud800", "%year%/%width%",
    "%" * 99, "a" * 300, "linked/x",
    "<img src=x onerror=alert(1)>", "text2layer/x/", "..", ".", "", " ", "~", "$HOME/x", "a.psd/b",
    "x" * 200 + "/" + "y" * 200, "\u202e", "\n",
]  # fmt: skip
FILES = [
    "here.psd",
    "linked/secret.psd",
    "link.psd",
    "fifo.psd",
    "broken.psd",
    "broken.ora",
    "../secret.psd",
    "a/" * 200_000 + "x.psd",
]


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def workflow(seed: int, about: dict) -> dict:
    """A graph in API format; about: /object_info of our nodes."""
    chance = random.Random(f"workflow {seed}")
    kind = chance.choice(
        [name for name in sorted(about) if name not in ("T2L_LoadCheckpoint", "T2L_LoadAutoencoder")] * 4
        + ["T2L_LoadAutoencoder"]
    )
    graph = {"load": node("T2L_LoadAutoencoder", autoencoder=DEMO), **_good_sources()}
    inputs = {**about[kind]["input"].get("required", {}), **about[kind]["input"].get("optional", {})}
    strange = set(chance.sample(list(inputs), min(len(inputs), chance.choice((1, 1, 1, 2, 3)))))
    given = {}
    for name, (type_, *options) in inputs.items():
        options = options[0] if options else {}
        if name in strange:
            given[name] = _strange(graph, name, type_, options, chance)
        elif (value := _good(name, type_, options)) is not None and (
            name in about[kind]["input"].get("required", {}) or chance.random() < 0.5
        ):
            given[name] = value
    graph["node"] = node(kind, **given)
    for i in range(len(about[kind]["output"])):
        graph[f"seen{i}"] = node("Swallow", value=["node", i])
    return graph


def _good_sources() -> dict:
    tensors = {"image": [1, 16, 24, 3], "mask": [1, 16, 24], "samples": [1, 8, 3, 2]}
    sources = {name: {"tensor": shape, "kind": "noise", "fill": 1} for name, shape in tensors.items()}
    sources |= {"latent": {"samples": sources.pop("samples")}, "layers": _document()}
    sources["conditioning"] = _conditioning()
    return {f"good_{name}": node("ForeignAnything", recipe=json.dumps(recipe)) for name, recipe in sources.items()}


def _conditioning() -> list:
    return [[{"tensor": [1, 77, 8]}, {"pooled_output": {"tensor": [1, 8]}, "strength": 0.5}]]


def _document() -> dict:
    picture = {"tensor": [1, 16, 24, 3], "kind": "noise", "fill": 1}
    item = {
        "type": "raster",
        "image": picture,
        "mask": {"tensor": [1, 16, 24]},
        "name": "a",
        "x": 1,
        "y": -2,
        "opacity": 0.5,
        "blend_mode": "multiply",
        "visible": True,
    }
    below = {
        "type": "raster",
        "image": picture,
        "name": "b",
        "w": 30,
        "h": 20,
        "rotation": 0.3,
        "flip_h": True,
        "z_index": -1,
    }
    return {"version": 1, "canvas": [24, 16], "layers": [item, below]}


def _good(name: str, type_: object, options: dict) -> object:
    if isinstance(type_, list) or type_ == "COMBO":
        choices = type_ if isinstance(type_, list) else options["options"]
        return "here.psd" if name == "file" else DEMO if name == "autoencoder" else choices[0]
    sockets = {"IMAGE": "image", "MASK": "mask", "LATENT": "latent", "LAYERS": "layers", "CONDITIONING": "conditioning"}
    if type_ in sockets:
        return [f"good_{sockets[type_]}", TYPES.index(type_)]
    return ["load", 0] if type_ == "T2L_AUTOENCODER" else options.get("default")


def _strange(graph: dict, name: str, type_: object, options: dict, chance: random.Random) -> object:
    """A strange value in a widget, or on a wire of the right type."""
    type_ = "COMBO" if isinstance(type_, list) else str(type_)
    if type_ not in TYPES:
        return chance.choice(STRANGE)
    recipe = _recipe(name, type_, options, chance)
    if type_ in WIDGETS and chance.random() < 0.35 and not isinstance(recipe, (dict, list)):
        return recipe
    makes_list = chance.random() < 0.15
    recipe = (
        [_recipe(name, type_, options, chance) for _ in range(chance.choice((0, 1, 2, 3)))] if makes_list else recipe
    )
    graph[f"foreign_{name}"] = node("ForeignList" if makes_list else "ForeignAnything", recipe=json.dumps(recipe))
    return [f"foreign_{name}", TYPES.index(type_)]


def _recipe(name: str, type_: str, options: dict, chance: random.Random) -> object:
    if chance.random() < 0.08:
        return chance.choice([*STRANGE, {"object": None}, tensor([2], chance)])
    if type_ in ("IMAGE", "MASK"):
        return tensor([1, 16, 24, 3] if type_ == "IMAGE" else [1, 16, 24], chance)
    if type_ == "LATENT":
        return _latent(chance)
    if type_ == "LAYERS":
        return _strange_document(chance)
    if type_ == "CONDITIONING":
        return _strange_conditioning(chance)
    if type_ in ("FLOAT", "INT"):
        low, high = options.get("min", 0), options.get("max", 1)
        numbers = [
            low,
            high,
            low - 1,
            high + 1,
            high * 10**6,
            1e308,
            1e-300,
            10**400,
            {"number": "nan"},
            {"number": "inf"},
            -0.0,
            0.5,
            "3",
            None,
        ]
        return chance.choice(numbers)
    return chance.choice(
        [*NAMES, *FILES, *STRANGE] if name in ("file", "filename_prefix", "names", "offsets", "layer") else STRANGE
    )


def tensor(shape: list[int], chance: random.Random) -> dict:
    """A recipe of a tensor near a shape: other axes, sides, kinds of number, kinds of tensor."""
    shape = list(shape)
    for _ in range(chance.choice((0, 1, 1, 2))):
        shape[chance.randrange(len(shape))] = chance.choice(SIDES)
    if chance.random() < 0.15:
        shape.insert(chance.randrange(len(shape) + 1), chance.choice((1, 2)))
    if chance.random() < 0.15:
        del shape[chance.randrange(len(shape))]
    kind = chance.choice(KINDS)
    if kind in ("meta", "expanded") and chance.random() < 0.8:
        for _ in range(chance.choice((1, 2))):
            if shape:
                shape[chance.randrange(len(shape))] = chance.choice(HUGE)
    made = {"tensor": shape, "kind": kind, "fill": chance.choice(FILLS) if kind != "noise" else 1}
    is_large = kind in ("meta", "expanded")  # to print large ones of 16 bits, core and torch take gigabytes
    return made | ({"dtype": chance.choice(DTYPES)} if not is_large and chance.random() < 0.3 else {})


def _latent(chance: random.Random) -> object:
    latent = {"samples": tensor([1, 8, 3, 2], chance)}
    if chance.random() < 0.4:
        latent["noise_mask"] = tensor([1, 1, 24, 16], chance)
    if chance.random() < 0.2:
        latent["t2l_size"] = chance.choice([*STRANGE, [24, 16], {"tuple": [24, 16]}])
    return latent if chance.random() < 0.9 else strange_json(latent, chance)


def _strange_conditioning(chance: random.Random) -> object:
    entry = [tensor([1, 77, 8], chance), {chance.choice(("pooled_output", "t2l_kept", "area")): chance.choice(STRANGE)}]
    return chance.choice([[], [entry], [entry] * 3, entry, [entry[:1]], [[*entry, 1]], [entry, chance.choice(STRANGE)]])


def _strange_document(chance: random.Random) -> object:
    document = _document()
    for _ in range(chance.choice((1, 1, 2, 4))):
        item = chance.choice(document["layers"])
        key = chance.choice(["image", "mask", "canvas", "layers", "any", "any", "place"])
        if key in ("image", "mask"):
            item[key] = tensor([1, 16, 24, 3] if key == "image" else [1, 16, 24], chance)
        elif key == "canvas":
            document["canvas"] = [chance.choice([*SIDES, *HUGE]) for _ in range(2)]
        elif key == "layers":
            document["layers"] = document["layers"] * chance.choice((0, 1, 4, 26))
            if not document["layers"]:
                return document
        elif key == "place":
            item[chance.choice(("x", "y", "w", "h"))] = chance.choice([*SIDES, *HUGE, -(10**9), 10**400])
        else:
            value = chance.choice([*STRANGE, tensor([2, 2], chance), {"object": None}, {"text": "n", "times": 500_000}])
            chance.choice([document, item])[chance.choice((*item, "version", "type", "others", "t2l_blend_mode"))] = (
                value
            )
            if not isinstance(document["layers"], list) or not document["layers"]:
                return document
    return document
