"""From a row to a training that may be timed: settings that exist, a device that took them, losses that agree.

A row names backend, graph, precision, sampling_steps and seeds, and where it is not GTP of width 256 algorithm, layers
and width. No figure is given to a step that computes something
else than eager fp32, nor to a precision that a backend leaves unread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from bench.training import config, training
from gtp_fast import algorithms, device, presets
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.errors import UsageError

NAMES = ("backend", "graph", "precision", "sampling_steps", "seeds", "algo", "hidden", "layers")
COMPARED = ("actor_loss", "critic_loss")
# Largest relative difference of the losses' mean over the first 20 steps from eager fp32, which draws the same numbers.
# Operands rounded to 11 and 8 bits in eager's forward passes left 1.3e-4 and 1.6e-3 at most (K = 5 and 2, two seeds,
# CPU, 2026-11-21). Thirty times that leaves room for rounded gradients, for the worst of 16 members, and for a dry
# run's one step of 16 rows (4.4e-2 in Triton's interpreter, which cuts bf16 off). Gross faults are found here, and fine
# ones by the tests.
AGREES = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
DRY = {"hidden": 32, "batch_size": 16, "unroll": 1, "threads": 1}


def of_row(row: dict[str, Any], dry: bool) -> TrainConfig:
    """Return the settings of a row, resolved for this machine as `gtp-fast train` does.

    A dry run asks for the backend on the CPU, where a kernel's interpreter may take it although training may not.
    Raises: UsageError for a backend or a precision that this version or this machine does not have.
    """
    changes = {name: row[name] for name in NAMES if name in row}
    presets.checked(changes, "make gpu")
    if row["backend"] == "compiled":
        _allow_many_compilations(dry)
    if dry:
        return config(**(changes | DRY))
    cfg, _ = device.resolve(config(**changes, device="cuda"))
    if cfg.backend != row["backend"] or cfg.precision != row["precision"]:
        raise UsageError(f"the device resolved {row} to {cfg.backend}, {cfg.precision}")
    return cfg


def _allow_many_compilations(dry: bool) -> None:
    """Let one process compile every row; a dry run traces nothing and calls the step itself."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    if dry:
        torch.compiler.set_stance("force_eager")


def open_training(cfg: TrainConfig, dry: bool) -> tuple[TrainState, Callable[[int], None], dict[str, Any]]:
    """Return a state some steps old, its stepper, and the figures of the opening: agreement and device memory.

    Raises: ValueError when the losses are not those of eager fp32, or a lower precision gives its very bits
    (but in a dry run, for the CPU has no TF32).
    """
    before = _allocated()
    device.prepare(cfg)
    state, run = training(cfg)
    run(cfg.unroll)
    used = _peak() - before
    expected = _expected(replace(cfg, backend="eager", precision="fp32", graph=False))
    found = _losses(cfg, state)
    device.prepare(cfg)  # the expected losses set another precision
    difference = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(found, expected, strict=True))
    if not difference <= AGREES[cfg.precision]:  # NaN is no agreement either
        raise ValueError(
            f"losses differ from eager fp32 by {difference:.2g}, allowed {AGREES[cfg.precision]}: not timed"
        )
    if cfg.precision != "fp32" and difference == 0.0 and not dry:
        raise ValueError(
            f"backend {cfg.backend} gives fp32's very bits for {cfg.precision}: it does not read precision"
        )
    return state, run, {"difference": difference, "memory_mib": used / 2**20}


@lru_cache(maxsize=8)
def _expected(cfg: TrainConfig) -> tuple[float, ...]:
    device.prepare(cfg)
    state, run = training(cfg)
    run(cfg.unroll)
    return _losses(cfg, state)


def _losses(cfg: TrainConfig, state: TrainState) -> tuple[float, ...]:
    """Return each member's mean losses since the start."""
    names = algorithms.of(cfg).metric_names(cfg)
    columns = [names.index(name) for name in COMPARED if name in names]
    return tuple((state.metric_sums_SQ[:, columns].double() / state.step).flatten().tolist())


def _allocated() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
