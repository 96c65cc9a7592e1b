"""Compare whole runs: `python -m bench.runs sweep`, `beside` or `returns`.

`sweep` compares a sweep with two workers that lose nothing, `beside` our steps with the published trainers' own code,
and `returns` makes a table of the scores of trained runs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, PIPE

import numpy as np
import torch

from bench import published
from bench.clock import Taken, in_turn, taken
from bench.tables import Found, Kind, Row, command, over_seeds, page, result, rounded, table
from bench.training import METHODS, config, training
from gtp_fast.device import quicken_cpu
from gtp_fast.experiments.report import label
from gtp_fast.runs.records import read_run

ENV = "hopper-demo-v0"
# Our methods: name -> (its settings, the published trainer that it stands beside).
OURS = {
    "GTP, K = 5": ("gtp-k5", "Diffusion-QL"),
    "GTP, K = 2": ("gtp-k2", "Diffusion-QL"),
    "DQL": ("dql", "Diffusion-QL"),
    "CAC": ("cac", "Consistency-AC, T = 2"),
    "FQL, 4 x 512": ("fql-4x512", "FQL (jax), 4 x 512"),
    "FQL, 3 x 256": ("fql-3x256", "FQL (jax), 3 x 256"),
}
BACKENDS = ("eager", "compiled")
STEPS = 5  # of a turn


def sweep(trials: int = 8, jobs: int = 2, steps: int = 500) -> Found:
    """Run a sweep of short trials beside its ideal time: that of its trials typed alone, divided by the jobs.

    A trial's own time is the wall time of its command typed alone, one after another on this machine, with the same
    flags and thread: start, imports and report count as its own. The sweep's time is that of `gtp-fast sweep` from
    start to exit: its imports, plan, watching and one report are what it adds, beside what two trials at once take from
    each other (caches, memory, clock). Nothing is evaluated: that runs beside training, on the other core. CPU seconds
    of both stand beside: where others are at work they say more.
    """
    fixed = {"steps": steps, "backend": "eager", "device": "cpu", "threads": 1, "eval_every": 0}
    rates = [f"{1e-4 * (1 + i):.4g}" for i in range(trials)]
    with tempfile.TemporaryDirectory() as folder:
        flags = [word for name, value in fixed.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        alone = [
            _typed(["train", "--env", ENV, *flags, "--lr", rate, "--run-dir", f"{folder}/alone-{rate}"])
            for rate in rates
        ]
        settings = [word for name, value in fixed.items() for word in ("--set", f"{name}={value}")]
        grid = ["--grid", f"lr={','.join(rates)}", "--jobs", str(jobs), "--out", f"{folder}/sweep", "--json"]
        out, seconds, cpu = _typed(["sweep", "--env", ENV, *settings, *grid])
    if json.loads(out)["complete"] != trials:
        raise RuntimeError(f"the sweep did not complete: {out}")
    ideal = sum(trial.seconds for trial in alone) / jobs
    row = {
        "name": f"{trials} trials of {steps} steps, {jobs} at a time",
        "alone_s": [trial.seconds for trial in alone],
        "ideal_s": ideal,
        "sweep_s": seconds,
        "ratio": seconds / ideal,
        "alone_cpu_s": sum(trial.cpu_seconds for trial in alone),
        "sweep_cpu_s": cpu,
        "load_after": os.getloadavg()[0],
    }
    return result([row])


def _typed(words: list[str]) -> Taken:
    """Time a command; return its output with the seconds."""
    command = [sys.executable, "-m", "gtp_fast", *words]
    return taken(lambda: subprocess.run(command, stdout=PIPE, stderr=DEVNULL, check=True).stdout.decode())


def sweep_table(found: Found) -> str:
    """Return the table, which has one row."""
    m, row = found["machine"], found["rows"][0]
    heading = (
        f"device: {m['device']} ({m['processor']}, {m['cores']} cores), torch {m['torch']}, commit {m['commit']}; "
        f"load {row['load_after']:.1f}"
    )
    cells = [row["name"], f"{min(row['alone_s']):.1f} to {max(row['alone_s']):.1f}", f"{row['ideal_s']:.1f}"]
    cells += [f"{row['sweep_s']:.1f}", f"{row['ratio']:.2f}", f"{row['alone_cpu_s']:.1f}", f"{row['sweep_cpu_s']:.1f}"]
    heads = ("sweep", "a trial alone, s", "ideal, s", "sweep, s", "ratio", "CPU alone, s", "CPU of the sweep, s")
    return page(heading, heads, [cells])


def beside(
    diffusion_ql: str = "", consistency_ac: str = "", fql: str = "", fql_python: str = sys.executable, rounds: int = 20
) -> Found:
    """Time the published trainers and ours in turn on one core; the first three are checkouts of their repositories.

    Any of them may be left out. --fql-python is an interpreter that has jax, flax and distrax. Every trainer is a
    process of its own, of one thread, pinned to one core that all share; they take turns of a few steps, so that a slow
    moment of the machine meets all of them. A figure is CPU time; a ratio is the median of those within rounds.
    """
    given = {"diffusion-ql": diffusion_ql, "consistency-ac": consistency_ac, "fql": fql}
    checkouts = {name: Path(folder) for name, folder in given.items() if folder}
    if not checkouts:
        sys.exit("name at least one checkout, for example --diffusion-ql DIR")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    script, ours = str(Path(published.__file__)), "import sys; from bench.runs import serve; serve(*sys.argv[1:])"
    children = {}
    for name, (repository, _) in published.RUNS.items():
        if repository in checkouts:
            python = fql_python if repository == "fql" else sys.executable
            children[name, "published"] = _started([python, script, name, str(checkouts[repository])])
    for name, (_, rival) in OURS.items():
        if (rival, "published") in children:
            for backend in BACKENDS:
                children[name, backend] = _started([sys.executable, "-c", ours, name, backend])
    turns = {key: lambda child=child: _turn(child) for key, child in children.items()}
    times = in_turn(turns, rounds)
    for child in children.values():
        child.communicate()
    commits = {name: _revision(folder) for name, folder in checkouts.items()}
    return result([beside_row(name, backend, times) for name, backend in times], published=commits, rounds=rounds)


def serve(name: str, backend: str) -> None:
    """Answer as bench/published.py does, with a step of ours."""
    torch.set_num_threads(1)
    quicken_cpu()
    published.serve(training(config(**METHODS[OURS[name][0]], backend=backend))[1])


def _started(words: list[str]) -> subprocess.Popen[str]:
    """Start a trainer and wait until it is ready. Raises: RuntimeError with its last words."""
    there = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(words, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=there)
    assert child.stdout and child.stderr
    for line in child.stdout:
        if line.strip() == "ready":
            return child
    raise RuntimeError(f"{' '.join(words)} ended before its first step:\n{child.stderr.read()[-2000:]}")


def _turn(child: subprocess.Popen[str]) -> float:
    """Let one trainer make a few steps, and return the milliseconds of one."""
    assert child.stdin and child.stdout
    child.stdin.write(f"{STEPS}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def beside_row(name: str, backend: str, times: dict[tuple[str, str], list[float]]) -> Row:
    """Return one trainer's figures, and the ratio to the published trainer that it is compared with."""
    own = times[name, backend]
    p20, median, p80 = np.percentile(own, [20, 50, 80]).tolist()
    found = {"name": name, "backend": backend, "ms": median, "p20_ms": p20, "p80_ms": p80}
    if backend == "published":
        return found
    theirs = OURS[name][1]
    ratios = [a / b for a, b in zip(own, times[theirs, "published"], strict=True)]
    return found | {"beside": theirs, "ratio": statistics.median(ratios)}


def _revision(folder: Path) -> str:
    """Return the commit of a checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()[:12] or "unknown"


def beside_table(found: Found) -> str:
    """Return the table, one row for each trainer: its time, and its ratio to the published one."""
    m = found["machine"]
    commits = ", ".join(f"{name} {sha}" for name, sha in m["published"].items())
    heading = f"device: {m['device']} ({m['processor']}), torch {m['torch']}, commit {m['commit']}; {commits}"
    columns = {"trainer": "{name}", "backend": "{backend}", "ms a step": "{ms:.1f}"}
    columns |= {"p20 to p80": "{p20_ms:.1f} to {p80_ms:.1f}", "beside": lambda row: row.get("beside", "-")}
    columns |= {"ratio": lambda row: f"{row['ratio']:.2f}" if "ratio" in row else "-"}
    return table(heading, columns, found["rows"])


def returns(name: str, files: list[str]) -> Found:
    """Make a table of the scores of trained runs, kept as returns-NAME; the files keep their order.

    A file is what `gtp-fast eval RUN --json` printed; settings, data and commit are read from the run that it names.
    """
    rows = [_return(Path(file)) for file in files]
    shared = {name: rows[0][name] for name in ("steps", "episodes", "data") if len({r[name] for r in rows}) == 1}
    return rounded({"machine": shared, "rows": [{k: v for k, v in r.items() if k not in shared} for r in rows]})


def _return(file: Path) -> Row:
    """Return the figures of one evaluation, with the run's settings."""
    found = json.loads(file.read_text())
    run = read_run(Path(found["run"]))
    settings, environment = run.settings, run.environment
    shown = settings | {name: found[name] for name in ("sampling_steps", "candidates", "select")}
    return {
        "setting": label(replace(run, settings=shown)),
        "steps": settings["steps"],
        "episodes": found["episodes"],
        "eta": 0.0 if settings["bc"] else settings["eta"],
        "data": f"{environment['transitions']:,} transitions, SHA-256 {environment['data_sha256'][:8]}",
        "data_return": environment["data_return_mean"],
        "commit": str(environment["commit"])[:12],
        "each": [float(np.mean(scores)) for scores in found["scores"]],
    }


def returns_table(found: Found) -> str:
    """Return the table: each seed's score, mean and standard deviation. What all runs share is in the heading."""
    m = found["machine"]
    columns = {"setting": "{setting}", "eta": "{eta:g}", "each seed": lambda row: over_seeds(row["each"])[0]}
    columns |= {"mean (std)": lambda row: over_seeds(row["each"])[1], "commit": "{commit:.7}"}
    heading = f"{m['steps']:,} steps, {m['episodes']} episodes a seed; data: {m['data']}"
    return table(heading, columns, found["rows"])


if __name__ == "__main__":
    kinds = {"sweep": Kind(sweep, sweep_table), "beside": Kind(beside, beside_table)}
    command("runs", kinds | {"returns": Kind(returns, returns_table)})
