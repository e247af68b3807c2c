"""The page and its data over HTTP, for a browser on the same machine and for nobody else.

    GET  /                       the page, with a token in it
    GET  /next?after=NUMBER      the next sample without a label
    GET  /sample/NUMBER/PART     one of its pictures
    POST /label, /undo           say, take back; with the token

It listens on 127.0.0.1 alone and knows no paths of files. A request that names another host (DNS rebinding), comes from
another site's page or posts without the token is refused before anything is done.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import threading
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..budget import parse_json
from ..data.labels import REASONS
from .samples import SHOWN, Samples

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
MOST_BYTES = 4096  # of what is posted
SECONDS = 30  # until a silent connection is closed
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Refused(Exception):
    """Why a request is not answered: its HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class LabelServer(ThreadingHTTPServer):
    """Serves samples on the loopback; port 0 takes a free one. Raises OSError with a sentence for a port in use."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, samples: Samples, port: int = 0) -> None:
        self.samples, self.turn = samples, threading.Lock()
        self.token, self.nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise OSError(
                f"port {port} of this machine cannot be used ({error.strerror}); choose another with --port"
            ) from error

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """The names under which a browser on this machine may ask."""
        names = HOST, "localhost"
        return tuple(f"{name}:{self.server_port}" for name in names) + (names if self.server_port == 80 else ())

    @cached_property
    def page(self) -> bytes:
        known = {"kind": self.samples.kind, "reasons": REASONS[self.samples.kind], "token": self.token}
        text = PAGE.read_text(encoding="utf-8")
        return text.replace("{{nonce}}", self.nonce).replace("{{known}}", json.dumps(known)).encode()


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "t2l", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the labeller's."""

    def _answer(self, work: Any) -> None:
        """Send what `work` gives, or one sentence that says why not."""
        try:
            self._check_origin()
            kind, body = work()
            self._send(200, kind, body)
        except Refused as error:
            self._fail(error.status, str(error))
        except (ValueError, OSError) as error:  # a damaged shard, a full disk
            if not isinstance(error, ConnectionError):
                self._fail(500, str(error))

    def _check_origin(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            raise Refused(403, f"this page is for {self.server.url} alone")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            raise Refused(403, "another site's page may not ask here")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Refused(403, "another site's page may not ask here")

    def _get(self) -> tuple[str, bytes]:
        path, samples = urlsplit(self.path), self.server.samples
        if path.path == "/":
            return "text/html; charset=utf-8", self.server.page
        if path.path == "/next":
            found = re.fullmatch(r"after=(-1|\d{1,9})", path.query)
            if not found:
                raise Refused(400, "/next needs after=NUMBER")
            with self.server.turn:
                return _json(samples.next(int(found[1])))
        found = re.fullmatch(r"/sample/(\d{1,9})/([a-z]+)", path.path)
        if not found or found[2] not in SHOWN[samples.kind] or int(found[1]) >= samples.count:
            raise Refused(404, "there is nothing here")
        with self.server.turn:
            return "image/png", samples.picture(int(found[1]), found[2])

    def _post(self) -> tuple[str, bytes]:
        if not hmac.compare_digest(self.headers.get("X-T2L-Token", "").encode(), self.server.token.encode()):
            raise Refused(403, "the page is from an earlier start; load it again")
        said, samples = self._read_body(), self.server.samples
        if self.path == "/undo":
            with self.server.turn:
                return _json(samples.take_back())
        if self.path != "/label":
            raise Refused(404, "there is nothing here")
        number, good, reason = (said.get(name) for name in ("number", "good", "reason"))
        if type(number) is not int or not 0 <= number < samples.count or type(good) is not bool:
            raise Refused(400, f"a label needs number below {samples.count} and good")
        if reason not in ("", *(() if good else REASONS[samples.kind])):
            raise Refused(400, f"a bad sample's reason is one of {', '.join(REASONS[samples.kind])}")
        with self.server.turn:
            samples.say(number, good, reason)
            return _json(samples.next(number))

    def _read_body(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "JSON is needed")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "Content-Length is needed")
        if int(length) > MOST_BYTES:
            raise Refused(413, f"at most {MOST_BYTES} bytes are taken")
        try:
            said = parse_json(self.rfile.read(int(length)).decode(), "it")
        except ValueError as error:
            raise Refused(400, "JSON is needed") from error
        if not isinstance(said, dict):
            raise Refused(400, "a JSON object is needed")
        return said

    def _fail(self, status: int, sentence: str) -> None:
        self.close_connection = True  # what was posted may not have been read
        self._send(status, *_json({"error": sentence}))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}
        headers |= {"Content-Security-Policy": POLICY.format(self.server.nonce), "Cache-Control": "no-store"}
        headers |= {"Connection": "close"} if self.close_connection else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _json(values: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(values).encode()
