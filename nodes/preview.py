"""What Load Layers shows before it runs: the chosen file's picture and its layers' names, for web/js/load_layers.js."""

from __future__ import annotations

import asyncio
import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..t2l.io.image import to_image
from .files import path_of, read_chosen
from .hints import running_server
from .inputs import node_errors

ROUTE = "/text2layer/layers"
LONGEST_SIDE = 512  # pixels of the picture shown


def register_route() -> None:
    """GET /text2layer/layers?file=NAME: JSON with what `about` gives, or {"error": a sentence} if it cannot be read.

    Nothing is written, and only names that the node itself takes are answered. A sentence is an answer, too: with
    another status than 200 a broken file would stand in the browser's console as a fault of the pack. Where the nodes
    are loaded without a server there is no route.
    """
    server, turn = running_server(), asyncio.Lock()
    if server is None:
        return
    from aiohttp import web  # a server has it already

    @server.routes.get(ROUTE)
    async def layers(request: Any) -> Any:
        async with turn:  # one thread at most: people turn pages faster than large files are read
            try:
                return web.json_response(await asyncio.to_thread(about, request.query.get("file", "")))
            except ValueError as error:
                return web.json_response({"error": str(error)})


def about(file: str) -> dict[str, Any]:
    """Names of layers (highest first, each once), size in pixels, notes, and the composite as a data URL.

    Raises ValueError with the sentence that the node would say.
    """
    with node_errors("Load Layers"):
        path = path_of(file)
        stat = path.stat()
        return _about(file, path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _about(file: str, path: Path, *version: int) -> dict[str, Any]:
    opened = read_chosen(file)
    stack = opened.stack
    picture = to_image(stack.composite())
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return {
        "layers": list(dict.fromkeys(layer.name for layer in reversed(stack.layers))),
        "width": stack.width,
        "height": stack.height,
        "notes": list(opened.notes),
        "picture": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}",
    }
