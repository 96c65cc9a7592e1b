"""What a policy says of itself beside its parameters, and whether the parameters agree; SPEC 6's settings of acting."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gtp_fast.config import DETERMINISTIC
from gtp_fast.errors import CheckpointError, UsageError
from gtp_fast.networks import Layout

SELECTS = ("none", "softmax", "argmax")
PROCESSES = ("edm", "flow")
ALGORITHMS = ("gtp", "dql", "cac", "fql", "iql", "td3bc")
_COUNTS = ("obs_dim", "action_dim", "hidden", "layers", "sampling_steps", "candidates")
# What a description without them meant.
_LATER: dict[str, Any] = {"algo": "gtp", "bc": False, "layers": 3, "process": "edm", "obs_mean": None, "obs_std": None}
_LEVELS = ("sigma_min", "sigma_max", "sigma_data", "rho")
_SCALE = ("obs_mean", "obs_std")


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy needs to know beside its parameters; saved with every checkpoint."""

    obs_dim: int
    action_dim: int
    hidden: int
    sigma_min: float
    sigma_max: float
    sigma_data: float
    rho: float
    sampling_steps: int
    candidates: int
    select: str
    seeds: tuple[int, ...]
    algo: str = "gtp"
    bc: bool = False
    layers: int = 3
    process: str = "edm"
    obs_mean: tuple[float, ...] | None = None  # of --normalise-obs: the networks see (o - obs_mean) / obs_std
    obs_std: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        scale = {name: None if (row := getattr(self, name)) is None else list(row) for name in _SCALE}
        return asdict(self) | {"seeds": list(self.seeds), **scale}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PolicyConfig:
        """Read `to_json`'s values; raises CheckpointError when one is missing, of another kind or out of range."""
        try:
            known: dict[str, Any] = {
                field.name: values[field.name] for field in fields(cls) if field.name not in _LATER
            }
            known |= {name: values.get(name, default) for name, default in _LATER.items()}
            known["seeds"] = tuple(known["seeds"])
            known |= {name: None if known[name] is None else tuple(known[name]) for name in _SCALE}
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint's policy description is incomplete ({error!r})") from None
        wrong = [name for name in _COUNTS if type(known[name]) is not int or known[name] < 1]
        wrong += [name for name in _LEVELS if type(known[name]) not in (int, float) or not 0 < known[name] < math.inf]
        wrong += ["algo"] * (known["algo"] not in ALGORITHMS) + ["bc"] * (type(known["bc"]) is not bool)
        wrong += ["process"] * (known["process"] not in PROCESSES)
        wrong += ["select"] * (known["select"] not in SELECTS)
        wrong += ["seeds"] * (not known["seeds"] or any(type(s) is not int or s < 0 for s in known["seeds"]))
        wrong += _wrong_scale(known["obs_dim"], known["obs_mean"], known["obs_std"])
        if wrong or known["sigma_max"] <= known["sigma_min"]:
            seen = {name: known[name] for name in wrong or ("sigma_min", "sigma_max")}
            raise CheckpointError(f"the checkpoint's policy description holds {seen}; use another checkpoint")
        return cls(**known)


def _wrong_scale(obs_dim: Any, mean: tuple[Any, ...] | None, std: tuple[Any, ...] | None) -> list[str]:
    """Name what is no normalisation of observations: both or neither, one finite number a column, divisors above 0."""
    if mean is None and std is None:
        return []
    rows = {"obs_mean": (mean, -math.inf), "obs_std": (std, 0.0)}
    return [
        name
        for name, (row, low) in rows.items()
        if row is None or len(row) != obs_dim or not all(type(x) in (int, float) and low < x < math.inf for x in row)
    ]


def check(config: PolicyConfig, tensors: dict[str, Tensor], layouts: dict[str, Layout]) -> None:
    """Refuse settings that no sampler has, and parameters {"actor": (S, Pa), "critic": (2 S, Pc)} of another shape.

    Raises: UsageError where candidates cannot be drawn or judged; CheckpointError where shapes do not fit.
    """
    for name, count in (("--sampling-steps", config.sampling_steps), ("--candidates", config.candidates)):
        if count < 1:
            raise UsageError(f"{name} {count} is below 1; pass 1 or more")
    if config.select not in SELECTS:
        raise UsageError(f"--select {config.select} is none of {', '.join(SELECTS)}")
    if config.candidates > 1 and config.algo in DETERMINISTIC:
        raise UsageError(
            f"--candidates {config.candidates}: the policy of {config.algo} has one action for an observation; pass "
            "--candidates 1"
        )
    if config.candidates > 1 and "critic" not in tensors:
        raise UsageError("a behaviour-cloning policy has no critic to choose among candidates; pass --candidates 1")
    if (config.candidates > 1) != (config.select != "none"):
        raise UsageError(
            f"--candidates {config.candidates} with --select {config.select}; several candidates need softmax or "
            "argmax, one candidate needs none"
        )
    members = len(config.seeds)
    expected = {"actor": (members, layouts["actor"].size)}
    if config.candidates > 1:
        expected["critic"] = (2 * members, layouts["critic"].size)
    for name, shape in expected.items():
        found = tensors.get(name, torch.empty(0))
        if tuple(found.shape) != shape or found.dtype != torch.float32:
            raise CheckpointError(
                f"the policy's {name} is {found.dtype} {tuple(found.shape)}, expected torch.float32 {shape} by its "
                "description; use another checkpoint"
            )
        if not torch.isfinite(found).all():
            raise CheckpointError(f"the policy's {name} holds NaN or Inf; use another checkpoint")
