"""Units of actions: what a file's actions mean in the environment, and what a policy's actions in [-1, 1] stand for.

A file's actions are in the environment's own units, or `scaled`: -1 and 1 stand for the environment's bounds. A policy
acts in [-1, 1]. If a bound lies outside [-1, 1], the policy's -1 and 1 stand for the bounds; if all lie inside, its
actions are the environment's own, held to the bounds. Nothing is guessed: where data and bounds fit both readings, the
user is asked.

Legend: N rows, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gtp_fast.data.spec import Bounds, Units

ROUNDING = 1e-4  # actions this little outside [-1, 1] are taken for scaled ones of another precision
ROWS_SCALED = 65_536  # at a time: a copy of all actions in float64 would be a part of the peak of memory


@dataclass(frozen=True)
class Actions:
    """What is known of a data set's actions: their units (None: open) and bounds (None: unknown).

    named: whether the user named an environment for their own data. Then units are open where its bounds are unknown.
    """

    units: Units | None = None
    bounds: Bounds | None = None
    named: bool = False

    @property
    def limits(self) -> Bounds | None:
        """The range that a file's actions must lie in, for each component; None for [-1, 1]."""
        return self.bounds if self.units == "environment" and self.bounds is not None else None

    @property
    def scales(self) -> bool:
        """Whether a policy's -1 and 1 stand for other numbers in the environment, as far as it is known."""
        if self.bounds is None or not scalable(self.bounds) or is_unit(self.bounds):
            return False
        return self.units == "scaled" or wide(self.bounds)


def unit(action_dim: int) -> Bounds:
    """Return the bounds -1 and 1."""
    return (-1.0,) * action_dim, (1.0,) * action_dim


def is_unit(bounds: Bounds) -> bool:
    """Return whether the bounds are -1 and 1."""
    return bounds == unit(len(bounds[0]))


def scalable(bounds: Bounds | None) -> bool:
    """Return whether every component has two finite bounds, the lower below the upper."""
    low, high = np.array(bounds or ((), ()))
    return bool(len(low) and np.isfinite([low, high]).all() and (low < high).all())


def wide(bounds: Bounds | None) -> bool:
    """Return whether a bound lies outside [-1, 1], and all of them can be scaled."""
    return bounds is not None and scalable(bounds) and float(np.abs(bounds).max()) > 1.0


def same(one: Bounds, other: Bounds) -> bool:
    """Return whether two bounds are equal in float32, in which Gymnasium keeps them."""
    return np.array_equal(np.array(one, np.float32), np.array(other, np.float32))


def shown(bounds: Bounds) -> str:
    """Format bounds: [-2, 2] if all components share them, otherwise those of each component."""
    each = [f"[{low:g}, {high:g}]" for low, high in zip(*bounds, strict=True)]
    return each[0] if len(set(each)) == 1 else ", ".join(each)


def reach(parts: Sequence[np.ndarray]) -> Bounds | None:
    """Return the least and the greatest action of each component in arrays (N, A); NaN counts nowhere.

    None where the arrays are no actions of one size: the rules say so.
    """
    if not parts or len({array.shape[1:] for array in parts}) != 1 or any(a.ndim != 2 or not a.size for a in parts):
        return None
    low = np.min([np.fmin.reduce(array, axis=0) for array in parts], axis=0)
    high = np.max([np.fmax.reduce(array, axis=0) for array in parts], axis=0)
    return tuple(low.tolist()), tuple(high.tolist())


def decide(parts: Sequence[np.ndarray], known: Actions) -> Actions:
    """Return what is known once the data are seen: open units are settled where only one reading fits.

    Args: parts, arrays (N, A) of actions. With bounds -1 and 1, or bounds that are not finite, both readings are the
    same. Actions outside [-1, 1] can only be the environment's. Bounds inside [-1, 1] that hold all actions are the
    environment's own.
    """
    found = reach(parts)
    if found is None:
        return Actions("scaled")  # the rules refuse these arrays for their shapes
    if known.units is not None:
        return known
    if known.bounds is None:
        return known if known.named else Actions("scaled", None)
    if not scalable(known.bounds) or is_unit(known.bounds) or not _inside(found, unit(len(found[0])), ROUNDING):
        return Actions("environment", known.bounds, known.named)
    if not wide(known.bounds) and len(found[0]) == len(known.bounds[0]) and _inside(found, known.bounds):
        return Actions("environment", known.bounds, known.named)
    return known


def _inside(found: Bounds, bounds: Bounds, slack: float = 0.0) -> bool:
    (low, high), (least, greatest) = np.array(found, np.float32), np.array(bounds, np.float32)
    return bool((low >= least - slack).all() and (high <= greatest + slack).all())


def scale_(actions: np.ndarray, bounds: Bounds) -> None:
    """Map actions (N, A), float32, from [low, high] to [-1, 1] in place; values outside the bounds stay outside."""
    low, high = np.array(bounds)
    for start in range(0, len(actions), ROWS_SCALED):
        rows = actions[start : start + ROWS_SCALED]
        rows[:] = (rows.astype(np.float64) - low) / (high - low) * 2.0 - 1.0


def from_unit(actions: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Map actions (..., A) from [-1, 1] to [low, high], float64; values outside [-1, 1] become the bounds."""
    low, high = np.array(bounds)
    return np.clip(low + (np.asarray(actions, np.float64) + 1.0) / 2.0 * (high - low), low, high)
