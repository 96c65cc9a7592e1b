"""Our steps beside the published trainers' own code, in turn on one core: what the ratios of the table rest on.

    python -m bench.beside --diffusion-ql DIR --consistency-ac DIR --fql DIR --fql-python PYTHON

takes checkouts of the three repositories (any of them may be left out) and writes <device>-beside.json and .md. Every
trainer is a process of its own, of one thread, pinned to one core that all share; they take turns of a few steps, so
that a slow moment of the machine meets all of them. A figure is CPU time; a ratio is the median of those within rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench import official
from bench.gpu import machine as described
from bench.gpu.results import commit, rounded
from bench.table import keep, slug

# Ours: name -> (settings, the published trainer that it stands beside).
OURS: dict[str, tuple[dict[str, Any], str]] = {
    "GTP, K = 5": ({"sampling_steps": 5}, "Diffusion-QL"),
    "GTP, K = 2": ({"sampling_steps": 2}, "Diffusion-QL"),
    "DQL": ({"algo": "dql"}, "Diffusion-QL"),
    "CAC": ({"algo": "cac"}, "Consistency-AC, T = 2"),
    "FQL, 4 x 512": ({"algo": "fql"}, "FQL (jax), 4 x 512"),
    "FQL, 3 x 256": ({"algo": "fql", "hidden": 256, "layers": 3}, "FQL (jax), 3 x 256"),
}
BACKENDS = ("eager", "compiled")
STEPS = 5  # of a turn


def serve_ours(name: str, backend: str) -> None:
    """Answer as bench/official.py does, with a step of ours."""
    import torch

    from bench.training import config, training
    from gtp_fast.device import quicken_cpu

    torch.set_num_threads(1)
    quicken_cpu()
    official.serve(training(config(**OURS[name][0], backend=backend))[1])


def started(words: list[str]) -> subprocess.Popen[str]:
    """Start a trainer and wait until it is ready. Raises: RuntimeError with its last words."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout and child.stderr
    for line in child.stdout:
        if line.strip() == "ready":
            return child
    raise RuntimeError(f"{' '.join(words)} ended before its first step:\n{child.stderr.read()[-2000:]}")


def turn(child: subprocess.Popen[str]) -> float:
    """Let one trainer make a few steps, and return the milliseconds of one."""
    assert child.stdin and child.stdout
    child.stdin.write(f"{STEPS}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def measure(checkouts: dict[str, Path], fql_python: str, rounds: int) -> dict[str, Any]:
    """Time every trainer whose checkout is given, and ours beside them, in `rounds` turns each."""
    version = commit()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    script = str(Path(official.__file__))
    children = {}
    for name, (repository, _) in official.RUNS.items():
        if repository in checkouts:
            python = fql_python if repository == "fql" else sys.executable
            children[name, "published"] = started([python, script, name, str(checkouts[repository])])
    for name, (_, beside) in OURS.items():
        if (beside, "published") in children:
            for backend in BACKENDS:
                children[name, backend] = started([sys.executable, "-m", "bench.beside", "--serve", name, backend])
    times: dict[tuple[str, str], list[float]] = {key: [] for key in children}
    for _ in range(rounds):
        for key, child in children.items():
            times[key].append(turn(child))
    for child in children.values():
        child.communicate()
    rows = [row(name, backend, times) for name, backend in times]
    commits = {name: revision(folder) for name, folder in checkouts.items()}
    about = described.measure({}, False) | {"commit": version, "published": commits, "rounds": rounds}
    return rounded({"machine": about, "rows": rows})


def row(name: str, backend: str, times: dict[tuple[str, str], list[float]]) -> dict[str, Any]:
    """Return one trainer's figures, and the ratio to the published step that it stands beside."""
    own = times[name, backend]
    p20, median, p80 = np.percentile(own, [20, 50, 80])
    found = {"name": name, "backend": backend, "ms": float(median), "p20_ms": float(p20), "p80_ms": float(p80)}
    if backend == "published":
        return found
    theirs = OURS[name][1]
    ratios = [a / b for a, b in zip(own, times[theirs, "published"], strict=True)]
    return found | {"beside": theirs, "ratio": statistics.median(ratios)}


def revision(folder: Path) -> str:
    """Return the commit of a checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()[:12] or "unknown"


def markdown(found: dict[str, Any]) -> str:
    """Return the table: a line a trainer, its time and the ratio to the published one."""
    m = found["machine"]
    commits = ", ".join(f"{name} {sha}" for name, sha in m["published"].items())
    lines = [f"device: {m['device']} ({m['processor']}), torch {m['torch']}, commit {m['commit']}; {commits}", ""]
    lines += ["| trainer | backend | ms a step | p20 to p80 | beside | ratio |", "|---|---|---|---|---|---|"]
    for line in found["rows"]:
        ratio = f"{line['beside']} | {line['ratio']:.2f}" if "ratio" in line else "- | -"
        spread = f"{line['p20_ms']:.1f} to {line['p80_ms']:.1f}"
        lines.append(f"| {line['name']} | {line['backend']} | {line['ms']:.1f} | {spread} | {ratio} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what was asked for, write both files and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description=__doc__)
    for name in ("diffusion-ql", "consistency-ac", "fql"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help="a checkout of its repository")
    parser.add_argument("--fql-python", default=sys.executable, help="an interpreter that has jax, flax and distrax")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "BACKEND"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve_ours(*asked.serve)
        return
    checkouts = {
        name: folder
        for name, folder in (
            ("diffusion-ql", asked.diffusion_ql),
            ("consistency-ac", asked.consistency_ac),
            ("fql", asked.fql),
        )
        if folder is not None
    }
    if not checkouts:
        parser.error("name at least one checkout, for example --diffusion-ql DIR")
    found = measure(checkouts, asked.fql_python, asked.rounds)
    print(keep(found, asked.out / f"{slug(found)}-beside.json", markdown(found)).read_text())


if __name__ == "__main__":
    main()
