"""A compile that takes longer than the run would take eagerly is given up, once and for the whole run."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from run_cases import tiny

from gtp_fast import device
from gtp_fast.algorithms.backends import kernels_written
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.training import patience
from gtp_fast.training.train import train


@pytest.mark.slow
def test_a_short_run_is_stepped_eagerly_to_its_end_rather_than_wait_for_a_compile(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(device, "COMPILE_FROM_STEPS", 1)
    (tmp_path / "eager").mkdir()
    shown: list[object] = []
    done = train(tiny(tmp_path, backend="auto"), shown.append)
    assert done.backend == "compiled"  # what the command stands for, by which its run is found again
    assert any("all 30 steps take about" in str(event) for event in shown)
    run, plain = RunDir(tmp_path / "run"), RunDir(tmp_path / "eager/run")
    assert patience.GAVE_UP in json.loads((run.path / "environment.json").read_text())
    assert "this run is stepped eagerly, to its end; --backend compiled waits for it" in run.log.read_text()
    train(tiny(tmp_path / "eager", backend="eager"))
    first = checkpoint.load(run.checkpoint(30)).tensors
    assert all(torch.equal(x, first[n]) for n, x in checkpoint.load(plain.checkpoint(30)).tensors.items())

    for step in (20, 30):
        shutil.rmtree(run.checkpoint(step))
    before = kernels_written()
    train(tiny(tmp_path, backend="auto"))
    again = checkpoint.load(run.checkpoint(30)).tensors
    assert all(torch.equal(x, again[n]) for n, x in first.items()) and kernels_written() == before


def test_a_compile_that_was_asked_for_is_waited_for(tmp_path: Path, monkeypatch):
    made = object()
    monkeypatch.setattr(patience, "stepper", lambda cfg, state, buffer: made)
    cfg, state = tiny(tmp_path, backend="compiled"), type("State", (), {"step": torch.tensor(0)})()
    assert patience.patient_stepper(cfg, RunDir(tmp_path), state, None, False, print) is made  # pyright: ignore
    state.step += 1  # a run that made a compiled step
    assert patience.patient_stepper(cfg, RunDir(tmp_path), state, None, True, print) is made  # pyright: ignore


def test_an_alarm_rings_until_it_is_heard_and_leaves_nothing_behind():
    heard = []

    def deaf() -> None:
        while True:
            try:
                time.sleep(10)
            except BaseException:
                heard.append(time.monotonic())
                if len(heard) == 3:
                    raise ValueError("wrapped") from None

    before = signal.getsignal(signal.SIGALRM)
    assert not patience._within(0.01, deaf) and len(heard) == 3
    assert patience._within(10, lambda: None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("error", [KeyError, SystemExit, KeyboardInterrupt])
def test_other_errors_of_a_compile_stay_what_they_are(error):
    def fails() -> None:
        raise error

    with pytest.raises(error):
        patience._within(10, fails)
