"""What the files of editors have in common: groups, clipped layers and holes, brought down to a plain `Stack`.

A group that mixes as if it were not there is opened, so that its layers stay layers; any other is merged into one
layer. All is exact while colours are mixed in sRGB; what is merged with what lies below is said in a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..compositing.blend import blend
from ..compositing.stack import Layer, blended, cropped, over, paint, pieces, placed
from .layer_nodes import Account, Clipped, Group, Knockout, Mask, Node, Special

Box = tuple[int, int, int, int]  # left, top, right, bottom on the canvas


def plain_layers(
    nodes: Sequence[Node],
    height: int,
    width: int,
    account: Account,
    has_background: bool = False,
    whole: Callable[[str], bool] | None = None,
) -> list[Layer]:
    """A tree of layers as the layers of a stack on a canvas of this size, from the bottom up.

    has_background: the lowest node is one that no hole goes through. whole: as `open_layer_file` takes it.
    """
    scope = _Scope(
        _bounding_box(nodes, (0, 0, width, height)), (height, width), account, bottom=int(has_background), whole=whole
    )
    for node in nodes:
        scope.add(node)
    scope.release()
    return scope.layers


def _bounding_box(nodes: Iterable[Node], canvas: Box) -> Box:
    """The part of the canvas that layers touch."""
    found = [_rectangle(layer) for node in nodes for layer in _leaves(node)]
    left, top = (max(canvas[i], min((x[i] for x in found), default=0)) for i in (0, 1))
    right, bottom = (min(canvas[i], max((x[i] for x in found), default=0)) for i in (2, 3))
    return left, top, max(left, right), max(top, bottom)


def _rectangle(layer: Layer) -> Box:
    return layer.x, layer.y, layer.x + layer.size[1], layer.y + layer.size[0]


def _leaves(node: Node) -> list[Layer]:
    if isinstance(node, Layer):
        return [node]
    if isinstance(node, Special):
        return _leaves(node.node)
    inner = node.children if isinstance(node, Group) else (node.base, *node.above)
    return [layer for child in inner for layer in _leaves(child)]


def _is_normal(nodes: Sequence[Node]) -> bool:
    """Whether all layers cover what is below without a blend mode: then it does not matter how they are grouped."""
    return all(_covers(node) for node in nodes)


def _covers(node: Node) -> bool:
    if isinstance(node, Special):
        return False
    if isinstance(node, Clipped):
        return _covers(node.base) and (node.as_group or _is_normal(node.above))
    return not node.visible or (node.blend_mode == "normal" and (isinstance(node, Layer) or _is_normal(node.children)))


def _is_open(group: Group) -> bool:
    """Whether a group looks the same when its layers are taken out of it."""
    plain = group.opacity == 1 and group.mask is None and (group.pass_through or group.blend_mode == "normal")
    return plain and (group.pass_through or _is_normal(group.children))


def _is_binary(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _under_mask(layer: Layer, mask: Mask | None, opacity: float = 1.0) -> Layer:
    """A layer under one more mask."""
    shown = layer.mask if mask is None else layer.mask * mask.over(layer)
    return replace(layer, mask=shown, opacity=layer.opacity * opacity)


def _shape(layer: Layer) -> Mask:
    """How much a layer covers, mask times opacity, nothing outside of it."""
    return Mask(layer.mask[0] * layer.opacity, layer.x, layer.y, outside=0.0)


def _outside_of(shape: Mask) -> Mask:
    return Mask(1 - shape.values, shape.x, shape.y, outside=1 - shape.outside)


def _seen_from(layer: Layer, box: Box) -> Layer:
    """A layer as seen from the corner of a box."""
    return replace(layer, x=layer.x - box[0], y=layer.y - box[1])


def _slices(layer: Layer) -> tuple[slice, slice]:
    return slice(layer.y, layer.y + layer.size[0]), slice(layer.x, layer.x + layer.size[1])


def _blend_with(layer: Layer, colour: Tensor, alpha: Tensor) -> Tensor:
    """A layer's colours after its blend mode with a backdrop, (3, H, W): where that is transparent, its own."""
    return blended(layer.image, colour, alpha, layer.blend_mode)


def _mix_in(layer: Layer, colour: Tensor, alpha: Tensor, image: Tensor, mask: Tensor) -> None:
    """A layer over a picture of its size, (3, H, W) and (1, H, W), and into the layers' own part, image times mask."""
    for piece in pieces(*layer.size):
        small = replace(layer, image=layer.image[piece], mask=layer.mask[piece])
        weight, source = small.mask * small.opacity, _blend_with(small, colour[piece], alpha[piece])
        image[piece] = torch.lerp(image[piece], source, weight)
        mask[piece] = torch.lerp(mask[piece], torch.ones_like(weight), weight)
        colour[piece], alpha[piece] = over(small, colour[piece], alpha[piece])


class _Scope:
    """Layers that gather from the bottom up: those of a document, or of a group that is merged afterwards.

    What lies below is nothing, or for a group that lets blend modes through the picture so far.
    """

    def __init__(
        self,
        box: Box,
        canvas: tuple[int, int],
        account: Account,
        bottom: int = 0,
        base: Callable[[], tuple[Tensor, Tensor]] | None = None,
        whole: Callable[[str], bool] | None = None,
    ) -> None:
        """bottom: how many layers no hole goes through. base: makes colour and alpha of what lies below the box."""
        self.box, self.canvas, self.account, self.base, self.whole = box, canvas, account, base, whole
        self.layers: list[Layer] = []
        self.bottom = bottom
        self.floors = [_Floor(bottom)]  # of the groups that are open at the moment
        self._head: _Picture | None = None  # of all layers so far
        self._floor: _Picture | None = None  # of the lowest ones

    # ---- nodes become layers

    def add(self, node: Node) -> None:
        """Put a node on top."""
        if isinstance(node, Layer):
            self.layers.append(node)
        elif isinstance(node, Special):
            self._add_special(node)
        elif isinstance(node, Group):
            self._add_group(node)
        elif node.as_group:
            self._append(self._merge_clipping(node))
        else:
            self._add_ungrouped(node)

    def _append(self, layer: Layer | None) -> None:
        self.layers += [] if layer is None else [layer]

    def _add_group(self, group: Group) -> None:
        if self.whole is not None and self.whole(group.name):
            self._append(self._merge_group(group))
        elif not group.visible:
            inner = plain_layers(group.children, *self.canvas, self.account)
            self.layers += [replace(layer, visible=False) for layer in inner]
        elif _is_open(group):
            self.floors.append(_Floor(len(self.layers)))
            for child in group.children:
                self.add(child)
            self.floors.pop()
        elif group.pass_through:
            self.layers += self._faded(group)
        else:
            self._append(self._merge_group(group))

    def _faded(self, group: Group) -> list[Layer]:
        """A group that lets blend modes through and is masked or faded: between the backdrop and what it makes of it.

        A single layer stays itself; several that differ in their modes become one.
        """
        inside = self._through(group)
        seen = inside.visible_layers()
        found = [self._merge_through(inside, seen, group)] if len(seen) > 1 else inside.layers
        inside.release()
        return [_under_mask(layer, group.mask, group.opacity) for layer in found]

    def _through(self, group: Group) -> _Scope:
        """The layers of a group that lets blend modes through, on the picture so far."""
        box = _bounding_box(group.children, self.box)
        inside = _Scope(box, self.canvas, self.account, base=lambda: self.below(box))
        for child in group.children:
            inside.add(child)
        return inside

    def _merge_through(self, inside: _Scope, seen: Sequence[Layer], group: Group) -> Layer:
        """The layers of a group that lets blend modes through as one."""
        if any(layer.blend_mode != "normal" for layer in seen):
            self.account.notes.append(
                f"the group {group.name!r} lets blend modes through while it is faded, masked or clipped to: its "
                "layers are merged with the colours that lie below them"
            )
        return inside.merge(seen, group.name)

    def visible_layers(self, start: int = 0) -> list[Layer]:
        """The visible layers on the canvas, from `start` on."""
        return [x for x in self.layers[start:] if x.visible and cropped(x, *self.canvas) is not None]

    def _layer(self, node: Layer | Group | Clipped | Special) -> Layer | None:
        """A node as one layer; None when there is nothing to see in it."""
        if isinstance(node, Layer):
            return node
        if isinstance(node, Special):
            return self._layer(node.node)
        return self._merge_group(node) if isinstance(node, Group) else self._merge_clipping(node)

    def _merge_group(self, group: Group) -> Layer | None:
        """Merged as far as its layers reach on the canvas."""
        if group.pass_through and group.visible:
            inside = self._through(group)
        else:
            inside = _Scope(_bounding_box(group.children, self.box), self.canvas, self.account)
            for child in group.children:
                inside.add(child)
        seen = inside.visible_layers()
        if not seen:
            return None
        merged = self._merge_through(inside, seen, group) if inside.base else inside.merge(seen, group.name)
        inside.release()
        mode = "normal" if group.pass_through else group.blend_mode
        return _under_mask(replace(merged, blend_mode=mode, visible=group.visible), group.mask, group.opacity)

    def merge(self, layers: Sequence[Layer], name: str, start: int = 0) -> Layer:
        """Layers from `start` on as one that covers what lies below: their joint mask, the colours they end up with."""
        parts = [part for part in (cropped(layer, *self.canvas) for layer in layers) if part is not None]
        box = _bounding_box(parts, (0, 0, self.canvas[1], self.canvas[0]))
        height, width = box[3] - box[1], box[2] - box[0]
        self.account.claim(height, width)
        colour, alpha = self.below(box, start)
        image, mask = torch.zeros_like(colour), torch.zeros_like(alpha)
        for part in parts:
            place = (slice(None), *_slices(_seen_from(part, box)))
            _mix_in(part, colour[place], alpha[place], image[place], mask[place])
        image /= mask.clamp(min=torch.finfo(mask.dtype).tiny)
        return Layer(image=image.clamp_(0, 1), mask=mask, name=name, x=box[0], y=box[1])

    # ---- clipped layers

    def _merge_clipping(self, node: Clipped) -> Layer | None:
        """The clipped layers painted onto the colours of their base, whose mask stays."""
        base = self._layer(node.base)
        if base is None:
            return None
        self.account.claim(*base.size, channels=3)
        image, hidden = base.image.clone(), 0
        for upper in node.above:
            layer = self._layer(upper)
            if layer is None or not layer.visible:
                hidden += 1
                continue
            inside = cropped(replace(layer, x=layer.x - base.x, y=layer.y - base.y), *base.size)
            if inside is not None:
                place = (slice(None), *_slices(inside))
                self._paint_onto(image[place], base.image[place], inside, upper)
        if hidden:
            self.account.notes.append(f"{hidden} hidden layers clipped to {base.name!r} are left out")
        return replace(base, image=image)

    def _paint_onto(self, colour: Tensor, base: Tensor, layer: Layer, node: Node) -> None:
        """A clipped layer onto the colours so far, (3, H, W), in place; one that knocks out goes down to its base."""
        options = node if isinstance(node, Special) else Special(node=layer)
        changes = layer.image.new_tensor(options.channels).bool()[:, None, None]
        for piece in pieces(*layer.size):
            below = colour[piece] if options.knockout == "none" else base[piece]
            painted = torch.lerp(below, blend(below, layer.image[piece], layer.blend_mode), options.fill)
            painted = torch.where(changes, painted, colour[piece])
            colour[piece] = torch.lerp(colour[piece], painted, layer.mask[piece] * layer.opacity)

    def _add_ungrouped(self, node: Clipped) -> None:
        """Clipped layers that meet what lies below in their own modes: layers under the mask of their base."""
        base = self._layer(node.base)
        if base is None:
            return
        self.layers.append(base)
        mask = Mask(base.mask[0], base.x, base.y, outside=0.0)
        for upper in node.above:
            layer = self._layer(upper)
            if layer is not None:
                shown = replace(_under_mask(layer, mask, node.opacity), visible=layer.visible and base.visible)
                self.add(replace(upper, node=shown) if isinstance(upper, Special) else shown)

    # ---- nodes that meet what lies below in another way

    def _add_special(self, node: Special) -> None:
        layer = self._layer(node.node)
        part = None if layer is None else cropped(layer, *self.canvas)
        if part is None or not part.visible:
            self._append(layer)
        elif node.operator == "src-atop":
            self._add_atop(part)
        elif node.operator == "dst-atop":
            self._add_below(part)
        elif node.operator != "src-over":
            self._cut(part, _shape(part) if node.operator == "dst-in" else _outside_of(_shape(part)))
            self.layers.append(replace(part, visible=False))  # it may be wanted again
        elif node.knockout == "none" or node.fill == 1 and part.blend_mode == "normal":
            self._append(part if all(node.channels) else self._restricted(part, node.channels))
        else:
            self._add_knockout(part, self._floor_of(part, node.knockout), node.fill)

    def _floor_of(self, layer: Layer, knockout: Knockout) -> int:
        """How many layers a hole does not go through."""
        floor = self.floors[-1]
        if knockout == "deep" and self.base is not None:
            self.account.notes.append(f"{layer.name!r} knocks out down to the bottom of its group, and not deeper")
        if knockout == "shallow" and floor.is_torn:
            self.account.notes.append(
                f"{layer.name!r} knocks out where a deeper hole is, and shows that; the editor may differ"
            )
        return floor.count if knockout == "shallow" else self.bottom

    def _restricted(self, layer: Layer, channels: Sequence[bool]) -> Layer:
        """A layer that changes only some channels: the others have the colours below it."""
        self.account.claim(*layer.size, channels=3)
        colour, alpha = self.below(_rectangle(layer))
        image, changes = _blend_with(layer, colour, alpha), colour.new_tensor(channels).bool()[:, None, None]
        image = image.clone() if image is layer.image else image
        for piece in pieces(*layer.size):
            kept = torch.lerp(layer.image[piece], colour[piece], alpha[piece])
            image[piece] = torch.where(changes, image[piece], kept)
        self.account.notes.append(
            f"{layer.name!r} changes only some of the channels: "
            "the others are merged with the colours that lie below it"
        )
        return replace(layer, image=image, blend_mode="normal")

    def _add_knockout(self, layer: Layer, start: int, fill: float) -> None:
        """A layer that hides those from `start` on and is painted onto what is below them, as far as `fill`."""
        self.account.claim(*layer.size, channels=3)
        image = _blend_with(layer, *self.below(_rectangle(layer), start))
        if fill == 1:
            self.layers.append(replace(layer, image=image, blend_mode="normal"))
            self.account.notes.append(
                f"{layer.name!r} knocks out: it is merged with the colours at the bottom of its hole"
            )
        elif fill == 0 or _is_binary(_shape(layer).values) or not self.visible_layers(start):
            self._cut(layer, _outside_of(_shape(layer)), start)
            self.layers.append(replace(layer, opacity=layer.opacity * fill))
        else:
            self._merge(start, layer.name)
            self._mix(replace(layer, image=image), fill)

    def _mix(self, layer: Layer, fill: float) -> None:
        """Another layer in place of the topmost one, under its own shape and as far as `fill`."""
        top = self.layers.pop()
        box = _bounding_box([top, layer], (0, 0, self.canvas[1], self.canvas[0]))
        size = box[3] - box[1], box[2] - box[0]
        self.account.claim(*size)
        self.account.claim(*size)  # the other, of which nothing stays
        image, mask = (x.clone() for x in placed(_seen_from(top, box), *size))
        above, shape = placed(_seen_from(layer, box), *size)
        for piece in pieces(*size):
            kept, weight = mask[piece] * (1 - shape[piece]), shape[piece] * fill
            mixed = image[piece] * kept + above[piece] * weight
            mask[piece] = kept + weight
            image[piece] = mixed / mask[piece].clamp(min=torch.finfo(mask.dtype).tiny)
        self.account.release(*size)
        self.layers.append(Layer(image=image, mask=mask, name=top.name, x=box[0], y=box[1]))

    def _add_atop(self, layer: Layer) -> None:
        """A layer that is seen only where something lies below it, and covers nothing more."""
        alpha = self.below(_rectangle(layer))[1]
        if _is_binary(alpha[layer.mask > 0]):
            self.layers.append(replace(layer, mask=layer.mask * alpha))
            return
        if len(self.visible_layers()) > 1:
            self._merge(0, layer.name)
        at = self.layers.index(self.visible_layers()[0])
        painted = self._merge_clipping(Clipped(base=self.layers[at], above=(layer,)))
        self.layers[at] = self.layers[at] if painted is None else painted
        self._forget()

    def _add_below(self, layer: Layer) -> None:
        """A layer whose shape becomes everything's, and which is seen where nothing lies below it."""
        if _is_binary(_shape(layer).values):
            self._cut(layer, _shape(layer))
            self.layers.insert(0, layer)
        else:
            colour, alpha = self.below(_rectangle(layer))
            self.account.notes.append(f"{layer.name!r} is merged with what lies below it")
            seen = self.visible_layers()
            unseen = [x for x in self.layers if x not in seen]
            self.layers = [*unseen, replace(layer, image=torch.lerp(layer.image, colour, alpha))]
        self._forget()

    def _cut(self, layer: Layer, keep: Mask, start: int = 0) -> None:
        """Leave of the layers from `start` on what a mask keeps: of each where that is exact, else of all merged."""
        if len(self.visible_layers(start)) > 1 and not _is_binary(keep.values):
            self._merge(start, layer.name)
        self.account.notes.append(f"the layers below {layer.name!r} are cut along its shape")
        self.floors = [replace(x, is_torn=x.is_torn or x.count > start) for x in self.floors]
        self.layers[start:] = [_under_mask(x, keep) if x.visible else x for x in self.layers[start:]]
        self._forget(start)

    def _merge(self, start: int, name: str) -> None:
        """The visible layers from `start` on as one, on top of those that are not seen."""
        seen = self.visible_layers(start)
        if len(seen) > 1:
            self.account.notes.append(f"{len(seen)} layers below {name!r} are merged into one")
        self.floors = [_Floor(start, is_torn=True) if x.count > start else x for x in self.floors]
        merged = self.merge(seen, seen[-1].name, start)
        self.layers[start:] = [*(x for x in self.layers[start:] if x not in seen), merged]
        self._forget(start)

    # ---- the picture so far

    def below(self, box: Box, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Colour (3, h, w) and alpha (1, h, w) of a window on the lowest `count` layers, without a count on all."""
        count, size = len(self.layers) if count is None else count, (box[3] - box[1], box[2] - box[0])
        self.account.claim(*size)
        if count == 0 and self.base is None:
            blank = torch.zeros(4, *size)
            colour, alpha = blank[:3], blank[3:]
        else:
            rows = slice(box[1] - self.box[1], box[3] - self.box[1])
            columns = slice(box[0] - self.box[0], box[2] - self.box[0])
            colour, alpha = (x[:, rows, columns].clone() for x in self._picture_of(count))
        self.account.release(*size)  # who asks needs it for a moment
        return colour, alpha

    def _picture_of(self, count: int) -> tuple[Tensor, Tensor]:
        """The lowest layers over one another, (3, h, w) and (1, h, w) of the box; goes on with what was composited."""
        if count == len(self.layers):
            self._head = self._head or self._blank()
            return self._head.grow(self.layers)
        if self._floor is None or self._floor.count != count:
            self._drop(self._floor)
            self._floor = self._blank()
        return self._floor.grow(self.layers[:count])

    def _blank(self) -> _Picture:
        left, top, right, bottom = self.box
        self.account.claim(bottom - top, right - left)
        if self.base is not None:
            return _Picture(left, top, *self.base())
        blank = torch.zeros(4, bottom - top, right - left)
        return _Picture(left, top, blank[:3], blank[3:])

    def _drop(self, picture: _Picture | None) -> None:
        if picture is not None:
            self.account.release(*picture.alpha.shape[1:])

    def _forget(self, start: int = 0) -> None:
        """Layers from `start` on are others now."""
        self._drop(self._head)
        self._head = None
        if self._floor is not None and self._floor.count > start:
            self._drop(self._floor)
            self._floor = None

    def release(self) -> None:
        """The layers are taken; the pictures made of them are not needed any more."""
        self._forget(-1)


@dataclass(frozen=True)
class _Floor:
    count: int  # how many layers lie below
    is_torn: bool = False  # whether a hole went through those too since then


@dataclass
class _Picture:
    """The lowest layers of a scope, composited."""

    x: int  # of its top-left corner on the canvas
    y: int
    colour: Tensor  # (3, h, w)
    alpha: Tensor  # (1, h, w)
    count: int = 0  # how many layers

    def grow(self, layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
        """With those layers that it does not show yet."""
        for layer in layers[self.count :]:
            if layer.visible:
                paint(replace(layer, x=layer.x - self.x, y=layer.y - self.y), self.colour, self.alpha)
        self.count = len(layers)
        return self.colour, self.alpha
