"""Evaluation beside bare physics: `python -m bench.evaluation` writes <device>-evaluation.json and .md.

Bare physics is the same environments stepped through as many and as long episodes by as many processes, which were
handed the actions beforehand. The policy is untrained, GTP of width 256. Both take turns; a ratio is of one turn's
pair, and of CPU time as well as of the clock, for other work may share the machine. The policy's products are NumPy's:
the table names the kernel that its OpenBLAS chose, by the processor or by OPENBLAS_CORETYPE.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.gpu import machine as described
from bench.gpu.results import commit, rounded
from bench.table import keep, slug
from bench.training import config, policy
from gtp_fast.algorithms import gtp
from gtp_fast.data import catalog
from gtp_fast.data.spec import DataSpec, EvalEnv
from gtp_fast.device import cores
from gtp_fast.evaluation.environments import make_env
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.rollout import one_thread, spread

TASKS = (("HalfCheetah-v5", 10, 5), ("HalfCheetah-v5", 10, 2), ("antmaze-umaze-v0", 100, 5))  # episodes, K


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what a call gives, its seconds by the clock, and those of CPU in this process and those it waited for."""
    used, started = os.times(), time.perf_counter()
    found = run()
    seconds, now = time.perf_counter() - started, os.times()
    return found, seconds, sum(now[:4]) - sum(used[:4])


def physics(env: EvalEnv, lengths: list[int], actions: np.ndarray, workers: int) -> None:
    """Step episodes of these lengths, each worker an equal share in one environment of its own."""

    def share(index: int) -> None:
        with closing(make_env(env)) as stepped:
            for episode in range(index, len(lengths), workers):
                stepped.reset(seed=episode)
                for t in range(lengths[episode]):
                    stepped.step(actions[t % len(actions)])

    with one_thread():
        spread(share, workers, workers)


def blas_kernel() -> str:
    """Return the kernel that NumPy's OpenBLAS runs here, "-" where it is another library."""
    maps = Path("/proc/self/maps")
    mapped = {line.split()[-1] for line in maps.read_text().splitlines() if "openblas" in line} if maps.exists() else ()
    for library in map(ctypes.CDLL, sorted(mapped)):
        for name in ("scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename"):
            if hasattr(library, name):
                ask = getattr(library, name)
                ask.restype = ctypes.c_char_p
                return ask().decode()
    return "-"


def compare(spec: DataSpec, episodes: int, sampling_steps: int, workers: int, rounds: int) -> dict[str, Any]:
    """Return medians of seconds and CPU seconds of both, and of their ratios, after one round."""
    assert spec.eval_env is not None
    with closing(make_env(spec.eval_env)) as env:
        sizes = env.observation_space.shape[0], env.action_space.shape[0]  # pyright: ignore[reportOptionalSubscript]
    cfg = config(sampling_steps=sampling_steps)
    acting = policy(cfg, gtp.init_state(cfg, *sizes, "cpu"), *sizes)
    actions = np.random.default_rng(0).uniform(-1, 1, size=(1_000, sizes[1])).astype(np.float32)
    lengths, turns = evaluate_policy(acting, spec, episodes, workers=workers).lengths_SE[0].tolist(), []
    for _ in range(rounds):
        _, bare, bare_cpu = timed(lambda: physics(spec.eval_env, lengths, actions, workers))  # pyright: ignore
        _, whole, whole_cpu = timed(lambda: evaluate_policy(acting, spec, episodes, workers=workers))
        turns.append((bare, whole, whole / bare, bare_cpu, whole_cpu, whole_cpu / bare_cpu))
    names = ("bare", "evaluation", "ratio", "bare_cpu", "evaluation_cpu", "ratio_cpu")
    found = {name: median(column) for name, column in zip(names, zip(*turns, strict=True), strict=True)}
    row = {"env": spec.eval_env.id, "episodes": episodes, "sampling_steps": sampling_steps}
    return row | {"env_steps": sum(lengths), "workers": workers} | found


def measure(rounds: int, workers: int) -> dict[str, Any]:
    """Measure every task whose environment is there."""
    rows, absent = [], []
    for name, episodes, sampling_steps in TASKS:
        spec = replace(catalog.resolve(name), score="return")
        if spec.eval_env is None:
            absent.append(name)
        else:
            rows.append(compare(spec, episodes, sampling_steps, workers, rounds))
    about = described.measure({}, False) | {"commit": commit(), "rounds": rounds, "absent": absent}
    about["blas"] = blas_kernel()
    return rounded({"machine": about, "rows": rows})


def markdown(found: dict[str, Any]) -> str:
    """Return the table, in seconds."""
    m = found["machine"]
    lines = [
        f"device: cpu ({m['processor']}), OpenBLAS kernel {m['blas']}, commit {m['commit']}; medians of {m['rounds']} "
        "rounds, seconds",
        "",
        "| environment | episodes | K | steps | processes | bare physics | evaluation | ratio | ratio of CPU time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['env']} | {row['episodes']} | {row['sampling_steps']} | {row['env_steps']:,} | {row['workers']} "
            f"| {row['bare']:.2f} | {row['evaluation']:.2f} | {row['ratio']:.2f} | {row['ratio_cpu']:.2f} |"
        )
    lines += [f"\n{name} names no evaluation environment in this version." for name in m["absent"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write both files and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.evaluation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    found = measure(asked.rounds, asked.workers)
    keep(found, asked.out / f"{slug(found)}-evaluation.json", markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
