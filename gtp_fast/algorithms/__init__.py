"""The algorithms by name; each is whole in one file, and all are asked for the same things.

A module of an algorithm has `layouts(cfg, obs, action_dim)`, `metric_names(cfg)`, `init_state(cfg, obs, action_dim,
device)` and `make_step(cfg, state, buffer)` to train, and to act `noise_columns(config)`, `path(p, obs, z, config)`,
`judge(p, obs, actions)` and `STEPS_ARE_FREE`; `gtp` says what each is. Acting, obs is what `encoder.see` makes of it.
"""

from __future__ import annotations

from types import ModuleType


def of(name: str) -> ModuleType:
    """Return the module of an algorithm, "gtp", "dql", "cac", "fql", "iql" or "td3bc"."""
    from gtp_fast.algorithms import cac, dql, fql, gtp, iql, td3bc

    return {"cac": cac, "dql": dql, "fql": fql, "gtp": gtp, "iql": iql, "td3bc": td3bc}[name]
