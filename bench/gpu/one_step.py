"""A few fused train steps and nothing else, for tools that watch a program: `python -m bench.gpu.one_step tf32`."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from bench.training import config, training
from gtp_fast import device


def main() -> None:
    """Make the steps on the GPU, or interpreted without one."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.one_step", description=__doc__)
    parser.add_argument("precision", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--small", action="store_true", help="width 64, batch 40: for tools that slow a kernel down")
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    size = {"hidden": 64, "batch_size": 40, "seeds": 2} if asked.small else {}
    cfg = config(
        backend="fused", precision=asked.precision, device="cuda" if torch.cuda.is_available() else "cpu", **size
    )
    device.prepare(replace(cfg, threads=1))
    state, run = training(replace(cfg, graph=False), rows=1_000)
    run(asked.steps)
    print(f"step {int(state.step)}, first bad {int(state.first_bad_SQ.max())}")


if __name__ == "__main__":
    main()
