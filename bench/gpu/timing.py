"""Time work on the device: CUDA events around many launches on a GPU, a clock around calls on the CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch

Figures = dict[str, float]


def spread(us: list[float]) -> Figures:
    """Return the median and the 20th and 80th percentile of repetitions."""
    low, middle, high = np.percentile(us, [20, 50, 80])
    return {"us": float(middle), "p20": float(low), "p80": float(high)}


def per_unit(
    run: Callable[[int], object], chunk: int, dry: bool, repetitions: int = 15, least_s: float = 0.04
) -> Figures:
    """Time run(n) and return microseconds a unit.

    Args: n is a multiple of chunk so that a repetition lasts at least least_s; the search for n is the warm-up.
    """
    if dry:
        return spread([_once_us(run, chunk) / chunk])
    n = chunk
    while (taken := _once_us(run, n)) < least_s * 1e6 and n < 1_000_000:
        n = chunk * math.ceil(n / chunk * min(max(1.2 * least_s * 1e6 / taken, 1.5), 20.0))
    return spread([_once_us(run, n) / n for _ in range(repetitions)])


def _once_us(run: Callable[[int], object], n: int) -> float:
    if not torch.cuda.is_available():
        started = time.perf_counter()
        run(n)
        return (time.perf_counter() - started) * 1e6
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run(n)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def wall_us(call: Callable[[], object], dry: bool, least_s: float = 0.3) -> Figures:
    """Time single calls by the clock of the host, which is what a robot waits for."""
    for _ in range(1 if dry else 10):
        call()
    taken, until = [], time.perf_counter() + (0.0 if dry else least_s)
    while len(taken) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        taken.append((time.perf_counter() - started) * 1e6)
    return spread(taken) | {"calls": len(taken)}


def captured(work: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph of the work; on the CPU the work itself."""
    if not torch.cuda.is_available():
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
