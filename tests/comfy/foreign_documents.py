"""A node pack of its own for the test server: LAYERS documents as nodes of other people make them."""

import json

import torch


class ForeignDocument:
    """JSON -> a LAYERS document; in an item `color` [r, g, b] or [r, g, b, a] of 0 to 1 and `size` [h, w] stand for the image,
    `frames` for how many of it, a number for a mask."""

    RETURN_TYPES = ("LAYERS",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"document": ("STRING", {})}}

    def make(self, document):
        made = json.loads(document)
        for item in made.get("layers", []):
            if "color" in item:
                size = (item.pop("frames", 1), *item.pop("size"))
                item["image"] = torch.tensor(item.pop("color")).expand(*size, -1).clone()
            if "mask" in item:
                item["mask"] = torch.full(item["image"].shape[:3], item["mask"])
        return (made,)


NODE_CLASS_MAPPINGS = {"ForeignDocument": ForeignDocument}
