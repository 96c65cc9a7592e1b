"""Roll out the policies that `make gpu` trained, where MuJoCo is: `python -m bench.gpu.score FILE.safetensors`.

Each seed's mean normalised score with one action drawn, and with the best of 50 by softmax and by argmax.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bench.tables import over_seeds, page
from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.data import catalog
from gtp_fast.data.spec import with_references
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.policy.policy import Policy

RULES = ((1, "none"), (50, "softmax"), (50, "argmax"))


def scored(file: Path, episodes: int, sampling_steps: tuple[int, ...]) -> str:
    """Return a Markdown table: for each way of acting, each seed's score, their mean and standard deviation."""
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
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.score", description=__doc__)
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
