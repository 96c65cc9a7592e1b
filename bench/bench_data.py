"""Time to read D4RL's HDF5, build transitions, pack them into the buffer, and stage batches; 100,000 rows."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bench.training import DEVICE, EPISODE, config, write_rows
from gtp_fast.data.hdf5 import read_hdf5
from gtp_fast.data.replay import ReplayBuffer, packed
from gtp_fast.data.streaming import Stager, window_steps
from gtp_fast.data.transitions import build_transitions

ROWS = 100_000
# The clock of the wall: reading waits for a disk.
pytestmark = pytest.mark.benchmark(warmup=False, timer=time.perf_counter)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.hdf5"
    write_rows(path, ROWS)
    return path


def _record(benchmark, machine, moved: int) -> None:
    median = benchmark.stats.stats.median
    benchmark.extra_info |= machine | {"rows": ROWS, "bytes": moved, "gb_s": moved / median / 1e9, "us": median * 1e6}


@pytest.mark.benchmark(group="data/read")
def bench_read(benchmark, machine, file):
    """Read and hash, from the page cache."""
    with h5py.File(file) as whole:
        assert np.array_equal(read_hdf5(file).obs[-1], np.asarray(whole["observations"])[-1])
    benchmark.pedantic(read_hdf5, (file,), rounds=5, warmup_rounds=1)
    _record(benchmark, machine, file.stat().st_size)


@pytest.mark.benchmark(group="data/build")
def bench_build(benchmark, machine, file):
    arrays = read_hdf5(file)
    built = build_transitions(copy.deepcopy(arrays), "rows", str(file), 0)
    # The last row of an episode has no successor.
    assert len(built.reward_N) == ROWS - ROWS // EPISODE and np.array_equal(built.next_obs_ND[0], arrays.obs[1])
    benchmark.pedantic(
        build_transitions,
        setup=lambda: ((copy.deepcopy(arrays), "rows", str(file), 0), {}),  # it takes them over
        rounds=5,
        warmup_rounds=1,
    )
    _record(benchmark, machine, arrays.obs.nbytes * 2 + arrays.action.nbytes)


@pytest.mark.benchmark(group="data/pack")
def bench_pack(benchmark, machine, file):
    built, cfg = build_transitions(read_hdf5(file), "rows", str(file), 0), config()
    packed = ReplayBuffer.from_transitions(built, cfg, DEVICE)
    assert np.array_equal(packed.rows[-1, :17].cpu().numpy(), built.obs_ND[-1])
    benchmark.pedantic(ReplayBuffer.from_transitions, (built, cfg, DEVICE), rounds=5, warmup_rounds=1)
    _record(benchmark, machine, packed.rows.nbytes)


@pytest.mark.benchmark(group="data/stage")
def bench_stage(benchmark, machine, file):
    """Draw, gather and copy the rows of a window of steps; `us_step` is one step's share."""
    built, cfg = build_transitions(read_hdf5(file), "rows", str(file), 0), config()
    rows = torch.from_numpy(packed(built, cfg)[0])
    steps = window_steps(cfg, rows.shape[1])
    stager = Stager(rows, [0], cfg.batch_size, steps, torch.device(DEVICE))
    stager.ready(0)
    assert any(torch.equal(stager.staged[0].cpu(), row) for row in rows)
    benchmark.pedantic(stager.seconds_a_step, rounds=10, warmup_rounds=1)  # of two windows
    _record(benchmark, machine, 2 * steps * stager.batch_bytes)
    benchmark.extra_info["us_step"] = benchmark.stats.stats.median * 1e6 / (2 * steps)
