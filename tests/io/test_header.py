"""Headers from strangers: measured before a tensor is touched, one sentence each, that names the file."""

import json
import math
import os
import struct
import subprocess
import sys
import time

import pytest
import torch

from t2l.budget import HEADER_BYTES, JSON_VALUES
from t2l.io.checkpoint import check_finite, fill_exactly, read_tensors, write_tensors
from t2l.io.header import check_fits, read_header
from t2l.model.about import about


def entry(dtype="F32", shape=(1,), data_offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}


def write(path, header, data=b"\0" * 64):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


DAMAGED = {
    "offsets are texts": (
        {"w": entry(data_offsets=["0", "5"])},
        "the tensor 'w' needs two data_offsets, got ..0., .5..$",
    ),
    "no offset": ({"w": entry(data_offsets=[0, None])}, "needs two data_offsets"),
    "nested offsets": ({"w": entry(data_offsets=[0, [1]])}, "needs two data_offsets"),
    "three offsets": ({"w": entry(data_offsets=[0, 4, 4])}, "needs two data_offsets"),
    "backwards": ({"w": entry(data_offsets=[5, 0])}, "cannot lie at the bytes 5 to 0"),
    "far away": ({"w": entry(data_offsets=[0, 10**30])}, "needs two data_offsets"),
    "another size": ({"w": entry(shape=[3])}, r"F32 of shape \[3\], cannot lie at the bytes 0 to 4"),
    "true": ({"w": entry(shape=[True])}, "has no shape, but .True.$"),
    "below 0": ({"w": entry(shape=[-1])}, "has no shape"),
    "many axes": ({"w": entry(shape=[1] * 17)}, "has no shape"),
    "shape": ({"w": entry(shape={"0": 1})}, "has no shape"),
    "kind": ({"w": entry(dtype="F31")}, "has an unknown kind of number, 'F31'$"),
    "list of kinds": ({"w": entry(dtype=["F32"])}, "has an unknown kind of number"),
    "no object": ({"w": [1]}, "it describes the tensor 'w' by .1.$"),
    "overlap": ({"v": entry(), "w": entry()}, "its tensors overlap or leave a gap at byte 0"),
    "gap": ({"v": entry(), "w": entry(data_offsets=[8, 12])}, "its tensors overlap or leave a gap at byte 4"),
    "left over": ({"w": entry()}, "it has 60 bytes that belong to no tensor$"),
    "long name": ({"w" * 500_000: entry()}, "the name 'w.{60,90}' has 500,000 characters"),
    "metadata": ({"__metadata__": {"a": 1}}, "its metadata must be texts by name, got ..a.: 1.$"),
    "list of metadata": ({"__metadata__": [1]}, "its metadata must be texts by name"),
    "deep": (b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "in more than 64 levels"),
    "deeper": (b'{"w":' + b"[" * 100 + b"]" * 100 + b"}", "in more than 64 levels"),
    "no UTF-8": (b'{"\xff": 1}', "its header is not UTF-8 text, from byte 2 on$"),
    "UTF-16": (b"{" + '"a": 1}'.encode("utf-16-le"), "is not JSON|decode"),
    "NaN": (b'{"w": NaN}', "by nan"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_wrong_with_a_header_is_said_in_one_sentence(case, tmp_path):
    header, message = DAMAGED[case]
    path = write(tmp_path / "x.safetensors", header)
    for read in (read_header, read_tensors):
        with pytest.raises(ValueError, match=f"x.safetensors is a damaged safetensors file: .*{message}") as caught:
            read(path)
        assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_a_header_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    path = write(tmp_path / "x.safetensors", b'{"a":' + b" " * 1000 + b"1}")
    monkeypatch.setenv(HEADER_BYTES.variable, "500")
    with pytest.raises(ValueError, match="has a header of 1,007 bytes; at most 500 .*T2L_MAX_HEADER_BYTES allows more"):
        read_header(path)


def test_a_header_of_too_many_values_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setenv(JSON_VALUES.variable, "20")
    with pytest.raises(ValueError, match="its header has up to 41 values; at most 20"):
        read_header(write(tmp_path / "x.safetensors", {"a": [[] for _ in range(20)]}))


@pytest.mark.parametrize("kind", ["BOOL", "I64", "U8", "F8_E8M0"])
def test_weights_of_another_kind_of_number_are_named(kind):
    found = type("Entry", (), {"shape": (1,), "is_floating_point": lambda self: False})()
    with pytest.raises(ValueError, match="^x does not fit its config: it has in another kind of number w$"):
        check_fits({"w": torch.zeros(1)}, {"w": found}, "x")


def test_tensors_of_no_size_and_of_no_axes_are_tensors(tmp_path):
    tensors = {"a": torch.zeros(0, 3), "b": torch.tensor(1.0), "c": torch.zeros(0)}
    write_tensors(tmp_path / "x.safetensors", tensors, {})
    found, _ = read_tensors(tmp_path / "x.safetensors")
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in tensors.items()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_that_are_not_finite_are_named_and_nothing_is_copied(value, dtype):
    target, weights = torch.zeros(2), torch.tensor([1, value], dtype=dtype)
    with pytest.raises(ValueError, match="x.safetensors has weights that are not finite: w; it is damaged"):
        fill_exactly({"w": target}, {"w": weights}, "x.safetensors")
    assert (target == 0).all()


def test_large_finite_weights_are_finite():
    check_finite({"w": torch.full((9,), 3e38), "half": torch.full((9,), 65504.0).half()}, "x")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "empty", "sparse", "long name", "missing"])
def test_info_answers_on_anything_without_loading_torch(kind, tmp_path):
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("empty", "sparse"):
        path.touch()
        os.truncate(path, 1 << 40 if kind == "sparse" else 0)
    path = {"device": "/dev/zero", "long name": f"{tmp_path}/{'x' * 50_000}"}.get(kind, path)
    code = f"import sys\nfrom t2l.cli import main\ncode = main(['info', {str(path)!r}])\n"
    code += "assert 'torch' not in sys.modules\nsys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and len(done.stderr) < 500, done.stderr
    assert done.stderr.startswith("t2l: ")


def test_half_a_character_in_a_header_is_named_in_our_words(tmp_path):
    """JSON allows it in Python, and safetensors does not: its own words came through."""
    header = b'{"__metadata__":{"a":"\\ud800"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="x.safetensors is a damaged safetensors file: its header is not as"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "texts",
    [{f"m{i}": "a" for i in range(200_000)}, {f"m{i}": "[" * 60 + "]" * 60 for i in range(8000)}, {"x": "a" * 10**7}],
)
def test_info_answers_in_time_however_much_metadata_there_is(texts, tmp_path):
    """Quadratic or repeated work would take many seconds."""
    header = json.dumps({"__metadata__": {"format": "text2layer", **texts}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    start = time.process_time()
    try:
        assert len(json.dumps(about(tmp_path / "x.safetensors"))) < 2 * 10**6
    except ValueError as refusal:
        assert "at most 10,000 entries of metadata are taken" in str(refusal)
    assert time.process_time() - start < 1
