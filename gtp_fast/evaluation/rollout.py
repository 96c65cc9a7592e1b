"""Rollouts: from a policy and environments to returns, in processes over the cores.

A group is at most GROUP episodes of one member that share each call of the policy. One process plays it from the first
step to the last, and the policy always acts for GROUP rows: an episode's result depends neither on the number of cores
nor on the number of episodes.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from gtp_fast.evaluation.environments import check_start
from gtp_fast.evaluation.failures import RolloutError, answer_of, error_of
from gtp_fast.evaluation.silence import end_with_parent

if TYPE_CHECKING:
    import gymnasium

    from gtp_fast.policy.policy import Policy

SUCCESS = ("success", "is_success")  # keys of info; the second is that of Fetch and of Stable-Baselines3
# Most tasks have ten episodes: two groups, for two cores.
GROUP = 5
END_SECONDS = 1.0  # for a killed process to end: a disk that hangs may hold it


class ProcessLostError(RolloutError):
    """A process ended without an answer: it was killed."""


class Rollouts(NamedTuple):
    """Each episode's return, number of steps, whether it diverged, whether it succeeded (None: not reported), and
    whether it was cut at the limit.
    """

    returns: list[float]
    lengths: list[int]
    diverged: list[bool]
    success: list[bool | None]
    cut: list[bool]


def episode_seed(seed: int, episode: int) -> int:
    """Return the seed of an episode's reset: the same for every member."""
    return seed * 100_003 + episode


def play(
    policy: Policy, envs: Sequence[gymnasium.Env], seeds: Sequence[int], rows: int, name: str, limit: int | None = None
) -> Rollouts:
    """Step environment i from a reset with seeds[i] until its episode ends, and never after.

    Args: rows, how many observations of each member one call of the policy takes: the environments fill the first of
    them; name, of the environment, for errors; limit, of an episode's steps, after which it is cut.
    Raises: UsageError for an observation that is not finite at the reset.
    """
    count, one = len(envs), policy.config.observation
    obs = np.zeros((policy.members * rows, *one), np.uint8 if policy.config.frame_shape else np.float32)
    rollouts = Rollouts([0.0] * count, [0] * count, [False] * count, [None] * count, [False] * count)
    running = list(range(count))
    with np.errstate(over="ignore"):  # values too large for float32 become Inf, which is checked
        for i in running:
            obs[i] = envs[i].reset(seed=seeds[i])[0]
        check_start(obs, name)
        while running:
            actions = policy.act_members(obs.reshape(policy.members, rows, *one)).reshape(len(obs), -1)
            running = _step(running, envs, actions, obs, rollouts, limit or sys.maxsize)
    return rollouts


def _step(
    running: list[int],
    envs: Sequence[gymnasium.Env],
    actions: np.ndarray,
    obs: np.ndarray,
    rollouts: Rollouts,
    limit: int,
) -> list[int]:
    """Step each running environment once, write the outcome into `obs` and `rollouts`, return those that go on."""
    returns, lengths, diverged, success, cut = rollouts
    going = []
    for i in running:
        following, reward, terminated, truncated, info = envs[i].step(actions[i])
        obs[i], reward = following, float(reward)
        lengths[i] += 1
        if math.isfinite(reward):
            returns[i] += reward
        else:
            diverged[i] = True
        for key in SUCCESS:
            if key in info:
                success[i] = bool(success[i] or info[key])
        if terminated or truncated or diverged[i]:
            continue
        cut[i] = lengths[i] >= limit
        if not cut[i]:
            going.append(i)
    if obs.dtype == np.float32 and not np.isfinite(obs).all():
        # A simulation that diverged ends here. It must stop neither the other episodes nor the training run.
        for i in np.flatnonzero(~np.isfinite(obs).all(axis=1)).tolist():
            diverged[i], obs[i] = True, 0.0
        going = [i for i in going if not diverged[i]]
    return going


def spread(task: Callable[[int], Any], count: int, workers: int) -> list[Any]:
    """Return [task(0), ..., task(count - 1)], plain values, each computed in a process forked from this one.

    At most `workers` run at a time. Each task has its own fork: it starts from this process's state, whatever other
    tasks did. No fork outlives this call or this process. With one worker, or where processes cannot be forked, the
    tasks run in this process.
    Raises: a task's GtpError as its own class; RolloutError for any other error of a task; ProcessLostError when a
    process was killed.
    """
    if min(workers, count) <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        return [task(index) for index in range(count)]
    context, answers, waiting = multiprocessing.get_context("fork"), [None] * count, iter(range(count))
    running: dict[Any, tuple[int, Any]] = {}
    try:
        while True:
            while len(running) < workers and (index := next(waiting, None)) is not None:
                receiving, sending = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(task, index, sending))
                # The child only steps environments: other threads' locks do not matter. torch's loaders fork too.
                with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                    process.start()
                sending.close()  # then only the child holds this end, and the pipe ends with the child
                running[receiving] = index, process
            if not running:
                return answers
            for receiving in wait(list(running)):
                index, process = running[receiving]
                answers[index] = _received(receiving, process)
                del running[receiving]
    finally:
        for receiving, (_, process) in running.items():
            process.kill()
            process.join(END_SECONDS)
            receiving.close()


def _received(receiving: Any, process: Any) -> Any:
    try:
        answer = json.loads(receiving.recv_bytes())
    except EOFError:
        process.join()
        raise ProcessLostError(
            f"a process of the evaluation ended in the middle of a rollout (exit code {process.exitcode}); is memory "
            "short? try fewer workers"
        ) from None
    process.join()
    receiving.close()
    if "failed" in answer:
        raise error_of(answer)
    return answer["value"]


def _answer(task: Callable[[int], Any], index: int, sending: Any) -> None:
    """Run in a forked process: compute one task and send its value or its error."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        answer = {"value": task(index)}
    except Exception as error:
        answer = answer_of(error)
    sending.send_bytes(json.dumps(answer).encode())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch and NumPy's BLAS to one thread: products of a few rows only make more wait, and differ by a bit.

    Forked processes inherit it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
