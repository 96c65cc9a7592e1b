"""`gtp-fast profile`: from a run's settings to the time of each phase of a train step on this machine, and a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtp_fast import algorithms, device, profiling
from gtp_fast.algorithms.backends import stepper
from gtp_fast.config import TrainConfig
from gtp_fast.data import catalog, dataset
from gtp_fast.data.buffers import buffer_of, check_settings, obs_shape

STEPS = 50


def profile_run(cfg: TrainConfig, out: Path, steps: int = STEPS) -> dict[str, Any]:
    """Time `steps` steps of a new run, write <out>/trace.json, and return microseconds per step for each phase.

    A compiled or captured step has no separate phases; pass --backend eager --no-graph to see them.
    """
    spec = catalog.resolve(cfg.env)
    data = dataset.load(spec, Path(cfg.dataset) if cfg.dataset else None, cfg.clip_actions)
    check_settings(data, cfg)
    cfg, chosen = device.resolve(cfg, images=data.frames_FHWC is not None)
    device.prepare(cfg)
    sizes = obs_shape(data, cfg), data.action_NA.shape[1]
    state = algorithms.init_state(cfg, *sizes, cfg.device)
    buffer = buffer_of(data, cfg, state.step)
    out.mkdir(parents=True, exist_ok=True)
    phases = profiling.profile_steps(stepper(cfg, state, buffer), steps, out / "trace.json")
    return {
        "env": cfg.env,
        "ran on": chosen,
        **{f"{name} us": value for name, value in phases.items()},
        "trace": str(out / "trace.json"),
        "nsight systems": profiling.nsys_command(cfg.env, cfg.dataset),
    }
