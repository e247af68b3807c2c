"""The latent cache: it holds what the encoder says, whoever writes it."""

import json
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from t2l.data import cache_folder as room
from t2l.data.buckets import aspect_buckets, center_crop, nearest_bucket
from t2l.data.cache_folder import Captions, compare, divide_rows, evenly_spaced, pack_captions
from t2l.data.example import CAPTIONS, Example
from t2l.data.latents import Latents, cache_latents, check_latents, std_from_bytes, std_to_bytes
from t2l.data.shards import Shards, write_shard
from t2l.data.texts import cache_texts, check_texts
from t2l.io.checkpoint import read_tensors, write_tensors
from t2l.io.header import read_header
from t2l.layers import Layers


def encode(layers):
    """A posterior that is easy to know: means of 8 x 8 pixels, and their squares as deviation."""
    mean = F.avg_pool2d(layers.stacked, 8)
    return mean, mean.square()


def example(number, size=(16, 16)):
    pixels = torch.rand(1, 7, *size, generator=torch.Generator().manual_seed(number))
    texts = {name: f"{name} {number}" for name in CAPTIONS}
    return Example(f"k{number}", Layers.from_stacked(pixels), **texts)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(room, "FILE_LENGTH", 3)
    write_shard(tmp_path / "data", 0, [example(number) for number in range(8)])
    (tmp_path / "autoencoder.safetensors").write_bytes(b"weights")
    return tmp_path / "data"


def cache(data, out, encode=encode, **share):
    cache_latents(encode, data.parent / "autoencoder.safetensors", data, out, size=16, batch_size=2, **share)


def test_the_cache_holds_what_the_encoder_says_of_every_picture(data, tmp_path):
    cache(data, tmp_path / "out")
    cached, shards = Latents(tmp_path / "out"), Shards(data)
    assert len(cached) == len(shards)
    for number in range(len(shards)):
        found = cached.read(torch.tensor([number]))
        assert all(torch.equal(x, y.half().float()) for x, y in zip(found, encode(shards[number].layers), strict=True))
        assert cached.captions[torch.tensor([number])][0][0] == shards[number].caption


def together(processes, work):
    """Threads in the place of processes: work(process=, processes=, wait=)."""
    wait = threading.Barrier(processes, timeout=60).wait
    with ThreadPoolExecutor(processes) as pool:
        running = [pool.submit(work, process=p, processes=processes, wait=wait) for p in range(processes)]
    for done in running:
        done.result()


@pytest.mark.parametrize("processes", [2, 5])
def test_several_processes_write_the_folder_that_one_writes(processes, data, tmp_path):
    cache(data, tmp_path / "one")
    together(processes, lambda **share: cache(data, tmp_path / "several", **share))
    one, several = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "several"))
    assert one == several


def test_what_is_left_after_a_failure_is_dealt_evenly_though_one_process_lacks_all_of_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "FILE_LENGTH", 1)
    cache(data, tmp_path)
    for number in range(0, 8, 2):  # what the first of two was dealt at the start
        (tmp_path / f"{number:06d}.safetensors").unlink()
    made = Counter()

    def work(process, **share):
        cache(data, tmp_path, lambda layers: made.update([process]) or encode(layers), process=process, **share)

    together(2, work)
    assert made == {0: 2, 1: 2} and len(Latents(tmp_path)) == 8


def test_what_a_kill_left_is_removed_by_the_next_call(data, tmp_path):
    cache(data, tmp_path / "one")
    before = files(tmp_path / "one")
    (tmp_path / "one/.000001.safetensors.x.partial").write_bytes(b"half")
    cache(data, tmp_path / "one")
    assert files(tmp_path / "one") == before


def test_other_data_of_as_many_pictures_are_refused_and_old_caches_without_their_digest_go_on(data, tmp_path):
    def work(out):
        cache(data, out)
        cache_texts(encode_text, "hash", data, out)

    work(tmp_path / "new")
    work(tmp_path / "old")
    about = json.loads((tmp_path / "old/cache.json").read_text())
    del about["data"]
    (tmp_path / "old/cache.json").write_text(json.dumps(about))
    (tmp_path / "old/000001.safetensors").unlink()
    work(tmp_path / "old")
    assert json.loads((tmp_path / "old/cache.json").read_text()) == about and len(Latents(tmp_path / "old")) == 8
    before = files(tmp_path / "new")
    write_shard(data, 0, [example(number) for number in range(1, 9)])
    for again in (cache, lambda data, out: cache_texts(encode_text, "hash", data, out)):
        with pytest.raises(ValueError, match='something else, made with {"data": .*}; take another folder for {"data"'):
            again(data, tmp_path / "new")
    assert files(tmp_path / "new") == before


def test_the_same_call_goes_on_where_it_stopped(data, tmp_path):
    calls = []

    def stops(layers):
        calls.append(len(layers))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(layers)

    with pytest.raises(KeyboardInterrupt):
        cache(data, tmp_path / "out", stops)
    with pytest.raises(ValueError, match="unfinished, 2 of 3 files are missing"):
        Latents(tmp_path / "out")
    cache(data, tmp_path / "out", stops)
    assert sum(calls) == 2 + 1 + 2 + 1 + 2 + 1 + 2
    assert len(Latents(tmp_path / "out")) == 8


@pytest.mark.parametrize(
    ("count", "files", "length"),
    [(1, 1, 1), (12_000, 12, 1000), (10**7, 10_000, 1000), (10**7 + 1, 5001, 2000), (57_020_000, 9504, 6000)],
)
def test_a_file_holds_a_thousand_rows_or_more_so_that_the_files_are_ten_thousand_at_most(count, files, length):
    parts = divide_rows(count)
    assert len(parts) == files <= 10_000 and len(parts[0]) == length
    assert parts[0].start == 0 and parts[-1].stop == count
    assert all(part.stop == following.start for part, following in zip(parts, parts[1:], strict=False))


def test_a_cache_of_many_small_files_goes_on_as_it_was_begun(data, tmp_path, monkeypatch):
    def whole(folder):
        cache(data, folder)
        cache_texts(encode_text, "hash", data, folder)
        return files(folder)

    old = whole(tmp_path / "old")
    monkeypatch.setattr(room, "MOST_FILES", 2)
    new = whole(tmp_path / "new")
    assert [len([name for name in folder if name.startswith("0")]) for folder in (old, new)] == [3, 2]
    for name in ("000001.safetensors", "text-000003.safetensors"):
        (tmp_path / "old" / name).unlink()
    assert whole(tmp_path / "old") == old
    one, other = Latents(tmp_path / "old"), Latents(tmp_path / "new")
    assert list(one.texts()) == list(other.texts())
    assert all(map(torch.equal, one.read(torch.arange(8)), other.read(torch.arange(8))))


SIZES = [(16, 16), (30, 50), (50, 30), (16, 200), (64, 64), (32, 32), (33, 55), (8, 6)]


@pytest.fixture
def shapes(data) -> Path:
    """Pictures of many shapes in the place of the square ones."""
    write_shard(data, 0, [example(number, size) for number, size in enumerate(SIZES)])
    return data


def bucketed(data, out, **share):
    cache_latents(
        encode,
        data.parent / "autoencoder.safetensors",
        data,
        out,
        size=32,
        batch_size=2,
        buckets=aspect_buckets(32, 8),
        **share,
    )


def encode_text(captions):
    """An embedding that is easy to know: 3 tokens, 2 wide."""
    return torch.stack([torch.linspace(0, len(c), 6).view(3, 2) + sum(map(ord, c)) % 97 for c in captions])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_picture_is_cached_at_the_size_of_its_bucket(shapes, tmp_path):
    bucketed(shapes, tmp_path / "out")
    cached, shards = Latents(tmp_path / "out"), Shards(shapes)
    assert cached.sizes == aspect_buckets(32, 8) == [(24, 40), (32, 32), (40, 24)]
    assert len(cached) == 8 and cached.counts == [3, 3, 2]
    assert [cached.pictures(bucket, torch.arange(n)).tolist() for bucket, n in enumerate(cached.counts)] == [
        [1, 3, 6],
        [0, 4, 5],
        [2, 7],
    ]
    for number in range(8):
        layers = shards[number].layers
        expected = encode(center_crop(layers, nearest_bucket(layers.size, cached.sizes)))
        found = cached.read(torch.tensor([number]))
        assert all(torch.equal(x, y.half().float()) for x, y in zip(found, expected, strict=True))
        assert cached.captions[torch.tensor([number])][0][0] == shards[number].caption


def test_pictures_of_one_bucket_are_read_together_in_the_order_asked_for(shapes, tmp_path):
    bucketed(shapes, tmp_path / "out")
    cached = Latents(tmp_path / "out")
    together = cached.read(torch.tensor([6, 1, 3]))
    alone = [cached.read(torch.tensor([number])) for number in (6, 1, 3)]
    assert all(torch.equal(x, torch.cat(parts)) for x, parts in zip(together, zip(*alone, strict=True), strict=True))


def test_without_buckets_a_picture_of_another_shape_is_cropped_to_a_square(shapes, tmp_path):
    cache(shapes, tmp_path / "out")
    found, shards = Latents(tmp_path / "out").read(torch.arange(8))[0], Shards(shapes)
    wide = shards[3].layers.stacked[..., 92:108]  # 16 x 200
    assert torch.equal(found[3], encode(Layers.from_stacked(wide))[0][0].half().float())


def test_the_format_of_a_cache_without_buckets_and_text(data, tmp_path):
    cache(data, tmp_path / "out")
    about = json.loads((tmp_path / "out/cache.json").read_text())
    assert list(about) == ["size", "pictures", "files", "autoencoder", "data"]
    tensors, metadata = read_tensors(tmp_path / "out/000001.safetensors")
    kinds = {"mean": torch.float16, "std": torch.float16, "captions": torch.uint8, "caption_places": torch.int64}
    assert {name: x.dtype for name, x in tensors.items()} == kinds and metadata == {}
    first = tensors["captions"].numpy().tobytes()[: tensors["caption_places"][0, 2]].decode()
    assert first == "caption 3foreground_caption 3 background_caption 3"


def as_first_version(folder):
    """Rewrite a cache in the first version's layout: captions as JSON in the metadata."""
    cached, start = Latents(folder), 0
    for path in sorted(folder.glob("0*.safetensors")):
        tensors, _ = read_tensors(path)
        tensors = {name: x.clone() for name, x in tensors.items() if name != "captions"}
        count = len(tensors.pop("caption_places"))
        captions = cached.captions[torch.arange(start, start + count)]
        start += count
        write_tensors(path, tensors, {"captions": json.dumps(captions)})


def test_a_cache_of_the_first_version_is_read_and_gone_on_with(shapes, tmp_path, monkeypatch):
    bucketed(shapes, tmp_path / "new")
    bucketed(shapes, tmp_path / "old")
    as_first_version(tmp_path / "old")
    new, old = Latents(tmp_path / "new"), Latents(tmp_path / "old")
    monkeypatch.setattr(room, "OLD_FILES_KEPT", 1)
    for picture in torch.tensor([[3], [7], [0], [4], [3]]):
        assert old.captions[picture] == new.captions[picture]
        assert all(map(torch.equal, old.read(picture), new.read(picture)))
    assert list(old.texts()) == list(new.texts()) and old.counts == new.counts
    (tmp_path / "old/000001.safetensors").unlink()
    bucketed(shapes, tmp_path / "old")  # one file in the new layout among old ones
    assert Latents(tmp_path / "old").captions[torch.arange(8)] == new.captions[torch.arange(8)]


@pytest.mark.parametrize("text", ["", "a cup \u2615 on \U0001f600", "\ud83d", "line\nbreak \x00"])
def test_any_caption_comes_back(text, tmp_path, monkeypatch):
    monkeypatch.setattr(Captions, "_read_first_version", lambda *_: pytest.fail("these are no old files"))
    said = [["b", text], [text, "c" * 300], ["", text]]
    write_tensors(tmp_path / "a.safetensors", pack_captions(said), {})
    captions = Captions()
    for _ in range(2):
        captions.add(tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors"), 3)
    assert captions[torch.tensor([5, 0, 1])] == [said[2], said[0], said[1]]
    assert list(captions) == [text for row in [*said, *said] for text in row]


@pytest.mark.parametrize(("workers", "sizes"), [(2, None), (1, aspect_buckets(32, 8))])
def test_reading_ahead_changes_no_byte(workers, sizes, shapes, tmp_path):
    for name, count in (("in between", 0), ("ahead", workers)):
        path = shapes.parent / "autoencoder.safetensors"
        cache_latents(encode, path, shapes, tmp_path / name, size=32, batch_size=2, buckets=sizes, workers=count)
    assert files(tmp_path / "in between") == files(tmp_path / "ahead")


def test_an_unreadable_picture_in_a_worker_is_named_and_the_cache_goes_on_afterwards(data, tmp_path):
    tar = data / "000000.tar"
    whole = tar.read_bytes()
    begin, size = json.loads((data / "000000.jsonl").read_text().splitlines()[6])["members"]["mask.png"]
    tar.write_bytes(whole[:begin] + bytes(size) + whole[begin + size :])
    with pytest.raises(ValueError, match="^shard 000000.tar, key k5: its mask.png is unreadable"):
        cache(data, tmp_path / "out", workers=2)
    tar.write_bytes(whole)
    cache(data, tmp_path / "out", workers=2)
    cache(data, tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


# ---- the posterior's std


@pytest.mark.parametrize("std", ["uint8", "none"])
def test_a_std_in_8_bits_or_none_leaves_the_means_and_captions_as_they_are(std, shapes, tmp_path):
    bucketed(shapes, tmp_path / "whole")
    bucketed(shapes, tmp_path / "less", std=std)
    whole, less = Latents(tmp_path / "whole"), Latents(tmp_path / "less")
    for picture in torch.arange(8)[:, None]:
        (mean, wide), (same, narrow) = whole.read(picture), less.read(picture)
        assert torch.equal(mean, same)
        assert (narrow == 0).all() if std == "none" else ((narrow - wide).abs() <= 0.028 * wide + 2**-16).all()
    assert list(whole.texts()) == list(less.texts())
    assert "of 5 pictures" in check_latents(encode, shapes, less, 5, torch.float32)
    with pytest.raises(ValueError, match="holds a cache of something else"):
        bucketed(shapes, tmp_path / "less")


def test_a_std_in_8_bits_keeps_its_bound_everywhere_and_is_its_own_inverse():
    std = torch.logspace(-30, 4, 100_001, base=2, dtype=torch.float64)
    found = std_from_bytes(std_to_bytes(std)).double()
    inside = std >= 2**-16
    assert ((found / std)[inside] - 1).abs().max() < 0.028 and (found - std)[~inside].abs().max() < 2**-16
    steps = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(std_to_bytes(std_from_bytes(steps)), steps)
    assert std_from_bytes(std_to_bytes(torch.zeros(1))) == 0


@pytest.mark.parametrize("std", [16.1, float("inf"), float("nan")])
def test_a_std_that_8_bits_do_not_hold_is_refused(std):
    with pytest.raises(ValueError, match="a std in 8 bits goes up to 16, the autoencoder gives .*: keep it in float16"):
        std_to_bytes(torch.tensor([0.1, std]))


def test_several_processes_write_the_folder_that_one_writes_with_buckets_and_texts(shapes, tmp_path):
    for name, processes in (("one", 1), ("several", 3)):

        def work(name=name, **share):
            bucketed(shapes, tmp_path / name, **share)
            cache_texts(encode_text, "hash", shapes, tmp_path / name, batch_size=2, **share)

        together(processes, work)
    assert files(tmp_path / "one") == files(tmp_path / "several")


def test_a_folder_of_other_buckets_is_refused(shapes, tmp_path):
    bucketed(shapes, tmp_path / "out")
    with pytest.raises(
        ValueError, match='holds a cache of something else, made with .*"buckets".*; take another folder'
    ):
        cache(shapes, tmp_path / "out")
    cache(shapes, tmp_path / "square")
    with pytest.raises(ValueError, match='made with {"size": 16, "buckets": null}; take another folder for .*40x24'):
        bucketed(shapes, tmp_path / "square")


def test_embeddings_are_those_of_every_distinct_caption_and_the_empty_one_first(data, tmp_path):
    cache(data, tmp_path / "out")
    before = files(tmp_path / "out")
    assert Latents(tmp_path / "out").embeddings is None
    cache_texts(encode_text, "hash", data, tmp_path / "out", batch_size=5)
    cached = Latents(tmp_path / "out")
    captions = [cached.embeddings.caption(number) for number in range(len(cached.embeddings))]
    assert captions == list(dict.fromkeys(cached.texts())) and captions[0] == "" and len(captions) == 17
    chosen = [captions[i] for i in (4, 0, 16)]
    assert torch.equal(cached.embeddings[chosen], encode_text(chosen).half().float())
    with pytest.raises(
        ValueError, match="no embedding of the caption 'another'; its latents and its embeddings are of"
    ):
        cached.embeddings[["", "another"]]
    after = files(tmp_path / "out")
    assert all(after[name] == content for name, content in before.items() if name != "cache.json")


def test_a_cache_with_embeddings_may_be_gone_on_with_without_naming_the_encoder_again(data, tmp_path):
    cache(data, tmp_path / "out")
    cache_texts(encode_text, "hash", data, tmp_path / "out")
    before = files(tmp_path / "out")
    cache(data, tmp_path / "out")
    assert files(tmp_path / "out") == before
    with pytest.raises(ValueError, match='made with .*"hash".*; take another folder for .*"other"'):
        cache_texts(encode_text, "other", data, tmp_path / "out")


def test_missing_embeddings_are_named(data, tmp_path):
    cache(data, tmp_path / "out")
    cache_texts(encode_text, "hash", data, tmp_path / "out")
    (tmp_path / "out/text-000000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"unfinished, 1 of 6 files are missing \(first text-000000"):
        Latents(tmp_path / "out")


def test_a_check_says_the_largest_difference_and_refuses_what_rounding_does_not_explain(shapes, tmp_path):
    bucketed(shapes, tmp_path / "out")
    cache_texts(encode_text, "hash", shapes, tmp_path / "out")
    cached = Latents(tmp_path / "out")
    sentence = check_latents(encode, shapes, cached, 5, torch.float32)
    assert re.fullmatch(
        r"the latents of 5 pictures, computed again, differ from the cache by at most 0.000\d+, which .*", sentence
    )
    assert "the embeddings of 17 captions" in check_texts(encode_text, cached.embeddings, 99)
    other = lambda layers: [moment + 2e-3 for moment in encode(layers)]  # noqa: E731
    with pytest.raises(ValueError, match="the mean of k0 in the cache is 0.002.* rounding explains 0.00"):
        check_latents(other, shapes, cached, 5, torch.float32)
    check_latents(other, shapes, cached, 5, torch.bfloat16)
    with pytest.raises(ValueError, match="the embedding of 'caption 0' in the cache is 1 from"):
        check_texts(lambda captions: encode_text(captions) + (captions != [""]), cached.embeddings, 99)


def test_rounding_explains_what_float16_does_to_the_smallest_deviations():
    computed = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 1e-5
    compare("them", [("std", computed.half().float(), computed)], torch.float32)
    with pytest.raises(ValueError, match="rounding explains"):
        compare("them", [("std", computed + 1e-7, computed)], torch.float32)


@pytest.mark.parametrize("length", [1, 7, 10, 57_020_000])
def test_what_is_checked_is_spread_over_all_at_even_distances(length):
    numbers = evenly_spaced(length, 7)
    assert numbers[0] == 0 and len(set(numbers)) == len(numbers) == min(7, length)
    assert all(length // 7 <= b - a <= -(-length // 7) for a, b in zip(numbers, [*numbers[1:], length], strict=True))
