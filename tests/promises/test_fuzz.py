"""Damaged files of every kind that is read end in an error that says what to do, and run no code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import SUPPORT

INPUTS = {"hdf5": 1_800, "pixels": 600, "npz": 1_200, "minari": 1_200, "shards": 450, "checked": 1_200}
INPUTS |= {"altered": 900, "foreign": 900, "settings": 600, "sweep": 600, "described": 300, "report": 300}
INPUTS |= {"evaluated": 300}  # 10,350
FEW = 30  # the default suite takes one in so many


def fuzz(kind: str, count: int, folder: Path, first: int = 0) -> dict:
    """Run the inputs in a process of their own; its death is told with the input that it was at."""
    words = [sys.executable, str(SUPPORT / "fuzz.py"), kind, str(first), str(count), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=1_200, check=False)
    now = folder / "now"
    assert done.returncode == 0, f"died at {now.read_text() if now.exists() else 'the start'}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("share", [FEW, pytest.param(1, marks=pytest.mark.crash)], ids=["few", "all"])
@pytest.mark.parametrize("kind", INPUTS)
def test_promise_8_damage_ends_in_a_typed_error_and_runs_no_code(tmp_path, kind, share, day):
    count = INPUTS[kind] // share
    found = fuzz(kind, count, tmp_path / "work", first=10_000 * day)
    assert found["other"] == [] and found["ran"] == []
    assert found["refused"] + found["read"] == count
    assert found["refused"] > count // 4  # damage that nothing notices would prove nothing
    assert found["planted"] or kind not in ("minari", "settings", "sweep", "described", "report", "evaluated")


def test_a_reader_that_raises_anything_or_runs_its_file_is_told(tmp_path):
    found = fuzz("unsafe", 50, tmp_path / "work")
    assert found["other"] and found["ran"]


def test_a_reader_that_imports_what_its_file_names_is_told(tmp_path):
    found = fuzz("imports", 1, tmp_path / "work")
    assert found["planted"] and any("canary.py" in one for one in found["ran"])
