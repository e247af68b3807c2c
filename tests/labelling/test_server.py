"""The label page over HTTP: what it serves, to whom, and what it writes."""

import http.client
import io
import json
import threading

import pytest
import torch
from PIL import Image

from t2l.data.example import Example
from t2l.data.labels import LabelFile, read_labels
from t2l.data.shards import Shards, write_shard
from t2l.labelling.samples import SHOWN, Samples
from t2l.labelling.server import LabelServer
from t2l.layers import Layers

COUNT = 5


def shards(folder, count=COUNT):
    generator = torch.Generator().manual_seed(0)
    pictures = [Layers.from_stacked(torch.rand(1, 7, 24, 32, generator=generator)) for _ in range(count)]
    write_shard(folder, 0, [Example(f"k{i}", layers, f"caption {i}") for i, layers in enumerate(pictures)])
    return Shards(folder)


class Client:
    """A browser on this machine, which sends the headers it is told to."""

    def __init__(self, server):
        self.server, self.host = server, f"127.0.0.1:{server.server_port}"

    def ask(self, path, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        for name, value in ({"Host": self.host} | headers).items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())

    def post(self, path, said, **headers):
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        headers = {
            "Content_Type": "application/json",
            "Content_Length": str(len(body)),
            "X_T2L_Token": self.server.token,
        } | headers
        status, found, _ = self.ask(path, "POST", body, **headers)
        return status, json.loads(found)


@pytest.fixture
def client(tmp_path):
    with LabelFile(tmp_path / "labels.jsonl", "mask") as labels:
        server = LabelServer(Samples(shards(tmp_path / "data"), labels))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield Client(server)
        server.shutdown()
        server.server_close()


def labels(tmp_path):
    return {key: label.good for key, label in read_labels(tmp_path / "labels.jsonl", "mask").items()}


def test_every_sample_is_shown_once_and_its_label_is_written(client, tmp_path):
    sample = json.loads(client.ask("/next?after=-1")[1])
    seen = []
    while sample["number"] is not None:
        seen.append(sample["key"])
        _, sample = client.post("/label", {"number": sample["number"], "good": True, "reason": ""})
    assert sorted(seen) == [f"k{i}" for i in range(COUNT)] and sample["done"] == sample["good"] == COUNT
    assert labels(tmp_path) == dict.fromkeys(seen, True)


def test_a_label_is_on_the_disk_before_the_answer_and_undo_takes_it_back(client, tmp_path):
    client.post("/label", {"number": 2, "good": False, "reason": "small"})
    assert list(labels(tmp_path).values()) == [False]
    assert client.post("/undo", {})[1]["number"] == 2
    assert labels(tmp_path) == {} and client.post("/undo", {})[1]["number"] is None


def test_the_pictures_are_png_of_the_samples_own_size(client):
    for part in SHOWN["mask"]:
        with Image.open(io.BytesIO(client.ask(f"/sample/0/{part}")[1])) as image:
            assert image.format == "PNG" and image.size == (32, 24)


def test_the_page_loads_nothing_from_elsewhere(client):
    _, page, headers = client.ask("/")
    assert b"http" not in page.replace(b"https://", b"http") and client.server.token.encode() in page
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "evil.example:80", "127.0.0.1.evil.example:1", ""])
def test_another_host_name_is_refused(client, host):
    for path in ("/", "/next?after=-1", "/sample/0/picture"):
        status, body, _ = client.ask(path, Host=host)
        assert status == 403 and client.server.token.encode() not in body


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}]
)
def test_another_site_is_refused(client, tmp_path, headers):
    assert client.ask("/sample/0/picture", **headers)[0] == 403
    assert client.post("/label", {"number": 0, "good": True, "reason": ""}, **headers)[0] == 403
    assert labels(tmp_path) == {}


def test_no_answer_allows_another_origin(client):
    for path in ("/", "/next?after=-1", "/nothing"):
        assert not [name for name in client.ask(path)[2] if name.lower().startswith("access-control")]
    assert client.ask("/label", "OPTIONS")[0] == 501


def test_a_post_without_the_token_is_refused(client, tmp_path):
    for token in ("", "wrong", "é"):
        status, said = client.post("/label", {"number": 0, "good": True, "reason": ""}, X_T2L_Token=token)
        assert status == 403 and "load it again" in said["error"]
    assert labels(tmp_path) == {}


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/sample/0/../../labels.jsonl",
        "/sample/..%2f..%2fetc/passwd",
        "/sample/0/hole",  # of the other kind
        "/sample/5/picture",
        "/sample/-1/picture",
        "/sample/99999999999999/picture",
        "//etc/passwd",
        "/page.html",
        "/sample/0/picture/",
    ],
)
def test_nothing_else_is_served(client, path):
    assert client.ask(path)[0] == 404


@pytest.mark.parametrize("query", ["", "?after=", "?after=-2", "?after=x", "?after=1&after=2", "?after=99999999999"])
def test_next_needs_a_number(client, query):
    assert client.ask(f"/next{query}")[0] == 400


@pytest.mark.parametrize(
    "said",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 2000,
        {"number": 5, "good": True, "reason": ""},
        {"number": -1, "good": True, "reason": ""},
        {"number": True, "good": True, "reason": ""},
        {"number": 0, "good": 1, "reason": ""},
        {"number": 0, "good": True, "reason": "small"},
        {"number": 0, "good": False, "reason": "cohesion"},
        {"number": 0, "good": False, "reason": ["small"]},
        {},
    ],
)
def test_what_is_no_label_is_refused_and_nothing_is_written(client, tmp_path, said):
    assert client.post("/label", said)[0] == 400
    assert labels(tmp_path) == {} and client.ask("/")[0] == 200


def test_a_post_that_is_too_large_or_has_no_length_is_not_read(client):
    assert client.post("/label", b" " * 10, Content_Length="99999999")[0] == 413
    assert client.post("/label", b"{}", Content_Length="x")[0] == 411
    assert client.post("/label", b"{}", Transfer_Encoding="chunked")[0] == 411
    assert client.post("/label", b"{}", Content_Type="text/plain")[0] == 415


def test_a_damaged_sample_is_told_and_the_rest_goes_on(client, tmp_path):
    """The shard is cut short after it was opened."""
    with (tmp_path / "data" / "000000.tar").open("r+b") as file:
        file.truncate(600)
    status, body, _ = client.ask("/sample/0/picture")
    assert status == 500 and "shard 000000.tar, key k" in json.loads(body)["error"]
    assert client.ask("/next?after=0")[0] == 200


def test_a_port_in_use_is_told(client):
    with pytest.raises(OSError, match=r"port \d+ of this machine cannot be used .*choose another with --port"):
        LabelServer(client.server.samples, client.server.server_port)


def test_it_listens_on_the_loopback_alone(client):
    assert client.server.server_address[0] == "127.0.0.1"
