"""Two constants below which no design gets: the gap between nodes of a graph, and the launch of a graph."""

from __future__ import annotations

from typing import Any

import torch

from bench.gpu.timing import captured, per_unit


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return one constant in microseconds.

    node_gap: a graph of many kernels that add one to one number, each waiting for the last. graph_launch: graphs of one
    such kernel, one after another, which is what a step of one graph pays at least.
    """
    number = torch.zeros(1, device="cuda" if torch.cuda.is_available() and not dry else "cpu")
    nodes = {"node_gap": 20 if dry else 2_000, "graph_launch": 1}[row["what"]]

    def work() -> None:
        for _ in range(nodes):
            number.add_(1.0)

    replay = captured(work)
    times = per_unit(lambda n: [replay() for _ in range(n)], 1 if nodes > 1 else 10, dry)
    figures = {name: value / nodes for name, value in times.items()}
    return figures | {"nodes": nodes}
