"""Damaged files of every kind that is read end in an error that says what to do, and run no code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import SUPPORT

# Inputs of each kind, in the default suite and in `make crash`: 10,350 there. A report is drawn for half a second.
INPUTS = {"hdf5": (30, 1_800), "pixels": (10, 600), "npz": (20, 1_200), "minari": (20, 1_200), "shards": (15, 450)}
INPUTS |= {"checked": (20, 1_200), "altered": (30, 900), "foreign": (30, 900), "settings": (20, 600)}
INPUTS |= {"sweep": (20, 600), "described": (3, 300), "report": (3, 300), "evaluated": (10, 300)}
pytestmark = pytest.mark.slow
UNSAFE = {"unsafe": 50, "imports": 1}


def fuzz(counts: dict[str, int], folder: Path, first: int = 0) -> dict[str, dict]:
    """Run the inputs of each kind in a process of its own; its death is told with the input that it was at."""
    words = [sys.executable, str(SUPPORT / "fuzz.py"), str(first), str(folder)]
    words += [f"{kind}={count}" for kind, count in counts.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=1_200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(zip(counts, map(json.loads, done.stdout.splitlines()), strict=True))
    return {kind: one | {"said": done.stderr[-2000:]} for kind, one in found.items()}


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> dict[str, dict]:
    """What came of a few inputs of each kind, and of those of readers as none may be."""
    return fuzz({kind: count for kind, (count, _) in INPUTS.items()} | UNSAFE, tmp_path_factory.mktemp("few"))


@pytest.fixture
def fuzzed(request: pytest.FixtureRequest, tmp_path: Path, day: int) -> Callable[[str, int], dict]:
    """Return what tells what came of a kind's inputs."""

    def of(kind: str, count: int) -> dict:
        if count == INPUTS[kind][0]:
            return request.getfixturevalue("few")[kind]
        return fuzz({kind: count}, tmp_path, first=10_000 * day)[kind]

    return of


@pytest.mark.parametrize("share", [0, pytest.param(1, marks=pytest.mark.crash)], ids=["few", "all"])
@pytest.mark.parametrize("kind", INPUTS)
def test_promise_8_damage_ends_in_a_typed_error_and_runs_no_code(fuzzed, kind, share):
    count = INPUTS[kind][share]
    found = fuzzed(kind, count)
    assert "died" not in found, found
    assert found["other"] == [] and found["ran"] == []
    assert found["refused"] + found["read"] == count
    assert found["refused"] > count // 4  # damage that nothing notices would prove nothing
    assert found["planted"] or kind not in ("minari", "settings", "sweep", "described", "report", "evaluated")


def test_a_reader_that_raises_anything_or_runs_its_file_is_told(few):
    assert few["unsafe"]["other"] and few["unsafe"]["ran"]


def test_a_reader_that_imports_what_its_file_names_is_told(few):
    found = few["imports"]
    assert found["planted"] and any("canary.py" in one for one in found["ran"])
