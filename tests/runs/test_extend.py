"""A run that is given more steps goes on from its last checkpoint, and says what that changes."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_cases import back_to, tiny

from gtp_fast import device
from gtp_fast.config import TrainConfig
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import UsageError
from gtp_fast.files import publish_json
from gtp_fast.presets import read_yaml
from gtp_fast.runs import checkpoint, extend, records
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Progress, Started
from gtp_fast.training.train import train


def quick(folder: Path, **changes: Any) -> TrainConfig:
    """Return the tiny settings with 6 steps in place of 30."""
    return tiny(folder, **{"steps": 6, "log_every": 2, "save_every": 2} | changes)


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch) -> TrainConfig:
    """Settings without --run-dir, whose learning rate falls along a cosine."""
    monkeypatch.chdir(tmp_path)
    return quick(tmp_path, run_dir=None, lr_schedule="cosine", lr=1e-3)


def _started(cfg: TrainConfig) -> Started:
    events: list = []
    train(cfg, events.append)
    return next(event for event in events if isinstance(event, Started))


def _recorded(run: Path) -> tuple[int, list[int]]:
    """Return the steps that config.yaml names, and the former ones."""
    environment = json.loads((run / "environment.json").read_bytes())
    return read_yaml(run / "config.yaml")["steps"], environment.get(extend.FORMER, [])


def _state(run: Path, step: int) -> bytes:
    return (RunDir(run).checkpoint(step) / checkpoint.STATE).read_bytes()


def _stopped_at(step: int, cfg: TrainConfig) -> None:
    def listen(event: object) -> None:
        if isinstance(event, Progress) and event.step == step:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        train(cfg, listen)


@pytest.mark.parametrize("kept", [6, 4], ids=["finished", "unfinished"])
def test_more_steps_extend_the_run_of_fewer_and_the_same_command_finds_it_again(cfg, kept):
    run = back_to(Path(train(cfg).run_dir), kept).path
    longer = replace(cfg, steps=12)
    started = _started(longer)
    assert started.run_dir == run and started.step == kept
    assert _recorded(run) == (12, [6]) and checkpoint.steps(RunDir(run))[-1] == 12
    again = train(longer)
    assert again.finished_before and Path(again.run_dir) == run
    assert Path(train(replace(cfg, steps=18)).run_dir) == run and _recorded(run) == (18, [6, 12])
    assert len(list(run.parent.glob("gtp-*"))) == 1


@pytest.mark.parametrize("name", ["run_dir", "resume"])
def test_a_run_that_is_named_is_extended(cfg, name):
    run = Path(train(cfg).run_dir)
    typed = {"resume": str(run), "steps": 12} if name == "resume" else vars(cfg) | {"run_dir": str(run), "steps": 12}
    assert Path(train(run_settings(typed)).run_dir) == run and _recorded(run) == (12, [6])


def test_the_note_says_from_where_to_where_and_what_the_schedules_were_and_are(cfg):
    train(cfg)
    said = " ".join(_started(replace(cfg, steps=12)).notes)
    assert "extending this run of 6 steps: it goes on from step 6 to 12." in said
    assert "schedules are those of a run of 12 steps: grid steps 160 -> 80; learning rate 0 -> 0.0005" in said
    assert (
        "a fresh run of 12 steps would follow these schedules from its first step; for one, pass --resume never" in said
    )


def test_without_a_schedule_an_extended_run_is_the_fresh_one_bit_for_bit(cfg, tmp_path: Path):
    plain = replace(cfg, lr_schedule="constant", steps_schedule="fixed:40")
    run = Path(train(plain).run_dir)
    said = " ".join(_started(replace(plain, steps=12)).notes)
    assert "no schedule of its settings depends on --steps, so a fresh run would end alike" in said
    train(replace(plain, steps=12, run_dir=str(tmp_path / "fresh")))
    assert _state(run, 12) == _state(tmp_path / "fresh", 12)


def test_an_extended_run_that_is_stopped_and_resumed_ends_as_one_that_was_not(cfg, tmp_path: Path):
    for name in ("whole", "stopped", "fresh"):
        own = replace(cfg, run_dir=str(tmp_path / name))
        if name != "fresh":
            train(own)
        if name == "stopped":
            _stopped_at(8, replace(own, steps=12))  # before its first new checkpoint
            assert checkpoint.steps(RunDir(tmp_path / name)) == [2, 4, 6] and _recorded(tmp_path / name)[0] == 12
            _stopped_at(12, replace(own, steps=12))
        train(replace(own, steps=12))
    assert _state(tmp_path / "whole", 12) == _state(tmp_path / "stopped", 12) != _state(tmp_path / "fresh", 12)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "stopped/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("steps", [6, 12])
def test_a_kill_between_the_two_records_of_an_extension_is_harmless(cfg, steps):
    run = Path(train(cfg).run_dir)
    environment = run / "environment.json"
    publish_json(environment, json.loads(environment.read_bytes()) | {extend.FORMER: [6]})
    again = train(replace(cfg, steps=steps))
    assert Path(again.run_dir) == run and again.finished_before == (steps == 6)
    assert extend.steps_of(RunDir(run)) == ((6,) if steps == 6 else (6, 12))


def _scored(step: int) -> records.EvalResult:
    one = np.ones((2, 1))
    return records.EvalResult(step, one, one, None, one > 1, None, "x", (0, 1), 1, 1, "none", 0.0)


def test_evaluations_after_the_checkpoint_are_made_again_under_the_new_schedules(cfg):
    cfg = replace(cfg, env="own_envs:Graded-v0")
    run = back_to(Path(train(cfg).run_dir), 4)
    for step in (2, 4, 6):
        run.evaluation(step).write_text(json.dumps(_scored(step).to_json()))
    former = run.evaluation(6).stat().st_mtime_ns
    said = " ".join(_started(replace(cfg, eval_every=2, steps=12)).notes)
    assert "removing the evaluations of steps 6: they came after this checkpoint" in said
    assert run.evaluation(6).stat().st_mtime_ns > former and run.evaluation(12).exists()


def test_a_run_of_just_these_steps_comes_before_one_of_fewer(cfg):
    own = Path(train(replace(cfg, steps=12)).run_dir)
    short = Path(train(replace(cfg, resume="never")).run_dir)
    assert Path(train(replace(cfg, steps=12)).run_dir) == own != short
    assert _recorded(short) == (6, [])


def test_fewer_steps_are_a_new_run_and_are_refused_of_a_run_that_is_named(cfg):
    run = Path(train(cfg).run_dir)
    with pytest.raises(UsageError, match=r"is a run of 6 steps, more than --steps 4; a run can be extended, not"):
        train(replace(cfg, steps=4, run_dir=str(run)))
    assert Path(train(replace(cfg, steps=4)).run_dir) != run and _recorded(run) == (6, [])


def test_a_run_keeps_the_backend_that_it_began_with(cfg, monkeypatch):
    monkeypatch.setattr(device, "COMPILE_FROM_STEPS", 8)
    auto = replace(cfg, backend="auto")
    run, longer = Path(train(auto).run_dir), replace(auto, steps=12)
    assert device.resolve(longer)[0].backend == "compiled"
    result = train(longer)
    assert (Path(result.run_dir), result.backend) == (run, "eager")
    assert train(longer).finished_before
    with pytest.raises(UsageError, match="of 12 steps, more than --steps 6"):
        train(replace(auto, run_dir=str(run)))
