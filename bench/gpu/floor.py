"""The constants below which no design gets: between nodes of a graph, copying, multiplying, one layer of one tile row.

DESIGN's model of the step rests on two of them, and its figures stand beside the measured ones.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.gpu.timing import captured, per_unit

ROWS, WIDTH = 256, 256
MODEL = {"node_gap": 1.0, "layer_bf16": 1.9, "layer_tf32": 3.5, "layer_fp32": 3.5}  # us
PRECISIONS = ("fp32", "tf32", "bf16")


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Return one constant, with the model's figure where there is one."""
    what, _, precision = row["what"].partition("_")
    device = "cuda" if torch.cuda.is_available() and not dry else "cpu"
    if precision in PRECISIONS:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    figures = {
        "node": lambda: _node_gap(device, dry),
        "layer": lambda: _layer(device, precision, dry),
        "graph": lambda: _graph_launch(device, dry),
        "copy": lambda: _copy(device, dry),
        "product": lambda: _product(device, precision, dry),
    }[what]()
    return figures | ({"model_us": MODEL[row["what"]]} if row["what"] in MODEL else {})


def _node_gap(device: str, dry: bool) -> dict[str, Any]:
    """Time a graph of many kernels that add one to one number, each waiting for the last."""
    nodes, number = (20 if dry else 2_000), torch.zeros(1, device=device)
    return _chain(lambda: number.add_(1.0), nodes, dry) | {"nodes": nodes}


def _layer(device: str, precision: str, dry: bool) -> dict[str, Any]:
    """Time cuBLAS on 256 rows through a 256 x 256 layer, each waiting for the last: what library calls pay."""
    layers, dtype = (4 if dry else 500), torch.bfloat16 if precision == "bf16" else torch.float32
    weight = torch.eye(WIDTH, device=device, dtype=dtype)
    buffers = [torch.randn(ROWS, WIDTH, device=device, dtype=dtype) for _ in range(2)]

    def once() -> None:
        torch.mm(buffers[0], weight, out=buffers[1])
        buffers.reverse()

    return _chain(once, layers, dry) | {"layers": layers}


def _chain(once: Any, length: int, dry: bool) -> dict[str, float]:
    def work() -> None:
        for _ in range(length):
            once()

    replay = captured(work)
    figures = per_unit(lambda n: [replay() for _ in range(n)], 1, dry)
    return {name: value / length for name, value in figures.items()}


def _graph_launch(device: str, dry: bool) -> dict[str, Any]:
    """Time launches of a graph of one node, one after another: what a step of one graph pays at least."""
    number = torch.zeros(1, device=device)
    replay = captured(lambda: number.add_(1.0))
    return per_unit(lambda n: [replay() for _ in range(n)], 10, dry)


def _copy(device: str, dry: bool) -> dict[str, Any]:
    """Copy a gibibyte on the device; bytes read and written count both."""
    size = 2**20 if dry else 2**30
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    figures = per_unit(lambda n: [target.copy_(source) for _ in range(n)], 1, dry)
    return figures | {"gb_s": 2 * size / figures["us"] / 1e3}


def _product(device: str, precision: str, dry: bool) -> dict[str, Any]:
    """Multiply large square matrices."""
    size, dtype = (64 if dry else 8192), torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    figures = per_unit(lambda n: [torch.mm(a, b, out=out) for _ in range(n)], 1, dry, repetitions=7)
    return figures | {"tflop_s": 2 * size**3 / figures["us"] / 1e6}
