"""The algorithms: each is one file, and all files have the same functions. `gtp` documents them.

To train: `layouts(cfg, obs, action_dim)`, `metric_names(cfg)` and `make_step(cfg, state, buffer)`. To act:
`noise_columns(config)`, `path(p, obs, z, config)`, `q_values(p, obs, actions)` and `STEPS_ARE_FREE`; there obs is the
output of `encoder.encode_obs`.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from gtp_fast.config import is_variant

if TYPE_CHECKING:
    import torch

    from gtp_fast.algorithms.policy_config import PolicyConfig
    from gtp_fast.algorithms.state import TrainState
    from gtp_fast.config import TrainConfig
    from gtp_fast.data.spec import ObsShape


def of(settings: TrainConfig | PolicyConfig) -> ModuleType:
    """Return the module that trains a run of these settings, or acts for a policy of this description."""
    from gtp_fast.algorithms import cac, dql, fql, gtp, gtp_variants, iql, td3bc

    ours = gtp_variants if is_variant(settings) else gtp
    return {"cac": cac, "dql": dql, "fql": fql, "gtp": ours, "iql": iql, "td3bc": td3bc}[settings.algo]


def init_state(cfg: TrainConfig, obs: ObsShape, action_dim: int, device: torch.device | str) -> TrainState:
    """Return the fresh state of a run; each member depends on its own seed alone."""
    from gtp_fast.algorithms.updates import fresh_state

    algorithm = of(cfg)
    return fresh_state(cfg, algorithm.layouts(cfg, obs, action_dim), algorithm.metric_names(cfg), device)
