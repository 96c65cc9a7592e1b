"""What SECURITY.md says: nothing listens, nothing unpickles, nothing is taken that is not pinned."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from places import ROOT
from run_cases import python

DEMO = ROOT / "gtp_fast/data/hopper-demo-v0.hdf5"
# Importing `watched` comes first. Every command is typed in one process; the runs start workers, and those fork. The
# last worker is given an environment that does what must be told.
A_DAY = """
import watched, sys
import numpy as np
import gtp_fast
from gtp_fast.cli.main import main
from gtp_fast.data.catalog import resolve
from gtp_fast.evaluation.worker import Worker
own, demo = sys.argv[1:]
small = "--steps 4 --hidden 16 --backend eager --threads 1"
evaluated = "--eval-every 2 --eval-episodes 2 --eval-workers 2"
for typed in (
    f"train --env watched:Watched-v0 --dataset {demo} --run-dir {own} {small} {evaluated}",
    f"eval {own} --episodes 1 --allow-import watched",
    f"report {own}",
):
    try:
        main(typed.split())
    except SystemExit as left:
        assert not left.code, left
gtp_fast.load_policy(own).act(np.zeros(11, np.float32))
worker = Worker()
worker.check(resolve("watched:Misbehaving-v0"), 11, 3, 1, None)
worker.close()
"""


class Told(NamedTuple):
    """What processes told of themselves: who evaluates, what is forbidden, the files that each wrote."""

    folder: Path
    typed: int
    workers: list[int]
    forbidden: list[tuple[int, str, str]]
    written: dict[int, list[str]]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Told:
    """Run the program, which watches itself and its workers, and return what they told."""
    folder = tmp_path_factory.mktemp("day")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("TOLD", str(folder / "told"))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # Python's own files, beside what it imports
        patch.chdir(folder)
        python(A_DAY, str(folder / "own"), str(DEMO))
    lines = [json.loads(line) for line in (folder / "told").read_text().splitlines()]
    began = {process: detail for process, what, detail in lines if what == "began"}
    workers = [process for process, words in began.items() if "gtp_fast.evaluation.serve" in words]
    (typed,) = began.keys() - set(workers)
    written: dict[int, list[str]] = {}
    for process, what, detail in lines:
        if what == "wrote":
            written.setdefault(process, []).append(detail)
    forbidden = [(process, what, detail) for process, what, detail in lines if what not in ("began", "wrote")]
    return Told(folder, typed, workers, forbidden, written)


@pytest.mark.slow
def test_training_scoring_and_reporting_open_no_socket_unpickle_nothing_and_write_only_where_named(told):
    assert [one for one in told.forbidden if one[0] != told.workers[1]] == []
    elsewhere = [
        path for path in told.written[told.typed] if not path.startswith((str(told.folder), "/dev/", "/proc/"))
    ]
    assert elsewhere == [] and len(told.written[told.typed]) > 20
    # A worker opens a temporary file that never has a name, and nothing else.
    own = {told.typed, told.workers[1]}
    written = {path for process in told.written.keys() - own for path in told.written[process]}
    assert written <= {str(told.folder), "/dev/null"}


@pytest.mark.slow
def test_what_an_environment_does_in_the_worker_is_told(told):
    assert {what for _, what, _ in told.forbidden} == {"socket.bind", "pickle.find_class"}
    assert {process for process, _, _ in told.forbidden} == {told.workers[1]}
    assert told.written[told.workers[1]] == [str(told.folder / "told.written")]


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)

    def name(text: str) -> str:
        return re.match(r"[\w.-]+", text)[0].lower().replace("_", "-")

    assert {name(each) for each in wanted} <= {name(line) for line in lines}
