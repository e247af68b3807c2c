"""Files that nobody here made: the .psd files in the source package of pytoshop, which `make test` fetches, or your own.

T2L_PSD_FILES names another folder, for example a checkout of psd-tools' tests.
"""

import os
from pathlib import Path

import pytest
import torch
from psd_tools import PSDImage

from t2l.io.psd import open_psd
from t2l.placement import linear_to_srgb

FOLDER = Path(os.environ.get("T2L_PSD_FILES", Path(__file__).resolve().parents[2] / ".comfy" / "psd-files"))
FILES = sorted(path for path in FOLDER.rglob("*") if path.suffix.lower() in (".psd", ".psb"))
needs_files = pytest.mark.skipif(not FILES, reason=f"{FOLDER} holds no .psd files; `make test` fetches some")
COLOURS = r"is in (CMYK|LAB|MULTICHANNEL) colours, which are not shown here"


def merged_picture(path: Path) -> torch.Tensor | None:
    """What the program that wrote the file saw, (3, H, W); None where it did not store it."""
    psd = PSDImage.open(path)
    if not psd.has_preview():
        return None
    colour, alpha = (torch.from_numpy(psd.numpy(name)).movedim(-1, 0).clamp(0, 1) for name in ("color", "shape"))
    picture = torch.lerp(torch.ones_like(colour), colour, alpha).expand(3, -1, -1)
    return linear_to_srgb(picture) if psd.depth == 32 else picture


@needs_files
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_shown_as_its_editor_shows_it_or_says_what_differs(path):
    if PSDImage.open(path).color_mode.name in ("CMYK", "LAB", "MULTICHANNEL"):
        with pytest.raises(ValueError, match=COLOURS):
            open_psd(path)
        return
    opened, expected = open_psd(path), merged_picture(path)
    assert all(note.strip() for note in opened.notes)
    if expected is not None and len(expected) == 3 and not opened.notes:
        assert (opened.stack.composite() - expected).abs().max() * 255 <= 2


@needs_files
def test_most_files_are_shown_whole():
    assert sum(not open_psd(path).notes for path in FILES if "cmyk" not in path.name and "lab" not in path.name) >= 10
