"""Our files in the editors themselves: GIMP, Krita and ImageMagick open a PSD of 1024 x 1024, Krita an OpenRaster
file.
"""

import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from t2l.compositing.blend import BlendMode
from t2l.compositing.stack import Layer, Stack
from t2l.io.layer_file import open_layer_file, save_layer_file
from t2l.layers import Layers
from tests.tools import need

SIDE = 1024
# The name and mask (-1: none) of every layer, its pixels without the mask, and the flattened picture.
GIMP_SCRIPT = """
(let* ((image (car (gimp-file-load RUN-NONINTERACTIVE "{psd}" "{psd}")))
       (copy (car (gimp-image-duplicate image)))
       (save (lambda (image layer name)
               (file-png-save RUN-NONINTERACTIVE image layer
                    (string-append "{folder}/gimp-" name ".png") name 0 1 0 0 0 0 0))))
  (save copy (car (gimp-image-flatten copy)) "composite")
  (for-each
    (lambda (layer)
      (let ((name (car (gimp-item-get-name layer))) (mask (car (gimp-layer-get-mask layer))))
        (gimp-message (string-append "layer " name (if (= mask -1) " plain" " masked")))
        (if (> mask -1) (gimp-layer-remove-mask layer MASK-DISCARD))
        (save image layer name)))
    (vector->list (cadr (gimp-image-get-layers image)))))
"""


@pytest.fixture(scope="module")
def screen():
    """An X server for Krita, which says its number when it is ready; xvfb-run sometimes starts Krita before."""
    need("Krita", "krita", "Xvfb")
    command = ["Xvfb", "-displayfd", "1", "-noreset", "-ac", "-screen", "0", "1280x1024x24"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield f":{server.stdout.readline().strip()}"
    finally:
        server.terminate()
        server.wait(30)


def run(*command: object, folder: Path, screen: str = "") -> str:
    """What a program says, started with a home of its own."""
    environment = os.environ | {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "DISPLAY": screen}
    words = [str(word) for word in command]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert result.returncode == 0, f"{words[0]} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def stack() -> Stack:
    """Smooth layers of noise with a soft mask, at 8 bits."""
    noise = torch.rand(1, 7, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    return Stack.from_layers(Layers.from_stacked((pixels * 255).round() / 255))


@pytest.fixture(scope="module")
def folder(stack, tmp_path_factory) -> Path:
    """a.psd, a16.psd and a.ora."""
    folder = tmp_path_factory.mktemp("editors")
    save_layer_file(stack, folder / "a.psd")
    save_layer_file(stack, folder / "a16.psd", depth=16)
    save_layer_file(stack, folder / "a.ora")
    return folder


def difference(path: Path, expected: torch.Tensor) -> float:
    """The largest difference of a picture file from pixels (3, H, W), in 255ths."""
    found = np.array(Image.open(path).convert("RGB")).astype(float)
    return float(np.abs(found - 255 * expected.movedim(0, -1).numpy()).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.psd", "a16.psd"])
def test_gimp_sees_two_layers_a_mask_and_the_colours_under_it(folder, stack, name):
    need("GIMP", "gimp")
    script = GIMP_SCRIPT.format(psd=folder / name, folder=folder)
    options = ["-i", "-d", "-f", "--batch-interpreter=plug-in-script-fu-eval"]
    said = run("gimp", *options, "-b", script, "-b", "(gimp-quit 0)", folder=folder)
    assert "layer foreground masked" in said and "layer background plain" in said and said.count("layer ") == 2
    assert difference(folder / "gimp-composite.png", stack.composite()) <= 1
    tolerance = 0.001 if name == "a.psd" else 0.5001
    assert difference(folder / "gimp-foreground.png", stack.layers[1].image) <= tolerance
    assert difference(folder / "gimp-background.png", stack.layers[0].image) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.psd", "a16.psd", "a.ora"])
def test_krita_shows_the_composite(folder, stack, screen, name):
    exported = folder / "krita.png"
    run("krita", folder / name, "--export", "--export-filename", exported, folder=folder, screen=screen)
    assert difference(exported, stack.composite()) <= 1


@pytest.mark.slow
def test_krita_keeps_names_and_count_when_it_saves_our_psd_as_openraster(folder, stack, screen):
    run(
        "krita",
        folder / "a.psd",
        "--export",
        "--export-filename",
        folder / "krita.ora",
        folder=folder,
        screen=screen,
    )
    assert [layer.name for layer in open_layer_file(folder / "krita.ora").stack.layers] == ["background", "foreground"]


@pytest.mark.slow
def test_krita_s_openraster_of_every_mode_of_a_psd_looks_as_in_krita_or_is_named(folder, screen):
    """A tile for every mode. Krita weighs brightness differently and treats pure black and white so: that is named."""
    modes = [mode for mode in BlendMode.__args__ if mode not in ("grain extract", "grain merge", "soft light krita")]
    noise = torch.rand(2, 3, 32, 32 * len(modes), generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    tiles = [
        Layer(image=tile, mask=torch.ones(1, 32, 32), name=mode, x=32 * i, blend_mode=mode)
        for i, (mode, tile) in enumerate(zip(modes, noise[1].split(32, dim=2), strict=True))
    ]
    below = Layer(image=noise[0], mask=torch.ones(1, 32, 32 * len(modes)), name="below")
    save_layer_file(Stack(32, 32 * len(modes), (below, *tiles)), folder / "modes.psd")
    exported = folder / "modes.ora"
    run("krita", folder / "modes.psd", "--export", "--export-filename", exported, folder=folder, screen=screen)
    opened = open_layer_file(exported)
    with zipfile.ZipFile(exported) as file, file.open("mergedimage.png") as picture:
        theirs = torch.from_numpy(np.array(Image.open(picture).convert("RGB"))).movedim(-1, 0)
    apart = (opened.stack.composite() * 255 - theirs).abs().amax(dim=0).split(32, dim=1)
    different = {mode for mode, tile in zip(modes, apart, strict=True) if tile.max() > 2}
    assert different <= {
        "hue",
        "saturation",
        "color",
        "luminosity",
        "darker color",
        "lighter color",
        "hard mix",
        "vivid light",
    }
    assert len(opened.notes) == bool(different) and all(note.startswith("Krita's own picture") for note in opened.notes)


@pytest.mark.slow
def test_imagemagick_finds_the_merged_picture_and_both_layers(folder, stack):
    need("ImageMagick", "identify", "convert")
    psd = folder / "a.psd"
    said = run("identify", "-format", "%wx%h %[label]\n", psd, folder=folder).splitlines()
    assert [line.strip() for line in said if line.startswith(f"{SIDE}x")] == [
        f"{SIDE}x{SIDE}",
        f"{SIDE}x{SIDE} background",
        f"{SIDE}x{SIDE} foreground",
    ]
    run("convert", f"{psd}[0]", "-alpha", "off", "merged.png", folder=folder)
    run("convert", f"{psd}[2]", "-alpha", "off", "front.png", folder=folder)
    run("convert", f"{psd}[1]", f"{psd}[2]", "-flatten", "flat.png", folder=folder)
    assert difference(folder / "merged.png", stack.composite()) <= 0.5001
    assert difference(folder / "front.png", stack.layers[1].image) <= 0.001
    assert difference(folder / "flat.png", stack.composite()) <= 1
