"""A real ComfyUI server with the pack in it. COMFYUI_PATH takes another checkout than the one `make test` unpacks."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.tools import missing

ROOT = Path(__file__).resolve().parents[2]
DEMO = "text2layer-demo.safetensors"
NO_CORE_AUDIO = ("torchaudio", "nodes_audio")  # two core files that need what the tests do not install


@dataclass
class Result:
    """What became of a prompt: refused before it ran (error and node_errors), failed (error), or what its nodes show,
    by node id. Which of the two it is differs between versions of ComfyUI; the sentence does not.
    """

    error: str | None
    node_errors: dict
    pictures: dict[str, list[np.ndarray]]  # (H, W, C), 0 to 255
    texts: dict[str, list[str]]


class Server:
    """ComfyUI over HTTP, as its own frontend uses it."""

    def __init__(self, url: str, folder: Path, log: Path, pid: int) -> None:
        self.url, self.folder, self.log, self.pid = url, folder, log, pid

    def memory(self) -> int:
        """Bytes the server holds in memory."""
        return psutil.Process(self.pid).memory_info().rss

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def run(self, graph: dict, timeout: float = 300) -> Result:
        """Queue a prompt in API format and wait for its end."""
        # Without a client the history of a prompt lacks what its nodes show from the cache, where another test ran the
        # same.
        body = {"prompt": graph, "client_id": "tests"}
        request = urllib.request.Request(
            f"{self.url}/prompt", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                queued = json.load(answer)
        except urllib.error.HTTPError as refusal:
            node_errors = json.load(refusal)["node_errors"]
            return Result(_sentences(node_errors) or "refused", node_errors, {}, {})
        entry = self._finished(queued["prompt_id"], timeout)
        errors = [body["exception_message"] for kind, body in entry["status"]["messages"] if kind == "execution_error"]
        pictures = {node: [self._picture(x) for x in out.get("images", [])] for node, out in entry["outputs"].items()}
        texts = {node: list(out.get("text", [])) for node, out in entry["outputs"].items()}
        error = errors[0] if errors else _sentences(queued["node_errors"])
        return Result(error, queued["node_errors"], pictures, texts)

    def wait_until_idle(self, timeout: float = 300) -> None:
        """Until nothing runs or waits in the queue."""
        until = time.monotonic() + timeout
        while any(json.loads(self.get("/queue")).values()):
            if time.monotonic() > until:
                raise TimeoutError(f"the queue was not empty after {timeout} s; see {self.log}")
            time.sleep(0.1)

    def _finished(self, prompt: str, timeout: float) -> dict:
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            history = json.loads(self.get(f"/history/{prompt}"))
            if prompt in history:
                return history[prompt]
            time.sleep(0.02)
        raise TimeoutError(f"the prompt did not end in {timeout} s; see {self.log}")

    def _picture(self, entry: dict) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(self.get(f"/view?{urllib.parse.urlencode(entry)}"))))


def _sentences(node_errors: dict) -> str | None:
    return "\n".join(x["details"] for node in node_errors.values() for x in node["errors"]) or None


def in_few_steps(graph: dict, steps: int = 5) -> dict:
    """The prompt with samplers that take a few steps: as many nodes and pictures, in a tenth of the time."""
    short = json.loads(json.dumps(graph))
    for node in short.values():
        node["inputs"] |= {"steps": steps} if "steps" in node["inputs"] else {}
    return short


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of a ComfyUI checkout."""
    path = Path(os.environ.get("COMFYUI_PATH", ROOT / ".comfy" / "ComfyUI"))
    if not (path / "main.py").is_file():
        missing("ComfyUI", "make test")
    return path


@pytest.fixture(scope="session")
def base(comfyui, tmp_path_factory) -> Path:
    """A ComfyUI base folder with our nodes, one that makes layer documents as others do, and the picture that ComfyUI
    ships.
    """
    folder = tmp_path_factory.mktemp("comfy")
    for name in ("custom_nodes", "input"):
        (folder / name).mkdir()
    shutil.copy(comfyui / "input" / "example.png", folder / "input")
    (folder / "custom_nodes" / "text2layer").symlink_to(ROOT, target_is_directory=True)
    for path in (Path(__file__).parent / "foreign_documents.py", ROOT / "tests" / "fuzz" / "foreign_anything.py"):
        shutil.copy(path, folder / "custom_nodes")
    return folder


@pytest.fixture(scope="session")
def server(comfyui, base):
    """The running server; its log is checked by test_nodes.py."""
    with start_server(comfyui, base, {}) as running:
        yield running


@contextmanager
def start_server(comfyui: Path, base: Path, environment: dict[str, str]) -> Iterator[Server]:
    """A server until the block ends; environment: variables beside those of the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--cpu", "--port", str(port), "--base-directory", str(base), "--preview-method", "latent2rgb"]
    command = [sys.executable, "main.py", *arguments, "--database-url", f"sqlite:///{base}/comfy.db"]
    log = base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=comfyui, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment
        )
    try:
        running = Server(f"http://127.0.0.1:{port}", base, log, process.pid)
        _wait(running, process)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _wait(server: Server, process: subprocess.Popen, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"ComfyUI did not start:\n{server.log.read_text()[-4000:]}")
