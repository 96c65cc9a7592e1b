"""Variants of GTP that the paper compares: what their settings mean, and which of them have no effect together."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING

from gtp_fast.errors import UsageError

if TYPE_CHECKING:
    from gtp_fast.config import TrainConfig

LARGEST_GRID = 10**6  # steps; the grids of all stages lie on the device
# Settings of GTP's step alone, with what other algorithms and the fused kernels have.
PUBLISHED = {
    "actor_loss": "gtp",
    "process": "edm",
    "compare_at_zero": False,
    "value": "policy",
    "weight_norm": False,
    "times": "grid",
}
# name: the setting that reads it, with its values that do.
READ_BY = {
    "solver": ("actor_loss", ("solver",)),
    "solver_steps": ("actor_loss", ("solver",)),
    "lambda_q": ("actor_loss", ("linear-q",)),
    "lambda_flow": ("actor_loss", ("gtp", "solver", "linear-q", "shortcut", "meanflow")),
    "compare_at_zero": ("actor_loss", ("gtp", "consistency", "solver", "linear-q", "shortcut")),
    "value": ("actor_loss", ("gtp", "consistency", "denoiser", "solver", "shortcut", "meanflow")),
    "weight_norm": ("actor_loss", ("gtp", "consistency", "denoiser", "solver", "shortcut", "meanflow")),
    "etas": ("actor_loss", ("gtp", "consistency", "denoiser", "solver", "shortcut", "meanflow")),
    "value_samples": ("value", ("policy",)),
    "time_mean": ("times", ("lognormal",)),
    "time_std": ("times", ("lognormal",)),
}


def grid_steps(cfg: TrainConfig) -> tuple[int, int]:
    """Return the grid's steps at first and at last: s0 and s1, or N and N of `fixed:N`.

    Raises: UsageError for a schedule that is neither.
    """
    if cfg.steps_schedule == "doubling":
        return cfg.s0, cfg.s1
    kind, _, count = cfg.steps_schedule.partition(":")
    if kind != "fixed" or not (count.isascii() and count.isdigit()) or len(count) > 7:
        raise UsageError(f"--steps-schedule {shown(cfg.steps_schedule)} is neither doubling nor fixed:N, as fixed:40")
    if not 1 <= int(count) <= LARGEST_GRID:
        raise UsageError(f"--steps-schedule {cfg.steps_schedule} is outside [fixed:1, fixed:{LARGEST_GRID}]")
    return int(count), int(count)


def check_variants(cfg: TrainConfig) -> None:
    """Refuse variants that cannot be run, or would change nothing.

    Raises: UsageError naming both settings.
    """
    grid_steps(cfg)
    changed = [name for name in (*PUBLISHED, *READ_BY, "steps_schedule") if getattr(cfg, name) != _default(cfg, name)]
    for name in changed:
        shared = name in ("etas", "value_samples", "lambda_flow")  # older than the variants, and left to the algorithms
        if cfg.algo != "gtp" and not shared:
            raise UsageError(f"{_typed(cfg, name)} is for --algo gtp, not {cfg.algo}")
        reader, values = READ_BY.get(name, ("algo", (cfg.algo,)))
        if getattr(cfg, reader) not in values:
            raise UsageError(f"{_typed(cfg, name)} has no effect with {_typed(cfg, reader)}; leave it out")
    guided = [name for name in ("value", "weight_norm") if name in changed]
    guided += ["actor_loss"] * (cfg.actor_loss == "linear-q")
    if cfg.bc and guided:
        raise UsageError(f"--bc trains no critic, which {_typed(cfg, guided[0])} needs; leave one of them out")
    if cfg.process == "flow" and cfg.sigma_max != 1.0:
        raise UsageError(f"--process flow runs over times from 0 to 1: pass --sigma-max 1, not {cfg.sigma_max}")


def not_fused(cfg: TrainConfig) -> str | None:
    """Return the setting that the fused step needs and this run has not, in words, or None."""
    for name, value in PUBLISHED.items():
        if getattr(cfg, name) != value:
            needed = f"no {flag(name)}" if value is False else f"{flag(name)} {value}"
            return f"{needed}: the fused step computes the published loss alone, not {_typed(cfg, name)}"
    return None


def _default(cfg: TrainConfig, name: str) -> object:
    return getattr(type(cfg), name)


def _typed(cfg: TrainConfig, name: str) -> str:
    """Return a setting as it is typed."""
    value = getattr(cfg, name)
    return flag(name) if value is True else f"{flag(name)} {value}"


def shown(value: object) -> str:
    """Return a value in few letters: nested YAML aliases stand for more text than fits in memory."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


def flag(name: str) -> str:
    """Return the flag of a field: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")
