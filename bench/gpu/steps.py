"""Microseconds a train step for every switch, and launches a step. A second round of rows shows drift."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu import settings
from bench.gpu.timing import per_unit
from gtp_fast import device

_open: dict[tuple[Any, ...], Any] = {}  # trainings of this process, so that a second round captures nothing anew


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return microseconds a step (median, p20, p80), device memory, seconds to be ready, and the losses' difference.

    Raises: ValueError when the state is not finite afterwards, beside what `settings` refuses.
    """
    if row.get("launches"):
        return _launches(row, dry)
    cfg = settings.of_row(row, dry)
    key = tuple(row[name] for name in settings.NAMES)
    if key not in _open:
        started = time.monotonic()
        state, run, figures = settings.open_training(cfg, dry)
        _open[key] = (state, run, figures | {"ready_s": time.monotonic() - started})
    state, run, figures = _open[key]
    device.prepare(cfg)
    times = per_unit(run, cfg.unroll, dry)
    if (state.first_bad_SQ >= 0).any():
        raise ValueError("the state holds NaN or Inf after timing")
    return times | figures


def _launches(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Count what one uncaptured step launches, as CUPTI sees it: a captured step holds the same nodes.

    Raises: RuntimeError when the profiler sees nothing of the device.
    """
    cfg = replace(settings.of_row(row, dry), graph=False, unroll=1)
    _, run, _ = settings.open_training(cfg, dry)
    run(2)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run(1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    events = profiler.events() or []
    device_events = [event for event in events if event.device_type.name == "CUDA"]
    if not device_events:
        raise RuntimeError("the profiler saw nothing of the device (no GPU, or CUPTI is not allowed here)")
    moves = [event for event in device_events if event.name.startswith(("Memcpy", "Memset"))]
    kernels = [event for event in device_events if event not in moves]
    longest = Counter[str]()
    for event in kernels:
        longest[event.name[:60]] += event.time_range.elapsed_us()
    return {
        "kernels": len(kernels),
        "moves": len(moves),
        "busy_us": sum(event.time_range.elapsed_us() for event in device_events),
        "longest": [f"{name}: {us:.1f} us" for name, us in longest.most_common(10)],
    }
