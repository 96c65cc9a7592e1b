"""A data set that is absent is fetched by Minari's own client, from a hub that answers on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from gymnasium.spaces import Box
from minari_cases import BOX, UNIT, collect

COMMIT = "0" * 40
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Serve the repository farama-minari/walk, as Hugging Face's hub does, and yield its address."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "there"))
    collect("walk/box-v0", BOX, UNIT)
    collect("walk/wide-v0", BOX, Box(-2, 2, (2,)))
    root = tmp_path / "there" / "walk"
    (root / "namespace_metadata.json").write_text(json.dumps({"datasets": ["walk/box-v0", "walk/wide-v0"]}))

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(urlparse(self.path).path)
            files = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
            name = path.removeprefix("/datasets/farama-minari/walk/resolve/").partition("/")[2]
            about = {"id": "farama-minari/walk", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            if path == "/api/datasets":
                self._answer(json.dumps([about]).encode(), "application/json")
            elif path.startswith("/api/datasets/farama-minari/walk/revision"):
                self._answer(json.dumps(about).encode(), "application/json")
            elif path.startswith("/api/datasets/farama-minari/walk/tree"):
                sizes = {f: (root / f).stat().st_size for f in files}
                tree = [{"type": "file", "path": f, "size": size, "oid": COMMIT} for f, size in sizes.items()]
                self._answer(json.dumps(tree).encode(), "application/json")
            elif name in files:
                self._answer((root / name).read_bytes(), "application/octet-stream")
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def _answer(self, body: bytes, kind: str):
            self.send_response(200)
            for key, value in {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def _load(hub: str, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Describe a data set in a process of its own: the client reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    local = {"MINARI_DATASETS_PATH": str(folder / "here"), "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", "gtp_fast", "data", "info", name, "--json"],
        env=os.environ | settings | local,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_an_absent_data_set_is_fetched_and_read(hub: str, tmp_path: Path):
    done = _load(hub, tmp_path, "walk/box-v0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["transitions"], found["source"]) == (15, "minari:walk/box-v0")
    assert (tmp_path / "here/walk/box-v0/data/main_data.hdf5").exists() and not (
        tmp_path / "here/walk/wide-v0"
    ).exists()


@pytest.mark.slow
def test_a_data_set_that_the_hub_has_not_is_said_so(hub: str, tmp_path: Path):
    done = _load(hub, tmp_path, "walk/none-v0")
    assert done.returncode == 3 and "walk/none-v0 is not in" in done.stderr and "Couldn't find" in done.stderr
