"""Fig. 7 in figures: the mass of every mode and off them, and what a sample costs, for policies on the four goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_fast.data import embedded
from gtp_fast.experiments.figures import GOAL_SAMPLES
from gtp_fast.experiments.latency import interleaved, spread
from gtp_fast.files import publish_json
from gtp_fast.policy.load import load_policy
from gtp_fast.policy.policy import Policy

SECONDS = 0.3  # of timing each sampler


def data_cloud() -> np.ndarray:
    """Return the data's actions near the origin, (N, 2)."""
    data = embedded.multigoal_arrays()
    return data.action[np.linalg.norm(data.obs, axis=1) < 4 * embedded.START_STD]


def cloud(policy: Policy) -> np.ndarray:
    """Return a policy's actions at the origin, (S, GOAL_SAMPLES, 2); the same ones each time."""
    return policy.anew().act_members(np.zeros((policy.members, GOAL_SAMPLES, 2), np.float32))


def masses(actions_SB2: np.ndarray) -> dict[str, Any]:
    """Return the mass of each mode and off the modes: means over members, and what is off for each."""
    found = [embedded.mode_masses(actions) for actions in actions_SB2]
    return {
        "masses": np.mean([mass for mass, _ in found], axis=0).tolist(),
        "off": float(np.mean([off for _, off in found])),
        "off_each": [off for _, off in found],
    }


def samplers(places: list[tuple[Path, int | None]]) -> list[dict[str, Any]]:
    """Return masses and costs of each (run, K or None for its own); measured once and kept in the run's folder.

    Costs are network evaluations and the median microseconds of one action for one observation on the CPU: by the
    fastest way of this version, and by the algorithm's formulas in torch, which is the same footing for all. They are
    timed in turn, so that a slow moment of the machine does not favour one.
    """
    policies = [load_policy(path, sampling_steps=k, candidates=1, device="cpu") for path, k in places]
    files = [
        path / "acting" / f"goals-{_step(path)}-k{policy.config.sampling_steps}.json"
        for (path, _), policy in zip(places, policies, strict=True)
    ]
    if not all(file.exists() for file in files):
        times = _times(places)
        for i, (file, policy) in enumerate(zip(files, policies, strict=True)):
            k = policy.config.sampling_steps
            cost = {"sampling_steps": k, "network_evaluations": k, "us": times[i, "own"], "us_torch": times[i, "torch"]}
            file.parent.mkdir(exist_ok=True)
            publish_json(file, masses(cloud(policy)) | cost)
    return [json.loads(file.read_text()) for file in files]


def _step(path: Path) -> str:
    return max(file.name for file in (path / "ckpt").glob("step-*"))


def _times(places: list[tuple[Path, int | None]]) -> dict[tuple[int, str], dict[str, Any]]:
    origin, calls = np.zeros((1, 2), np.float32), {}
    for i, (path, k) in enumerate(places):
        first = load_policy(path, device="cpu").config.seeds[0]
        own = load_policy(path, first, sampling_steps=k, candidates=1, device="cpu")
        for way, policy in (("own", own), ("torch", own.plain())):
            calls[i, way] = lambda policy=policy: policy.act(origin)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a batch of one: more threads only wait for each other
    try:
        return {key: spread(times) for key, times in interleaved(calls, SECONDS).items()}
    finally:
        torch.set_num_threads(threads)
