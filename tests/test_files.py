"""The order of write, fsync and rename: after a power cut at any moment the old is found, or the whole new."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from crash_states import Recording, record

from gtp_fast.errors import CheckpointError, ForeignFileError
from gtp_fast.files import file_name, open_file, parse_json, publish, publish_directory, read_bytes
from gtp_fast.locks import holder, locked
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


NEW = ("runs", "runs/env", "runs/env/run", "runs/env/run/ckpt", "runs/env/run/eval")


def test_every_folder_of_a_new_run_has_its_name_on_the_disk_once_the_run_is_claimed(root, monkeypatch):
    def claim() -> None:
        with RunDir(root / "runs/env/run").claim():
            pass

    recording = record(root, monkeypatch, claim)
    assert set(NEW) <= set(recording.trees[-1]) and recording.lost_folders() == []


def test_a_folder_whose_parent_is_not_fsynced_is_told(root, monkeypatch):
    recording = record(root, monkeypatch, lambda: (root / "runs/env/run").mkdir(parents=True))
    assert recording.lost_folders() == ["runs", "runs/env", "runs/env/run"]


Plant = Callable[[Path, Path], object]  # puts something else in a file's place; its first argument is another's file
FOREIGN: dict[str, Plant] = {
    "a link": lambda other, place: place.symlink_to(other),
    "a link to nothing": lambda other, place: place.symlink_to(other.with_name("absent")),
    "a link to a device": lambda other, place: place.symlink_to("/dev/zero"),
    "a pipe": lambda other, place: os.mkfifo(place),
    "a directory": lambda other, place: place.mkdir(),
}
SECOND_NAME: dict[str, Plant] = {"a second name": lambda other, place: place.hardlink_to(other)}


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """Another's file, which nothing may change."""
    file = tmp_path / "other"
    file.write_bytes(b"precious")
    yield file
    assert file.read_bytes() == b"precious" and not file.with_name("absent").exists()


@pytest.mark.parametrize("plant", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("mode", ["r", "r+", "rb", "w", "a", "wb"])
def test_nothing_but_a_regular_file_is_opened(root, other, plant, mode):
    plant(other, root / "file")
    with pytest.raises(ForeignFileError, match=f"{root / 'file'} is a .*, expected a file of its own"):
        open_file(root / "file", mode)


@pytest.mark.parametrize("mode", ["r+", "w", "a"])
def test_a_file_with_a_second_name_is_not_written(root, other, mode):
    SECOND_NAME["a second name"](other, root / "file")
    with pytest.raises(ForeignFileError, match="is a file with a second name"):
        open_file(root / "file", mode)
    assert read_bytes(root / "file", 8) == b"precious"


@pytest.mark.parametrize("plant", (FOREIGN | SECOND_NAME).values(), ids=FOREIGN | SECOND_NAME)
def test_a_lock_is_taken_on_nothing_but_a_file_of_its_own(root, other, plant):
    plant(other, root / "LOCK")
    with pytest.raises(ForeignFileError), locked(root / "LOCK", "the run"):
        pass


@pytest.mark.parametrize("plant", FOREIGN.values(), ids=FOREIGN)
def test_asking_who_holds_a_lock_opens_nothing_but_a_file(root, other, plant):
    plant(other, root / "LOCK")
    with pytest.raises(ForeignFileError):
        holder(root / "LOCK")


def test_a_file_is_published_in_the_place_of_a_link_and_not_through_it(root, other):
    (root / "file").symlink_to(other)
    (root / f".partial-{os.getpid()}-file").symlink_to(other)
    publish(root / "file", b"new")
    assert (root / "file").read_bytes() == b"new" and not (root / "file").is_symlink()


def test_a_file_that_the_user_named_may_be_a_link_to_a_file_and_to_nothing_else(root, other):
    (root / "file").symlink_to(other)
    (root / "device").symlink_to("/dev/zero")
    assert read_bytes(root / "file", 8, follow=True) == b"precious"
    with pytest.raises(ForeignFileError, match="is a pipe, a socket or a device"):
        read_bytes(root / "device", 8, follow=True)


def test_no_more_is_read_than_was_asked_for(root):
    with (root / "file").open("wb") as file:
        file.truncate(1 << 40)  # it takes no space
    with pytest.raises(ForeignFileError, match="has 1,099,511,627,776 bytes, expected at most 1,000"):
        read_bytes(root / "file", 1_000)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5_000, b"{", b"\xff"])
def test_json_that_cannot_be_read_is_a_value_error(content):
    with pytest.raises(ValueError):
        parse_json(content)


def test_no_link_is_followed_unless_the_user_named_it(root, other):
    (root / "file").symlink_to(other)
    with pytest.raises(ForeignFileError):
        read_bytes(root / "file", 8)


def test_a_file_that_is_opened_to_be_written_is_empty(root):
    (root / "file").write_bytes(b"old")
    open_file(root / "file", "wb").close()
    assert (root / "file").read_bytes() == b""


def test_what_an_earlier_process_of_the_same_number_left_enters_no_directory(root):
    left = root / f".partial-{os.getpid()}-whole"  # in a container every run may be process 1
    left.mkdir()
    (left / "old").write_text("half")
    publish_directory(root / "whole", lambda directory: (directory / "new").write_text("x") and None)
    assert [path.name for path in (root / "whole").iterdir()] == ["new"]


def test_who_waits_for_a_lock_is_told_for_whom(root, caplog):
    with locked(root / "LOCK", "the file"):
        waiting = threading.Thread(target=lambda: locked(root / "LOCK", "the file", wait=True).__enter__(), daemon=True)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join(30)
    assert f"the file is in use by process {os.getpid()} on " in caplog.text and not waiting.is_alive()


@pytest.mark.parametrize(
    ("text", "name"), [("a b/c", "a_b_c"), ("halfcheetah-v2.1", "halfcheetah-v2.1"), ("..", "_"), ("", "_")]
)
def test_a_text_becomes_a_file_name(text, name):
    assert file_name(text) == name
