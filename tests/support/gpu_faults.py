"""Rows that go wrong in every way that the supervisor of `bench.gpu` must survive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def measure(row, dry):
    """Do what the row says."""
    what = row["what"]
    if what == "raise":
        raise ValueError("first line\nsecond line")
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        sys.stderr.write("last words\n")
        sys.stderr.flush()
        os._exit(7)
    if what == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(row["pids"]).write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    return {"us": 1.0, "pid": os.getpid()}
