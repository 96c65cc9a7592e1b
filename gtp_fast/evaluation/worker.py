"""Evaluation during training: a worker process rolls out policies in the order of their submission.

The worker is a new interpreter that runs `serve`, so that a user's script needs no main guard. It reads its settings
as a line of JSON, then for each policy a line of JSON and a safetensors payload, and answers with a line of JSON. It
ends at once when its input ends, also by the parent's death.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from gtp_fast.config import TrainConfig
from gtp_fast.data.spec import DataSpec, EvalEnv
from gtp_fast.device import cores
from gtp_fast.errors import GtpError
from gtp_fast.evaluation.evaluate import evaluate_policy
from gtp_fast.evaluation.rollout import ProcessLostError
from gtp_fast.policy.policy import Policy, PolicyConfig
from gtp_fast.runs.records import EvalResult

NICE = 5  # a worker yields to training on shared cores
# The worker gets exactly the parent's sys.path: -m would put the working directory first.
WORKER = "import sys; sys.path[:] = sys.argv[1:]; from gtp_fast.evaluation.worker import serve; serve()"


class EvaluationError(GtpError):
    """The evaluation worker failed; the message holds its error."""


class Evaluator:
    """One worker process, started at the first submission. Submitting and polling never wait for a rollout."""

    def __init__(self, config: PolicyConfig, spec: DataSpec, episodes: int, seed: int, workers: int = 1):
        """Take the arguments of `evaluate_policy`; `workers` processes of the worker step the environments."""
        self._setup = {"policy": config.to_json(), "spec": asdict(spec)}
        self._setup |= {"episodes": episodes, "seed": seed, "workers": workers}
        self._pending: dict[int, dict[str, Tensor]] = {}
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()  # lines of JSON; "" when the worker ended
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._restarted = False

    def submit(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Submit the policy of a step; its tensors are copied to the host."""
        self._pending[step] = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        if self._process is None:
            self._start()
        self._send(step)

    def pending(self) -> dict[int, dict[str, Tensor]]:
        """Return the policies that have no result yet; a checkpoint saves them."""
        return dict(self._pending)

    def poll(self, wait: float | None = None) -> list[tuple[EvalResult, dict[str, Tensor]]]:
        """Return the results so far, each with its policy, after waiting at most `wait` seconds for the first.

        A worker that was killed is started once more. Raises: EvaluationError when it failed or was killed again.
        """
        results = []
        while self._pending:
            try:
                line = self._answers.get(block=wait is not None, timeout=wait)
            except queue.Empty:
                break
            wait = None
            if not line:
                self._restart()
                continue
            answer = json.loads(line)
            if "failed" in answer:
                self.close()
                raise EvaluationError(f"the evaluation failed; its worker reported:\n{answer['failed']}")
            results.append((EvalResult.from_json(answer), self._pending.pop(answer["step"])))
        return results

    def close(self) -> None:
        """End the worker at once."""
        if self._process is not None:
            self._requests.put(None)
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, *map(os.path.abspath, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # Ctrl-C reaches only the parent, which saves first
        )
        self._process, self._requests, self._answers = process, queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=_write, args=(process, self._requests), daemon=True).start()
        threading.Thread(target=_read, args=(process, self._answers), daemon=True).start()
        self._requests.put(json.dumps(self._setup).encode() + b"\n")

    def _send(self, step: int) -> None:
        payload = save(self._pending[step])
        self._requests.put(json.dumps({"step": step, "bytes": len(payload)}).encode() + b"\n" + payload)

    def _restart(self) -> None:
        code = self._process.wait() if self._process is not None else None
        self.close()
        if self._restarted:
            raise EvaluationError(
                f"the evaluation worker died twice (exit code {code}); is memory short? try --eval-workers 1, or pass "
                "--eval-every 0"
            )
        self._restarted = True
        self._start()
        for step in self._pending:
            self._send(step)


def workers_beside(cfg: TrainConfig) -> int:
    """Return how many processes step environments during training: one on a CPU, all cores but one on a GPU."""
    return cfg.eval_workers or (max(1, cores() - 1) if cfg.device == "cuda" else 1)


def _write(process: subprocess.Popen[bytes], requests: queue.SimpleQueue[bytes | None]) -> None:
    """Write requests to the worker in a thread: a pipe holds 64 KiB, a policy has megabytes."""
    assert process.stdin is not None
    with suppress(OSError), process.stdin as pipe:  # an error: the worker ended, which `_read` reports
        while (request := requests.get()) is not None:
            pipe.write(request)
            pipe.flush()


def _read(process: subprocess.Popen[bytes], answers: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    with process.stdout as pipe:
        for line in pipe:
            answers.put(line.decode())
    answers.put("")


def serve() -> None:
    """Evaluate the policies that arrive on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICE)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # an environment's prints must not mix with the answers
    requests = sys.stdin.buffer
    setup = json.loads(requests.readline())
    config, spec = PolicyConfig.from_json(setup["policy"]), _spec(setup["spec"])
    while line := requests.readline():
        try:
            header = json.loads(line)
            policy = Policy(config, load(requests.read(header["bytes"])))
            result = evaluate_policy(policy, spec, setup["episodes"], setup["seed"], header["step"], setup["workers"])
            answers.write(json.dumps(result.to_json()) + "\n")
        except ProcessLostError:
            os._exit(1)  # as if this process was killed: the parent starts it once more
        except GtpError as error:
            answers.write(json.dumps({"failed": str(error)}) + "\n")
        except Exception:
            answers.write(json.dumps({"failed": traceback.format_exc()}) + "\n")


def _end_with_parent() -> None:
    """End the process when standard input is closed, even in the middle of a rollout or with unread input."""
    hung_up = select.poll()
    hung_up.register(0, 0)  # with no event requested it wakes only at the hang-up
    hung_up.poll()
    os._exit(0)


def _spec(values: dict[str, Any]) -> DataSpec:
    env = values.pop("eval_env")
    kwargs = tuple((str(name), value) for name, value in env["kwargs"]) if env else ()
    return DataSpec(**values, eval_env=EvalEnv(env["id"], kwargs) if env else None)
