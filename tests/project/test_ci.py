"""What `.ci/run` does within its 90 minutes, by the clock, on a slow machine and a usual one: make is a stand-in."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from tools import ci

ALL = {"counts": {"passed": 7, "skipped": 1}, "left_out": {}}
SOME = {"counts": {"passed": 2, "skipped": 6}, "left_out": {"tests/test_docs.py": 4, "tests/test_cli.py": 1}}

# It writes its words down, leaves what the tests would have kept, and ends as it is told to.
MAKE = """#!/bin/sh
echo "$@" >> asked
case "$1" in
test) mkdir -p .pytest_cache/v/gtp-fast; test -e kept && cp kept .pytest_cache/v/gtp-fast/outcome;;
esac
test -e "hangs-$1" && sleep 600
test ! -e "fails-$1"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Return a folder to work in, in which make is the stand-in and the machine a usual one."""
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(stat.S_IRWXU)
    (tmp_path / "kept").write_text(json.dumps(ALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(ci, "import_torch", lambda: None)
    monkeypatch.delenv("TEST_FLAGS", raising=False)
    return _machine(tmp_path, monkeypatch, slowness=1.0, minutes=0)


def _machine(folder: Path, monkeypatch, slowness: float, minutes: float) -> Path:
    """Make the machine so many times as slow as usual, and begin so many minutes ago."""
    monkeypatch.setattr(ci, "measured", lambda *_: slowness)
    monkeypatch.setenv("GTP_FAST_CI_STARTED", str(time.time() - 60 * minutes))
    return folder


def _asked(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "asked").read_text().splitlines()]


def _last_lines(capfd) -> list[str]:
    return capfd.readouterr().out.split("\n\n")[-1].splitlines()


def test_a_usual_machine_does_everything_and_says_that_nothing_was_left_out(folder, capfd):
    assert ci.main() == 0
    assert _asked(folder) == ["install", "test", "lint", "gpu-dry"]
    lines = _last_lines(capfd)
    assert "Nothing was left out." in lines and lines[-1].startswith("7 passed, 1 skipped in ")


def test_a_slow_machine_leaves_out_what_it_has_no_time_for_names_it_and_passes(folder, monkeypatch, capfd):
    _machine(folder, monkeypatch, slowness=15.0, minutes=84)
    (folder / "kept").write_text(json.dumps(SOME))
    assert ci.main() == 0
    assert _asked(folder) == ["install", "test"]
    lines = _last_lines(capfd)
    assert lines[:5] == [
        "84 of 90 minutes; this machine takes 15.0 times as long as usual.",
        "Left out, as no time was left: 5 of 8 tests, which are:",
        "  tests/test_docs.py 4, tests/test_cli.py 1",
        "Left out, as no time was left: make lint and make gpu-dry.",
        lines[-1],
    ]
    assert lines[-1].startswith("2 passed, 6 skipped in ")


def test_a_slow_machine_with_time_left_out_only_the_rehearsal_whose_own_limits_it_would_miss(folder, monkeypatch):
    _machine(folder, monkeypatch, slowness=6.0, minutes=30)
    assert ci.main() == 0
    assert _asked(folder) == ["install", "test", "lint"]


def test_a_usual_machine_that_had_to_leave_tests_out_fails(folder, capfd):
    (folder / "kept").write_text(json.dumps(SOME))
    assert ci.main() == 1
    assert any("This machine is not slow" in line for line in _last_lines(capfd))


@pytest.mark.parametrize("step", ["install", "test", "lint", "gpu-dry"])
def test_a_step_that_fails_fails_the_whole_and_is_named(folder, capfd, step):
    (folder / f"fails-{step}").touch()
    assert ci.main() == 1
    assert f"Failed: make {step}." in _last_lines(capfd)


def test_what_an_earlier_call_kept_is_not_taken_for_the_tests_of_this_one(folder, capfd):
    ci.KEPT.parent.mkdir(parents=True)
    (folder / "kept").rename(ci.KEPT)
    assert ci.main() == 1
    lines = _last_lines(capfd)
    assert "No test passed: that counts as a failure." in lines and lines[-1].startswith("no tests ran in ")


def test_a_step_that_does_not_end_is_stopped_with_its_children_in_time_for_the_last_lines(folder, monkeypatch, capfd):
    (folder / "hangs-test").touch()
    _machine(folder, monkeypatch, slowness=15.0, minutes=ci.STOP_S / 60 - 0.03)
    began = time.monotonic()
    assert ci.main() == 1
    assert time.monotonic() - began < 60
    assert "Failed: make test." in _last_lines(capfd)


@pytest.mark.parametrize(
    ("installed", "until"),
    [(2, 60), (44, 60), (50, 65), (62, 77), (70, 78), (85, 78)],
    ids=lambda minutes: f"{minutes}min",
)
def test_tests_are_begun_for_an_hour_and_for_a_quarter_where_installing_took_the_hour(installed, until):
    assert ci.begin_until(1000.0, 1000.0 + 60 * installed) == 1000.0 + 60 * until


def test_measuring_takes_little_and_ends_near_the_usual(capfd):
    slowness = ci.measured_without_torch()
    assert 0.2 < slowness < 100.0
    assert "a Python loop: " in capfd.readouterr().out
