"""From one figure a seed to what is claimed of a setting: the interquartile mean and its bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BOOTSTRAP_SAMPLES = 2_000


def interquartile_mean(figures: np.ndarray) -> float:
    """Return the mean of the middle half of the figures, the ends weighted by what belongs to it."""
    ordered = np.sort(np.asarray(figures, dtype=np.float64).ravel())
    edges = np.arange(len(ordered) + 1) / len(ordered)
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float((ordered * weight).sum() / weight.sum())


def bootstrap_interval(figures: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of the interquartile mean over seeds, None for fewer than two."""
    return stratified_interval([figures], seed)


def stratified_interval(tasks: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of the interquartile mean over the seeds of several tasks together.

    Each resample draws as many seeds as there are within each task and never across tasks: a task is no draw of chance.
    Args: the figures of each task, one a seed. Returns None where a task has fewer than two seeds.
    """
    strata = [np.asarray(figures, dtype=np.float64).ravel() for figures in tasks]
    if not strata or min(map(len, strata)) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([rng.choice(figures, (BOOTSTRAP_SAMPLES, len(figures))) for figures in strata], axis=1)
    means = np.array([interquartile_mean(row) for row in drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def claim(figures: np.ndarray) -> dict[str, Any]:
    """Return what is claimed of one figure a seed: each, mean, standard deviation (of these seeds), IQM, interval."""
    return {
        "each": figures.tolist(),
        "mean": float(figures.mean()),
        "std": float(figures.std()),
        "iqm": interquartile_mean(figures),
        "iqm_95": bootstrap_interval(figures),
    }
