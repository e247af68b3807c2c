"""A node pack of its own for the fuzzed server: whatever other people's nodes may put on a wire, and an eye on the
process.

A recipe is JSON: {"tensor": shape, "fill": number, "dtype": name, "kind": expanded, meta, sparse, nested or quantised},
{"number": "nan", "inf" or digits}, {"text": text, "times": number}, {"object": null}, {"window": [...]}, or JSON as it
is, with recipes inside.
"""

import json
import os
import sys

import torch

TYPES = "IMAGE MASK LATENT LAYERS T2L_AUTOENCODER UPSCALE_MODEL FLOAT INT STRING BOOLEAN COMBO CONDITIONING".split()
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Strange:
    """An object that nobody knows."""

    def __repr__(self):
        return "<Strange object at 0x0123>"


def cooked(recipe):
    """The value that a recipe describes."""
    if isinstance(recipe, list):
        return [cooked(entry) for entry in recipe]
    if not isinstance(recipe, dict):
        return recipe
    for key, cook in COOKS.items():
        if key in recipe:
            return cook(recipe)
    return {name: cooked(value) for name, value in recipe.items()}


def _tensor(recipe):
    shape, fill, kind = recipe["tensor"], float(recipe.get("fill", 0.5)), recipe.get("kind", "")
    dtype = getattr(torch, recipe.get("dtype", "float32"), torch.float32)
    if kind == "meta":
        return torch.empty(shape, dtype=dtype, device="meta")
    if kind == "expanded":
        return torch.full([1] * len(shape), fill).to(dtype).expand(shape)
    made = torch.full(shape, fill)
    if kind == "noise":
        made = torch.rand(shape, generator=torch.Generator().manual_seed(int(fill)))
    if kind == "sparse":
        return made.to_sparse()
    if kind == "nested":
        return torch.nested.nested_tensor([made, made[..., :1]])
    if kind == "quantised":
        return torch.quantize_per_tensor(made, 0.1, 0, torch.quint8)
    if kind == "grad":
        return made.requires_grad_()
    return made.to(dtype)


COOKS = {
    "tensor": _tensor,
    "number": lambda recipe: float(recipe["number"]) if recipe["number"] in ("nan", "inf") else int(recipe["number"]),
    "text": lambda recipe: recipe["text"] * recipe.get("times", 1),
    "object": lambda recipe: Strange(),
    "tuple": lambda recipe: tuple(cooked(recipe["tuple"])),
}


class ForeignAnything:
    """One value on sockets of every type."""

    RETURN_TYPES = tuple(TYPES)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"recipe": ("STRING", {})}}

    def make(self, recipe):
        return (cooked(json.loads(recipe)),) * len(TYPES)


class ForeignList(ForeignAnything):
    """A list of values on sockets of every type, which may be empty."""

    OUTPUT_IS_LIST = (True,) * len(TYPES)


class AnyType(str):
    """A type that takes every other."""

    def __ne__(self, other):
        return False


class Swallow:
    """Looks at what a node made: pictures hold numbers from 0 to 1."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    FUNCTION = "swallow"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"value": (AnyType("*"), {})}}

    def swallow(self, value):
        pictures = [x for x in value if isinstance(x, torch.Tensor)]
        wrong = [str(tuple(x.shape)) for x in pictures if not bool(((x >= 0) & (x <= 1)).all())]
        return {"ui": {"text": wrong}}


def watch(log):
    """Note every program started and every file written outside ComfyUI's own folders, a line each."""
    base = os.path.realpath(os.environ["FUZZ_BASE"])
    allowed = (
        "/dev/",
        "/proc/",
        *(os.path.join(base, name) for name in ("output", "temp", "user", "comfy.db", "server.log")),
    )
    outside = os.environ["FUZZ_OUTSIDE"]

    def hook(event, arguments):
        said = None
        if event.startswith(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")):
            said = f"started {arguments[:2]!r:.300}"
        elif (
            event == "open"
            and isinstance(arguments[0], (str, bytes))
            and not os.fsdecode(arguments[0]).endswith(".pyc")
        ):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(outside):
                said = f"opened {path}"
            elif (arguments[2] or 0) & WRITES and not path.startswith(allowed) and "__pycache__" not in path:
                said = f"wrote {path}"
        if said:
            os.write(log, f"{said}\n".encode())

    sys.addaudithook(hook)


if "FUZZ_LOG" in os.environ:
    watch(os.open(os.environ["FUZZ_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND))

NODE_CLASS_MAPPINGS = {"ForeignAnything": ForeignAnything, "ForeignList": ForeignList, "Swallow": Swallow}
