"""What a node says without failing: once in the log, and on the node that runs, where web/js/hints.js writes it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from comfy_execution.utils import get_executing_context

from ..t2l.compositing.fit import paints_well

if TYPE_CHECKING:
    from .autoencoder import ManagedAutoencoder

EVENT = "text2layer.hint"
MOST_REMEMBERED = 1000  # of what was said; then all of it may be said again
_said: set[Hashable] = set()


def hint(sentence: str, key: Hashable = None) -> None:
    """Say a sentence on the running node each time, and in the log once for each key."""
    key = sentence if key is None else key
    if key not in _said:
        if len(_said) >= MOST_REMEMBERED:
            _said.clear()
        _said.add(key)
        logging.warning("Text2Layer: %s", sentence)
    running, server = get_executing_context(), running_server()
    # A prompt without a browser has nobody to show it to.
    if running is not None and server is not None and server.client_id is not None:
        server.send_sync(EVENT, {"node": running.node_id, "text": sentence}, server.client_id)


def running_server() -> Any:
    """ComfyUI's server; None where the nodes are loaded without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def hint_at_size(node: str, managed: ManagedAutoencoder, size: tuple[int, int], advice: str) -> None:
    """Hint at a size (height, width) that the checkpoint was not trained on; a file that names none is silent.

    advice: the end of the sentence; {trained} in it stands for the size.
    """
    trained = managed.trained_size
    if trained is None or paints_well(size, trained):
        return
    made_for = f"{trained} x {trained}"
    sentence = f"{node}: this is {size[1]} x {size[0]}, {managed.name} was trained on {made_for}"
    hint(f"{sentence} {advice.format(trained=made_for)}", (managed.name, size))
