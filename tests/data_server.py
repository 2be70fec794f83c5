"""A small HTTP server with real sockets that serves bytes, and misbehaves as it is told, request by request.

    server.files["/a.zip"] = raw
    server.faults["/a.zip"] = ["503", "cut:1000"]       the first two requests; others are served well

Faults: a status (503, 404), `cut:N` (the connection breaks after N bytes), `short` (the last bytes never
come), `unsized:N` (N bytes and an end, of which no word was said), `long` (more than stated, chunked),
`stall` (no answer), `to:URL` (redirect), `deaf` (a Range is answered with a range of the file as it is now,
whatever If-Range says), `mute` (the same, and the answer does not say which version it is of).
"""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from dataclasses import dataclass, field

import pytest


@dataclass
class Served:
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    always: dict[str, str] = field(default_factory=dict)
    tagged: bool = True
    #: An ETag that every version of every file has; None: each version its own.
    tag: str | None = None
    ranged: bool = True
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def asked(self, path: str) -> list[str | None]:
        """The Range of each GET of a path."""
        return [range for method, asked, range in self.requests if (method, asked) == ("GET", path)]


class Handler(http.server.BaseHTTPRequestHandler):
    served: Served
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.served.requests.append(("HEAD", self.path, None))
        name, _, value = self.served.always.get(self.path, "").partition(":")
        if name == "to":
            return self.answer(302, 0, Location=value)
        self.answer(200, len(self.served.files[self.path]))

    def do_GET(self):
        served = self.served
        served.requests.append(("GET", self.path, self.headers.get("Range")))
        faults = served.faults.get(self.path, [])
        fault = faults.pop(0) if faults else served.always.get(self.path, "")
        name, _, value = fault.partition(":")
        if name.isdigit():
            headers = {"Retry-After": value} if value else {}
            return self.answer(int(name), 0, **headers)
        if name == "to":
            return self.answer(302, 0, Location=value)
        if name == "stall":
            return time.sleep(1)
        if self.path not in served.files:
            return self.answer(404, 0)
        raw = served.files[self.path]
        if name == "long":
            return self.chunked(raw)
        if name == "unsized":
            return self.unsized(raw[: int(value)])
        start, status, headers = self.range_of(raw, deaf=name in ("deaf", "mute"))
        if status == 416:
            return self.answer(416, 0, **headers)
        body = raw[start:]
        length = len(body) + (1000 if name == "short" else 0)
        self.answer(status, length, tagged=name != "mute", **headers)
        self.wfile.write(body[: int(value)] if name == "cut" else body)
        if name in ("cut", "short"):
            self.wfile.flush()
            self.close_connection = True

    def range_of(self, raw: bytes, deaf: bool) -> tuple[int, int, dict[str, str]]:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        unchanged = deaf or self.headers.get("If-Range") == self.tag_of(raw)
        if not wanted or not self.served.ranged or not unchanged:
            return 0, 200, {}
        start = int(wanted[1])
        if start >= len(raw):
            return 0, 416, {"Content-Range": f"bytes */{len(raw)}"}
        return start, 206, {"Content-Range": f"bytes {start}-{len(raw) - 1}/{len(raw)}"}

    def tag_of(self, raw: bytes) -> str:
        return self.served.tag or f'"{hashlib.sha256(raw).hexdigest()[:16]}"'

    def answer(self, status: int, length: int, tagged: bool = True, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if tagged and self.served.tagged and self.path in self.served.files:
            self.send_header("ETag", self.tag_of(self.served.files[self.path]))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def chunked(self, raw: bytes) -> None:
        """The file over and over, and no word of its length."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(50):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))

    def unsized(self, raw: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = True


@pytest.fixture
def server():
    served = Served()
    handler = type("ServedHandler", (Handler,), {"served": served})
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listening.daemon_threads = True
    # A client that goes away in the middle is what some tests are about.
    listening.handle_error = lambda *_: None
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    served.url = f"http://127.0.0.1:{listening.server_address[1]}"
    yield served
    listening.shutdown()
    listening.server_close()
