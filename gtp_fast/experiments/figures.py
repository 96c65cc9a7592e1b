"""The pictures of reports and of the paper's tables and figures: numbers or runs in, PNG bytes out."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from gtp_fast.data import catalog, embedded
from gtp_fast.data.spec import normalised_score, with_references
from gtp_fast.policy.policy import Policy, load_policy
from gtp_fast.runs.records import Run

matplotlib.use("Agg")  # no window, on any machine

COLOURS = ("#1f5fa8", "#d1661f", "#2f8f4e", "#8a4fa3", "#b03a48", "#6b6b6b")
DATA_COLOUR, LINE_COLOUR = "#555555", "#999999"
GOAL_SAMPLES, PATHS, ROLLOUTS = 4_000, 60, 40


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def tidy(axes: Axes, title: str) -> None:
    """Set a panel's title, and the frame that all panels share."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def learning_curves(groups: Mapping[tuple[str, str], list[Run]]) -> bytes:
    """Draw score over steps and the actor's loss: one line per setting, the range of its seeds shaded."""
    figure, (score, loss) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(2, 1), layout="constrained")
    several = len({env for env, _ in groups}) > 1
    for i, ((env, name), runs) in enumerate(groups.items()):
        colour, text = COLOURS[i % len(COLOURS)], f"{env}: {name}" if several else name
        _curve(score, runs, colour, text)
        for run in runs:
            if "actor_loss" in run.losses:
                loss.plot(run.losses["step"], run.losses["actor_loss"], color=colour, linewidth=1)
    first = next(iter(groups.values()))[0]
    _data_line(score, first)
    scored = all(run.scored or not len(run.eval_steps) for runs in groups.values() for run in runs)
    tidy(score, f"{'normalised score' if scored else 'return'}: mean of the seeds, their range shaded")
    score.set_xlabel("train steps", fontsize=9)
    score.legend(fontsize=8, frameon=False, loc="best")
    tidy(loss, "actor loss")
    loss.set_xlabel("train steps", fontsize=9)
    if len(loss.lines) and all((np.asarray(line.get_ydata()) > 0).all() for line in loss.lines):
        loss.set_yscale("log")  # a loss that holds -Q falls below 0
    for axes in (score, loss):
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
    figure.suptitle(", ".join(dict.fromkeys(env for env, _ in groups)), fontsize=11)
    return png(figure)


def _curve(axes: Axes, runs: list[Run], colour: str, text: str) -> None:
    shared = [run for run in runs if len(run.eval_steps)]
    if not shared:
        axes.plot([], [], color=colour, label=f"{text} (not evaluated yet)")
        return
    steps = np.array(sorted(set.intersection(*({int(s) for s in run.eval_steps} for run in shared))))
    if not len(steps):
        steps = shared[0].eval_steps
        shared = shared[:1]
    figures = np.concatenate([run.figures[np.isin(run.eval_steps, steps)] for run in shared], axis=1)
    mean, seeds = figures.mean(axis=1), figures.shape[1]
    label = f"{text}, {seeds} seeds" if seeds > 1 else f"{text}, 1 seed"
    axes.plot(steps, mean, color=colour, linewidth=2, marker="o", markersize=3, label=label)
    axes.fill_between(steps, figures.min(axis=1), figures.max(axis=1), color=colour, alpha=0.18, linewidth=0)


def _data_line(axes: Axes, run: Run) -> None:
    mean_return = run.environment.get("data_return_mean")
    spec = with_references(catalog.of_run(run.settings), run.environment.get("references"))
    if mean_return is None or spec.score == "success":  # a return says nothing of the share that succeeds
        return
    score = normalised_score(spec, mean_return)
    height = mean_return if score is None else float(score)
    axes.axhline(height, color=LINE_COLOUR, linestyle="--", linewidth=1, label="mean episode of the data")


def multigoal(run: Path) -> tuple[dict[str, Any], bytes]:
    """Draw Fig. 7 for a run on multigoal-v0: data, samples (at K = 2 too, where K is free), paths and rollouts.

    Returns the mass of each mode and the mass off the modes, by sampler, and the picture.
    """
    trained = load_policy(run, candidates=1, device="cpu")
    steps = trained.config.sampling_steps
    policies = {steps: trained}
    if trained.steps_are_free and steps != 2:
        policies[2] = load_policy(run, sampling_steps=2, candidates=1, device="cpu")
    clouds = {"data": data_cloud()}
    origin = np.zeros((trained.members, GOAL_SAMPLES, 2), np.float32)
    for k, policy in policies.items():
        clouds[f"K = {k}"] = policy.act_members(origin)[0]
    masses = {name: embedded.mode_masses(cloud) for name, cloud in clouds.items()}
    algorithm = trained.config.algo.upper() + ("-BC" if trained.config.bc else "")
    panels = len(clouds) + 2
    shape = 2, math.ceil(panels / 2)
    figure, grid = plt.subplots(*shape, figsize=(3.3 * shape[1], 3.6 * shape[0]), layout="constrained")
    for axes, (name, points) in zip(grid.flat, clouds.items(), strict=False):
        title = "data: actions at the origin" if name == "data" else f"{algorithm}, {name}: samples"
        _modes(axes, points, masses[name][0], f"{title}\noff the modes {masses[name][1]:.3f}", name == "data")
    _paths(grid.flat[panels - 2], trained)
    _rollouts(grid.flat[panels - 1], trained)
    for axes in grid.flat[panels:]:
        axes.set_axis_off()
    summary = {name: {"masses": m.tolist(), "off": off} for name, (m, off) in masses.items()}
    return summary, png(figure)


def data_cloud() -> np.ndarray:
    """Return the data's actions near the origin, (N, 2)."""
    data = embedded.multigoal_arrays()
    return data.action[np.linalg.norm(data.obs, axis=1) < 4 * embedded.START_STD]


def _modes(axes: Axes, points: np.ndarray, masses: Any, title: str, are_data: bool) -> None:
    """Draw actions as dots, and each mode as a circle with its mass beside it."""
    colour = DATA_COLOUR if are_data else COLOURS[0]
    axes.scatter(*points[:GOAL_SAMPLES].T, s=2, color=colour, alpha=0.35, linewidths=0)
    for centre, mass in zip(embedded.MODE_CENTRES, masses, strict=True):
        axes.add_patch(Circle(centre, embedded.MODE_RADIUS, fill=False, color=LINE_COLOUR, linewidth=0.8))
        axes.annotate(f"{mass:.2f}", centre * 1.62, ha="center", va="center", fontsize=8)
    plane(axes, title, 1.0)


def plane(axes: Axes, title: str, limit: float) -> None:
    """Make a panel the square [-limit, limit]^2."""
    tidy(axes, title)
    axes.set_aspect("equal")
    for axis in ("x", "y"):
        axes.set(**{f"{axis}lim": (-limit, limit), f"{axis}ticks": (-limit, 0, limit)})


def _paths(axes: Axes, policy: Policy) -> None:
    """Draw how noise becomes actions: the K + 1 points of each path. The scale is arcsinh: noise reaches far out."""
    noise_to_action = policy.paths(np.zeros((policy.members, PATHS, 2), np.float32))[:, 0].transpose(1, 0, 2)
    for points in np.arcsinh(noise_to_action):
        axes.plot(*points.T, color=COLOURS[0], alpha=0.35, linewidth=0.8)
        axes.plot(*points[-1], "o", color=COLOURS[1], markersize=2.5)
    limit = math.ceil(np.abs(np.arcsinh(noise_to_action)).max())
    plane(
        axes, f"paths from noise (lines) to\nactions (dots), K = {policy.config.sampling_steps}, arcsinh scale", limit
    )


def _rollouts(axes: Axes, policy: Policy) -> None:
    points = [embedded.Plane() for _ in range(ROLLOUTS)]
    position = np.stack([point.reset(np.random.default_rng(i)) for i, point in enumerate(points)])
    tracks, ended = [position.copy()], np.zeros(ROLLOUTS, bool)
    while not ended.all():
        actions = policy.act_members(np.repeat(position[None], policy.members, axis=0))[0]
        for i in np.flatnonzero(~ended):
            position[i], _, terminal, timeout = points[i].step(actions[i])
            ended[i] = terminal or timeout
        tracks.append(position.copy())
    for track in np.stack(tracks, axis=1):
        axes.plot(*track.T, color=COLOURS[2], alpha=0.5, linewidth=0.9)
    for goal in embedded.GOALS:
        axes.add_patch(Circle(goal, embedded.GOAL_RADIUS, color=COLOURS[1], alpha=0.35, linewidth=0))
    plane(axes, f"{ROLLOUTS} rollouts from the origin\nto the four goals", embedded.BOUND)


def latency_lines(found: Mapping[str, Any]) -> bytes:
    """Draw the time of an action over K: one panel per batch and number of candidates, one line per backend.

    found: what `latency.latency_run` returns. The range from p20 to p80 is shaded; the fit is dashed.
    """
    places = list(dict.fromkeys((row["batch"], row["candidates"]) for row in found["rows"]))
    backends = list(dict.fromkeys(row["backend"] for row in found["rows"]))
    figure, grid = plt.subplots(1, len(places), figsize=(3.4 * len(places), 3.6), layout="constrained", squeeze=False)
    for axes, place in zip(grid[0], places, strict=True):
        for colour, backend in zip(COLOURS, backends, strict=False):
            rows = [r for r in found["rows"] if (r["batch"], r["candidates"], r["backend"]) == (*place, backend)]
            k = np.array([row["sampling_steps"] for row in rows])
            low, middle, high = (np.array([r[n] for r in rows]) / 1e3 for n in ("p20_us", "median_us", "p80_us"))
            axes.plot(k, middle, "o", color=colour, markersize=3, label=backend)
            axes.fill_between(k, low, high, color=colour, alpha=0.18, linewidth=0)
            for fit in found["fits"]:
                if (fit["batch"], fit["candidates"], fit["backend"]) == (*place, backend):
                    text = f"{fit['fixed_us']:.0f} + {fit['step_us']:.0f} K us"
                    line = (fit["fixed_us"] + fit["step_us"] * k) / 1e3
                    axes.plot(k, line, "--", color=colour, linewidth=1, label=text)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("sampling steps K", fontsize=9)
        axes.legend(fontsize=7, frameon=False)
        tidy(axes, f"ms an action, batch {place[0]}, {place[1]} candidate{'s' if place[1] > 1 else ''}")
    figure.suptitle(f"{found['algo'].upper()}, {found['processor'] if found['device'] == 'cpu' else found['device']}")
    return png(figure)


def table(rows: list[dict[str, Any]], title: str) -> bytes:
    """Draw the last score of every row, one panel per data set: each seed, their mean, and the paper's mean."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    columns = min(3, len(names))
    shape, lines = (-(-len(names) // columns), columns), len(rows) // len(names)
    size = 4.2 * columns + 2.4, (0.32 * lines + 1.0) * shape[0] + 0.4
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
    for axes in grid.flat[max(0, len(names) - columns) : len(names)]:  # the lowest of each column
        axes.set_xlabel(_unit(rows), fontsize=9)
    printed = ", the diamond is the paper's mean" if any("mean" in row["paper"] for row in rows) else ""
    marks = f"Last checkpoint: each dot is a seed, the bar is their mean{printed}."
    figure.suptitle(f"{title}\n{marks}", fontsize=9)
    return png(figure)


def _unit(rows: list[dict[str, Any]]) -> str:
    kind = next((row["kind"] for row in rows if "kind" in row), "score")
    return "normalised score" if kind == "score" else "return"


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
    """Draw score over sampling steps and over eta: the mean of the seeds as a line, their range shaded."""
    figure, (steps, etas) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    _line(steps, [row for row in rows if row["panel"] == "K"], COLOURS[0], "trained in K = 5")
    _line(steps, [row for row in rows if row["panel"] == "own K"], COLOURS[1], "trained in the K it acts in", "s")
    _line(etas, [row for row in rows if row["panel"] == "eta"], COLOURS[2], "acting in K = 5")
    etas.set_xscale("symlog", linthresh=0.1)
    for axes, panels, label in (
        (steps, ("K", "own K"), "sampling steps K"),
        (etas, ("eta",), "eta (0: behaviour cloning)"),
    ):
        tidy(axes, f"{_unit(rows)}: mean of the seeds, range shaded")
        axes.set_xlabel(label, fontsize=9)
        ticks = sorted({row["x"] for row in rows if row["panel"] in panels})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    etas.tick_params(labelleft=True)
    return png(figure)


def _line(axes: Axes, rows: list[dict[str, Any]], colour: str, text: str, marker: str = "o") -> None:
    whole = sorted((row for row in rows if row.get("last")), key=lambda row: row["x"])
    if not whole:
        return
    x, each = [row["x"] for row in whole], np.array([row["last"]["each"] for row in whole])
    axes.plot(x, each.mean(axis=1), marker=marker, markersize=4, color=colour, label=f"{text}, {each.shape[1]} seeds")
    axes.fill_between(x, each.min(axis=1), each.max(axis=1), color=colour, alpha=0.18, linewidth=0)


def goals(clouds: dict[str, np.ndarray], rows: dict[str, dict[str, Any]]) -> bytes:
    """Draw actions at the origin, one panel per sampler and the data first: points of the first seed, masses of all.

    Args: clouds are (N, 2), the data's under "data"; rows hold masses, off and network_evaluations.
    """
    columns = min(len(clouds), 4 if len(clouds) > 6 else 3)
    shape = math.ceil(len(clouds) / columns), columns
    figure, grid = plt.subplots(*shape, figsize=(2.6 * columns, 3.1 * shape[0]), layout="constrained", squeeze=False)
    for axes in grid.flat[len(clouds) :]:
        axes.set_axis_off()
    for axes, (name, points) in zip(grid.flat, clouds.items(), strict=False):
        row = rows[name]
        cost = "actions at the origin" if name == "data" else f"{row['network_evaluations']} network evaluations"
        title = f"{name}\n{cost}\noff the modes {row['off']:.3f}"
        _modes(axes, points, row["masses"], title, name == "data")
        axes.title.set_fontsize(9)
    return png(figure)
