"""Microseconds of each launch of the fused step by itself, for the default shapes and for others worth a trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bench.gpu import settings
from bench.gpu.timing import captured, per_unit
from bench.training import fused_step

REPEATS = 20  # launches in one graph: the gap between nodes is part of what a step pays


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return microseconds a launch by its place and kernel, and `us`, their sum.

    The launches depend on each other's results, not on their timing: each is repeated on what the step left behind.
    """
    shape = {"backend": "fused", "graph": False, "sampling_steps": 5, "seeds": row["seeds"]}
    cfg = settings.of_row(shape | {"precision": row["precision"]}, dry)
    step = fused_step(cfg, None) if dry else fused_step(cfg, replace(_default(cfg), **row["shapes"]))
    step()
    figures = {}
    for place, launch in enumerate(step.launches, start=1):

        def repeated(launch: Any = launch) -> None:
            for _ in range(1 if dry else REPEATS):
                launch()

        replay = captured(repeated) if not dry else repeated
        times = per_unit(lambda n, replay=replay: [replay() for _ in range(n)], 1, dry)
        figures[f"{place} {launch.name}"] = times["us"] / (1 if dry else REPEATS)
    return figures | {"us": sum(figures.values())}


def _default(cfg: Any) -> Any:
    from gtp_kernels.launch import tuned_for

    from gtp_fast.algorithms.fused import shared_memory

    return tuned_for(cfg.hidden, cfg.batch_size, shared_memory(torch.empty(0, device=cfg.device)))
