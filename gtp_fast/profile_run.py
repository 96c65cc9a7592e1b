"""`gtp-fast profile`: where the time of a train step goes on this machine, for one setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtp_fast import algorithms, catalog, dataset, device, profiling, stream
from gtp_fast.config import TrainConfig
from gtp_fast.graph import stepper

STEPS = 50


def profile_run(cfg: TrainConfig, out: Path, steps: int = STEPS) -> dict[str, Any]:
    """Time `steps` steps of a fresh run, write <out>/trace.json, and return microseconds a step by phase.

    A compiled or captured step has no phases of its own; pass --backend eager --no-graph to see them.
    """
    cfg, chosen = device.resolve(cfg)
    device.prepare(cfg)
    spec = catalog.resolve(cfg.env)
    data = dataset.load(spec, Path(cfg.dataset) if cfg.dataset else None, cfg.clip_actions)
    state = algorithms.of(cfg.algo).init_state(cfg, data.obs_ND.shape[1], data.action_NA.shape[1], cfg.device)
    buffer = stream.make_buffer(data, cfg, state.step)
    out.mkdir(parents=True, exist_ok=True)
    phases = profiling.profile_steps(stepper(cfg, state, buffer), steps, out / "trace.json")
    return {
        "env": cfg.env,
        "ran on": chosen,
        **{f"{name} us": value for name, value in phases.items()},
        "trace": str(out / "trace.json"),
        "nsight systems": profiling.nsys_command(cfg.env),
    }
