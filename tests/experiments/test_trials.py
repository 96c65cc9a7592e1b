"""Trials: complete ones are skipped, killed ones tried again, diverged ones a result; test_sweep.py stops sweeps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gtp_fast.experiments.trials import Standing, Trial, run_trials

_WORDS = ["train", "--algo", "gtp", "--no-bc", "--graph", "--eta", "0.5"]
TINY = {
    "env": "hopper-demo-v0",
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


def test_a_killed_trial_is_tried_again_a_diverged_one_a_result_and_a_wrong_one_fails_with_its_words(tmp_path: Path):
    said: list[str] = []
    several = [
        trial(tmp_path, "good"),
        trial(tmp_path, "diverging", steps=400, lr=1e6, grad_norm=0.0, log_every=10),
        trial(tmp_path, "wrong", seeds=0),
    ]

    def kill(standings: list[Standing]) -> None:
        if standings[0].process is not None and standings[0].tries == 1:
            standings[0].process.kill()

    found = run_trials([*several, several[0]], 2, said.append, kill)
    assert [outcome.kind for outcome in found] == ["done", "diverged", "failed", "done"]
    assert found[1].text.startswith("diverged at step ") and found[1].exit_code == 4
    assert "--seeds 0 is outside" in found[2].text and found[2].exit_code == 2
    assert sum("good: started" in line for line in said) == 2 and "good: died with code -9; trying again" in said
    again: list[str] = []
    assert run_trials(several[:2], 2, again.append) == found[:2]
    assert not [line for line in again if "started" in line]


def test_a_trial_that_always_dies_is_given_up_after_three_tries(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")  # a command that dies, without training to wait for
    said: list[str] = []
    found = run_trials([trial(tmp_path)], 1, said.append)
    assert found[0].kind == "failed" and "died 3 times" in found[0].text
    assert sum("started" in line for line in said) == 3
