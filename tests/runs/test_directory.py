"""What is published is whole, and a claimed directory has one holder."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtp_fast import files
from gtp_fast.errors import BusyError
from gtp_fast.files import PARTIAL, publish, publish_directory
from gtp_fast.runs.directory import RunDir, new_run_path


def test_published_bytes_are_there_and_nothing_else_is(tmp_path: Path):
    publish(tmp_path / "a.json", b"one")
    publish(tmp_path / "a.json", b"two")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_bytes() == b"two"


def test_a_write_that_fails_leaves_the_old_file_and_no_trace(tmp_path: Path, monkeypatch):
    publish(tmp_path / "a.json", b"old")
    whole = files.write_file

    def fail(path: Path, data: bytes) -> None:
        whole(path, data[:2])
        raise OSError("disk")

    monkeypatch.setattr(files, "write_file", fail)
    with pytest.raises(OSError, match="disk"):
        publish(tmp_path / "a.json", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_bytes() == b"old"


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path: Path):
    publish_directory(tmp_path / "c", lambda d: (d / "x").write_bytes(b"1") and None)

    def fail(directory: Path) -> None:
        (directory / "x").write_bytes(b"2")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        publish_directory(tmp_path / "c", fail)
    assert (tmp_path / "c" / "x").read_bytes() == b"1" and [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_directory_whose_second_rename_is_refused_stays_as_it_was(tmp_path: Path, monkeypatch):
    publish_directory(tmp_path / "c", lambda d: (d / "x").write_bytes(b"old") and None)
    rename, done = os.replace, []

    def refuse_the_second(old: Path, new: Path) -> None:
        done.append(new)
        if len(done) == 2:
            raise OSError("disk")
        rename(old, new)

    monkeypatch.setattr(os, "replace", refuse_the_second)
    with pytest.raises(OSError, match="disk"):
        publish_directory(tmp_path / "c", lambda d: (d / "x").write_bytes(b"new") and None)
    assert (tmp_path / "c" / "x").read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["c"]


def _claim(path: Path, answers) -> None:
    try:
        with RunDir(path).claim():
            answers.put("claimed")
    except BusyError as error:
        answers.put(str(error))


def test_a_claimed_directory_names_its_holder_and_is_free_afterwards(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def ask() -> str:
        process = context.Process(target=_claim, args=(tmp_path / "run", answers))
        process.start()
        process.join()
        return answers.get(timeout=10)

    with RunDir(tmp_path / "run").claim():
        assert "is in use by process " in ask()
    assert ask() == "claimed"


def test_claiming_sweeps_what_a_killed_process_left(tmp_path: Path):
    run = RunDir(tmp_path)
    (run.checkpoints / f"{PARTIAL}7-step-00000010").mkdir(parents=True)
    (tmp_path / f"{PARTIAL}7-config.yaml").write_text("half")
    with run.claim():
        assert not list(tmp_path.rglob(PARTIAL + "*"))


@given(st.text(min_size=1, max_size=40))
def test_no_name_leads_out_of_the_runs_folder(name):
    root = Path("runs")
    path = new_run_path(root, name, "gtp", 0, "abcdef")
    assert path.parent.parent == root and "/" not in path.parent.name


def test_a_runs_files_have_the_names_of_the_page():
    run = RunDir(Path("run"))
    names = ("checkpoints", "evaluations", "metrics", "log", "lock", "failure", "wandb_id")
    found = [str(getattr(run, name)) for name in names] + [str(run.checkpoint(50)), str(run.evaluation(50))]
    listed = ("ckpt", "eval", "metrics.jsonl", "train.log", "LOCK", "failure.json", "wandb-id")
    assert found == [f"run/{name}" for name in (*listed, "ckpt/step-00000050", "eval/step-00000050.json")]
