"""`gtp-fast eval`: which policy was rolled out is said, and what cannot be asked is refused by its flag."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from data_cases import columns, write
from run_cases import tiny

from gtp_fast.cli.main import main
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.evaluation.evaluate import EvalConfig, eval_run
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
from gtp_fast.training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 30 steps, evaluated at 15 and 30, of a hopper that falls soon; nothing below changes it."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "data.hdf5", columns(sizes=(11, 3)))
    train(tiny(folder, env="Hopper-v5", eval_every=15))
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


ONE = EvalConfig(episodes=1)


def test_the_last_checkpoint_is_evaluated_and_named(trained: Path):
    found = eval_run(trained, ONE)
    assert found.checkpoint == trained / "ckpt/step-00000030" and found.steps == (30, 30)
    assert found.to_json()["step"] == 30 and found.to_json()["best"] is False


def test_a_named_checkpoint_is_evaluated_and_not_the_last(trained: Path):
    found = eval_run(trained / "ckpt/step-00000010", ONE)
    assert found.checkpoint == trained / "ckpt/step-00000010" and found.to_json()["step"] == 10


def test_the_best_policy_names_the_step_of_each_member(trained: Path):
    _, meta = checkpoint.load_policy(trained / "ckpt/best")
    both = eval_run(trained, EvalConfig(episodes=1, best=True))
    assert both.steps == tuple(meta["steps"]) and both.to_json()["best"] is True
    assert eval_run(trained, EvalConfig(episodes=1, best=True, seed=1)).steps == (meta["steps"][1],)


def test_a_damaged_last_checkpoint_is_passed_over_and_told(run: Path):
    (run / "ckpt/step-00000030" / checkpoint.STATE).write_bytes(b"short")
    found = eval_run(run, ONE)
    assert found.steps == (20, 20) and "step-00000030" in found.notes[0]


def test_episodes_are_as_trained_unless_asked_for(trained: Path):
    assert eval_run(trained, EvalConfig()).result.returns_SE.shape == (2, 1)
    assert eval_run(trained, EvalConfig(episodes=2)).result.returns_SE.shape == (2, 2)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"episodes": 0}, "--episodes 0 is outside"),
        ({"episodes": -3}, "--episodes -3 is outside"),
        ({"sampling_steps": 0}, "--sampling-steps 0 is outside"),
        ({"candidates": 0}, "--candidates 0 is outside"),
        ({"candidates": -1, "select": "argmax"}, "--candidates -1 is outside"),
        ({"env_seed": -1}, "--env-seed -1 is outside"),
        ({"seed": -1}, r"the run has seeds \[0, 1\], not -1"),
        ({"select": "argmax"}, "--candidates 1 with --select argmax"),
        ({"video": Path("no/such/folder/a.gif")}, "--video no/such/folder/a.gif cannot be written"),
        ({"video": Path("/")}, "--video / cannot be written"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_by_its_flag(trained: Path, asked, words):
    with pytest.raises(UsageError, match=words):
        eval_run(trained, EvalConfig(**asked))


def test_a_gpu_that_is_not_there_is_refused(trained: Path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match=r"--device cuda: torch .* sees no NVIDIA GPU"):
        eval_run(trained, EvalConfig(device="cuda"))


def _no_checkpoint(run: Path) -> Path:
    shutil.rmtree(run / "ckpt")
    return run


def _only_damaged(run: Path) -> Path:
    for step in checkpoint.steps(RunDir(run)):
        (run / f"ckpt/step-{step:08d}" / checkpoint.MANIFEST).unlink()
    return run


def _no_env(run: Path) -> Path:
    (run / "config.yaml").write_text("seed: 3\n")
    return run


@pytest.mark.parametrize(
    ("damage", "words", "code"),
    [
        (_no_checkpoint, "has no checkpoint yet", 5),
        (_only_damaged, "none of the 3 checkpoints", 5),
        (lambda run: run / "ckpt/step-00000099", "is neither a run directory nor a checkpoint", 5),
        (lambda run: run / "ckpt/step-00000030", "", 0),
        (lambda run: run / "config.yaml", "is no run directory", 2),
        (lambda run: run / "ckpt/step-00000030/state.json", "is no run directory", 2),
        (lambda run: run / "ckpt", "is no run directory", 2),
        (lambda run: Path("x" * 5000), "is no run directory", 2),
        (_no_env, "names no env", 2),
    ],
    ids=["none", "damaged", "absent", "whole", "file", "file of a checkpoint", "ckpt", "too long", "no env"],
)
def test_what_holds_no_policy_ends_with_its_exit_code(run: Path, damage, words, code, capsys):
    try:
        main(["eval", str(damage(run)), "--episodes", "1"])
        ended = 0
    except SystemExit as leaving:
        ended = leaving.code
    assert ended == code and words in capsys.readouterr().err


def test_best_of_a_checkpoint_or_of_a_run_that_was_never_evaluated_is_refused(run: Path):
    with pytest.raises(UsageError, match=r"is one checkpoint; name .*run"):
        eval_run(run / "ckpt/step-00000010", EvalConfig(best=True))
    shutil.rmtree(run / "ckpt/best")
    with pytest.raises(CheckpointError, match="never evaluated; leave out --best"):
        eval_run(run, EvalConfig(best=True))


def test_both_outputs_say_which_checkpoint_was_used(trained: Path, capsys):
    main(["eval", str(trained), "--episodes", "1"])
    assert f"policy {trained}/ckpt/step-00000030, step 30\n" in capsys.readouterr().out
    main(["eval", str(trained), "--episodes", "1", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert (values["step"], values["checkpoint"]) == (30, f"{trained}/ckpt/step-00000030")
