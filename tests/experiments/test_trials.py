"""Trials: whole ones are skipped, dead ones tried again, held ones waited for, diverged ones a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gtp_fast.experiments.trials import Trial, run_trials
from gtp_fast.files import holder
from gtp_fast.runs.directory import RunDir

_WORDS = ["train", "--algo", "gtp", "--no-bc", "--graph", "--eta", "0.5"]
TINY = {
    "env": "multigoal-v0",
    "bc": True,
    "hidden": 16,
    "batch_size": 8,
    "device": "cpu",
    "backend": "eager",
    "threads": 1,
    "eval_every": 0,
}


def trial(folder: Path, name: str = "one", steps: int = 4, **changes: Any) -> Trial:
    settings = TINY | {"steps": steps, "log_every": 100, "save_every": 100} | changes
    return Trial(name, settings, folder / name, steps)


def test_a_trial_is_the_public_command_with_every_setting_as_typed():
    words = Trial("x", {"algo": "gtp", "bc": False, "graph": True, "lrs": None, "eta": 0.5}, Path("run"), 1).typed
    assert words == [*_WORDS, "--run-dir", "run", "--resume", "auto"]


def test_a_diverged_trial_is_a_result_a_wrong_one_fails_with_its_words_and_others_end(tmp_path: Path):
    said: list[str] = []
    several = [
        trial(tmp_path, "good"),
        trial(tmp_path, "diverging", steps=400, lr=1e6, grad_norm=0.0, log_every=10),
        trial(tmp_path, "wrong", seeds=0),
    ]
    found = run_trials([*several, several[0]], 2, said.append)
    assert [outcome.kind for outcome in found] == ["done", "diverged", "failed", "done"]
    assert found[1].text.startswith("diverged at step ") and found[1].exit_code == 4
    assert "--seeds 0 is outside" in found[2].text and found[2].exit_code == 2
    assert sum("good: started" in line for line in said) == 1
    again: list[str] = []
    assert run_trials(several[:2], 2, again.append) == found[:2]
    assert not [line for line in again if "started" in line]


def _await(true: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


PARENT = """
import json, sys
from pathlib import Path
from gtp_fast.errors import GtpError
from gtp_fast.experiments.trials import Trial
from gtp_fast.experiments.trials import run_trials
name, settings, path, steps = json.loads(sys.argv[1])
try:
    found = run_trials([Trial(name, settings, Path(path), steps)], 1, lambda line: print(line, flush=True))
    print(found[0].kind, flush=True)
except GtpError as error:
    sys.exit(error.exit_code)
"""


def parent(one: Trial) -> subprocess.Popen[str]:
    typed = json.dumps([one.name, dict(one.settings), str(one.path), one.steps])
    return subprocess.Popen([sys.executable, "-c", PARENT, typed], stdout=subprocess.PIPE, text=True)


def _child_of(path: Path) -> int | None:
    held = holder(RunDir(path).lock)
    return int(held.split()[1]) if held and held.split()[1].isdigit() else None


@pytest.mark.crash
def test_a_killed_child_is_started_again_and_two_parents_run_a_trial_once(tmp_path: Path):
    one = trial(tmp_path, steps=600, save_every=50, log_every=50)
    parents = [parent(one), parent(one)]
    _await(lambda: list((one.path / "ckpt").glob("step-*")))
    pid = _child_of(one.path)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    words = [process.communicate(timeout=60)[0] for process in parents]
    assert all(text.splitlines()[-1] == "done" for text in words)
    steps = [json.loads(line)["step"] for line in RunDir(one.path).metrics.read_text().splitlines()]
    assert steps == list(range(50, 601, 50))  # each once: resumed, and by one of them


@pytest.mark.slow
def test_a_parent_that_is_asked_to_stop_lets_its_children_save_first_and_says_so_by_its_code(tmp_path: Path):
    one = trial(tmp_path, steps=100_000, save_every=100_000, log_every=10)
    process = parent(one)
    _await(lambda: RunDir(one.path).metrics.exists() and RunDir(one.path).metrics.stat().st_size)
    child = _child_of(one.path)
    assert child is not None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert list((one.path / "ckpt").glob("step-*")) and holder(RunDir(one.path).lock) is None
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_trial_that_always_dies_is_given_up_after_three_tries(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")  # a command that dies, without training to wait for
    said: list[str] = []
    found = run_trials([trial(tmp_path)], 1, said.append)
    assert found[0].kind == "failed" and "died 3 times" in found[0].text
    assert sum("started" in line for line in said) == 3
