"""Files that nobody here made: .psd files of pytoshop's source package, which `make test-tools` fetches, or your own.

T2L_PSD_FILES names another folder, for example a checkout of psd-tools' tests.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from psd_tools import PSDImage

from t2l.compositing.blend import linear_to_srgb
from t2l.io.layer_nodes import LayerFile
from t2l.io.psd_read import open_psd
from tests.tools import missing

FOLDER = Path(os.environ.get("T2L_PSD_FILES", Path(__file__).resolve().parents[2] / ".comfy" / "psd-files"))
FILES = sorted(path for path in FOLDER.rglob("*") if path.suffix.lower() in (".psd", ".psb"))
REFUSED = (
    r"is in (CMYK|LAB|MULTICHANNEL) colours, which are not shown here|"
    r"holds no layer with pixels and no merged picture|"
    r"cannot be read as a PSD: its pixels are cut off"  # one file's merged picture is cut off
)


def merged_picture(path: Path) -> torch.Tensor | None:
    """What the program that wrote the file saw, (3, H, W); None where it did not store it."""
    psd = PSDImage.open(path)
    if not psd.has_preview():
        return None
    colour, alpha = (torch.from_numpy(psd.numpy(name)).movedim(-1, 0).clamp(0, 1) for name in ("color", "shape"))
    picture = torch.lerp(torch.ones_like(colour), colour, alpha).expand(3, -1, -1)
    return linear_to_srgb(picture) if psd.depth == 32 else picture


def opened(path: Path) -> LayerFile | None:
    """None for a file that is refused, and rightly so."""
    try:
        return open_psd(path)
    except ValueError as error:
        assert re.search(REFUSED, str(error)), error
        return None


@pytest.fixture(autouse=True)
def there_are_files():
    if not FILES:
        missing(".psd files of other programs")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_shown_as_its_editor_shows_it_or_says_what_differs(path):
    """Where it is opaque: what is under alpha 0 in a merged picture is every editor's own."""
    file = opened(path)
    expected = merged_picture(path) if file and not file.notes else None
    if expected is not None and len(expected) == 3:
        is_opaque = file.stack.flattened()[1] == 1
        assert ((file.stack.composite() - expected).abs() * is_opaque).max() * 255 <= 2


def test_a_sixth_of_the_files_is_shown_whole():
    files = [opened(path) for path in FILES]
    assert sum(file is not None and not file.notes for file in files) >= len(files) / 6
