"""What SECURITY.md says: nothing listens, nothing unpickles, nothing is taken that is not pinned."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT
from run_cases import python

WATCHED = """
import json, sys
told = []
def hook(event, args):
    if event in ("socket.bind", "socket.connect", "socket.sendto", "pickle.find_class", "os.system"):
        told.append(f"{event} {str(args)[:100]}")
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        told.append(f"wrote {args[0]}")
sys.addaudithook(hook)
"""
A_DAY = """
from pathlib import Path
import numpy as np
import gtp_fast
from gtp_fast.cli.main import main
run = Path(sys.argv[1]) / "run"
small = "--steps 20 --hidden 16 --backend eager --threads 1 --eval-every 10 --eval-episodes 1"
for typed in (f"train --env hopper-demo-v0 --run-dir {run} {small}", f"eval {run} --episodes 1", f"report {run}"):
    try:
        main(typed.split())
    except SystemExit as left:
        assert not left.code, left
policy = gtp_fast.load_policy(run)
policy.act(np.zeros(11, np.float32))
json.dump(told, open(Path(sys.argv[1]) / "told.json", "w"))
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch) -> Callable[[str], list[str]]:
    """Return what runs a program that watches itself, and what it told."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(program: str) -> list[str]:
        python(WATCHED + program, str(tmp_path))
        return json.loads((tmp_path / "told.json").read_text())

    return run


@pytest.mark.slow
def test_training_scoring_and_reporting_open_no_socket_unpickle_nothing_and_write_only_where_named(
    told, tmp_path: Path
):
    events = told(A_DAY)
    written = [event.removeprefix("wrote ") for event in events if event.startswith("wrote ")]
    assert [event for event in events if not event.startswith("wrote ")] == []
    assert written
    elsewhere = [path for path in written if not path.startswith((str(tmp_path), "/dev/", "/proc/"))]
    assert [path for path in elsewhere if not path.isdecimal()] == []  # a number is a descriptor


def test_a_socket_and_a_pickle_would_be_told(told):
    program = """
import collections, pickle, socket
socket.socket().bind(("127.0.0.1", 0))
pickle.loads(pickle.dumps(collections.OrderedDict()))
json.dump(told, open(sys.argv[1] + "/told.json", "w"))
"""
    assert {event.split()[0] for event in told(program)} >= {"socket.bind", "pickle.find_class"}


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)

    def name(text: str) -> str:
        return re.match(r"[\w.-]+", text)[0].lower().replace("_", "-")

    assert {name(each) for each in wanted} <= {name(line) for line in lines}
