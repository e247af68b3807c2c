"""A node pack of its own for the test server: LAYERS documents as nodes of other people make them."""

import json

import torch


class ForeignDocument:
    """JSON -> a LAYERS document; in an item `color` [r, g, b] or [r, g, b, a] of 0 to 1 and `size` [h, w] stand for the
    image, `frames` for how many of it, a number for a mask, `masks` for how many of those.
    """

    RETURN_TYPES = ("LAYERS",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"document": ("STRING", {})}}

    def make(self, document):
        made = json.loads(document)
        for item in (item for item in made.get("layers", []) if isinstance(item, dict)):
            if "color" in item:
                size = (item.pop("frames", 1), *item.pop("size"))
                item["image"] = torch.tensor(item.pop("color")).expand(*size, -1).clone()
            if "mask" in item or "masks" in item:
                shape = item["image"].shape[:3]
                item["mask"] = torch.full((item.pop("masks", shape[0]), *shape[1:]), float(item.get("mask", 0)))
        return (made,)


class DescribeDocument:
    """A LAYERS document -> what it says, as JSON on the node: of a tensor its shape and the sum of its values."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "describe"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"layers": ("LAYERS",)}}

    def describe(self, layers):
        return {"ui": {"text": [json.dumps(layers, default=lambda x: [*x.shape, round(float(x.double().sum()), 3)])]}}


class ForeignTensor:
    """JSON -> an IMAGE and a MASK of any `shape` and `dtype`, filled with `value`; `kind` meta, sparse or list is a
    stranger one.
    """

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"tensor": ("STRING", {})}}

    def make(self, tensor):
        wanted = json.loads(tensor)
        made = torch.full(wanted["shape"], wanted.get("value", 1.0)).to(getattr(torch, wanted.get("dtype", "float32")))
        strange = {"meta": lambda: made.to("meta"), "sparse": made.to_sparse, "list": lambda: [made]}
        made = strange.get(wanted.get("kind"), lambda: made)()
        return (made, made)


class ForeignValue:
    """JSON -> that value on sockets of four types; "nan", "inf" and "tensor" stand for what JSON has no word for."""

    RETURN_TYPES = ("FLOAT", "INT", "STRING", "BOOLEAN", "COMBO")
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"value": ("STRING", {})}}

    def make(self, value):
        strange = {"nan": float("nan"), "inf": float("inf"), "tensor": torch.ones(2)}
        return (strange[value] if value in strange else json.loads(value),) * 5


NODE_CLASS_MAPPINGS = {
    "ForeignValue": ForeignValue,
    "ForeignDocument": ForeignDocument,
    "DescribeDocument": DescribeDocument,
    "ForeignTensor": ForeignTensor,
}
