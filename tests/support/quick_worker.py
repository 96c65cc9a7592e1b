"""Evaluation workers forked from the test's process, which has imported everything: a start costs no import of torch.

`tests/evaluation/test_worker.py` and the runs that are killed start the worker as users do.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch


@contextmanager
def installed() -> Iterator[None]:
    """Start workers this way; what else the module takes from `subprocess` stays."""
    import subprocess

    from gtp_fast.evaluation import worker

    with mock.patch.object(worker, "subprocess", SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE)):
        yield


class Forked:
    """What `subprocess.Popen` is to `Evaluator`."""

    def __init__(self, words: list[str], env: dict[str, str], **_: Any):
        import gymnasium.envs.mujoco  # noqa: F401  # here, so that no fork imports it again

        inputs, feed = os.pipe()
        answers, outputs = os.pipe()
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become_worker(inputs, outputs, words, env)
        os.close(inputs)
        os.close(outputs)
        self.stdin, self.stdout = os.fdopen(feed, "wb"), os.fdopen(answers, "rb")

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


def _become_worker(inputs: int, outputs: int, words: list[str], env: dict[str, str]) -> None:
    from gtp_fast.evaluation.worker import serve

    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(inputs, 0)
        os.dup2(outputs, 1)
        os.closerange(3, 4096)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.environ.update(env)
        sys.path[:] = words[words.index("-c") + 2 :]
        torch.manual_seed(0)
        serve()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
