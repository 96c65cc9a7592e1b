"""A disk that refuses: warned of, lived with, and in the end named with exit code 7."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from run_cases import SMALLER_THAN_A_STATE, files_up_to, logged_steps, tiny

from gtp_fast.config import TrainConfig
from gtp_fast.errors import DiskError, DivergedError, UsageError
from gtp_fast.runs import checkpoint, resume
from gtp_fast.runs.directory import RunDir
from gtp_fast.runs.disk import Disk, disk_errors, writing
from gtp_fast.runs.metrics import MetricsWriter
from gtp_fast.training import guards
from gtp_fast.training.train import train


def test_earlier_checkpoints_stay_valid_when_the_disk_fills_up(tmp_path: Path):
    def fill(event: object) -> None:
        if getattr(event, "step", 0) == 20:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (SMALLER_THAN_A_STATE, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )

    cfg = tiny(tmp_path, steps=100)
    with files_up_to(resource.RLIM_INFINITY), pytest.raises(DiskError):
        train(cfg, fill)
    newest, refused = checkpoint.load_newest(RunDir(tmp_path / "run"))
    assert newest is not None and newest.step == 10 and refused == []


def _to_a_full_device(*_: object) -> None:
    """Write where the kernel says ENOSPC, as it does of a disk without space."""
    with open("/dev/full", "wb", buffering=0) as device:
        device.write(b"x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has it")
def test_a_device_without_space_is_a_full_disk(tmp_path: Path):
    with (
        pytest.raises(DiskError, match=r"no space for .* \(\[Errno 28\] No space left on device\)"),
        disk_errors(tmp_path),
    ):
        _to_a_full_device()
    with pytest.raises(DiskError, match="cannot be written"), writing(tmp_path, "free some space"):
        _to_a_full_device()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has it")
def test_a_run_whose_first_file_finds_no_space_exits_with_seven(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(resume, "publish_json", _to_a_full_device)
    with pytest.raises(DiskError, match="free some space and run the same command again") as full:
        train(tiny(tmp_path))
    assert full.value.exit_code == 7


def test_a_disk_that_is_full_from_the_start_exits_with_seven(tmp_path: Path):
    cfg = tiny(tmp_path)
    with files_up_to(10), pytest.raises(DiskError, match="no space for"):
        train(cfg)


def test_a_disk_that_refuses_metric_lines_is_named_though_closing_them_fails_too(tmp_path: Path):
    cfg = tiny(tmp_path, steps=60, save_every=0, log_every=1)
    with files_up_to(3_000), pytest.raises(DiskError, match="3 writes of metrics"):
        train(cfg)


def test_metric_lines_refused_for_a_while_are_written_once_when_there_is_room(tmp_path: Path):
    with MetricsWriter(TrainConfig(env="x"), RunDir(tmp_path), 0) as writer:
        writer.write(1, {"loss": [0.5]}, 1.0)
        with files_up_to(10), pytest.raises(OSError, match="large"):
            writer.write(2, {"loss": [0.25]}, 1.0)
        writer.write(3, {"loss": [0.125]}, 1.0)
    assert logged_steps(tmp_path) == [1, 2, 3]


def test_a_full_disk_does_not_hide_a_divergence(tmp_path: Path):
    with files_up_to(10), pytest.raises(DivergedError, match="loss of seed 0 was not finite at step 3"):
        guards.check_finite([[3]], ("loss",), [0], tmp_path, None)


@pytest.mark.parametrize("place", ["file", "file/run"], ids=["a file", "below a file"])
def test_a_run_directory_that_cannot_be_one_is_refused_by_name(tmp_path: Path, place):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(UsageError, match="cannot be a run directory"):
        train(tiny(tmp_path, run_dir=str(tmp_path / place)))


def test_a_success_between_refusals_starts_the_count_again(tmp_path: Path):
    warnings: list[str] = []
    disk = Disk(tmp_path, warnings.append)

    def refuse() -> None:
        raise OSError("full")

    for action in (refuse, refuse, lambda: None, refuse, refuse):
        disk.write("checkpoints", "checkpoint", action)
    assert len(warnings) == 4
