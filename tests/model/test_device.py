"""Which device is picked, and what is said of one that is not there."""

import pytest
import torch

from t2l import cli
from t2l.model.device import pick_device, place


@pytest.mark.parametrize(("cards", "name"), [(0, "cpu"), (2, "cuda")])
def test_auto_is_the_card_where_there_is_one(cards, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device(name)


@pytest.mark.parametrize(
    ("cards", "name", "said"), [(0, "cuda", "no CUDA card"), (2, "cuda:2", "there are 2, counted from 0")]
)
def test_a_card_that_is_not_there_is_said(cards, name, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    with pytest.raises(ValueError, match=f"device {name} is not there: .*{said}.*--device cpu"):
        pick_device(name)


def test_another_name_and_another_dtype_are_refused():
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="dtype must be one of fp32, fp16, bf16, got 'fp8'"):
        place(torch.nn.Linear(1, 1), torch.device("cpu"), "fp8")


def test_generate_names_the_missing_card_before_it_reads_the_checkpoint(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cli.main(["generate", "a cat", "--device", "cuda", "--checkpoint", "none", "--out", str(tmp_path)]) == 2
    assert "t2l: device cuda is not there" in capsys.readouterr().err


def test_a_full_card_is_answered_with_what_helps():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    sentence = cli._sentence(error)
    assert all(word in sentence for word in ("--size", "--count", "--dtype fp16", "--device cpu"))
