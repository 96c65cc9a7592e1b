"""Checkpoints come back bit for bit, or are refused by name; no altered byte passes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_cases import python

from gtp_fast.errors import CheckpointError, GtpError
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    return run


def _save(run: RunDir, step: int) -> Path:
    tensors = {"actor.param": torch.full((2, 8), float(step)), "step": torch.tensor(step)}
    return checkpoint.save(
        run, step, tensors, {"actor": tensors["actor.param"]}, {"env": "x"}, {5: {"actor": torch.ones(2)}}
    )


def test_everything_saved_comes_back(run):
    loaded = checkpoint.load(_save(run, 10))
    assert loaded.step == 10 and loaded.meta["env"] == "x"
    assert torch.equal(loaded.tensors["actor.param"], torch.full((2, 8), 10.0)) and int(loaded.tensors["step"]) == 10
    assert torch.equal(loaded.pending_evals[5]["actor"], torch.ones(2))
    policy, meta = checkpoint.load_policy(run.checkpoint(10))
    assert list(policy) == ["actor"] and meta["step"] == 10


@pytest.mark.parametrize("name", [checkpoint.META, checkpoint.MANIFEST])
def test_both_descriptions_say_the_format_in_which_they_are_written(run, name):
    assert json.loads((_save(run, 10) / name).read_text())["format"] == checkpoint.FORMAT


@pytest.mark.parametrize(("keep", "newest"), [(2, 30), (1, 20)], ids=["the last was saved", "one before it"])
def test_only_the_newest_are_kept_and_the_best_and_what_was_just_saved_stay(run, keep, newest):
    checkpoint.save_best(run, {"actor": torch.zeros(1)}, {"step": 1})
    for step in (10, 20, 30):
        _save(run, step)
    checkpoint.prune(run, keep=keep, newest=newest)
    assert checkpoint.steps(run) == [20, 30] and (run.checkpoints / "best").is_dir()


def test_a_damaged_newest_is_passed_over_and_told(run):
    _save(run, 10)
    (_save(run, 20) / checkpoint.STATE).write_bytes(b"short")
    newest, refused = checkpoint.load_newest(run)
    assert newest is not None and newest.step == 10
    assert len(refused) == 1 and "expected" in refused[0]


def test_the_newest_of_several_that_are_whole_is_loaded(run):
    for step in (10, 20, 30):
        _save(run, step)
    newest, refused = checkpoint.load_newest(run)
    assert newest is not None and newest.step == 30 and refused == []


def test_later_checkpoints_are_removed_from_the_newest_on(run, monkeypatch):
    for step in (10, 20, 30, 40):
        _save(run, step)
    kept: list[list[int]] = []
    remove = checkpoint.remove
    monkeypatch.setattr(checkpoint, "remove", lambda path: remove(path) or kept.append(checkpoint.steps(run)))
    checkpoint.drop_after(run, 10)
    # A kill in between leaves the metric lines of every step up to the newest that is left.
    assert kept == [[10, 20, 30], [10, 20], [10]]


def test_when_none_is_usable_the_run_never_starts_again_in_silence(run):
    (_save(run, 10) / checkpoint.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints") as error:
        checkpoint.load_newest(run)
    assert error.value.exit_code == 5


def test_a_run_without_checkpoints_starts_at_zero(run):
    assert checkpoint.load_newest(run) == (None, [])


def test_values_that_are_not_finite_are_never_written(run):
    with pytest.raises(CheckpointError, match=r"actor\.param held values that are not finite at step 10"):
        checkpoint.save(run, 10, {"actor.param": torch.tensor([float("nan")])}, {}, {}, {})
    assert not list(run.checkpoints.iterdir())


def _with_a_snapshot_of_no_step(manifest):
    files = manifest["files"]
    name = next(name for name in files if name.startswith(checkpoint.PENDING))
    return manifest | {"files": files | {"pending-eval-x.safetensors": files[name]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m | {"format": 99}, "has format 99, this version reads 1"),
        (lambda m: m | {"files": {"../../escape": {"bytes": 1, "sha256": ""}}}, "which is outside the checkpoint"),
        (lambda m: m | {"files": 7}, "cannot be read"),
        (lambda m: {}, "cannot be read"),
        (lambda m: m | {"files": {"state.json": {"bytes": 1e999, "sha256": ""}}}, "cannot be read"),
        (_with_a_snapshot_of_no_step, "has no step in its name"),
    ],
)
def test_a_foreign_manifest_is_refused(run, change, words):
    manifest = _save(run, 10) / checkpoint.MANIFEST
    shutil.copy(next(manifest.parent.glob("pending-*")), manifest.parent / "pending-eval-x.safetensors")
    manifest.write_text(json.dumps(change(json.loads(manifest.read_text()))))
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(run.checkpoint(10))


@settings(max_examples=80)
@given(data=st.data())
def test_no_altered_truncated_or_grown_byte_passes(run, data):
    path = _save(run, 10)
    file = data.draw(st.sampled_from(sorted(path.iterdir())))
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if kind == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content += data.draw(st.binary(min_size=1, max_size=64))
    file.write_bytes(content)
    try:
        loaded = checkpoint.load(path)
    except GtpError:
        return
    # Only the manifest is not covered by itself: what it then still admits must be the true content.
    assert file.name == checkpoint.MANIFEST
    assert torch.equal(loaded.tensors["actor.param"], torch.full((2, 8), 10.0))


ONE_TEAM = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir
torch.set_num_threads(2)
large = torch.ones(2_000_000)
torch.isfinite(large).all()  # this thread's own team
run = RunDir(Path(sys.argv[1]))
with ThreadPoolExecutor(1) as pool:
    pool.submit(int).result()
    before = len(os.listdir("/proc/self/task"))
    pool.submit(checkpoint.save, run, 10, {"w": large}, {"w": large}, {}, {}).result()
    print(len(os.listdir("/proc/self/task")) - before)
    pool.submit(lambda: torch.isfinite(large).all()).result()
    print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux shows them")
def test_a_save_in_a_thread_of_its_own_starts_no_threads_that_training_would_wait_for(run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    done = python(ONE_TEAM, str(run.path))
    assert done.stdout.split() == ["0", "1"]  # of a save, and of the loop in torch that it must not make
