"""The worker's own side: it answers requests from standard input, lines of JSON, until its input ends.

A check needs Gymnasium alone and is answered before torch is imported, since a run waits for it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import Any

from gtp_fast.data.spec import DataSpec, EvalEnv
from gtp_fast.evaluation.environments import check_environment
from gtp_fast.evaluation.failures import answer_of
from gtp_fast.evaluation.silence import count_in, end_with_parent
from gtp_fast.runs.streams import lasting_streams

NICE = 5  # a worker yields to training on shared cores


def serve(calls: int) -> None:
    """Answer the requests that arrive on standard input until it ends.

    Args: calls, the descriptor of a file in which the parent reads how many calls environments have answered.
    """
    count_in(calls)
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # an environment's prints must not mix with the answers
    requests = sys.stdin.buffer
    with suppress(Exception):  # takes a while, beside the parent's reading of the data; told when it is needed
        from gtp_fast.evaluation import checked  # noqa: F401  # it imports Gymnasium
    with lasting_streams():  # an environment that prints is scored, also where nobody reads
        while line := requests.readline():
            request = json.loads(line)
            policy = requests.read(request.get("bytes", 0))
            try:
                answer = _evaluated(request, policy) if "step" in request else _tried(*request["check"])
            except (Exception, SystemExit) as error:
                answer = answer_of(error)
            answers.write(json.dumps(answer) + "\n")
            _yields()  # the parent waits for the first answer, and trains after it


@cache
def _yields() -> None:
    """Yield to training on shared cores, and import what evaluations need before the first of them."""
    os.nice(NICE)
    with suppress(Exception):
        from gtp_fast.evaluation import evaluate  # noqa: F401


def _evaluated(request: dict[str, Any], payload: bytes) -> dict[str, Any]:
    _yields()
    import torch
    from safetensors.torch import load

    from gtp_fast.evaluation.evaluate import evaluate_policy
    from gtp_fast.evaluation.rollout import ProcessLostError
    from gtp_fast.policy.policy import Policy, PolicyConfig

    torch.set_num_threads(1)
    policy = Policy(PolicyConfig.from_json(request["policy"]), load(payload))
    episodes, seed, step, workers = (request[name] for name in ("episodes", "seed", "step", "workers"))
    try:
        return evaluate_policy(policy, _spec(request["spec"]), episodes, seed, step, workers).to_json()
    except ProcessLostError:
        os._exit(1)  # as if this process was killed: the parent starts it once more


def _tried(
    spec: dict[str, Any], obs: Any, action_dim: int, frame_stack: int, action_bounds: Any
) -> dict[str, int | None]:
    shape = tuple(obs) if isinstance(obs, list) else obs
    limits = action_bounds and (tuple(action_bounds[0]), tuple(action_bounds[1]))
    return {"limit": check_environment(_spec(spec), shape, action_dim, frame_stack, limits, try_it=True)}


def _end_with_parent() -> None:
    """End the process when standard input is closed, even in the middle of a rollout or with unread input."""
    hung_up = select.poll()
    hung_up.register(0, 0)  # with no event requested it wakes only at the hang-up
    hung_up.poll()
    os._exit(0)


def _spec(values: dict[str, Any]) -> DataSpec:
    env = values.pop("eval_env")
    kwargs = tuple((str(name), value) for name, value in env["kwargs"]) if env else ()
    return DataSpec(**values, eval_env=EvalEnv(env["id"], kwargs, env["max_steps"]) if env else None)
