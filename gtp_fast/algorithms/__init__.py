"""The algorithms by name; each is whole in one file, and all are asked for the same things.

A module of an algorithm has `metric_names(cfg)`, `init_state(cfg, obs_dim, action_dim, device)`, `parameter_count(cfg,
obs_dim, action_dim)` and `make_step(cfg, state, buffer)` to train, and to act `layouts(config)`,
`noise_columns(config)`, `path(p, obs, z, config)` and `judge(p, obs, actions)`; `gtp` says what each returns.
"""

from __future__ import annotations

from types import ModuleType


def of(name: str) -> ModuleType:
    """Return the module of an algorithm, "gtp", "dql", "cac" or "fql"."""
    from gtp_fast.algorithms import fql, gtp

    return {"gtp": gtp, "fql": fql}[name]
