"""Runs of training in processes of their own, forked from one that has imported everything: a start costs no import.

Read lines of JSON (settings, and perhaps "faults") on standard input; for each, fork a child that trains and leaves
with the command line's exit code; answer with the child's pid, and with its exit code when it ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import kill_points
import torch

from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import GtpError
from gtp_fast.training.train import train


def child(settings: dict) -> int:
    torch.set_num_threads(1)
    kill_points.prepare(settings.pop("faults", {}), Path(settings["run_dir"]))
    try:
        train(run_settings(settings))
    except GtpError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def answer(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def reap(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    answer(ended=pid, code=os.waitstatus_to_exitcode(status))


def main() -> None:
    answer(ready=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(child(json.loads(line)))
        answer(started=pid)
        threading.Thread(target=reap, args=(pid,), daemon=True).start()


if __name__ == "__main__":
    main()
