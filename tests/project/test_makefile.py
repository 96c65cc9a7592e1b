"""What `make` installs, and when: Python and pip are stand-ins that write down what they are called with."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import settings
from places import ROOT

# As venv it makes a folder of stand-ins. It fails where it is called with the words that the file ASKED.fails holds.
PYTHON = """#!/bin/sh
echo "$@" >> "$ASKED"
if test "$2" = venv; then mkdir -p "$3/bin"; for name in python gtp-fast pytest; do cp "$0" "$3/bin/$name"; done; fi
test ! -e "$ASKED.fails" || case "$*" in *"$(cat "$ASKED.fails")"*) exit 1;; esac
"""
OLD_TRITON = pytest.param("--target", marks=pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux"))


@pytest.fixture
def make(tmp_path: Path):
    """Return a function that calls make with the stand-ins, and gives its exit code and what they were called with."""
    python, asked = tmp_path / "python", tmp_path / "asked"
    python.write_text(PYTHON)
    python.chmod(stat.S_IRWXU)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}

    def call(target: str, *more: str, fails: str | None = None) -> tuple[int, str, str]:
        asked.write_text("")
        file = Path(f"{asked}.fails")
        file.unlink(missing_ok=True) if fails is None else file.write_text(fails)
        words = ["make", target, f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", *more]
        done = subprocess.run(
            words, cwd=ROOT, env=environment | {"ASKED": str(asked)}, capture_output=True, text=True, check=False
        )
        return done.returncode, asked.read_text(), done.stdout

    return call


def test_training_installs_the_package_alone_and_tests_add_the_rest(make):
    code, asked, _ = make("train")
    assert code == 0 and "-e ." in asked and "[dev]" not in asked and "triton" not in asked
    assert asked.splitlines()[-1].startswith("train --env hopper-demo-v0")
    code, asked, _ = make("install")
    assert code == 0 and "-e .[dev]" in asked and "torch==" not in asked
    assert make("install") == (0, "", "make: Nothing to be done for 'install'.\n")


def test_every_step_says_what_it_fetches_before_it_begins(make):
    _, _, said = make("install")
    lines = said.splitlines()
    for i, line in enumerate(lines):
        if "pip install" in line:
            assert any("packages, " in before or "package, " in before for before in lines[max(0, i - 2) : i]), line


@pytest.mark.parametrize("fails", ["torch==", "-e .", "[dev]", OLD_TRITON])
def test_an_install_that_was_cut_off_is_done_again(make, fails):
    assert make("install", fails=fails)[0] != 0
    code, asked, _ = make("install")
    assert code == 0 and fails in asked


def test_no_pip_is_silent(make):
    _, asked, _ = make("install")
    installs = [line for line in asked.splitlines() if "pip install" in line]
    assert len(installs) >= 3 and not [line for line in installs if " -q" in line]


def test_kills_and_properties_are_drawn_anew_each_day_and_again_for_a_day_that_is_named(make):
    today = f"{datetime.now():%Y%m%d}"
    _, asked, said = make("crash")
    assert f"--hypothesis-seed={today} --hypothesis-profile=daily" in asked and f"make crash DAY={today}" in said
    assert "--hypothesis-seed=20260102" in make("crash", "DAY=20260102")[1]
    assert "hypothesis" not in make("test")[1]


def test_the_profile_of_the_day_draws_more_and_follows_the_seed_alone():
    daily, usual = settings.get_profile("daily"), settings.get_profile("gtp-fast")
    assert daily.max_examples >= 5 * usual.max_examples and daily.deadline is usual.deadline is None
    assert (daily.derandomize, daily.database, usual.derandomize) == (False, None, True)
