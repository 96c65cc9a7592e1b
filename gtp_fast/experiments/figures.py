"""The pictures: learning curves with their seeds, the four goals of Fig. 7, latency. All return PNG bytes.

The pictures of tables, of Fig. 6 and of Fig. 7, from the rows of a summary; PNG bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from gtp_fast.data import embedded

matplotlib.use("Agg")  # no window, on any machine
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from gtp_fast.runs.records import Run

COLOURS = ("#1f5fa8", "#d1661f", "#2f8f4e", "#8a4fa3", "#b03a48", "#6b6b6b")
GOAL_SAMPLES, PATHS, ROLLOUTS = 4_000, 60, 40


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def tidy(axes: Axes, title: str) -> None:
    """Give a panel its title and the frame that all share."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def learning_curves(groups: Mapping[tuple[str, str], list[Run]]) -> bytes:
    """Draw score over steps, a line a setting with its seeds shaded, and the actor's loss beside it."""
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
    tidy(score, "normalised score" if scored else "return")
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
    mean = figures.mean(axis=1)
    axes.plot(
        steps, mean, color=colour, linewidth=2, marker="o", markersize=3, label=f"{text}, {figures.shape[1]} seeds"
    )
    axes.fill_between(steps, figures.min(axis=1), figures.max(axis=1), color=colour, alpha=0.18, linewidth=0)


def _data_line(axes: Axes, run: Run) -> None:
    from gtp_fast.data import catalog
    from gtp_fast.data.spec import normalised_score, with_references

    mean_return = run.environment.get("data_return_mean")
    spec = with_references(catalog.resolve(run.settings["env"]), run.environment.get("references"))
    if mean_return is None or spec.score == "success":  # a return says nothing of the share that succeeds
        return
    score = normalised_score(spec, mean_return)
    height = mean_return if score is None else float(score)
    axes.axhline(height, color="#999999", linestyle="--", linewidth=1, label="mean episode of the data")


def multigoal(run: Path) -> tuple[dict[str, Any], bytes]:
    """Draw Fig. 7 for a run on multigoal-v0: data, samples, at K = 2 too where K is free, paths, rollouts.

    Returns the mass of each mode and off every mode, by sampler, and the picture.
    """
    from gtp_fast.data import embedded
    from gtp_fast.policy.policy import load_policy

    trained = load_policy(run, candidates=1, device="cpu")
    steps = trained.config.sampling_steps
    policies = {steps: trained}
    if trained.steps_are_free and steps != 2:
        policies[2] = load_policy(run, sampling_steps=2, candidates=1, device="cpu")
    data = embedded.multigoal_arrays()
    near = np.linalg.norm(data.obs, axis=1) < 4 * embedded.START_STD
    clouds = {"data": data.action[near]}
    origin = np.zeros((trained.members, GOAL_SAMPLES, 2), np.float32)
    for k, policy in policies.items():
        clouds[f"K = {k}"] = policy.act_members(origin)[0]
    masses = {name: embedded.mode_masses(cloud) for name, cloud in clouds.items()}
    name_of_ours = trained.config.algo.upper() + ("-BC" if trained.config.bc else "")
    columns = len(clouds) + 2
    figure, panels = plt.subplots(1, columns, figsize=(3.2 * columns, 3.6), layout="constrained")
    for axes, (name, cloud) in zip(panels, clouds.items(), strict=False):
        axes.scatter(
            *cloud[:GOAL_SAMPLES].T, s=2, color=COLOURS[0] if name != "data" else "#555555", alpha=0.35, linewidths=0
        )
        kind = "actions of the data at the origin" if name == "data" else f"{name_of_ours} samples, {name}"
        plane(axes, f"{kind}\noff the modes {masses[name][1]:.3f}", 1.0)
        for centre, mass in zip(embedded.MODE_CENTRES, masses[name][0], strict=True):
            axes.add_patch(Circle(centre, embedded.MODE_RADIUS, fill=False, color="#999999", linewidth=0.8))
            axes.annotate(f"{mass:.2f}", centre * 1.62, ha="center", va="center", fontsize=8)
    _paths(panels[-2], trained)
    _rollouts(panels[-1], trained)
    summary = {name: {"masses": m.tolist(), "off": off} for name, (m, off) in masses.items()}
    return summary, png(figure)


def plane(axes: Axes, title: str, limit: float) -> None:
    """Make a panel the square [-limit, limit]^2."""
    tidy(axes, title)
    axes.set_aspect("equal")
    for axis in ("x", "y"):
        axes.set(**{f"{axis}lim": (-limit, limit), f"{axis}ticks": (-limit, 0, limit)})


def _paths(axes: Axes, policy: Any) -> None:
    """Draw how noise becomes actions: the K + 1 points of each path, scaled into the picture by arcsinh."""
    for points in policy.paths(np.zeros((policy.members, PATHS, 2), np.float32))[:, 0].transpose(1, 0, 2):
        axes.plot(*np.arcsinh(points).T, color=COLOURS[0], alpha=0.35, linewidth=0.8)
        axes.plot(*np.arcsinh(points[-1]), "o", color=COLOURS[1], markersize=2.5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_box_aspect(1)  # as its neighbours, so that no title is cut off
    tidy(axes, f"paths from noise to action, K = {policy.config.sampling_steps}\n(arcsinh scale)")


def _rollouts(axes: Axes, policy: Any) -> None:
    from gtp_fast.data import embedded

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
    """Draw the time of an action over sampling steps, a panel a batch and number of candidates, a line a backend.

    found: what `latency.latency_run` returns; p20 to p80 are shaded, the fit is dashed.
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
