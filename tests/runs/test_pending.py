"""Policies that wait for their evaluation: written once, and as safe as any other file of a checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_states import record

from gtp_fast.errors import CheckpointError
from gtp_fast.runs import checkpoint
from gtp_fast.runs.directory import RunDir

WAITING = {5: {"actor": torch.full((3,), 5.0)}, 7: {"actor": torch.full((3,), 7.0)}}


def save(run: RunDir, step: int, pending: dict[int, dict[str, torch.Tensor]] = WAITING) -> Path:
    policy: dict[str, Any] = {"actor": torch.zeros(3)}
    return checkpoint.save(run, step, {"w": torch.full((4,), float(step))}, policy, {}, pending)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run whose checkpoint of step 10 has two policies that wait."""
    found = RunDir(tmp_path / "run")
    found.checkpoints.mkdir(parents=True)
    save(found, 10)
    return found


def names(path: Path) -> list[int]:
    """Return how many names each waiting policy's file has."""
    return [file.stat().st_nlink for file in sorted(path.glob("pending-*"))]


def same(path: Path) -> bool:
    found = checkpoint.load(path).pending_evals
    return found.keys() == WAITING.keys() and all(torch.equal(found[n]["actor"], WAITING[n]["actor"]) for n in found)


def test_a_policy_that_still_waits_is_not_written_again_and_stays_when_older_checkpoints_go(run):
    paths = [run.checkpoint(10), save(run, 20), save(run, 30)]
    assert names(paths[-1]) == [3, 3] and all(map(same, paths))
    checkpoint.prune(run, 1, 30)
    assert checkpoint.steps(run) == [30] and names(paths[-1]) == [1, 1] and same(paths[-1])


def _cut(file: Path) -> None:
    os.truncate(file, 30)


def _altered(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def _of_other_values(file: Path) -> None:
    file.write_bytes(checkpoint.save_bytes({"actor": torch.full((3,), 6.0)}))


def _a_link(file: Path) -> None:
    elsewhere = file.with_name("elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


@pytest.mark.parametrize("damage", [_cut, _altered, _of_other_values, _a_link, os.remove])
def test_a_file_with_another_content_is_not_taken_over(run, damage: Callable[[Path], None]):
    damage(run.checkpoint(10) / "pending-eval-00000005.safetensors")
    assert names(save(run, 20)) == [1, 2] and same(run.checkpoint(20))


def test_where_a_file_system_knows_no_second_names_a_policy_is_written_again(run, monkeypatch):
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert names(save(run, 20)) == [1, 1] and same(run.checkpoint(20))


def test_a_checkpoint_with_policies_that_wait_is_there_or_the_one_before_after_any_power_cut(run, monkeypatch):
    recording = record(run.checkpoints, monkeypatch, lambda: (save(run, 20), checkpoint.prune(run, 1, 20)))
    found = set()
    for make in recording.crashes():
        shutil.rmtree(run.checkpoints)
        run.checkpoints.mkdir()
        make(run.checkpoints)
        try:
            newest, _ = checkpoint.load_newest(run)
        except CheckpointError:
            found.add("none is usable")
        else:
            assert newest is not None and same(newest.path)
            found.add(newest.step)
    assert found == {10, 20}
