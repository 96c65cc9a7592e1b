"""The pictures of tables, of Fig. 6 and of Fig. 7, from the rows of a summary; PNG bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from gtp_fast.data import embedded
from gtp_fast.experiments.figures import COLOURS, GOAL_SAMPLES, plane, png, tidy


def table(rows: list[dict[str, Any]], title: str) -> bytes:
    """Draw the last score of every row, a panel a data set: a dot a seed, their mean, the paper's mean beside them."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    columns = min(3, len(names))
    shape, lines = (-(-len(names) // columns), columns), len(rows) // len(names)
    size = 4.2 * columns + 2.4, (0.32 * lines + 0.9) * shape[0] + 0.4
    figure, grid = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        own = [row for row in rows if row["data"] == name]
        for y, row in enumerate(own):
            _scored(axes, row, y)
        axes.set_yticks(range(len(own)), [row["method"] for row in own], fontsize=8)
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.7)
        axes.set_axisbelow(True)
        tidy(axes, name)
    figure.suptitle(f"{title}\nlast checkpoint: a dot a seed, the bar their mean", fontsize=9)
    return png(figure)


def _scored(axes: Axes, row: dict[str, Any], y: int) -> None:
    if not row.get("last"):
        axes.text(0.01, y, row["status"], fontsize=8, va="center", transform=axes.get_yaxis_transform())
        return
    each = np.array(row["last"]["each"])
    axes.plot(each, np.full(len(each), y), "o", color=COLOURS[0], alpha=0.6, markersize=5)
    axes.plot([each.mean()] * 2, [y - 0.3, y + 0.3], color=COLOURS[0], linewidth=2)
    if "mean" in row["paper"]:
        axes.plot(row["paper"]["mean"], y, "D", color=COLOURS[1], markersize=5, markerfacecolor="none")


def sweeps(rows: list[dict[str, Any]]) -> bytes:
    """Draw score over sampling steps and over eta: the mean of the seeds, all of them shaded."""
    figure, (steps, etas) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    _line(steps, [row for row in rows if row["panel"] == "K"], COLOURS[0], "trained in K = 5")
    _line(steps, [row for row in rows if row["panel"] == "own K"], COLOURS[1], "trained in the K it acts in", "s")
    _line(etas, [row for row in rows if row["panel"] == "eta"], COLOURS[2], "acting in K = 5")
    kind = next((row["kind"] for row in rows if "kind" in row), "score")
    for axes, label in ((steps, "sampling steps K"), (etas, "eta (0: behaviour cloning)")):
        tidy(axes, "normalised score" if kind == "score" else "return")
        axes.set_xlabel(label, fontsize=9)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    etas.set_xscale("symlog", linthresh=0.1)
    return png(figure)


def _line(axes: Axes, rows: list[dict[str, Any]], colour: str, text: str, marker: str = "o") -> None:
    whole = sorted((row for row in rows if row.get("last")), key=lambda row: row["x"])
    if not whole:
        return
    x, each = [row["x"] for row in whole], np.array([row["last"]["each"] for row in whole])
    axes.plot(x, each.mean(axis=1), marker=marker, markersize=4, color=colour, label=f"{text}, {each.shape[1]} seeds")
    axes.fill_between(x, each.min(axis=1), each.max(axis=1), color=colour, alpha=0.18, linewidth=0)


def goals(clouds: dict[str, np.ndarray], rows: dict[str, dict[str, Any]]) -> bytes:
    """Draw actions at the origin: the data, then each sampler's first member with masses over all and its cost.

    Args: clouds are (N, 2), the data's under "data"; rows hold masses, off, network_evaluations and us_torch.
    """
    columns = 4 if len(clouds) > 6 else 3
    shape = -(-len(clouds) // columns), columns
    figure, grid = plt.subplots(*shape, figsize=(3.3 * columns, 3.9 * shape[0]), layout="constrained", squeeze=False)
    for axes in grid.flat[len(clouds) :]:
        axes.set_axis_off()
    for axes, (name, points) in zip(grid.flat, clouds.items(), strict=False):
        row = rows[name]
        axes.scatter(
            *points[:GOAL_SAMPLES].T, s=2, alpha=0.35, linewidths=0, color="#555555" if name == "data" else COLOURS[0]
        )
        cost = "actions at the origin"
        if name != "data":
            cost = f"{row['network_evaluations']} network evaluations, {row['us_torch']['median_us']:,.0f} us in torch"
        plane(axes, f"{name}\noff the modes {row['off']:.3f}\n{cost}", 1.0)
        for centre, mass in zip(embedded.MODE_CENTRES, row["masses"], strict=True):
            axes.add_patch(Circle(centre, embedded.MODE_RADIUS, fill=False, color="#999999", linewidth=0.8))
            axes.annotate(f"{mass:.2f}", centre * 1.62, ha="center", va="center", fontsize=8)
    return png(figure)
