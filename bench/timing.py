"""The clock of a device, and the two ceilings that figures are measured against."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds() -> Callable[[], float]:
    """Return a clock: CPU time of this process, or on a GPU the time at which the device gets there, by events."""
    if not torch.cuda.is_available():
        return time.process_time
    first = torch.cuda.Event(enable_timing=True)
    first.record()

    def now() -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return first.elapsed_time(event) / 1e3

    return now


def each(run: Callable[[], object], repeats: int, rounds: int = 7) -> float:
    """Return the median seconds of one call, of `rounds` of `repeats` calls, after one round."""
    clock, taken = seconds(), []
    for _ in range(rounds + 1):
        started = clock()
        for _ in range(repeats):
            run()
        taken.append((clock() - started) / repeats)
    return sorted(taken[1:])[rounds // 2]


def ceilings(device: str) -> dict[str, float]:
    """Return GFLOP/s of a large square product and GB/s of a large copy, read and written bytes counted.

    The product is of fp32, on a GPU by TF32, as the steps are timed. On a CPU the copy is of 256 MiB, beyond any cache,
    on as many threads as torch has.
    """
    if device != "cpu":  # on the CPU `quicken_cpu` has chosen
        torch.set_float32_matmul_precision("high")
    size, megabytes = (1024, 256) if device == "cpu" else (8192, 1024)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.zeros_like(source)
    return {
        "product_gflop_s": 2 * size**3 / each(lambda: torch.mm(a, b, out=out), 3) / 1e9,
        "copy_gb_s": 2 * source.numel() * 4 / each(lambda: target.copy_(source), 1) / 1e9,
    }
