"""Phases cost nothing unless recorded, and need no package beside torch."""

from __future__ import annotations

import sys

import pytest
import torch

from gtp_fast import profiling


@pytest.fixture
def recorded():
    profiling.record_phases(True)
    yield
    profiling.record_phases(False)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("missing", [(), ("nvtx",)], ids=["with-nvtx", "without-nvtx"])
def test_phases_are_seen_by_torchs_profiler_with_and_without_nvtx(missing, monkeypatch):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # the import now raises ImportError
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu]) as profiler, profiling.phase("chain"):
        torch.ones(2).sum()
    assert "chain" in {event.key for event in profiler.key_averages()}
