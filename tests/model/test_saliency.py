import hashlib
import json
import shutil

import pytest
import torch

from t2l.evaluation.metrics import mask_iou
from t2l.model import saliency
from t2l.model.saliency import fetch_saliency, find_saliency, join_chunks, saliency_model


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The npm package unpacked, with two small chunks in place of the network."""
    folder = tmp_path / "package" / "dist"
    folder.mkdir(parents=True)
    names = []
    for piece in (b"first half, ", b"second half"):
        names.append(hashlib.sha256(piece).hexdigest())
        (folder / names[-1]).write_bytes(piece)
    entry = {"/models/medium": {"chunks": [{"hash": name} for name in names]}}
    (folder / "resources.json").write_text(json.dumps(entry))
    monkeypatch.setattr(saliency, "SHA256", hashlib.sha256(b"first half, second half").hexdigest())
    return folder


def test_chunks_are_joined_in_order(package):
    file = find_saliency(package.parent.parent)
    assert file.name == "isnet-medium.onnx" and file.read_bytes() == b"first half, second half"


def test_a_damaged_chunk_is_named_and_nothing_is_written(package):
    damaged = next(p for p in package.iterdir() if len(p.name) == 64)
    damaged.write_bytes(b"noise")
    with pytest.raises(ValueError, match=f"chunk {damaged.name} of .* is damaged"):
        find_saliency(package.parent)
    assert not list(package.parent.glob("*.onnx"))


def test_a_whole_of_other_chunks_is_refused(package, monkeypatch):
    monkeypatch.setattr(saliency, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="ISNet of .* is damaged"):
        join_chunks(lambda name: (package / name).read_bytes())


def test_a_folder_without_a_network_says_what_would_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither an .onnx file nor a folder with isnet-medium.onnx"):
        find_saliency(tmp_path)


def test_fetching_without_npm_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="npm is needed to fetch"):
        fetch_saliency(tmp_path)


def test_a_fetched_file_is_kept(tmp_path, monkeypatch):
    file = tmp_path / "isnet-medium.onnx"
    file.write_bytes(b"network")
    monkeypatch.setattr(saliency, "SHA256", hashlib.sha256(b"network").hexdigest())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fetch_saliency(tmp_path) == file


def test_a_file_that_is_no_network_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "photo.onnx").write_bytes(b"not a network" * 20)
    with pytest.raises(ValueError, match="photo.onnx is damaged or not an ONNX network"):
        saliency_model(tmp_path / "photo.onnx")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_network_from_npm_finds_a_ball_on_grass(tmp_path):
    """Fetches 136 MB and looks at one picture of any size."""
    pytest.importorskip("onnxruntime")
    x = torch.linspace(-1, 1, 120)
    mask = (x.view(1, 1, 1, -1) ** 2 + x[:100].view(1, 1, -1, 1) ** 2 < 0.25).float()
    grass = torch.tensor([0.2, 0.5, 0.1]).view(1, 3, 1, 1) + 0.05 * torch.randn(
        1, 3, 100, 120, generator=torch.Generator().manual_seed(0)
    )
    picture = torch.lerp(grass, torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1), mask).clamp(0, 1)
    predicted = saliency_model(fetch_saliency(tmp_path))(picture)
    assert predicted.shape == mask.shape and mask_iou(predicted, mask).item() > 0.9
