"""What SECURITY.md says: nothing listens, nothing unpickles, nothing is taken that is not pinned."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from places import ROOT
from run_cases import python

DEMO = ROOT / "gtp_fast/data/hopper-demo-v0.hdf5"
# Importing `watched` comes first. Every command is typed in one process; the runs start workers, and those fork.
A_DAY = """
import watched, sys
import numpy as np
import gtp_fast
from gtp_fast.cli.main import main
run, own, demo = sys.argv[1:]
small = "--steps 20 --hidden 16 --backend eager --threads 1"
evaluated = "--eval-every 10 --eval-episodes 2 --eval-workers 2"
for typed in (
    f"train --env hopper-demo-v0 --run-dir {run} {small} --eval-every 0",
    f"train --env watched:Watched-v0 --dataset {demo} --run-dir {own} {small} {evaluated}",
    f"eval {own} --episodes 1 --allow-import watched",
    f"report {own}",
):
    try:
        main(typed.split())
    except SystemExit as left:
        assert not left.code, left
gtp_fast.load_policy(run).act(np.zeros(11, np.float32))
"""
ONE_CHECK = """
import watched
from gtp_fast.data.catalog import resolve
from gtp_fast.errors import UsageError
from gtp_fast.evaluation.worker import Worker
worker = Worker()
worker.check(resolve("watched:Misbehaving-v0"), 11, 3, 1, None)
worker.close()
"""


class Told(NamedTuple):
    """What processes told of themselves: their command lines, what is forbidden, the files that each wrote."""

    began: dict[int, str]
    forbidden: list[str]
    written: dict[int, list[str]]

    @property
    def worker(self) -> int:
        """The process that evaluates; it is not the one that trains."""
        (found,) = [process for process, words in self.began.items() if "gtp_fast.evaluation.serve" in words]
        return found


@pytest.fixture
def told(tmp_path: Path, monkeypatch) -> Callable[..., Told]:
    """Return what runs a program that watches itself and its workers, and what they told."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # Python's own files, beside what it imports
    monkeypatch.chdir(tmp_path)

    def run(program: str, *words: str) -> Told:
        python(program, *words)
        lines = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
        written: dict[int, list[str]] = {}
        for process, what, detail in lines:
            if what == "wrote":
                written.setdefault(process, []).append(detail)
        forbidden = [f"{process} {what} {detail}" for process, what, detail in lines if what not in ("began", "wrote")]
        return Told({process: detail for process, what, detail in lines if what == "began"}, forbidden, written)

    return run


@pytest.mark.slow
def test_training_scoring_and_reporting_open_no_socket_unpickle_nothing_and_write_only_where_named(
    told, tmp_path: Path
):
    found = told(A_DAY, str(tmp_path / "run"), str(tmp_path / "own"), str(DEMO))
    assert found.forbidden == []
    (typed,) = found.began.keys() - {found.worker}
    elsewhere = [path for path in found.written[typed] if not path.startswith((str(tmp_path), "/dev/", "/proc/"))]
    assert elsewhere == [] and len(found.written[typed]) > 20
    # A worker opens a temporary file that never has a name, and nothing else.
    written = {path for process in found.written.keys() - {typed} for path in found.written[process]}
    assert written <= {str(tmp_path), "/dev/null"}


def test_what_an_environment_does_in_the_worker_is_told(told, tmp_path: Path):
    found = told(ONE_CHECK)
    assert {line.split()[1] for line in found.forbidden} == {"socket.bind", "pickle.find_class"}
    assert {int(line.split()[0]) for line in found.forbidden} == {found.worker}
    assert found.written[found.worker] == [str(tmp_path / "told.written")]


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)

    def name(text: str) -> str:
        return re.match(r"[\w.-]+", text)[0].lower().replace("_", "-")

    assert {name(each) for each in wanted} <= {name(line) for line in lines}
