"""A policy's description: what acting needs beside the parameters, and whether the parameters fit it."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor

from gtp_fast.algorithms.networks import Layout
from gtp_fast.config import DETERMINISTIC, TrainConfig, member_seeds, setting_types
from gtp_fast.data.replay import Scale
from gtp_fast.data.spec import ObsShape, Units
from gtp_fast.data.units import Actions, scalable
from gtp_fast.errors import CheckpointError, UsageError

SELECTS, PROCESSES, ALGORITHMS = (get_args(setting_types()[name]) for name in ("select", "process", "algo"))
_COUNTS = ("obs_dim", "action_dim", "hidden", "layers", "sampling_steps", "candidates", "frame_stack")
_LEVELS = ("sigma_min", "sigma_max", "sigma_data", "rho")
_ROWS = ("obs_mean", "obs_std", "frame_shape", "action_low", "action_high")  # tuples of numbers, or None


@dataclass(frozen=True)
class PolicyConfig:
    """What acting needs beside the parameters; saved with every checkpoint.

    A field with a default is one that older descriptions lack: the default is what they meant.
    """

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
    frame_shape: tuple[int, int, int] | None = None  # height, width and channels where observations are pictures
    frame_stack: int = 1  # frames in those channels
    # What an action in [-1, 1] is to the environment: `scaled`, -1 and 1 stand for low and high; `environment`, its
    # own number, held to low and high. No bounds: those of the environment that it acts in. No units: of a policy from
    # before they were recorded, whose -1 and 1 stand for the bounds where one lies outside [-1, 1].
    action_units: Units | None = None
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None

    @property
    def acts(self) -> Actions:
        """The units of the policy's actions."""
        bounds = None if self.action_low is None or self.action_high is None else (self.action_low, self.action_high)
        return Actions(self.action_units or "environment", bounds)

    @property
    def obs_shape(self) -> ObsShape:
        """How many numbers an observation has, or its height, width and channels."""
        return self.frame_shape or self.obs_dim

    @property
    def observation(self) -> tuple[int, ...]:
        """The shape of one observation's array."""
        return self.frame_shape or (self.obs_dim,)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PolicyConfig:
        """Read `to_json`'s values; raises CheckpointError when one is missing, of another kind or out of range."""
        try:
            given = {field.name: field.default for field in fields(cls) if field.default is not MISSING} | values
            known: dict[str, Any] = {field.name: given[field.name] for field in fields(cls)}
            known["seeds"] = tuple(known["seeds"])
            known |= {name: None if known[name] is None else tuple(known[name]) for name in _ROWS}
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint's policy description is incomplete ({error!r})") from None
        wrong = [name for name in _COUNTS if type(known[name]) is not int or known[name] < 1]
        wrong += [name for name in _LEVELS if type(known[name]) not in (int, float) or not 0 < known[name] < math.inf]
        wrong += ["algo"] * (known["algo"] not in ALGORITHMS) + ["bc"] * (type(known["bc"]) is not bool)
        wrong += ["frame_shape"] * (not _is_shape(known["frame_shape"], known["obs_dim"]))
        wrong += ["process"] * (known["process"] not in PROCESSES)
        wrong += ["select"] * (known["select"] not in SELECTS)
        wrong += ["seeds"] * (not known["seeds"] or any(type(s) is not int or s < 0 for s in known["seeds"]))
        wrong += _wrong_scale(known["obs_dim"], known["obs_mean"], known["obs_std"])
        wrong += ["action_units"] * (known["action_units"] not in (None, *get_args(Units)))
        wrong += _wrong_bounds(known["action_dim"], known["action_low"], known["action_high"])
        if wrong or known["sigma_max"] <= known["sigma_min"]:
            seen = {name: known[name] for name in wrong or ("sigma_min", "sigma_max")}
            raise CheckpointError(f"the checkpoint's policy description holds {seen}; use another checkpoint")
        return cls(**known)


def of_run(
    cfg: TrainConfig,
    obs: ObsShape,
    action_dim: int,
    scale: Scale | None = None,
    acts: Actions | None = None,
) -> PolicyConfig:
    """Describe the policy that a run of these settings trains.

    Args: scale is what its observations are normalised by; acts, the units and bounds of its actions.
    """
    mean, std = scale or (None, None)
    low, high = acts.bounds if acts is not None and acts.bounds and scalable(acts.bounds) else (None, None)
    settings = {field.name: getattr(cfg, field.name) for field in fields(PolicyConfig) if hasattr(cfg, field.name)}
    own = {
        "obs_dim": obs if isinstance(obs, int) else math.prod(obs),
        "action_dim": action_dim,
        "seeds": tuple(member_seeds(cfg)),
        "obs_mean": mean,
        "obs_std": std,
        "action_units": acts.units if acts is not None else None,
        "action_low": low,
        "action_high": high,
        "frame_shape": None if isinstance(obs, int) else obs,
    }
    return PolicyConfig(**settings | own)


def _is_shape(shape: Any, numbers: Any) -> bool:
    """Say whether a shape is None, or three sizes whose product is `numbers`."""
    if shape is None:
        return True
    return len(shape) == 3 and all(type(size) is int and size > 0 for size in shape) and math.prod(shape) == numbers


def _wrong_scale(obs_dim: Any, mean: tuple[Any, ...] | None, std: tuple[Any, ...] | None) -> list[str]:
    """Name the wrong parts of a normalisation: both or neither, one finite number a column, divisors above 0."""
    if mean is None and std is None:
        return []
    rows = {"obs_mean": (mean, -math.inf), "obs_std": (std, 0.0)}
    return [
        name
        for name, (row, low) in rows.items()
        if row is None or len(row) != obs_dim or not all(type(x) in (int, float) and low < x < math.inf for x in row)
    ]


def _wrong_bounds(action_dim: Any, low: tuple[Any, ...] | None, high: tuple[Any, ...] | None) -> list[str]:
    """Name the wrong parts of the bounds: both or neither, one finite number an action, low below high."""
    if low is None and high is None:
        return []
    for name, row in (("action_low", low), ("action_high", high)):
        if row is None or len(row) != action_dim or any(type(x) not in (int, float) for x in row):
            return [name]
    assert low is not None and high is not None
    return [] if scalable((low, high)) else ["action_low", "action_high"]


def check(config: PolicyConfig, tensors: dict[str, Tensor], layouts: dict[str, Layout]) -> None:
    """Refuse settings that no sampler supports, and parameters {"actor": (S, Pa), "critic": (2 S, Pc)} that do not fit.

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
