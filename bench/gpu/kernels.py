"""Microseconds of each launch of the fused step by itself, for the default shapes and for others worth a trial."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bench.gpu import settings
from bench.gpu.timing import captured, per_unit
from bench.training import fused_step

if TYPE_CHECKING:
    from gtp_fast.algorithms.fused import FusedStep

REPEATS = 20  # launches in one graph: the gap between nodes is part of what a step pays


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return microseconds a launch by its place and kernel, and `us`, their sum.

    The launches depend on each other's results, not on their timing: each is repeated on what the step left behind.
    """
    step, figures = fused_of(row, dry), {}
    step()
    for place, launch in enumerate(step.launches, start=1):

        def repeated(launch: Any = launch) -> None:
            for _ in range(1 if dry else REPEATS):
                launch()

        replay = captured(repeated) if not dry else repeated
        times = per_unit(lambda n, replay=replay: [replay() for _ in range(n)], 1, dry, repetitions=9, least_s=0.01)
        figures[f"{place} {launch.name}"] = times["us"] / (1 if dry else REPEATS)
    return figures | {"us": sum(figures.values())}


def fused_of(row: dict[str, Any], dry: bool) -> FusedStep:
    """Return the fused step of a row: precision, and where they are not the defaults K, seeds, width and shapes."""
    cfg = settings.of_row({"sampling_steps": 5, "seeds": 1} | row | {"backend": "fused", "graph": False}, dry)
    if dry or not row.get("shapes"):
        return fused_step(cfg, None)
    from gtp_kernels.launch import tuned_for

    from gtp_fast.algorithms.fused import shared_memory

    default = tuned_for(cfg.hidden, cfg.batch_size, shared_memory(torch.empty(0, device=cfg.device)))
    return fused_step(cfg, replace(default, **row["shapes"]))
