"""Time the step of a published trainer, using only its own code: `python bench/published.py NAME CHECKOUT`.

`python -m bench.runs beside` starts it. Nothing of this project is imported, so that the interpreter may be one that
holds what the checkout needs. It prints `ready`, then for each line with a number n the CPU milliseconds of a step over
n steps.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

OBS_DIM, ACTION_DIM, BATCH, ROWS = 17, 6, 256, 10_000
Run = Callable[[int], object]
WARM_STEPS = 5


def data() -> dict[str, Any]:
    """Return random transitions of HalfCheetah's shapes."""
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(ROWS, OBS_DIM)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(ROWS, ACTION_DIM)).astype(np.float32),
        "next_observations": rng.normal(size=(ROWS, OBS_DIM)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "terminals": rng.random(ROWS) < 0.01,
    }


def torch_agent(module: str, name: str, device: Callable[[str], Any], **settings: Any) -> Run:
    """Return the steps of an agent in torch, with the settings of its HalfCheetah tasks: eta 1, gradient norm 9."""
    import torch

    torch.set_num_threads(1)
    # In place of their logger, which no step calls and which needs further packages.
    logger = types.ModuleType("utils.logger")
    logger.__dict__["logger"] = None
    sys.modules["utils.logger"] = logger
    agents = importlib.import_module(module)
    from utils.data_sampler import Data_Sampler  # pyright: ignore[reportMissingImports]

    same = (OBS_DIM, ACTION_DIM, 1.0, device("cpu"), 0.99, 0.005)
    agent = getattr(agents, name)(*same, eta=1.0, lr=3e-4, grad_norm=9.0, **settings)
    replay = Data_Sampler(data(), "cpu")
    return lambda n: agent.train(replay, n, BATCH)


def diffusion_ql() -> Run:
    """Return the steps of Diffusion-QL, of five denoising steps."""
    return torch_agent("agents.ql_diffusion", "Diffusion_QL", str, beta_schedule="vp", n_timesteps=5)


def consistency_ac() -> Run:
    """Return the steps of Consistency-AC, of two denoising steps."""
    import torch

    return torch_agent("agents.ql_consistency", "Consistency_QL", torch.device, n_timesteps=2)


def fql(hidden: int, layers: int) -> Run:
    """Return the steps of Flow Q-learning in jax, compiled as published, on one thread."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax  # pyright: ignore[reportMissingImports]
    import numpy as np
    from agents.fql import FQLAgent, get_config  # pyright: ignore[reportMissingImports]

    config = get_config()
    config.actor_hidden_dims = config.value_hidden_dims = (hidden,) * layers
    found, rng = data(), np.random.default_rng(1)
    arrays = {name: found[name] for name in ("observations", "actions", "next_observations", "rewards")}
    arrays["masks"] = 1.0 - found["terminals"].astype(np.float32)
    agent = FQLAgent.create(0, arrays["observations"][:1], arrays["actions"][:1], config)

    def run(n: int) -> None:
        nonlocal agent
        for _ in range(n):
            rows = rng.integers(ROWS, size=BATCH)
            agent, _ = agent.update({name: array[rows] for name, array in arrays.items()})
        jax.block_until_ready(agent.network.params)

    return run


# name -> (the repository that it needs, what makes its steps)
RUNS: dict[str, tuple[str, Callable[[], Run]]] = {
    "Diffusion-QL": ("diffusion-ql", diffusion_ql),
    "Consistency-AC, T = 2": ("consistency-ac", consistency_ac),
    "FQL (jax), 4 x 512": ("fql", lambda: fql(512, 4)),
    "FQL (jax), 3 x 256": ("fql", lambda: fql(256, 3)),
}


def serve(run: Run) -> None:
    """Warm up, then answer every number of steps with the CPU milliseconds of one."""
    run(WARM_STEPS)
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        started = time.process_time()
        run(count)
        print((time.process_time() - started) / count * 1e3, flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(sys.argv[2]).resolve())  # theirs, in place of this folder
    serve(RUNS[sys.argv[1]][1]())
