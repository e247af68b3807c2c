"""Workflows of strangers on a real server: each ends in success or in one sentence, and the server answers all the
while.

`make fuzz N=1000 SEED=7` tries as many; N and SEED are FUZZ_N and FUZZ_SEED in the environment.
"""

import json
import logging
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.comfy.conftest import ROOT, base, comfyui, start_server  # noqa: F401
from tests.fuzz.raw_text import raw_words
from tests.fuzz.trial import MOST_BYTES, MOST_SECONDS
from tests.fuzz.workflows import workflow

N, SEED = int(os.environ.get("FUZZ_N", 40)), int(os.environ.get("FUZZ_SEED", 0))
SEEDS = [int(x) for x in os.environ["FUZZ_SEEDS"].split(",")] if "FUZZ_SEEDS" in os.environ else range(SEED, SEED + N)
SLOWEST_ANSWER = float(os.environ.get("FUZZ_ANSWER", 30))  # seconds, of GET /queue; 0.5 in `make fuzz`
OUTSIDE = "psd linked link.psd secret".split()


class Watched:
    """A server under observation: a thread asks for its queue and looks at its memory."""

    def __init__(self, server, log: Path) -> None:
        self.server, self.log, self.process = server, log, psutil.Process(server.pid)
        self.slowest = self.peak = 0.0
        self.last = self.said = ""  # how the last workflow ended, and its sentence
        self.ends: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.threads = [
            threading.Thread(target=self._repeat, args=(x,), daemon=True) for x in (self._ask, self._measure)
        ]
        for thread in self.threads:
            thread.start()

    def _repeat(self, look) -> None:
        while not self.stopped.wait(0.02):
            look()

    def _ask(self) -> None:
        start = time.monotonic()
        self.server.get("/queue")
        self.slowest = max(self.slowest, time.monotonic() - start)

    def _measure(self) -> None:
        self.peak = max(self.peak, self.process.memory_info().rss)

    def faults(self, graph: dict) -> list[str]:
        """Run a workflow; what must not be."""
        self.slowest, self.peak, told = 0.0, 0, self.log.read_text() if self.log.exists() else ""
        before, start = self.server.memory(), time.monotonic()
        faults = self._run(graph)
        self.ends[self.last] += 1
        seconds, grown = time.monotonic() - start, self.peak - before
        if self.last != "success":  # what is right may take as long and as much as it is large
            faults += [f"{seconds:.1f} s"] * (seconds > MOST_SECONDS) + [f"{grown / 2**20:.0f} MB"] * (
                grown > MOST_BYTES
            )
        faults += [f"GET /queue took {self.slowest:.2f} s"] * (self.slowest > SLOWEST_ANSWER)
        touched = self.log.read_text()[len(told) :] if self.log.exists() else ""
        faults += [touched] if touched else []
        return [*faults, f"({self.last}: {self.said[:300]})"] if faults else []

    def _run(self, graph: dict) -> list[str]:
        request = urllib.request.Request(
            f"{self.server.url}/prompt", json.dumps({"prompt": graph}).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                queued = json.load(answer)
        except urllib.error.HTTPError as refusal:
            self.last = "refused"
            return refused(json.loads(refusal.read() or b"{}").get("node_errors", {}))
        entry = self._finished(queued["prompt_id"])
        if entry is None:
            self.last = "no end"
            return ["no end after 60 s"]
        failed = [body for kind, body in entry["status"]["messages"] if kind == "execution_error"]
        self.last = f"failed {failed[0]['node_type'][:3]}" if failed else "success"
        self.said = failed[0]["exception_message"] if failed else ""
        seen = [text for name, out in entry["outputs"].items() if "seen" in name for text in out.get("text", [])]
        return (
            refused(queued["node_errors"])
            + [x for body in failed for x in failure(body)]
            + [f"pictures beyond 0 to 1: {x}" for x in seen]
        )

    def _finished(self, prompt: str) -> dict | None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if entry := json.loads(self.server.get(f"/history/{prompt}")).get(prompt):
                return entry
            time.sleep(0.02)
        request = urllib.request.Request(f"{self.server.url}/interrupt", b"{}", method="POST")
        urllib.request.urlopen(request, timeout=60).close()
        self.server.wait_until_idle()
        return None


def refused(node_errors: dict) -> list[str]:
    """Faults of what our nodes say before a run; core's own words about widgets are its own."""
    ours = [x for found in node_errors.values() for x in found["errors"] if x["type"] == "custom_validation_failed"]
    return [f"refused: {words}: {x['details'][:300]}" for x in ours if (words := raw_words(x["details"]))]


def failure(body: dict) -> list[str]:
    """Faults of what a node of ours says: it names itself and an input of its."""
    if not body["node_type"].startswith("T2L_") or "text2layer" not in "".join(body["traceback"]):
        return []  # a test's own node, or core before it comes to ours
    sentence = body["exception_message"].strip()
    faults = raw_words(sentence) + [body["exception_type"]] * (body["exception_type"] != "ValueError")
    inputs = set(body["current_inputs"])
    if not any(sentence.startswith(f"{name}: ") for name in NAMES) or not any(name in sentence for name in inputs):
        faults.append("names no node and input")
    return [f"{', '.join(faults)}: {sentence[:400]}\n{''.join(body['traceback'][-2:])[-600:]}"] if faults else []


NAMES: set[str] = set()


@pytest.fixture(scope="module")
def watched(comfyui, base, tmp_path_factory):  # noqa: F811
    """The server with the foreign nodes, files that should not be there, and a stand-in for every program that may be
    started.
    """
    folder = tmp_path_factory.mktemp("outside")
    hostile_files(base, folder)
    log = base / "touched.log"
    programs = tmp_path_factory.mktemp("programs")
    for name in ("gs", "convert", "ffmpeg", "exiftool", "sh"):
        (programs / name).write_text(f'#!/bin/bash\necho "started {name} $@" >> "{log}"\n')
        (programs / name).chmod(0o755)
    environment = {
        "FUZZ_LOG": str(log),
        "FUZZ_BASE": str(base),
        "FUZZ_OUTSIDE": str(folder),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    with start_server(comfyui, base, environment) as server:
        log.unlink(missing_ok=True)  # what ComfyUI itself does at its start
        watched = Watched(server, log)
        yield watched
        watched.stopped.set()


def hostile_files(base: Path, outside: Path) -> None:  # noqa: F811
    """Layer files, links, pipes and broken files in ComfyUI's folders."""
    good = ROOT / "workflows" / "strawberry.psd"
    for folder in (base / "input", outside):
        shutil.copy(good, folder / ("here.psd" if folder != outside else "secret.psd"))
    for name in ("input", "output"):
        (base / name).mkdir(exist_ok=True)
        (base / name / "linked").symlink_to(outside, target_is_directory=True)
    (base / "input" / "link.psd").symlink_to(outside / "secret.psd")
    os.mkfifo(base / "input" / "fifo.psd")
    (base / "input" / "broken.psd").write_bytes(good.read_bytes()[:5000])
    (base / "input" / "broken.ora").write_bytes(b"PK\3\4" + bytes(50))


@pytest.fixture(scope="module")
def about(watched):
    """What the server says of our nodes."""
    found = {
        name: info for name, info in json.loads(watched.server.get("/object_info")).items() if name.startswith("T2L_")
    }
    NAMES.update(info["display_name"] for info in found.values())
    return found


@pytest.mark.slow
def test_a_workflow_of_a_stranger_ends_in_success_or_in_one_sentence(watched, about):
    found = {}
    for seed in SEEDS:
        graph = workflow(seed, about)
        if faults := watched.faults(graph):
            found[seed] = f"{graph['node']['class_type']}: {'; '.join(faults)}"
            logging.warning("seed %s: %s", seed, found[seed])
    logging.warning("ends: %s", dict(watched.ends))
    assert not found, "\n".join(f"seed {seed}: {faults}" for seed, faults in found.items())
