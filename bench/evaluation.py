"""Evaluation beside bare physics: `python -m bench.evaluation` writes <device>-evaluation.json and .md.

Bare physics steps the same environments for as many and as long episodes, in as many processes, with random actions
made beforehand. The policy is untrained, GTP of width 256. Both take turns, and a ratio compares one turn of each.
There is a ratio of CPU time, too, since other work may share the machine. The policy's products are NumPy's: the table
names the kernel that its OpenBLAS chose, by the processor or by OPENBLAS_CORETYPE.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from statistics import median

import numpy as np
from threadpoolctl import threadpool_info

from bench.clock import in_turn, taken
from bench.tables import Found, Kind, Row, command, result, table
from bench.training import config, policy
from gtp_fast.data import catalog
from gtp_fast.data.spec import DataSpec, EvalEnv
from gtp_fast.device import cores
from gtp_fast.evaluation.environments import make_env
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.rollout import one_thread, spread

TASKS = (("HalfCheetah-v5", 10, 5), ("HalfCheetah-v5", 10, 2), ("antmaze-umaze-v0", 100, 5))  # episodes, K


def physics(env: EvalEnv, lengths: list[int], actions: np.ndarray, workers: int) -> None:
    """Step episodes of these lengths; each worker has an equal share and its own environment."""

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
    kernels = [library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"]
    return kernels[0] if kernels else "-"


def compare(spec: DataSpec, episodes: int, sampling_steps: int, workers: int, rounds: int) -> Row:
    """Return medians of seconds and CPU seconds of both, and of their ratios, after one round."""
    assert spec.eval_env is not None
    env = spec.eval_env
    with closing(make_env(env)) as made:
        sizes = made.observation_space.shape[0], made.action_space.shape[0]  # pyright: ignore[reportOptionalSubscript]
    acting = policy(config(sampling_steps=sampling_steps), *sizes)
    actions = np.random.default_rng(0).uniform(-1, 1, size=(1_000, sizes[1])).astype(np.float32)
    lengths = evaluate_policy(acting, spec, episodes, workers=workers).lengths_SE[0].tolist()
    calls = {
        "bare": lambda: taken(lambda: physics(env, lengths, actions, workers)),
        "evaluation": lambda: taken(lambda: evaluate_policy(acting, spec, episodes, workers=workers)),
    }
    turns = in_turn(calls, rounds)
    found = {}
    for end, of in (("", "seconds"), ("_cpu", "cpu_seconds")):
        bare, whole = ([getattr(turn, of) for turn in turns[name]] for name in calls)
        ratios = [b / a for a, b in zip(bare, whole, strict=True)]
        figures = {"bare": bare, "evaluation": whole, "ratio": ratios}
        found |= {name + end: median(values) for name, values in figures.items()}
    row = {"env": env.id, "episodes": episodes, "sampling_steps": sampling_steps}
    return row | {"env_steps": sum(lengths), "workers": workers} | found


def evaluation(rounds: int = 5, workers: int = cores()) -> Found:
    """Measure evaluation beside bare physics, for every task whose environment is installed."""
    rows, absent = [], []
    for name, episodes, sampling_steps in TASKS:
        spec = replace(catalog.resolve(name), score="return")
        if spec.eval_env is None:
            absent.append(name)
        else:
            rows.append(compare(spec, episodes, sampling_steps, workers, rounds))
    return result(rows, rounds=rounds, absent=absent, blas=blas_kernel())


def markdown(found: Found) -> str:
    """Return the table, one row for each task, in seconds."""
    m = found["machine"]
    heading = (
        f"device: cpu ({m['processor']}), OpenBLAS kernel {m['blas']}, commit {m['commit']}; medians of {m['rounds']} "
        "rounds, seconds"
    )
    columns = {"environment": "{env}", "episodes": "{episodes}", "K": "{sampling_steps}", "steps": "{env_steps:,}"}
    columns |= {"processes": "{workers}", "bare physics": "{bare:.2f}", "evaluation": "{evaluation:.2f}"}
    columns |= {"ratio": "{ratio:.2f}", "ratio of CPU time": "{ratio_cpu:.2f}"}
    absent = "".join(f"\n{name} names no evaluation environment in this version.\n" for name in m["absent"])
    return table(heading, columns, found["rows"]) + absent


if __name__ == "__main__":
    command("evaluation", {"evaluation": Kind(evaluation, markdown)})
