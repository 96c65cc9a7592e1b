"""The order of the tests, and what is said of those that no time is left for: pytest itself, on tests of nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import in_order
import pytest
from places import ROOT, SUPPORT, TESTS

from tools import ci

FILES = {
    "cli/test_cli.py": "import pytest\ndef test_help(): pass\n@pytest.mark.slow\ndef test_slow(): pass\n",
    "promises/test_crash.py": "def test_kill(): pass\n",
    "data/test_dataset.py": "def test_rows(): pass\n",
    "steps/test_dql.py": "def test_step(): pass\ndef test_promise_9_on_the_device(): pass\n",
    "kernels/test_kernels.py": "import pytest\ndef test_odd(): pass\n@pytest.mark.slow\ndef test_ahead(): pass\n",
}
IN_ORDER = (
    *("promises/test_crash.py::test_kill", "steps/test_dql.py::test_promise_9_on_the_device"),
    *("kernels/test_kernels.py::test_ahead", "kernels/test_kernels.py::test_odd", "data/test_dataset.py::test_rows"),
    *("cli/test_cli.py::test_slow", "cli/test_cli.py::test_help", "steps/test_dql.py::test_step"),
)


def _pytest(folder: Path, *flags: str, **more: str) -> tuple[int, str]:
    """Run pytest with the plugin on FILES and more; return its exit code and what it printed."""
    for name, text in (FILES | {f"promises/{name}.py": text for name, text in more.items()}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra\nmarkers =\n  slow: so\n")
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "in_order", *(["-p", "xdist"] if "-n" in flags else []), *flags]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"PYTHONPATH": str(SUPPORT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _kept(folder: Path) -> dict:
    return json.loads((folder / ".pytest_cache/v" / in_order.KEPT).read_text())


def test_promises_come_first_then_kernels_then_data_and_slow_tests_first_among_their_like(tmp_path):
    _, said = _pytest(tmp_path, "-v")
    assert tuple(re.findall(r"^(\w+/test_\S+) PASSED", said, re.MULTILINE)) == IN_ORDER


# The words of `make test` that say how tests are handed out.
MAKE_TEST = re.findall(r"-n 2 --dist \w+", (ROOT / "Makefile").read_text())[0].split()
WAITS = """
import time, pytest
@pytest.mark.parametrize("i", range(4))
def test_wait(i): time.sleep(0.3)
"""
GONE = "import pytest\n@pytest.mark.parametrize('i', range(9))\ndef test_gone(i): pass\n"


def test_each_worker_begins_with_what_is_worth_most_and_keeps_its_files(tmp_path):
    more = {"test_crash": WAITS, "test_disk": WAITS, "test_fuzz": GONE}
    _, said = _pytest(tmp_path, "-v", "-k", "not gone", *MAKE_TEST, **more)
    ended = re.findall(r"\[(gw\d)\].* PASSED \w+/test_(\w+)\.py", said)
    of_workers = [[file for w, file in ended if w == worker][:4] for worker in ("gw0", "gw1")]
    assert sorted(of_workers) == [["crash"] * 4, ["disk"] * 4], said
    assert len(ended) == 15


def test_past_the_moment_no_test_is_begun_and_the_summary_names_how_many_of_which_files(tmp_path):
    code, said = _pytest(tmp_path, "--begin-until=1")
    left_out = ", ".join(
        ("promises/test_crash.py 1", "steps/test_dql.py 2", "kernels/test_kernels.py 2", "data/test_dataset.py 1")
    )
    assert f"8 tests were left out, as no time was left for them: {left_out}, cli/test_cli.py 2" in said
    assert said.splitlines()[-1].strip("= ").startswith("8 skipped in ") and code == 0
    assert _kept(tmp_path) == {
        "counts": {"skipped": 8},
        "left_out": {
            "promises/test_crash.py": 1,
            "steps/test_dql.py": 2,
            "kernels/test_kernels.py": 2,
            "data/test_dataset.py": 1,
            "cli/test_cli.py": 2,
        },
    }


def test_a_moment_that_passes_on_the_way_leaves_out_what_is_worth_less(tmp_path):
    passes = "def test_kill(request): request.config.option.begin_until = 1.0\n"
    code, _ = _pytest(tmp_path, f"--begin-until={time.time() + 600}", test_crash=passes)
    assert code == 0 and _kept(tmp_path)["counts"] == {"passed": 1, "skipped": 7}
    assert "promises/test_crash.py" not in _kept(tmp_path)["left_out"]


LATE = """
import in_order, time
in_order.LEEWAY_S, usual = -600.0, in_order.LEEWAY_S
def test_kill():
    try:
        time.sleep(600)
    finally:
        in_order.LEEWAY_S = usual
"""


def test_a_test_that_was_begun_too_late_to_end_is_left_out_and_the_others_run(tmp_path):
    code, _ = _pytest(tmp_path, f"--begin-until={time.time() + 600}", test_crash=LATE)
    assert code == 0 and _kept(tmp_path) == {
        "counts": {"passed": 7, "skipped": 1},
        "left_out": {"promises/test_crash.py": 1},
    }


def test_with_time_enough_nothing_is_left_out(tmp_path):
    code, said = _pytest(tmp_path, f"--begin-until={time.time() + 600}", "-n", "2")
    assert "no test was left out" in said and "8 passed" in said.splitlines()[-1] and code == 0
    assert _kept(tmp_path) == {"counts": {"passed": 8}, "left_out": {}}


def test_without_the_flag_nothing_is_said(tmp_path):
    code, said = _pytest(tmp_path)
    assert "left out" not in said and code == 0 and not (tmp_path / ".pytest_cache/v" / in_order.KEPT).exists()


def test_a_test_that_fails_still_fails_the_run_and_others_that_skip_are_not_left_out(tmp_path):
    more = "import pytest\ndef test_not(): assert 0\ndef test_no_card(): pytest.skip('no card')\n"
    code, _ = _pytest(tmp_path, f"--begin-until={time.time() + 600}", test_rng=more)
    assert code == 1
    assert _kept(tmp_path) == {"counts": {"failed": 1, "passed": 8, "skipped": 1}, "left_out": {}}


@pytest.mark.long
def test_a_test_that_hangs_fails_and_costs_no_other_test(tmp_path, monkeypatch):
    monkeypatch.setattr(ci, "TEST_S", 3)
    monkeypatch.delenv("TEST_FLAGS", raising=False)  # which make passes on
    flags = ci.test_flags(time.time() + 600).split()
    code, said = _pytest(tmp_path, "-n", "2", *flags, test_it="def test_hangs(): __import__('time').sleep(600)\n")
    assert code == 1 and "1 failed, 8 passed" in said
    assert "crashed while running 'promises/test_it.py::test_hangs'" in said


def test_every_folder_that_is_named_is_there():
    assert [folder for folder in in_order.RANKS if not (TESTS / folder).is_dir()] == []
