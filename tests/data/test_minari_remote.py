"""A data set that is absent is fetched by Minari's own client, from a hub that answers on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from data_server import Site, serving
from gymnasium.spaces import Box
from minari_cases import BOX, UNIT, collect
from run_cases import gtp_fast

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
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    about = {"id": "farama-minari/walk", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": name, "size": len(body), "oid": COMMIT} for name, body in files.items()]
    api = "/api/datasets"
    served = {api: json.dumps([about]).encode()}
    for revision in ("main", COMMIT):
        served[f"{api}/farama-minari/walk/revision/{revision}"] = json.dumps(about).encode()
        served[f"{api}/farama-minari/walk/tree/{revision}"] = json.dumps(tree).encode()
        served |= {f"/datasets/farama-minari/walk/resolve/{revision}/{name}": body for name, body in files.items()}
    with serving(Site(served, version="", headers={"X-Repo-Commit": COMMIT})) as site:
        yield site.url


def _load(hub: str, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Describe a data set in a process of its own: the client reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    local = {"MINARI_DATASETS_PATH": str(folder / "here"), "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    return gtp_fast("data", "info", name, "--json", env=os.environ | settings | local)


@pytest.mark.slow
def test_an_absent_data_set_is_fetched_and_read(hub: str, tmp_path: Path):
    done = _load(hub, tmp_path, "walk/box-v0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["transitions"], found["source"]) == (15, "minari:walk/box-v0")
    assert (tmp_path / "here/walk/box-v0/data/main_data.hdf5").exists()
    assert not (tmp_path / "here/walk/wide-v0").exists()


@pytest.mark.slow
def test_a_data_set_that_the_hub_has_not_is_said_so(hub: str, tmp_path: Path):
    done = _load(hub, tmp_path, "walk/none-v0")
    assert done.returncode == 3 and "walk/none-v0 is not in" in done.stderr and "Couldn't find" in done.stderr
