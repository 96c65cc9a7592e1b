"""Train on the card as `gtp-fast train` does: five seeds in one run, for as many steps as the time allows.

Its policies come back as one safetensors file that says what it is; `python -m bench.gpu.learning FILE` rolls them out
where MuJoCo is. Data and environment are those of `make gpu DATA=file ENV=name`, else the embedded hopper-demo-v0.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bench.clock import once_s
from bench.gpu.checks import left_s
from bench.gpu.plan import VARIABLES
from bench.tables import over_seeds, page
from gtp_fast import algorithms, device
from gtp_fast.algorithms.backends import stepper
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.algorithms.state import TrainState
from gtp_fast.config import TrainConfig
from gtp_fast.data import catalog, dataset
from gtp_fast.data.replay import ReplayBuffer
from gtp_fast.data.spec import with_references
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.policy.policy import Policy
from gtp_fast.runs import checkpoint
from gtp_fast.training.train import train

if TYPE_CHECKING:
    from gtp_fast.algorithms.fused import FusedStep

TRAIN_S = 200.0  # of train steps; data, capture and saving come on top
MOST_STEPS = 2_000_000  # the paper's
PROBE_STEPS = 400  # whole graphs
OPEN_S = 25.0  # for opening and saving
RULES = ((1, "none"), (50, "softmax"), (50, "argmax"))


def learn(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Train and keep the policies; return steps, seconds, and the last interval's means, one value a member.

    How many steps there are is decided before the first, for the schedules of a run depend on its length.
    """
    cfg = _settings(row, dry)
    steps = 4 if dry else _steps_for(cfg, min(TRAIN_S, left_s() - OPEN_S))
    with tempfile.TemporaryDirectory(prefix="gtp-gpu-run-") as folder:
        run = Path(folder) / "run"
        done = train(replace(cfg, steps=steps, log_every=max(1, steps // 50), run_dir=str(run)))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        kept = _keep(Path(done.checkpoint), cfg, steps)
    last = next(line for line in reversed(lines) if "critic_loss" in line)
    means = {name: last[name] for name in ("actor_loss", "critic_loss", "q", "weight") if name in last}
    speed = {"steps_per_second": done.steps_per_second, "us": 1e6 / done.steps_per_second}
    ran = {"env": cfg.env, "backend": done.backend, "precision": done.precision, "graph": done.graph}
    return {**ran, "steps": steps, "train_s": done.seconds, **speed, **means, "policies": kept.name}


def _settings(row: dict[str, Any], dry: bool) -> TrainConfig:
    """Return the run's settings, `auto` resolved as for any run."""
    env = os.environ.get(VARIABLES["env"], "hopper-demo-v0")
    flags: dict[str, Any] = {"env": env, "seeds": row["seeds"], "eta": row["eta"], "eval_every": 0, "save_every": 0}
    if data := os.environ.get(VARIABLES["data"]):
        flags["dataset"] = data
    small = {"hidden": 32, "batch_size": 16, "threads": 1, "device": "cpu", "backend": "eager"} if dry else {}
    return device.resolve(catalog.run_settings(flags | small))[0]


def fused(row: dict[str, Any], dry: bool) -> FusedStep:
    """Return the fused step of the run, to compile its launches: they depend on the data's size."""
    from gtp_fast.algorithms.fused import make_step

    return make_step(*_opened(_settings(row, dry)))


def _opened(cfg: TrainConfig) -> tuple[TrainConfig, TrainState, ReplayBuffer]:
    """Return the longest such run, its state and its data."""
    cfg = replace(cfg, steps=MOST_STEPS)
    data = dataset.load(catalog.resolve(cfg.env), Path(cfg.dataset) if cfg.dataset else None)
    buffer = ReplayBuffer.from_transitions(data, cfg, cfg.device)
    return cfg, algorithms.init_state(cfg, buffer.obs_dim, buffer.action_dim, cfg.device), buffer


def _steps_for(cfg: TrainConfig, seconds: float) -> int:
    """Return how many thousands of steps fit, by a probe of the same run."""
    device.prepare(cfg)
    run = stepper(*_opened(cfg))
    run(cfg.unroll)
    taken = once_s(run, PROBE_STEPS) / PROBE_STEPS
    return max(1_000, min(MOST_STEPS, int(0.95 * seconds / taken) // 1_000 * 1_000))


def _keep(where: Path, cfg: TrainConfig, steps: int) -> Path:
    """Write the policies of a checkpoint beside the results, with what they need to act and to be scored."""
    tensors, meta = checkpoint.load_policy(where)
    about = {name: json.dumps(meta.get(name)) for name in ("policy", "references", "data_sha256")}
    about |= {"env": cfg.env, "steps": str(steps), "settings": json.dumps(asdict(cfg))}
    path = Path(os.environ.get(VARIABLES["results"], where.parent)) / f"policies-{cfg.env.lower()}.safetensors"
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, about)
    os.replace(part, path)
    return path


def scored(file: Path, episodes: int, sampling_steps: tuple[int, ...]) -> str:
    """Roll out the policies of a file; return a table of each seed's normalised score, their mean and deviation.

    They act with one action drawn, and with the best of 50 by softmax and by argmax.
    """
    with safe_open(file, "pt") as opened:
        about, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    config = PolicyConfig.from_json(json.loads(about["policy"]))
    spec = with_references(catalog.resolve(about["env"]), json.loads(about["references"]))
    rows = []
    for k in sampling_steps:
        for candidates, select in RULES:
            acts = replace(config, sampling_steps=k, candidates=candidates, select=select)
            result = evaluate_policy(Policy(acts, tensors), spec, episodes)
            rule = "1" if candidates == 1 else f"{candidates}, {select}"
            rows.append([k, rule, *over_seeds(result.figures)])
    heading = f"{about['env']}, {int(about['steps']):,} steps, {episodes} episodes a seed"
    return page(heading, ("K", "candidates", "each seed", "mean (std)"), rows)


def main() -> None:
    """Print the scores of a file."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.learning", description=scored.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--sampling-steps", type=int, nargs="+", default=[5, 2])
    asked = parser.parse_args()
    try:
        table = scored(asked.file, asked.episodes, tuple(asked.sampling_steps))
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        parser.error(f"{asked.file} holds no policies that make gpu wrote ({error}); name a policies-*.safetensors")
    print(table, end="")


if __name__ == "__main__":
    main()
