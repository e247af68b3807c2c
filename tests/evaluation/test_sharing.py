"""Several processes share an evaluation, and its metrics are those of one."""

import json

import pytest
import torch

from t2l.data.shards import write_shard
from t2l.evaluation.sharing import ProcessGroup, join_processes
from t2l.io.image import save_png, to_image
from tests.evaluation.run_evaluation import evaluate_small
from tests.evaluation.test_report import example
from tests.model.test_text2layer import tiny
from tests.training.run_training import Launched


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_batch_is_one_processs_and_they_come_back_in_order(count, monkeypatch):
    batches = list(range(7))
    groups = [ProcessGroup(rank, count) for rank in range(count)]
    everyone = [group.local_part(batches) for group in groups]
    assert sorted(sum(everyone, [])) == batches
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda found, part: found.__setitem__(slice(None), everyone)
    )
    assert all(group.gather(group.local_part(batches)) == batches for group in groups)


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes() as group:
        assert group == ProcessGroup() and group.is_main and not torch.distributed.is_initialized()


def test_every_process_takes_a_card_of_its_own_unless_one_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    group = ProcessGroup(rank=3, world_size=4, local_rank=3)
    assert group.pick_card(torch.device("cuda")) == torch.device("cuda:1")
    assert group.pick_card(torch.device("cuda:0")) == torch.device("cuda:0")
    assert group.pick_card(torch.device("cpu")) == torch.device("cpu")
    assert ProcessGroup().pick_card(torch.device("cuda")) == torch.device("cuda")


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tmp_path):
    """Real networks of random weights; also the files that are written."""
    data = tmp_path / "data"
    write_shard(data / "train", 0, [example(i) for i in range(12)])
    write_shard(data / "test", 0, [example(i) for i in range(12, 21)])
    save_png(to_image(torch.ones(1, 64, 64)), data / "masks" / "0012.png")
    tiny(info={"size": "64"}).save(tmp_path / "model.safetensors", torch.float32)
    for count in (1, 2):
        Launched(count, evaluate_small, tmp_path / "model.safetensors", data, tmp_path / str(count)).wait()
    one, two = (json.loads((tmp_path / name / "figures.json").read_text()) for name in "12")
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert one["generation"]["mask_iou_human"] is not None and one["counts"]["saliency"] == 5
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in "12"]
    assert files[0].keys() == files[1].keys() and len(files[0]) == 7 + 3
    assert all(files[0][name] == files[1][name] for name in files[0] if name != "figures.json")
