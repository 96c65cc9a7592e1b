"""The order of write, fsync and rename: after a power cut at any moment the old is found, or the whole new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from crash_states import Recording, record

from gtp_fast.errors import CheckpointError
from gtp_fast.files import publish
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir


def found(recording: Recording, read: Callable[[Path], object], place: Path, after: int = 0) -> set[object]:
    """Return what `read` finds in `place` in every state that a power cut may leave."""
    answers = set()
    for make in recording.crashes(after):
        place.mkdir()
        make(place)
        answers.add(read(place))
        shutil.rmtree(place)
    return answers


def save(run: RunDir, step: int) -> None:
    checkpoint.save(run, step, {"w": torch.full((4,), float(step))}, {"w": torch.zeros(2)}, {"logged": step}, {})


def newest(checkpoints: Path) -> int | str:
    """Return the step of the newest checkpoint, as a resume finds it."""
    try:
        loaded, _ = checkpoint.load_newest(RunDir(checkpoints.parent))
    except CheckpointError:
        return "none is usable"
    return 0 if loaded is None else loaded.step


def content(place: Path) -> bytes | None:
    file = place / "file"
    return file.read_bytes() if file.exists() else None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_a_published_file_is_the_old_or_the_new_after_any_power_cut(root, tmp_path, monkeypatch):
    publish(root / "file", b"old")
    recording = record(root, monkeypatch, lambda: publish(root / "file", b"brand new"))
    assert found(recording, content, tmp_path / "after") == {b"old", b"brand new"}
    assert found(recording, content, tmp_path / "after", len(recording.trees) - 1) == {b"brand new"}


def without_fsync(path: Path, data: bytes, fsync: Callable[[int], None] = lambda descriptor: None) -> None:
    part = path.with_name("part")
    part.write_bytes(data)
    with part.open("rb") as file:
        fsync(file.fileno())
    os.replace(part, path)


def without_fsync_of_the_directory(path: Path, data: bytes) -> None:
    without_fsync(path, data, os.fsync)


@pytest.mark.parametrize(
    ("write", "wrong"),
    [(Path.write_bytes, b""), (without_fsync, b"bran"), (without_fsync_of_the_directory, b"old")],
    ids=["in place", "no fsync", "no fsync of the directory"],
)
def test_a_writer_that_skips_a_part_of_it_is_caught(root, tmp_path, monkeypatch, write, wrong):
    publish(root / "file", b"old")
    recording = record(root, monkeypatch, lambda: write(root / "file", b"brand new"))
    assert wrong in found(recording, content, tmp_path / "after", len(recording.trees) - 1)


def test_a_resume_finds_the_last_checkpoint_or_the_one_before_after_any_power_cut(root, monkeypatch):
    run = RunDir(root)
    run.checkpoints.mkdir()
    save(run, 10)
    recording = record(run.checkpoints, monkeypatch, lambda: save(run, 20))
    shutil.rmtree(run.checkpoints)

    assert found(recording, newest, run.checkpoints) == {10, 20}
    assert found(recording, newest, run.checkpoints, len(recording.trees) - 1) == {20}


def test_the_best_policy_is_the_old_or_the_new_after_any_power_cut(root, monkeypatch):
    run = RunDir(root)
    with run.claim():
        checkpoint.save_best(run, {"w": torch.ones(2)}, {"step": 10})
    recording = record(
        run.checkpoints, monkeypatch, lambda: checkpoint.save_best(run, {"w": torch.ones(2)}, {"step": 20})
    )
    shutil.rmtree(run.checkpoints)

    def best(checkpoints: Path) -> int:
        with run.claim():  # puts back what had stepped aside, and sweeps what is left
            assert [path.name for path in checkpoints.iterdir()] == [checkpoint.BEST]
            return checkpoint.load_policy(checkpoints / checkpoint.BEST)[1]["step"]

    assert found(recording, best, run.checkpoints) == {10, 20}
    assert found(recording, best, run.checkpoints, len(recording.trees) - 1) == {20}
