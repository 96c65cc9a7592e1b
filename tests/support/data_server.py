"""A real HTTP server on this machine that serves files well, badly, or breaks off."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Site:
    """What the server does: its files, and how it misbehaves."""

    files: dict[str, bytes]
    ranges: bool = True
    cut_at: list[int] = field(default_factory=list)  # bytes after which each next answer breaks off
    lie: int = 0  # added to the length it promises
    version: str = '"1"'  # of every file; "" for one of each file's own
    headers: dict[str, str] = field(default_factory=dict)  # beside those of every answer
    pause: float = 0.0  # seconds between blocks of 64 KiB
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of every request
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `site`, with ranges as an ordinary server does."""

    site: Site

    def do_GET(self) -> None:
        """Answer with a file, a part of it, or a part of what was promised."""
        site, wanted = self.site, self.headers.get("Range")
        site.asked.append((self.path, wanted))
        body = site.files.get(self.path.partition("?")[0])
        if body is None:
            self.send_error(404)
            return
        start, whole = int(wanted[6:-1]) if wanted else 0, len(body)
        if not site.ranges or self.headers.get("If-Range", site.version) != site.version:
            start = 0
        if start >= whole:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{whole + site.lie}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("ETag", site.version or f'"{hashlib.sha256(body).hexdigest()}"')
        for key, value in site.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(whole - start + site.lie))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = start + site.cut_at.pop(0) if site.cut_at else whole
        for place in range(start, min(stop, whole), 1 << 16):
            self.wfile.write(body[place : min(place + (1 << 16), stop)])
            time.sleep(site.pause)
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve a site on a free port of this machine; its address is written into it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()
