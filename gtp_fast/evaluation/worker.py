"""Evaluation during training: a worker process rolls out policies in the order of their submission.

The worker is a new interpreter that runs `serve.serve`, so that a user's script needs no main guard. A request is a
line of JSON, for a policy followed by a safetensors payload; the answer is a line of JSON. The worker ends at once when
its input ends, also by the parent's death. It starts before the data are read, tries the environment before the first
train step, and then makes the run's evaluations. What goes wrong there is a warning here: it never ends the training.
A worker whose environment hangs is ended: the parent sees that the number of answered calls does not grow.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

from safetensors.torch import save
from torch import Tensor

from gtp_fast.config import TrainConfig
from gtp_fast.data.spec import Bounds, DataSpec, ObsShape
from gtp_fast.device import cores
from gtp_fast.errors import UsageError
from gtp_fast.evaluation import silence
from gtp_fast.evaluation.environments import UnknownEnvironmentError, limit_note, only_here
from gtp_fast.evaluation.failures import RolloutError, error_of
from gtp_fast.evaluation.silence import Silence, calls_file, calls_in, told
from gtp_fast.policy.policy import PolicyConfig
from gtp_fast.runs.records import EvalResult

# The worker gets exactly the parent's sys.path: -m would put the working directory first.
WORKER = "import sys; sys.path[:] = sys.argv[2:]; from gtp_fast.evaluation.serve import serve; serve(int(sys.argv[1]))"
MARK = "GTP_FAST_EVALUATES"  # set in a worker's environment
TRIES = 2  # of an evaluation whose worker dies, and of evaluations that hang before all that wait are given up
# Evaluations that wait for a worker that hangs or is slow, and the bytes of their policies, which are in memory.
MOST_PENDING, MOST_PENDING_BYTES = 50, 1 << 30
SLOW_SECONDS = 5.0  # without an answer, after which a run that waits says so
LOOK_SECONDS = 0.5  # between looks whether an environment answers, before training
END_SECONDS = 1.0  # for a killed process to end: a disk that hangs may hold it
REMEDY = "mend the environment, or pass --eval-every 0 to train without it"
FEWER = "try --eval-workers 1, or pass --eval-every 0"
DAMAGED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)  # by reading a strange answer


class Failed(NamedTuple):
    """An evaluation without a result: its step, why in one line, and the traceback, "" where there is none."""

    step: int
    reason: str
    trace: str = ""


class Worker:
    """A worker process, and the threads that write its requests and read its answers."""

    def __init__(self) -> None:
        """Start the process. Raises: UsageError in a worker, which imported a script that trains; OSError."""
        if MARK in os.environ:
            raise UsageError(
                "a run was started by the import of a module that its environment is in; put the call that trains "
                "under if __name__ == '__main__', or the environment into a module of its own"
            )
        with calls_file() as calls:
            self.silence = Silence(calls_in(calls))
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", WORKER, str(calls.fileno()), *map(os.path.abspath, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", MARK: "1"},
                start_new_session=True,  # Ctrl-C reaches only the parent, which saves first
                pass_fds=(calls.fileno(),),
            )
        self.answers: queue.SimpleQueue[str] = queue.SimpleQueue()  # lines of JSON; "" when the worker ended
        self.requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        try:
            threading.Thread(target=_write, args=(self.process, self.requests), daemon=True).start()
            threading.Thread(target=_read, args=(self.process, self.answers), daemon=True).start()
        except RuntimeError as error:  # the limit on processes counts threads too
            self.close()
            raise OSError(str(error)) from None

    def send(self, request: dict[str, Any], payload: bytes = b"") -> None:
        """Send a request without waiting for anything."""
        self.silence.start()
        self.requests.put(json.dumps(request).encode() + b"\n" + payload)

    def ended(self) -> bool:
        """Say whether the process has ended. What it started is ended then: that may hold its answers' pipe open."""
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.close()
        return True

    def last(self) -> int | None:
        """Return the exit code of a process that has closed its answers; it is killed where it does not end."""
        until = time.monotonic() + END_SECONDS
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.01)
        self.close()
        return self.process.returncode

    def check(
        self,
        spec: DataSpec,
        obs: ObsShape,
        action_dim: int,
        frame_stack: int,
        action_bounds: Bounds | None,
        say: Callable[[str], None] = lambda words: None,
    ) -> tuple[str, ...]:
        """Have the worker build the environment, check its sizes, and make a reset and a step; return notes.

        Args: as of `check_environment`; say is told, at every look, for how long the environment has not answered.
        Raises: as it, with the remedy for a run that has not begun; UsageError for an environment that hangs.
        """
        self.send({"check": [asdict(spec), obs, action_dim, frame_stack, action_bounds]})
        name, line = spec.eval_env.id if spec.eval_env else spec.name, None
        while line is None:
            try:
                line = self.answers.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                silent = self.silence.look()
                if silent >= silence.SILENT_SECONDS:
                    raise UsageError(f"{told(name, silent)}, as the run tried it; {REMEDY}") from None
                say(f"{told(name, silent)}; after {silence.SILENT_SECONDS:,.0f} s the run ends")
                self.ended()
        answer = _json(line)
        if "failed" not in answer:
            return limit_note(spec.eval_env, answer.get("limit"))
        if answer["error"] == UnknownEnvironmentError.__name__ and spec.eval_env is not None:
            raise UsageError(only_here(spec.eval_env.id) or answer["failed"])
        error = error_of(answer)
        if isinstance(error, RolloutError):
            raise UsageError(f"{error}; {REMEDY}")
        raise error

    def close(self) -> None:
        """End the process at once, and those that it started, such as a simulator or forks that step environments."""
        self.requests.put(None)
        if self.process.returncode is None:  # then the group's number is still its own
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)


class Evaluator:
    """Evaluates in one worker, started anew where it died. Submitting and polling never wait for a rollout."""

    def __init__(
        self,
        config: PolicyConfig,
        spec: DataSpec,
        episodes: int,
        seed: int,
        workers: int = 1,
        worker: Worker | None = None,
    ):
        """Take the arguments of `evaluate_policy`; `workers` processes of the worker step the environments.

        Args: worker, one that runs already.
        """
        self._asked = {"policy": config.to_json(), "spec": asdict(spec)}
        self._env = spec.eval_env.id if spec.eval_env else spec.name
        self._asked |= {"episodes": episodes, "seed": seed, "workers": workers}
        self._pending: dict[int, dict[str, Tensor]] = {}
        self._ended: list[tuple[EvalResult | Failed, dict[str, Tensor]]] = []
        self._worker = worker
        self._sent, self._tries = False, 0  # of the first that is pending: one at a time is with the worker
        self._hung = 0  # evaluations in a row

    def submit(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Submit the policy of a step; its tensors are copied to the host."""
        held = sum(map(_bytes, self._pending.values()))
        self._pending[step] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        if len(self._pending) > MOST_PENDING:
            self._fail(step, f"{MOST_PENDING} evaluations were waiting already; raise --eval-every")
        elif held and held + _bytes(tensors) > MOST_PENDING_BYTES:
            self._fail(step, f"policies of {held / 1e9:.1f} GB were waiting for theirs already; raise --eval-every")
        self._send()

    def pending(self) -> dict[int, dict[str, Tensor]]:
        """Return the policies that have no result yet; a checkpoint saves them."""
        return dict(self._pending)

    def waiting(self) -> tuple[int, str]:
        """Return the step of the evaluation that is being made, and in words what is known of it."""
        step, name = next(iter(self._pending)), self._env
        if self._worker is None:
            return step, "its worker starts"
        silent, limit = self._worker.silence, silence.SILENT_SECONDS
        if silent.seconds < min(SLOW_SECONDS, limit):
            return step, f"{silent.count - silent.first:,} calls of the environment answered"
        return step, f"{told(name, silent.seconds)}; after {limit:,.0f} s the evaluation is given up"

    def poll(self, wait: float | None = None) -> list[tuple[EvalResult | Failed, dict[str, Tensor]]]:
        """Return the results and failures so far, each with its policy, after at most `wait` seconds for the first.

        An evaluation whose worker was killed is made once more, in a new one. One that hangs has failed.
        """
        self._send()
        while self._pending and self._worker is not None:
            try:
                line = self._worker.answers.get(block=wait is not None and not self._ended, timeout=wait)
            except queue.Empty:
                self._look(self._worker)
                break
            self._take(line)
            self._send()
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """End the worker at once."""
        if self._worker is not None:
            self._worker.close()
        self._worker, self._sent = None, False

    def _send(self) -> None:
        """Send the first that is pending, with a worker that runs."""
        if not self._pending or self._sent:
            return
        step, tensors = next(iter(self._pending.items()))
        if self._worker is not None and self._worker.ended():
            self.close()
        try:
            self._worker = self._worker or Worker()
        except OSError as error:
            self._fail(step, f"its worker could not be started ({error}); is memory short?")
            return
        payload = save(tensors)
        self._worker.send({**self._asked, "step": step, "bytes": len(payload)}, payload)
        self._sent, self._tries = True, self._tries + 1

    def _take(self, line: str) -> None:
        """Take the worker's answer about the first that is pending, or its end."""
        assert self._worker is not None
        step = next(iter(self._pending))
        if not line:
            code = self._worker.last()
            self.close()
            if self._tries >= TRIES:
                self._fail(step, f"its worker died {TRIES} times (exit code {code}); is memory short? {FEWER}")
            return
        try:
            answer = json.loads(line)
            if "failed" in answer:
                found = Failed(step, str(answer["failed"]), str(answer["trace"]))
            else:
                found = EvalResult.from_json(answer)
            if found.step != step:
                raise ValueError(f"an answer of step {found.step}")
        except DAMAGED as error:
            self.close()  # what else it would say cannot be told
            self._fail(step, f"its worker answered with a damaged line ({type(error).__name__}: {error})")
            return
        self._hung = 0
        self._end(found)

    def _look(self, worker: Worker) -> None:
        """Give up the first that is pending where its environment hangs, and all that wait where two have hung.

        A run that waits at its end for the others would otherwise wait as long for each of them.
        """
        worker.ended()
        silent = worker.silence.look()
        if silent < silence.SILENT_SECONDS:
            return
        self.close()
        self._hung += 1
        self._fail(next(iter(self._pending)), f"{told(self._env, silent)}, and its worker was ended; {REMEDY}")
        if self._hung >= TRIES:
            for step in list(self._pending):
                self._fail(step, f"{self._env} did not answer in the {TRIES} evaluations before it; {REMEDY}")
            self._hung = 0

    def _fail(self, step: int, reason: str) -> None:
        self._end(Failed(step, reason))

    def _end(self, found: EvalResult | Failed) -> None:
        if found.step == next(iter(self._pending)):
            self._sent, self._tries = False, 0
        self._ended.append((found, self._pending.pop(found.step)))


def _json(line: str) -> dict[str, Any]:
    """Read the worker's first answer."""
    try:
        return dict(json.loads(line))
    except DAMAGED:
        raise UsageError(
            "the worker that evaluates ended, or answered with a damaged line, as it tried the environment; see what "
            f"it wrote above. {FEWER}"
        ) from None


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


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
            del request  # a policy, until the next is sent


def _read(process: subprocess.Popen[bytes], answers: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    with process.stdout as pipe:
        for line in pipe:
            if line.endswith(b"\n"):  # the last one may be cut: its worker died
                answers.put(line.decode(errors="replace"))
    answers.put("")
