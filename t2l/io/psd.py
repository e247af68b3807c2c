"""Photoshop's PSD and PSB: a `Stack` written, and files of other people read, both through psd-tools.

Layers keep their colours under the mask. Values are exact at the depth of the file: v / 255, or v / 65535.
"""

from .psd_read import open_psd
from .psd_write import save_psd

__all__ = ["open_psd", "save_psd"]
