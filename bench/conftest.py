"""Shared by all benchmarks: one thread, the machine's description and ceilings, the table at the end."""

from __future__ import annotations

import os

# Before NumPy: one core, so that ratios between machines and codes need no account of scaling.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from typing import Any

import pytest
import torch

from bench import tables
from bench.clock import ceilings, device_clock
from bench.training import DEVICE
from gtp_fast.device import quicken_cpu

SHARES = (("bytes", "copy_gb_s", "copy"), ("flops", "product_gflop_s", "product"))


@pytest.fixture(autouse=True)
def one_thread(_one_thread):
    """Give every benchmark one thread: a trained run may have changed the number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _one_thread():
    torch.set_num_threads(1)
    quicken_cpu()  # as in training


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    """Device, driver, versions and commit, for `extra_info`."""
    return tables.machine()


@pytest.fixture(scope="session")
def ceiling(_one_thread) -> dict[str, float]:
    """Return what this device reaches at best: GFLOP/s of a large fp32 product, GB/s of a large copy."""
    return ceilings(DEVICE)


@pytest.fixture
def timed(benchmark, machine, ceiling):
    """Return a function that times run(n): device time by events on a GPU, CPU time of this process elsewhere.

    If `bytes` or `flops` of one unit are given, it records their share of the device's ceiling.
    """

    def measure(run: Any, n: int, rounds: int, **info: Any) -> None:
        benchmark._timer = device_clock()
        benchmark.pedantic(run, (n,), rounds=rounds, iterations=1, warmup_rounds=1)
        each = benchmark.stats.stats.median / n
        benchmark.extra_info |= machine | info | {"us": each * 1e6}
        for name, best, share in SHARES:
            if name in info:
                percent = 100 * info[name] / each / 1e9 / ceiling[best]
                benchmark.extra_info |= ceiling | {f"percent_of_{share}_ceiling": percent}

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of what ran; write it, with the JSON that it comes from, where every kind of group ran."""
    session: Any = getattr(config, "_benchmarksession", None)
    benchmarks = [b.as_dict() for b in session.benchmarks] if session else []
    found = tables.gathered(benchmarks)
    if not found["rows"]:
        return
    terminalreporter.section("our timing table beside the paper's")
    terminalreporter.write_line(tables.markdown(found))
    if tables.whole(found):
        terminalreporter.write_line(f"written: {tables.write(found, tables.RESULTS)}")
    else:
        terminalreporter.write_line("not written: a whole run (pytest bench/ --benchmark-only) writes it")
