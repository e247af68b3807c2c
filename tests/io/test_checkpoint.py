"""Checkpoint files: whole or not at all, exact names, one sentence for everything that is wrong."""

import os
import pickle
import resource
import stat

import pytest
import torch
from torch.nn import Linear

from t2l.io.checkpoint import fill_exactly, load_exactly, read_metadata, read_names, read_tensors, write_tensors


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(1000.0), "b": torch.ones(2, 3)}, {"format": "test"})
    return path


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4), "half": torch.randn(5).half(), "count": torch.tensor(7)}
    write_tensors(tmp_path / "deep" / "x.safetensors", tensors, {"format": "test", "text": "\u00e9\n"})
    found, metadata = read_tensors(tmp_path / "deep" / "x.safetensors")
    assert metadata == {"format": "test", "text": "\u00e9\n"}
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], x) for k, x in tensors.items())
    assert all(found[k].dtype == x.dtype for k, x in tensors.items())


def test_the_same_content_gives_the_same_bytes_whatever_the_order_of_its_metadata(tmp_path):
    """Latents belong to the bytes of their autoencoder's file."""
    metadata = {f"name {i}": f'{{"a": "\u00e9 {i}\n"}}' for i in range(9)}
    tensors, files = {"x": torch.arange(3.0)}, set()
    for names in (list(metadata), list(metadata)[::-1], list(metadata)):
        write_tensors(tmp_path / "x.safetensors", tensors, {name: metadata[name] for name in names})
        assert read_metadata(tmp_path / "x.safetensors") == metadata
        files.add((tmp_path / "x.safetensors").read_bytes())
    assert len(files) == 1


def test_views_tied_and_channels_last_tensors_are_written_as_they_look(tmp_path):
    base = torch.randn(2, 6, 4, 4)
    last = base.to(memory_format=torch.channels_last)
    tensors = {"base": base, "again": base, "part": base[1:], "turned": base.transpose(1, 2), "last": last}
    write_tensors(tmp_path / "x.safetensors", tensors, {})
    found, _ = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(found[k], x) for k, x in tensors.items())


def test_names_and_metadata_can_be_read_alone(file):
    assert sorted(read_names(file)) == ["a", "b"] and read_metadata(file) == {"format": "test"}


def test_the_file_can_be_read_by_others(file):
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_second_write_replaces_the_first_and_leaves_nothing_else(file):
    write_tensors(file, {"c": torch.zeros(1)}, {})
    assert read_names(file) == ["c"] and os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("limit", [100, 10_000])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(file, limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = file.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(OSError, match=r"x\.safetensors cannot be written: File too large"):
            write_tensors(file, {"big": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_a_folder_that_cannot_be_made_is_told(file):
    with pytest.raises(OSError, match=r"y\.safetensors cannot be written: (Not a directory|File exists)"):
        write_tensors(file / "y.safetensors", {}, {})


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path):
    with pytest.raises(OSError, match="cannot be written: .* is a folder"):
        write_tensors(tmp_path, {}, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot be written: Permission denied"):
        write_tensors(tmp_path / "x.safetensors", {}, {})


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="the checkpoint .*no.safetensors does not exist"):
        read_tensors(tmp_path / "no.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": 1}), "is a pickle .* can run code"),
        (b"", "is empty"),
        (b"abc", "is not a safetensors file"),
        (b"hello, I am a text and no tensors", "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ((12).to_bytes(8, "little") + b"{not json   ", "is a damaged safetensors file"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_what_is_no_safetensors_is_told(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_tensors, read_metadata, read_names):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_torch_save_is_refused_under_any_name(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is a pickle"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_told_wherever_it_was_cut(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: max(12, int(share * len(content)))])
    with pytest.raises(ValueError, match="is truncated: it has .* bytes"):
        read_tensors(file)


def test_a_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        read_tensors(tmp_path)


def test_a_module_takes_its_weights_and_keeps_its_dtype():
    source, target = Linear(2, 3).half(), Linear(2, 3)
    load_exactly(target, source.state_dict(), "x")
    assert torch.equal(target.weight, source.weight.float()) and target.weight.dtype == torch.float32


def test_everything_that_does_not_fit_is_in_one_sentence_and_nothing_is_copied():
    module = Linear(2, 3)
    before = module.weight.clone()
    with pytest.raises(ValueError) as caught:
        load_exactly(module, {"weight": torch.zeros(3, 4), "gain": torch.zeros(1)}, "file.safetensors")
    assert str(caught.value) == (
        "file.safetensors does not fit its config: it lacks bias; it has, unexpectedly, gain; "
        "it has misshapen weight (3, 4) instead of (3, 2)"
    )
    assert torch.equal(module.weight, before)


def test_only_a_dozen_names_are_listed():
    with pytest.raises(ValueError, match="lacks x0, x1, .*x11 and 8 more$"):
        fill_exactly({f"x{i}": torch.zeros(1) for i in range(20)}, {}, "file")
