"""Programs where some packages are absent, forked from a process that imported the rest, so that they start at once.

Read lines of JSON on standard input: a program, its words, the packages that it does without, and the files for its
two outputs. For each, fork a child that runs it; answer with its pid, and with its exit code when it ends.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import sitecustomize  # that of tests/support/absent
import torch
from run_cases import tiny
from run_server import serve

from gtp_fast.training.train import train


def child(program: dict[str, Any]) -> int:
    sitecustomize.ABSENT = frozenset(program["absent"].split())
    os.environ["GTP_FAST_ABSENT"] = program["absent"]
    for stream, path in ((1, program["out"]), (2, program["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["-c", *program["words"]]
    code = 0
    try:
        exec(compile(program["code"], "-c", "exec"), {"__name__": "__main__"})  # noqa: S102 (it is the test's)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # what is loaded late is so before the forks
        train(tiny(Path(folder), steps=2))
    serve(child)


if __name__ == "__main__":
    main()
