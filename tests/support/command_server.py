"""Commands of gtp-fast in processes of their own, forked from one that imported everything, so that they start at once.

Read lines of JSON on standard input: the words of a command, its folder, and the files for its two outputs. For each,
fork a child that runs it; answer with its pid, and with its exit code when it ends.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from run_cases import tiny_settings
from run_server import serve

from gtp_fast.cli.main import main as gtp_fast
from gtp_fast.data.catalog import run_settings
from gtp_fast.experiments.report import draw_report
from gtp_fast.training.train import train


def child(command: dict[str, Any]) -> int:
    os.chdir(command["folder"])
    for stream, path in ((1, command["out"]), (2, command["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    try:
        gtp_fast(command["words"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # what is loaded late is so before the forks
        run = Path(train(run_settings(tiny_settings(Path(folder), steps=2))).run_dir)
        draw_report([run], run / "report")
    serve(child)


if __name__ == "__main__":
    main()
