"""What a run left is read once, whole or not; a damaged file says nothing, or is named."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from run_cases import tiny

import gtp_fast
from gtp_fast import files
from gtp_fast.errors import CheckpointError
from gtp_fast.evaluation.evaluate import EvalConfig, eval_run
from gtp_fast.runs import checkpoint, records
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.records import Progress
from gtp_fast.training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 30 steps, saved at 10, 20 and 30, evaluated at 30; nothing below changes it."""
    return Path(train(tiny(tmp_path_factory.mktemp("trained"), eval_every=30, eval_max_steps=20)).run_dir)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunDir:
    """A copy that a test may damage."""
    return RunDir(Path(shutil.copytree(trained, tmp_path / "run")))


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """Return how often each file of a checkpoint was read, by its name."""
    counted, opened = Counter(), files.open_file

    def open_file(path: Path, *how: Any, **more: Any) -> Any:
        counted.update([path.name] if path.parent.parent.name == "ckpt" else [])
        return opened(path, *how, **more)

    monkeypatch.setattr(files, "open_file", open_file)
    return counted


def once(place: Path) -> dict[str, int]:
    return {file.name: 1 for file in place.iterdir()}


def test_eval_reads_each_file_of_the_checkpoint_once(trained: Path, reads):
    eval_run(trained, EvalConfig(episodes=1))
    assert reads == once(trained / "ckpt/step-00000030")


@pytest.mark.parametrize("place", ["", "ckpt/step-00000030"], ids=["run", "checkpoint"])
def test_load_policy_reads_each_file_of_the_checkpoint_once(trained: Path, reads, place):
    gtp_fast.load_policy(trained / place)
    assert reads == once(trained / "ckpt/step-00000030")


def test_a_policy_that_was_read_is_loaded_again_without_its_files(trained: Path, reads):
    saved = records.find_policy(trained)
    before = Counter(reads)
    gtp_fast.load_policy(saved, seed=1, candidates=3)
    assert reads == before


def test_the_newest_valid_policy_is_found_and_newer_ones_are_named(run: RunDir):
    (run.checkpoint(30) / checkpoint.STATE).write_bytes(b"short")
    found = records.find_policy(run.path)
    assert found.path == run.checkpoint(20) and found.steps == {0: 20, 1: 20}
    (note,) = found.notes
    assert note.startswith(f"passed over a damaged checkpoint: {run.checkpoint(30)}")


def test_the_best_policy_or_the_named_one_is_found(run: RunDir):
    assert records.find_policy(run.path, best=True).path == run.checkpoints / "best"
    assert records.find_policy(run.checkpoint(10)).steps == {0: 10, 1: 10}
    shutil.rmtree(run.checkpoints / "best")
    with pytest.raises(CheckpointError, match="has no best policy"):
        records.find_policy(run.path, best=True)


def test_a_run_is_finished_when_its_last_checkpoint_is_whole(run: RunDir, tmp_path: Path):
    assert records.finished(run, 30) and not records.finished(run, 40)
    assert not records.finished(RunDir(tmp_path / "absent"), 30)
    (run.checkpoint(30) / checkpoint.STATE).write_bytes(b"short")
    assert not records.finished(run, 30)


def test_progress_passes_over_damaged_lines_of_the_log(tmp_path: Path):
    RunDir(tmp_path).log.write_text("step 1,000 52.5 steps/s\nstep 2;000 53.5 steps/s\nstep 3,000 - steps/s\n")
    assert records.read_progress(RunDir(tmp_path)) == Progress(1_000, 52.5, None)


@pytest.mark.parametrize("cut", ["step 2,000 99.5 steps/s", "step 2,0"], ids=["no end of line", "torn"])
def test_progress_is_that_of_the_last_whole_line(tmp_path: Path, cut: str):
    lines = [f"step {step} 50.0 steps/s loss {step}" for step in range(1_000)]
    RunDir(tmp_path).log.write_text("\n".join([*lines, cut]))
    assert records.read_progress(RunDir(tmp_path)) == Progress(999, 50.0, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"step": 1200, "quantity": "critic_loss", "seed": 3}', "diverged at step 1,200 (critic_loss of seed 3)"),
        ("{", "diverged"),
        (None, None),
    ],
    ids=["whole", "damaged", "absent"],
)
def test_a_failure_is_told_as_far_as_its_file_can_be_read(tmp_path: Path, text, said):
    if text is not None:
        RunDir(tmp_path).failure.write_text(text)
    assert records.read_failure(RunDir(tmp_path)) == said
