"""From one figure a seed to what is claimed of a setting: the interquartile mean and its bootstrap interval."""

from __future__ import annotations

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
    figures = np.asarray(figures, dtype=np.float64).ravel()
    if len(figures) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(figures, (BOOTSTRAP_SAMPLES, len(figures)))
    means = np.array([interquartile_mean(row) for row in drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
