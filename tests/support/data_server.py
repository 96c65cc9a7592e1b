"""A real HTTP server on this machine that serves files well, badly, or breaks off."""

from __future__ import annotations

import hashlib
import http.server
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Site:
    """What the server does: its files, and how it misbehaves."""

    files: dict[str, bytes]
    ranges: bool = True
    cut_at: list[int] = field(default_factory=list)  # bytes after which each next answer breaks off
    lie: int = 0  # added to the length it promises
    shift: int = 0  # added to where a part begins, as it is sent and as it is said
    grown: int = 0  # added to the size of the whole that an answer with a part names
    more: bytes | None = None  # sent without end behind the file, whose length is then not said
    redirects: dict[str, str] = field(default_factory=dict)  # from a path to an address
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
        if self.path in site.redirects:
            self.send_response(302)
            self.send_header("Location", site.redirects[self.path])
            self.end_headers()
            return
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
        start += site.shift if start else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole + site.grown}")
        self.send_header("ETag", site.version or f'"{hashlib.sha256(body).hexdigest()}"')
        for key, value in site.headers.items():
            self.send_header(key, value)
        if site.more is None:
            self.send_header("Content-Length", str(whole - start + site.lie))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = start + site.cut_at.pop(0) if site.cut_at else whole
        for place in range(start, min(stop, whole), 1 << 16):
            self.wfile.write(body[place : min(place + (1 << 16), stop)])
            time.sleep(site.pause)
        self.close_connection = True
        while site.more is not None:  # until the other end hangs up
            self.wfile.write(site.more)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """One that says nothing of connections that the other end breaks off."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


def certificate(folder: Path) -> Path:
    """Make a key and a certificate of this machine in one file, by the command openssl."""
    key, made, both = (folder / name for name in ("key.pem", "certificate.pem", "both.pem"))
    about = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", made, *about]
    subprocess.run(command, check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + made.read_bytes())
    return both


@contextmanager
def serving(site: Site, secret: Path | None = None) -> Iterator[Site]:
    """Serve a site on a free port of this machine, with a certificate by HTTPS; its address is written into it."""
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site}))
    if secret is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(secret)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    site.url = f"http{'s' * (secret is not None)}://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()
