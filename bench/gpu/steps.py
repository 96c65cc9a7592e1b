"""Microseconds a train step for every switch. A second round of rows shows drift."""

from __future__ import annotations

import time
from typing import Any

from bench.gpu import settings
from bench.gpu.timing import per_unit
from gtp_fast import device

_open: dict[tuple[Any, ...], Any] = {}  # trainings of this process, so that a second round captures nothing anew


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return microseconds a step (median, p20, p80), device memory, seconds to be ready, and the losses' difference.

    Raises: ValueError when the state is not finite afterwards, beside what `settings` refuses.
    """
    cfg = settings.of_row(row, dry)
    key = tuple(row.get(name) for name in settings.NAMES)
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
