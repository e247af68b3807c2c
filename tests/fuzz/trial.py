"""One hostile input in a process of its own: how it ended, how long it took, how much memory, what it touched."""

import ctypes
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.raw_text import raw_words

MOST_SECONDS = float(
    os.environ.get("FUZZ_SECONDS", 60)
)  # 5 in `make fuzz`; a machine that others use too may stand still
MOST_BYTES = 1 << 30
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Outcome:
    """How a trial ended. sentence: of the error that it raised; None: it was a success."""

    sentence: str | None = None
    raised: str = ""  # the class of the error
    seconds: float = 0.0
    memory: int = 0  # bytes above what the process held at its start
    needed: int = MOST_BYTES  # bytes that it may hold, by the call's own account
    touched: list[str] = field(default_factory=list)  # programs started, files written outside the folder

    def faults(self, name: str) -> list[str]:
        """What must not be. name: of the file, which a sentence has to say."""
        found = [f"{self.seconds:.1f} s"] * (self.seconds > MOST_SECONDS)
        found += [f"{self.memory / 2**20:.0f} MB"] * (self.memory > self.needed) + self.touched
        if self.sentence is not None:
            wrong = raw_words(self.sentence) + [self.raised] * (self.raised not in ("ValueError", "FileNotFoundError"))
            wrong += ["does not name the file"] * (name not in self.sentence)
            found += [f"{', '.join(wrong)}: {self.sentence[:300]}"] if wrong else []
        return found


def run(call: Callable[[], object], folder: Path, limit: float = 30.0) -> Outcome:
    """A call in a fork of this process. folder: the only place where it may write. Above the limit it is killed.

    The call may return how many bytes what it did takes; otherwise a gigabyte is allowed.
    """
    _give_back_what_is_free()
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _tell(writer, call, folder)
    os.close(writer)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, limit)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status, _ = os.wait4(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    outcome = pickle.loads(told) if told else Outcome(f"crashed with status {status}", "crash")
    outcome.seconds = time.monotonic() - started
    return outcome


def run_afresh(call: Callable[[], object], folder: Path, limit: float = 120.0) -> Outcome:
    """As run, in a new interpreter, whose heap no earlier test has left full of holes: its memory is what is promised.

    call: can be pickled. The time that it takes is not counted.
    """
    program = "import sys; from tests.fuzz.trial import tell_outcome; tell_outcome(sys.stdin.buffer.read())"
    command, told = [sys.executable, "-c", program], pickle.dumps((call, folder))
    done = subprocess.run(command, input=told, capture_output=True, timeout=limit)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


def tell_outcome(told: bytes) -> None:
    """In the new interpreter: call, and write the outcome to standard output."""
    call, folder = pickle.loads(told)
    sys.stdout.buffer.write(pickle.dumps(_outcome(call, folder)))


def _tell(writer: int, call: Callable[[], object], folder: Path) -> None:
    """In the child: call, and write the outcome into the pipe."""
    outcome = _outcome(call, folder)
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(pickle.dumps(outcome))
    os._exit(0)


def _outcome(call: Callable[[], object], folder: Path) -> Outcome:
    outcome = Outcome()
    before = _memory()
    try:
        _watch(outcome.touched, folder)
        told = call()
        outcome.needed = told if isinstance(told, int) else MOST_BYTES
    except BaseException as error:
        outcome.sentence, outcome.raised = str(error), type(error).__name__
    outcome.memory = max(0, _memory() - before)
    return outcome


def _give_back_what_is_free() -> None:
    """What this process freed and still holds would hide what the fork takes."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _memory() -> int:
    """The most bytes that this process has held. Linux's ru_maxrss would count those of the process that started it."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _watch(touched: list[str], folder: Path) -> None:
    """Note every program started and every file written outside the folder."""

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(STARTS):
            touched.append(f"{event} {arguments[:2]!r:.200}")
        if event == "open" and isinstance(arguments[0], (str, bytes)) and (arguments[2] or 0) & WRITES:
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((str(folder.resolve()), "/dev/", "/proc/")):
                touched.append(f"wrote {path}")

    sys.addaudithook(hook)
