"""A run that is stopped and continued again and again keeps nothing of its past: memory, files, threads."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from run_cases import tiny

from gtp_fast.config import TrainConfig
from gtp_fast.runs.events import Event, Progress
from gtp_fast.training.signals import InterruptedRunError
from gtp_fast.training.train import train

GROWTH_BYTES = 16 << 20  # allowed after the first resumes; a state kept each time would be 90 MB in 1,000


def _stopped_after_a_step(cfg: TrainConfig) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        train(cfg, stop)


def _held() -> dict[str, int]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


@pytest.mark.parametrize("resumes", [20, pytest.param(1_000, marks=pytest.mark.crash)])
def test_a_run_resumed_many_times_holds_no_more_than_at_first(tmp_path: Path, resumes: int):
    cfg = tiny(tmp_path, steps=resumes + 1, log_every=1, save_every=0)
    first = min(resumes // 2, 30)
    for _ in range(first):
        _stopped_after_a_step(cfg)
    before = _held()
    for _ in range(resumes - first):
        _stopped_after_a_step(cfg)
    after = _held()
    assert after["bytes"] - before["bytes"] < GROWTH_BYTES
    assert (after["files"], after["threads"]) == (before["files"], before["threads"])
    train(cfg)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, resumes + 2))
