"""A failed evaluation is a warning: training goes on, the run is finished, and whoever reads it copes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from data_cases import columns, write
from eval_cases import runs
from run_cases import back_to, started, tiny, tiny_settings, wait_for, words

import gtp_fast as package
from gtp_fast.cli.main import main
from gtp_fast.cli.screen import Screen
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import UsageError
from gtp_fast.evaluation import silence
from gtp_fast.evaluation.evaluate import EvalConfig, eval_run
from gtp_fast.experiments import report
from gtp_fast.experiments.reproduce import scores
from gtp_fast.experiments.trials import Trial, outcome_of
from gtp_fast.presets import read_yaml
from gtp_fast.runs import checkpoint, records
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.events import Alive, Result, Started, Warned
from gtp_fast.training.train import train

UNLICENSED = "eval_cases:gtp_fast_tests/Unlicensed-v0"
LINE = rf"{UNLICENSED}: RuntimeError: the simulator lost its licence \(eval_cases\.py:\d+\)"


def settings(folder: Path, **changes: Any):
    """Settings of 30 steps, evaluated at 10, 20 and 30 in an environment of four observations and three actions."""
    data = folder / "data.hdf5"
    if not data.exists():
        write(data, columns(sizes=(4, 3)))
    return tiny(folder, **{"env": UNLICENSED, "eval_every": 10, "seeds": 1} | changes)


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> tuple[Path, Result, list[Any]]:
    """A run whose every evaluation failed, its result and its events; nothing below changes it."""
    folder, events = tmp_path_factory.mktemp("failed"), []
    result = train(settings(folder), events.append)
    return folder, result, events


@pytest.fixture
def run(failed, tmp_path: Path) -> Path:
    """A copy that a test may change, beside its data."""
    shutil.copy(failed[0] / "data.hdf5", tmp_path)
    return Path(shutil.copytree(failed[0] / "run", tmp_path / "run"))


def test_training_goes_on_to_its_end_with_a_warning_of_one_line_for_each(failed):
    folder, result, events = failed
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert len(warned) == 3 and checkpoint.steps(RunDir(folder / "run")) == [10, 20, 30]
    for step, message in zip((10, 20, 30), warned, strict=True):
        assert re.fullmatch(rf"the evaluation of step {step} failed: {LINE}; .*", message)
    assert (result.evaluations_failed, result.score_last, result.return_last) == (3, None, None)
    assert records.finished(RunDir(folder / "run"), 30)


def test_a_line_says_of_each_that_it_failed_and_the_closing_lines_how_many(failed):
    shown = io.StringIO()
    with Screen(shown, 30) as screen:
        for event in failed[2]:
            screen.show(event)
    screen.summarise(failed[1])
    said = shown.getvalue()
    assert "Traceback" not in said and said.count("warning: the evaluation of step") == 3
    assert "3 evaluations failed; report/README.md says why\n" in said


def test_the_traceback_is_in_the_log_and_the_mark_in_the_evaluations_place(failed):
    run = RunDir(failed[0] / "run")
    log = run.log.read_text()
    assert log.count("Traceback") == 3 and log.count(", in step\n") >= 3
    mark = json.loads(run.evaluation(20).read_text())
    assert mark["step"] == 20 and re.fullmatch(LINE, mark["failed"]) and set(mark) == {"step", "failed"}


def test_a_resumed_run_repeats_no_marked_evaluation(run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LICENCE", str(run))  # which exists: they would not fail
    before = RunDir(run).evaluation(30).read_bytes()
    back_to(run, 10)
    RunDir(run).evaluation(20).unlink()  # this one is asked for again
    result = train(settings(tmp_path))
    assert RunDir(run).evaluation(30).read_bytes() == before
    assert (result.evaluations_failed, result.return_last) == (2, [8.0])


def test_without_evaluations_a_resumed_run_drops_those_that_were_pending(run: Path, tmp_path: Path):
    found = back_to(run, 20)
    last = checkpoint.load(found.checkpoint(20))
    policy, _ = checkpoint.load_policy(found.checkpoint(20))
    checkpoint.save(found, 20, last.tensors, policy, last.meta, {20: policy, 10: policy})
    found.evaluation(20).unlink()
    assert not records.finished(found, 20)
    events: list[Any] = []
    result = train(settings(tmp_path, eval_every=0), events.append)
    assert json.loads(found.evaluation(20).read_text()) == {"dropped": "--eval-every 0", "step": 20}
    assert records.finished(found, 30) and result.evaluations_failed == 2  # those of 10 and 30
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert warned.startswith("the evaluation of step 20 dropped: --eval-every 0")


def test_a_report_says_which_evaluations_failed_and_why(failed, tmp_path: Path):
    run = failed[0] / "run"
    out = report.draw_report([run], tmp_path / "report")
    (row,) = json.loads((out / "summary.json").read_text())["settings"]
    assert list(row["absent"][str(run)]) == ["10", "20", "30"] and "last" not in row
    page = (out / "README.md").read_text()
    assert re.search(rf"run: no result of the evaluations of step 10, 20, 30 \({LINE}\)", page)
    assert "every evaluation failed" in page


def _with_results(run: Path, steps: tuple[int, ...], monkeypatch) -> Path:
    """Give a run whose evaluations failed results at some steps."""
    monkeypatch.setenv("LICENCE", str(run))
    result = eval_run(run, EvalConfig(episodes=1, allow_import=["eval_cases"])).result.to_json()
    for step in steps:
        RunDir(run).evaluation(step).write_text(json.dumps(result | {"step": step}))
    return run


def test_figures_are_those_of_the_evaluations_that_did_not_fail(run: Path, monkeypatch, tmp_path: Path):
    _with_results(run, (10, 20), monkeypatch)
    assert [one.step for one in records.read_evaluations(RunDir(run))] == [10, 20]
    assert records.read_progress(RunDir(run)).figure == 8.0  # of a sweep's table
    out = report.draw_report([run], tmp_path / "report")
    (row,) = json.loads((out / "summary.json").read_text())["settings"]
    assert row["last"]["each"] == [8.0] and list(row["absent"][str(run)]) == ["30"]
    assert "no result of the evaluation of step 30" in (out / "README.md").read_text()


def test_a_row_of_a_table_shows_no_figure_where_the_last_policys_evaluation_failed(run: Path, monkeypatch):
    found = scores.figures(_with_results(run, (10, 20), monkeypatch), {})
    assert found["last"] is None and re.fullmatch(rf"no score: {LINE}", found["status"])
    assert scores.figures(_with_results(run, (20, 30), monkeypatch), {})["last"]["each"] == [8.0]


def test_a_row_that_acts_otherwise_than_trained_copes_with_an_environment_that_fails(run: Path):
    found = scores.figures(run, {"sampling_steps": 3}, ["eval_cases"])
    assert found["last"] is None and "the simulator lost its licence" in found["status"]


def test_a_trial_with_failed_evaluations_is_done(failed):
    outcome = outcome_of(Trial("unlicensed", {}, failed[0] / "run", 30))
    assert outcome is not None and outcome.kind == "done" and records.read_progress(RunDir(failed[0] / "run"))


def test_eval_exits_1_with_one_line_and_its_traceback_in_the_runs_log(run: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(run), "--episodes", "1", "--allow-import", "eval_cases"])
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert re.fullmatch(rf"error: the evaluation failed: {LINE}; the traceback is in {run}/train.log\n", told)
    assert (run / "train.log").read_text().count("Traceback") == 4


def test_a_damaged_mark_is_named(run: Path):
    RunDir(run).evaluation(20).write_text('{"step": 20, "failed": 3}')
    with pytest.raises(package.errors.GtpError, match=r"step-00000020.json is not an evaluation \(.*the reason is 3"):
        records.read_evaluations(RunDir(run))


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        (
            "Breaking",
            '{"where": "init"}',
            r"cannot be built \(OSError: no port \(eval_cases.py:\d+\)\); pass --eval-every 0",
        ),
        (
            "Breaking",
            '{"where": "reset"}',
            r"Breaking-v0: OSError: no port \(eval_cases.py:\d+\); mend the environment",
        ),
        pytest.param(
            *("Returning", '{"way": "four"}', r"its step\(\) returned a tuple of 4, expected five things"),
            marks=pytest.mark.long,
        ),
    ],
    ids=["init", "reset", "old step"],
)
def test_an_environment_that_cannot_be_evaluated_is_refused_before_there_is_a_run(tmp_path: Path, name, kwargs, words):
    with pytest.raises(UsageError, match=words):
        train(settings(tmp_path, env=f"eval_cases:gtp_fast_tests/{name}-v0", env_kwargs=kwargs))
    assert not (tmp_path / "run").exists()


def test_an_environment_of_this_process_alone_is_refused_before_there_is_a_run(tmp_path: Path):
    gymnasium.register("Mine-v1", "eval_cases:Small")
    with pytest.raises(UsageError, match="pass --env eval_cases:Mine-v1, whose module registers it"):
        train(settings(tmp_path, env="gymnasium:Mine-v1"))
    assert not (tmp_path / "run").exists()


def test_a_worker_that_cannot_be_started_is_told_before_there_is_a_run(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UsageError, match=r"the process that evaluates cannot be started .* pass --eval-every 0"):
        train(settings(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_limit_ends_the_episodes_of_a_run_and_is_told_at_its_start(tmp_path: Path, monkeypatch):
    events: list[Any] = []
    endless = settings(tmp_path, env="eval_cases:gtp_fast_tests/Endless-v0", eval_every=30)
    result = train(endless, events.append)
    assert result.return_last == [10_000.0]
    (notes,) = [event.notes for event in events if isinstance(event, Started)]
    assert any("an episode of an evaluation ends after 10,000 steps; --eval-max-steps N" in note for note in notes)
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert "1 of 1 episodes had not ended after 10,000 steps" in warned
    asked = EvalConfig(eval_max_steps=12, allow_import=["eval_cases"])
    assert eval_run(tmp_path / "run", asked).result.lengths_SE.tolist() == [[12]]
    monkeypatch.setattr("gtp_fast.evaluation.environments.LONGEST", 50)
    told = eval_run(tmp_path / "run", replace(asked, eval_max_steps=None)).notes[0]
    assert "an episode of an evaluation ends after 50 steps" in told


def trained_for(place: Path, env: str, **kwargs: Any) -> Path:
    """Return a run that was not evaluated, whose settings name an environment with these arguments."""
    run = Path(train(settings(place, eval_every=0)).run_dir)
    changed = read_yaml(run / "config.yaml") | {"env": env, "env_kwargs": json.dumps(kwargs)}
    (run / "config.yaml").write_text(json.dumps(changed))
    return run


HANGING = "eval_cases:gtp_fast_tests/Hanging-v0"
LASTING = "eval_cases:gtp_fast_tests/Lasting-v0"


def hanging(folder: Path, **changes: Any):
    """Settings of a run whose evaluations hang while the file `hung` is there."""
    (folder / "hung").touch()
    return settings(folder, env=HANGING, env_kwargs=json.dumps({"file": str(folder / "hung")}), **changes)


@pytest.mark.slow
def test_an_evaluation_that_hangs_ends_no_run_and_the_run_says_what_it_waits_for(tmp_path: Path, monkeypatch):
    cfg, events = hanging(tmp_path, eval_every=15), []
    monkeypatch.setattr("gtp_fast.evaluation.worker.SLOW_SECONDS", 0.3)

    def report(event: Any) -> None:
        events.append(event)
        if isinstance(event, Started):  # the environment was tried
            monkeypatch.setattr(silence, "SILENT_SECONDS", 1.0)
        if isinstance(event, Warned):  # one has failed
            monkeypatch.setattr(silence, "SILENT_SECONDS", 60.0)
            (tmp_path / "hung").unlink()

    result = train(cfg, report, silence_seconds=0.2)
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert re.fullmatch(
        rf"the evaluation of step 15 failed: {HANGING} has answered no reset or step for 1 s, and its worker was "
        "ended; mend the environment, or pass --eval-every 0 to train without it; training goes on",
        warned,
    )
    assert (result.evaluations_failed, result.return_last) == (1, [8.0])
    waited = [event for event in events if isinstance(event, Alive) and event.doing.startswith("waiting")]
    assert {event.doing for event in waited} <= {f"waiting for the evaluation of step {step}" for step in (15, 30)}
    assert any("calls of the environment answered" in event.detail for event in waited)
    assert any("answered no reset or step" in event.detail for event in waited)


@pytest.mark.slow
def test_a_signal_while_a_run_waits_for_an_environment_that_hangs_is_answered(tmp_path: Path):
    hanging(tmp_path)
    typed = tiny_settings(tmp_path, env=HANGING, eval_every=30, seeds=1)
    typed["env_kwargs"] = json.dumps({"file": str(tmp_path / "hung"), "locked": True})
    process = started(["train", *words(typed)], SHOWING, env=_importing_eval_cases())
    assert process.stderr is not None
    told = next(line for line in process.stderr if "answered no reset" in line and "step 30" in line)
    assert re.fullmatch(rf"waiting for the evaluation of step 30, .*{HANGING} has answered no .* is given up\n", told)
    (worker,) = _children(process.pid)
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    assert process.wait(10) == 143 and time.monotonic() - signalled < 2.0
    assert not runs(worker)
    (tmp_path / "hung").unlink()
    assert train(run_settings(typed)).return_last == [8.0]


SHOWING = """
from gtp_fast.cli import main, screen
from gtp_fast.evaluation import worker
screen.SILENCE_SECONDS, worker.SLOW_SECONDS = 0.2, 0.5
main.main()
"""


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


LOCKED = """
import sys
from gtp_fast.cli.main import main
from gtp_fast.evaluation import silence
silence.SILENT_SECONDS, silence.LOOK_SECONDS = 2.0, 0.2
main()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("workers", "locked"),
    [
        ("1", True),
        pytest.param("1", False, marks=pytest.mark.long),
        pytest.param("2", True, marks=pytest.mark.long),
    ],
)
def test_a_command_that_evaluates_an_environment_that_hangs_exits_1(tmp_path: Path, workers, locked):
    (tmp_path / "hung").touch()
    run = trained_for(tmp_path, HANGING, file=str(tmp_path / "hung"), locked=locked)
    typed = ["eval", str(run), "--episodes", "7", "--workers", workers, "--allow-import", "eval_cases"]
    done = started(typed, LOCKED, env=_importing_eval_cases())
    told = done.communicate(timeout=60)[1]
    assert done.returncode == 1, told
    if locked and workers == "1":  # nothing but C code runs: the place in the program is all that can be told
        assert told.startswith("Timeout") and re.search(r'eval_cases\.py", line \d+ in _hang', told)
    else:
        said = f"error: the evaluation failed: {HANGING} has answered no reset or step for 2 s; mend the environment\n"
        assert told == said


@pytest.mark.long
def test_a_command_that_is_stopped_for_longer_than_that_goes_on(tmp_path: Path):
    signs = tmp_path / "signs"
    signs.mkdir()
    run = trained_for(tmp_path, LASTING, folder=str(signs))
    typed = ["eval", str(run), "--episodes", "1", "--workers", "1", "--allow-import", "eval_cases"]
    process = started(typed, LOCKED, env=_importing_eval_cases())
    wait_for(lambda: any(signs.iterdir()))
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    (signs / str(process.pid)).unlink()
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: any(signs.iterdir()))
    time.sleep(0.5)
    assert process.poll() is None
    process.kill()


def test_the_command_that_is_typed_again_ends_well_and_its_json_counts_the_failures(run: Path, tmp_path: Path, capsys):
    main(["train", *words(tiny_settings(tmp_path, env=UNLICENSED, eval_every=10, seeds=1)), "--json"])
    assert json.loads(capsys.readouterr().out)["evaluations_failed"] == 3


def _importing_eval_cases() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
