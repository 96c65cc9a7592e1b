"""From run directories to a report: summary.json, curve.png and a README with the table and the model cards.

Runs of one setting and several seeds are one line, with the interquartile mean and its bootstrap interval. Last and
best score are separate columns: they are not the same claim. The paper's number stands beside ours only where the data
are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gtp_fast.config import RUN_ONLY_FIELDS
from gtp_fast.data import catalog
from gtp_fast.errors import CheckpointError
from gtp_fast.experiments import paper
from gtp_fast.files import publish, publish_json
from gtp_fast.runs.disk import writing
from gtp_fast.runs.records import Run, members_apart, read_run

BOOTSTRAP_SAMPLES = 2_000


def interquartile_mean(figures: np.ndarray) -> float:
    """Return the mean of the middle half of the figures, the ends weighted by what belongs to it."""
    ordered = np.sort(np.asarray(figures, dtype=np.float64).ravel())
    edges = np.arange(len(ordered) + 1) / len(ordered)
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float((ordered * weight).sum() / weight.sum())


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
    """Return statistics of one figure per seed: each, mean, standard deviation of these seeds, IQM and its interval."""
    return {
        "each": figures.tolist(),
        "mean": float(figures.mean()),
        "std": float(figures.std()),
        "iqm": interquartile_mean(figures),
        "iqm_95": stratified_interval([figures]),
    }


# What runs of one setting may differ in: their seeds, and the machine they ran on.
ONE_SETTING = ("seed", "seeds", "device", "backend", "clip_actions", *RUN_ONLY_FIELDS)


def label(run: Run) -> str:
    """Name a setting as the legend of a picture does."""
    s = run.settings
    algo = s["algo"].upper() + ("-BC" if s["bc"] else "") + (f" {s['preset']}" if s["algo"] == "gtp" else "")
    chosen = "" if s["candidates"] == 1 else f", {s['candidates']} candidates ({s['select']})"
    return f"{algo}, K = {s['sampling_steps']}{chosen}"


def group(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Group runs by data set and setting; their members are its seeds.

    Runs of one label may differ in other settings. Then these are added to it: such runs are not seeds of each other.
    """
    alike: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        alike.setdefault((run.settings["env"], label(run)), []).append(run)
    groups: dict[tuple[str, str], list[Run]] = {}
    for (env, name), members in alike.items():
        decisive = [_decisive(run) for run in members]
        differ = [key for key in decisive[0] if len({values[key] for values in decisive}) > 1]
        for run, values in zip(members, decisive, strict=True):
            more = "".join(f", {key} = {values[key]}" for key in differ)
            groups.setdefault((env, name + more), []).append(run)
    return groups


def _decisive(run: Run) -> dict[str, Any]:
    values = {name: value for name, value in run.settings.items() if name not in ONE_SETTING}
    return values | {"data": str(run.environment.get("data_sha256"))[:8]}


def summarise(env: str, name: str, runs: list[Run]) -> dict[str, Any]:
    """Return a row of the table: the runs of one setting, their last and best figures, and the paper's."""
    with_evals = [run for run in runs if len(run.eval_steps)]
    row: dict[str, Any] = {
        "env": env,
        "setting": name,
        "runs": [str(run.path) for run in runs],
        "seeds": [run.settings["seed"] + i for run in runs for i in range(run.settings["seeds"])],
        "steps": max(run.settings["steps"] for run in runs),
        "kind": "score" if all(run.scored for run in with_evals or runs) else "return",
        "absent": {str(run.path): {str(step): why for step, why in run.absent.items()} for run in runs if run.absent},
    }
    if not with_evals:
        return row
    for name_of_claim, pick in (("last", lambda f: f[-1]), ("best", lambda f: f.max(axis=0))):
        row[name_of_claim] = claim(np.concatenate([pick(run.figures) for run in with_evals]))
    row["paper"] = _paper_score(runs)
    return row


def _paper_score(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the paper's number, or why it may not stand beside these runs."""
    first = runs[0].settings
    spec = catalog.of_run(first)
    for run in runs:
        if reason := paper.absent(spec, run.environment.get("data_sha256"), _data(run)):
            return {"absent": reason}
    found = paper.score(spec.paper_row, first["algo"], first["bc"], first["sampling_steps"])
    return {"absent": "not legible in our copy"} if found is None else {"mean": found[0], "std": found[1]}


def _data(run: Run) -> str:
    source = run.environment.get("data_source") or run.settings["dataset"]
    sha256 = run.environment.get("data_sha256")
    name = Path(source).name if source else "unrecorded data"
    return name + (f" (SHA-256 {sha256[:8]})" if sha256 else "")


def draw_report(paths: Sequence[Path], out: Path, notes: Sequence[str] = ()) -> Path:
    """Write summary.json, curve.png and README.md about runs into `out`, and return it.

    Args: notes are sentences below the table.
    Raises: UsageError when a path is no run, or `out` cannot be written.
    """
    runs = [member for path in paths for member in members_apart(read_run(path))]
    from gtp_fast.experiments import figures  # once the runs are there: it takes half a second

    groups = group(runs)
    rows = [summarise(env, name, members) for (env, name), members in groups.items()]
    summary: dict[str, Any] = {"settings": rows}
    pictures = {"curve.png": figures.learning_curves(groups)}
    goals = [run for run in runs if run.settings["env"] == "multigoal-v0" and not run.settings["dataset"]]
    if goals:
        try:
            summary["multigoal"], pictures["multigoal.png"] = figures.multigoal(goals[0].path)
        except CheckpointError as error:  # a run that trains has none yet
            notes = (*notes, f"Samples at the four goals are not drawn: {error}.")
    with writing(out, "name another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            publish(out / name, picture)
        publish_json(out / "summary.json", summary)
        publish(out / "README.md", _page(runs, rows, summary, list(pictures), notes).encode())
    return out


def _page(
    runs: list[Run], rows: list[dict[str, Any]], summary: dict[str, Any], pictures: list[str], notes: Sequence[str]
) -> str:
    lines = [f"# {', '.join(dict.fromkeys(row['env'] for row in rows))}", ""]
    lines += [f"![{name.split('.')[0]}]({name})" for name in pictures]
    lines += ["", *_table(rows), "", *(f"{note}\n" for note in [*_absent(runs), *notes])]
    if "multigoal" in summary:
        lines += [*_goal_table(summary["multigoal"]), ""]
    for run in runs:
        lines += _card(run)
    return "\n".join(lines) + "\n"


def table_head(heads: list[str]) -> list[str]:
    """Return the two lines that begin a table in Markdown."""
    return [table_line(heads), table_line(["---"] * len(heads))]


def table_line(cells: list[str]) -> str:
    """Return a line of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def mean_std(claimed: dict[str, Any]) -> str:
    """Return mean and standard deviation of what `claim` returned."""
    return f"{claimed['mean']:.1f} ({claimed['std']:.1f})"


def iqm(claimed: dict[str, Any]) -> str:
    """Return the interquartile mean and its interval of what `claim` returned."""
    ends = claimed["iqm_95"]
    return f"{claimed['iqm']:.1f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else ", one seed")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    heads = ["data", "setting", "seeds", "last: mean (std)", "best: mean (std)", "IQM of last, 95 % interval", "paper"]
    lines = table_head(heads)
    for row in rows:
        cells = [row["env"], row["setting"], str(len(row["seeds"]))]
        if "last" in row:
            cells += [mean_std(row["last"]), mean_std(row["best"]), iqm(row["last"])]
            theirs = row["paper"]
            cells += [theirs.get("absent") or f"{theirs['mean']}" + (f" ({theirs['std']})" if theirs["std"] else "")]
        else:
            cells += ["every evaluation failed" if row["absent"] else "not evaluated yet"] * 3 + ["-"]
        lines.append(table_line(cells))
    scores = "normalised scores (0: random, 100: expert; of tasks with a goal, the share of episodes that reach it)"
    return [*lines, "", f"Figures are {scores} where references exist, else returns."]


def _absent(runs: list[Run]) -> list[str]:
    """Return a sentence for each run and reason for which evaluations have no result."""
    found: dict[tuple[str, str], list[int]] = {}
    for run in {run.path: run for run in runs}.values():
        for step, why in run.absent.items():
            found.setdefault((run.path.name, why), []).append(step)
    return [
        f"{name}: no result of the evaluation{'s' * (len(steps) > 1)} of step {', '.join(f'{s:,}' for s in steps)} "
        f"({why}). `last` is the last one that has a result."
        for (name, why), steps in found.items()
    ]


def _goal_table(goals: dict[str, Any]) -> list[str]:
    lines = table_head(["sampler", "mass of each mode", "off every mode"])
    for name, value in goals.items():
        masses = ", ".join(f"{mass:.3f}" for mass in value["masses"])
        lines.append(table_line([name, masses, f"{value['off']:.3f}"]))
    return lines


def _card(run: Run) -> list[str]:
    s, e = run.settings, run.environment
    machine = e.get("gpu") or f"{e.get('cpu', 'CPU')}, {_count(e.get('threads') or 0, 'thread')}"
    last = s["seed"] + s["seeds"] - 1
    return [
        f"## {run.path.name}",
        "",
        f"- Setting: {label(run)}, eta {s['eta']:g}, batch {s['batch_size']}, {s['steps']:,} steps, "
        + (f"seeds {s['seed']} to {last}" if s["seeds"] > 1 else f"seed {last}"),
        f"- Data: {e.get('data_source')} ({e.get('transitions') or 0:,} transitions, mean return of an episode "
        f"{e.get('data_return_mean', float('nan')):.1f}), SHA-256 {e.get('data_sha256')}",
        "- Observations are normalised by the data's mean and standard deviation, which the policy holds"
        if s["normalise_obs"]
        else "- Observations are taken as they are",
        (
            f"- Evaluated on {_count(s['eval_episodes'], 'episode')} each"
            if s["eval_every"]
            else "- Not evaluated in training"
        )
        + ", one action drawn from "
        + ("one candidate" if s["candidates"] == 1 else f"{s['candidates']} candidates by {s['select']}"),
        f"- Trained by gtp-fast {e.get('gtp_fast')} (commit {e.get('commit')}), torch {e.get('torch')}, {machine}, "
        f"backend {s['backend']}, {s['precision']}",
        "- Acts on observations like those of its data; nothing is known of it elsewhere.",
        "",
    ]


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" + "s" * (number != 1)
