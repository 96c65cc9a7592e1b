"""`gtp-fast reproduce ITEM`: from the name of a table or figure to its report.

An item is a sweep: its rows on its data sets are trials, and a trial of several items is trained once. The data are
read before anything is trained. Table 9 is measured by the bench of a source checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_fast.config import TrainConfig, check_range, hash6
from gtp_fast.data import catalog, dataset
from gtp_fast.data.catalog import run_settings
from gtp_fast.data.download import Progress
from gtp_fast.data.trust import module_of
from gtp_fast.device import cores, resolve
from gtp_fast.errors import DataError, GtpError, UsageError
from gtp_fast.experiments import figures, paper
from gtp_fast.experiments.reproduce import items, scores
from gtp_fast.experiments.reproduce.items import ABLATED, Budget, Item, Row
from gtp_fast.experiments.reproduce.page import page
from gtp_fast.experiments.sweep.plan import read_set
from gtp_fast.experiments.trials import Outcome, Trial, run_trials
from gtp_fast.files import file_name, open_file, publish, publish_json


@dataclass(frozen=True)
class Source:
    """A data set that was read: the flags that name it, the name of its folder, and whether it is the paper's."""

    flags: dict[str, Any]
    folder: str
    name: str
    sha256: str
    paper_row: str | None  # the paper's row, where the data are the paper's
    absent: str | None  # else why its figures may not stand beside these


def choose(item: Item, budget: Budget, env: str | None, file: Path | None, progress: Progress | None) -> list[Source]:
    """Return the data of an item: --env and --dataset, or else the paper's tasks. Each is read, to see damage early.

    Raises: UsageError for data that do not fit the item; DataError, which names data that need no network.
    """
    if item.kind == "goals" and (env not in (None, *item.tasks) or file is not None):
        raise UsageError(f"{item.name} is about {item.tasks[0]}, which is generated; leave out --env and --dataset")
    if file is not None and env is None:
        raise UsageError(f"--dataset {file} needs --env to score policies, for example --env HalfCheetah-v5")
    if env is not None:
        return [_looked_at(item, env, file, progress)]
    names = item.tasks if budget == "paper" or ABLATED not in item.tasks else (ABLATED,)
    return [_looked_at(item, name, None, progress) for name in names]


def _looked_at(item: Item, env: str, file: Path | None, progress: Progress | None) -> Source:
    spec = catalog.resolve(env)
    try:
        data = dataset.load(spec, file, progress=progress)
    except DataError as error:
        if file is not None or spec.source == "embedded":
            raise
        raise DataError(
            f"{error}\nTo run on other data: gtp-fast reproduce {item.name} --env hopper-demo-v0 (embedded, needs no "
            "network), or --dataset FILE --env HalfCheetah-v5; the paper's figures stand only beside the paper's data"
        ) from None
    name = file.stem if file is not None else spec.name
    known = file is None and spec.sha256 in (None, data.sha256)
    folder = file_name(name)
    absent = paper.absent(spec, data.sha256, f"{name} (SHA-256 {data.sha256[:8]})")
    return Source(
        flags={"env": env} | ({} if file is None else {"dataset": str(file)}),
        folder=folder if known else f"{folder}-{data.sha256[:8]}",
        name=name,
        sha256=data.sha256,
        paper_row=None if absent else spec.paper_row,
        absent=absent,
    )


ROOT = Path(__file__).parents[3]


def measure(item: Item, say: Callable[[str], None], folder: Path) -> dict[str, Any]:
    """Run `pytest bench/ --benchmark-only` in the checkout, and return the parts of a summary that hold its table.

    Raises: UsageError where the package is installed without its bench; GtpError when the bench fails.
    """
    if not (ROOT / "bench" / "tables.py").is_file():
        raise UsageError(
            f"{item.name} is measured by the bench, which stands beside the package in a source checkout: clone the "
            "repository, pip install -e '.[dev]', and run this command there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file, log = folder.resolve() / "benchmark.json", folder.resolve() / "bench.log"
    words = [sys.executable, "-m", "pytest", "bench/", "--benchmark-only", f"--benchmark-json={file}"]
    say(f"{' '.join(words[1:])}, some minutes; its output goes to {log}")
    here = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": here}
    file.unlink(missing_ok=True)  # it may be a link
    with open_file(log, "wb") as out:
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=out, stderr=out, check=False)
    if done.returncode:
        raise GtpError(f"the bench ended with code {done.returncode}; {log} says why")
    table = [sys.executable, "-m", "bench.tables", str(file)]
    shown = subprocess.run(table, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return {
        "reach": "Times of this machine, each with its ratio to the paper's machine; no score is in them.",
        "table": shown.strip(),
        "rows": [],
        "notes": ["TD3+BC and IQL are in the table where the bench times them; the paper does not."],
        "exit_code": 0,
    }


# Settings that --set may not change, and what to do instead.
DECIDED = {
    **{name: f"use --{name}" for name in ("env", "dataset", "steps", "seeds")},
    "algo": "each row has its own",
    "run_dir": "the folder of all runs is --runs",
    "resume": "every run continues where it was",
}
# Settings that are not part of a run folder's name: the folders above it name them, or they are the machine's.
UNNAMED = ("env", "algo", "bc", "preset", "steps", "seeds", "seed", "device", "backend", "precision", "threads")


@dataclass(frozen=True)
class ReproduceConfig:
    """The flags of the command; None stands for the budget's own. `set` holds NAME=VALUE of settings for every run."""

    item: str
    budget: Budget = "small"
    seeds: int | None = None
    env: str | None = None
    dataset: Path | None = None
    runs: Path = Path("runs/reproduce")
    jobs: int | None = None
    steps: int | None = None
    set: Sequence[str] = ()
    allow_import: Sequence[str] = ()  # modules that environments named in the runs' files may import


@dataclass(frozen=True)
class Planned:
    """One row on one data set, and the run that it needs."""

    source: Source
    row: Row
    trial: Trial
    cfg: TrainConfig


def reproduce(asked: ReproduceConfig, say: Callable[[str], None], progress: Progress | None = None) -> dict[str, Any]:
    """Train what is missing, score it, write RUNS/<item>/report, and return its summary with where it lies.

    Raises: UsageError, DataError before anything is trained; InterruptedRunError once every run has saved.
    """
    item = items.find(asked.item, asked.budget)
    for name in ("seeds", "steps"):
        if getattr(asked, name) is not None:
            check_range(name, getattr(asked, name))
    about = {"item": item.name, "title": item.title, "kind": item.kind, "command": _command(asked)}
    if item.kind == "bench":
        return _write(asked, about | measure(item, say, asked.runs / item.name), {})
    sources = choose(item, asked.budget, asked.env, asked.dataset, progress)
    planned = plan(item, asked, sources)
    jobs = asked.jobs or (1 if _on_cuda(planned[0].cfg) else cores())
    outcomes = run_trials([one.trial for one in planned], jobs, say)
    say("scoring")
    summary, pictures = _summary(item, asked, planned, outcomes)
    return _write(asked, about | summary, pictures)


def plan(item: Item, asked: ReproduceConfig, sources: list[Source]) -> list[Planned]:
    """Return every row with its trial, validated. Raises: UsageError for settings that cannot be run."""
    return [_planned(item, asked, source, row) for source in sources for row in item.rows]


def _planned(item: Item, asked: ReproduceConfig, source: Source, row: Row) -> Planned:
    count = items.SEEDS[asked.budget] if asked.seeds is None else asked.seeds
    own = read_set(asked.set, DECIDED)
    shared = source.flags | items.common(item, asked.budget, asked.steps) | {"seeds": count} | own
    settings = shared | dict(row.settings) | own
    cfg = run_settings(settings)
    if not cfg.eval_every:
        raise UsageError("--set: eval_every=0 leaves a row without a score; leave it out")
    if not _on_cuda(cfg) and "threads" not in settings:
        settings["threads"] = 1
    name = _name(cfg, run_settings(shared | {"algo": cfg.algo, "bc": cfg.bc}))
    path = asked.runs / asked.budget / source.folder / f"{name}-{hash6(cfg)}"
    return Planned(source, row, Trial(f"{source.name} {name}", settings, path, cfg.steps), cfg)


def _name(cfg: TrainConfig, published: TrainConfig) -> str:
    """Name a run by its algorithm and by what it sets apart from the published settings, fit for a file system."""
    own = {name: value for name, value in vars(cfg).items() if value != vars(published)[name] and name not in UNNAMED}
    parts = [cfg.algo + ("-bc" if cfg.bc else "")] + [f"{name}-{value}" for name, value in own.items()]
    return file_name("-".join(parts), filler="-")


def _on_cuda(cfg: TrainConfig) -> bool:
    return resolve(cfg)[0].device == "cuda"


def _summary(
    item: Item, asked: ReproduceConfig, planned: list[Planned], outcomes: list[Outcome]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what summary.json holds of the trials, and the pictures."""
    allowed = (*asked.allow_import, *module_of(asked.env))
    rows = [_row(one, outcome, asked.runs, allowed) for one, outcome in zip(planned, outcomes, strict=True)]
    sources = list({one.source.folder: one.source for one in planned}.values())
    if item.kind == "goals":
        rows, pictures = _goals(planned, rows)
    else:
        drawn = figures.sweeps(rows) if item.name == "fig6" else figures.table(rows, item.title)
        pictures = {f"{item.name}.png": drawn}
    summary = {
        "budget": asked.budget,
        "reach": items.reach(item, asked.budget, asked.steps),
        **{name: max((row[name] for row in rows if name in row), default=None) for name in ("steps", "episodes")},
        "seeds": planned[0].cfg.seeds,
        "preset": planned[0].cfg.preset,
        "data": [f"{source.name} (SHA-256 {source.sha256[:8]})" for source in sources],
        "rows": rows,
        "averages": _averages(item, planned, rows) if len(sources) > 1 else [],
        "printed": {s.name: _printed(item, s.paper_row) for s in sources if s.paper_row and item.printed},
        "notes": list(item.notes),
        "exit_code": next((outcome.exit_code for outcome in outcomes if outcome.kind == "failed"), 0),
    }
    return summary, pictures


def _row(one: Planned, outcome: Outcome, root: Path, allowed: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a row, or how its run ended where it has none."""
    row: dict[str, Any] = {
        "data": one.source.name,
        "method": one.row.method,
        "run": str(one.trial.path.relative_to(root)),
        "status": outcome.text or outcome.kind,
        "paper": _beside(one.source, one.row),
    }
    if one.row.x is not None:
        panel, x = one.row.x
        row |= {"panel": panel, "x": one.cfg.eta if x is None else x}
    return row | scores.figures(one.trial.path, one.row.acting, allowed) if outcome.kind == "done" else row


def _beside(source: Source, row: Row) -> dict[str, Any]:
    """Return the paper's cell of a row, or why there is none."""
    if row.paper is None:
        return {}
    if source.absent:
        return {"absent": source.absent}
    table, column = row.paper
    return _shown(paper.cell(table, source.paper_row, column)) | {"hours": paper.hours(table, column)}


def _shown(found: tuple[float, float | None] | str | None) -> dict[str, Any]:
    if isinstance(found, tuple):
        return {"mean": found[0], "std": found[1]}
    return {"word": found or "not legible"}


def _printed(item: Item, paper_row: str | None) -> dict[str, float]:
    """Return the columns of the paper's table that none of our rows stands beside."""
    ours = {row.paper[1] for row in item.rows if row.paper}
    cells = paper.tables()[item.printed].get(paper_row, {}) if item.printed else {}
    return {column: cell[0] for column, cell in cells.items() if cell and column not in ours}


def _averages(item: Item, planned: list[Planned], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for line in item.rows:
        over = scores.over_tasks([row for row in rows if row["method"] == line.method])
        if over is not None:
            whole = line.paper and all(one.source.paper_row for one in planned) and over["tasks"] == len(items.GYM)
            cell = paper.cell(line.paper[0], "Gym average", line.paper[1]) if line.paper and whole else None
            found.append(over | {"paper": _shown(cell) if cell else {}})
    return found


def _goals(planned: list[Planned], rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Add masses and costs to the rows of finished runs, put the data's row before them, and draw them."""
    finished = [(row, one) for row, one in zip(rows, planned, strict=True) if "last" in row]
    places = [(one.trial.path, one.row.acting.get("sampling_steps")) for _, one in finished]
    of_data = figures.data_cloud()
    first = {"method": "data", "status": "done", "paper": {}} | scores.masses(of_data[None])
    clouds, drawn = {"data": of_data}, {"data": first}
    for (row, _), found, cloud in zip(finished, *scores.samplers(places), strict=True):
        row |= found
        clouds[row["method"]], drawn[row["method"]] = cloud, row
    return [first, *rows], {"fig7.png": figures.goals(clouds, drawn)}


def _command(asked: ReproduceConfig) -> str:
    """Return the command as a reader would type it, a data file without its folder."""
    words = ["gtp-fast reproduce", asked.item, "--budget", asked.budget]
    for name in ("seeds", "steps", "env"):
        if getattr(asked, name) is not None:
            words += [f"--{name}", str(getattr(asked, name))]
    if asked.dataset is not None:
        words += ["--dataset", asked.dataset.name]
    return " ".join([*words, *(f"--set {text}" for text in asked.set)])


def _write(asked: ReproduceConfig, summary: dict[str, Any], pictures: dict[str, bytes]) -> dict[str, Any]:
    out = asked.runs / asked.item / "report"
    out.mkdir(parents=True, exist_ok=True)
    summary["pictures"] = sorted(pictures)
    for name, picture in pictures.items():
        publish(out / name, picture)
    publish_json(out / "summary.json", summary)
    publish(out / "README.md", page(summary).encode())
    return summary | {"report": str(out)}
