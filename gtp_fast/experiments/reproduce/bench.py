"""Table 9: the bench of a source checkout times every method; its table stands here, the paper's figures in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gtp_fast.errors import GtpError, UsageError
from gtp_fast.experiments.reproduce.items import Item

ROOT = Path(__file__).parents[3]


def measure(item: Item, say: Callable[[str], None], folder: Path) -> dict[str, Any]:
    """Run `pytest bench/ --benchmark-only` in the checkout, and return a summary that holds its table.

    Raises: UsageError where the package is installed without its bench; GtpError when the bench fails.
    """
    if not (ROOT / "bench" / "table.py").is_file():
        raise UsageError(
            f"{item.name} is measured by the bench, which stands beside the package in a source checkout: clone the "
            "repository, pip install -e '.[dev]', and run this command there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file, log = folder.resolve() / "benchmark.json", folder.resolve() / "bench.log"
    words = [sys.executable, "-m", "pytest", "bench/", "--benchmark-only", f"--benchmark-json={file}"]
    say(f"{' '.join(words[1:])}, some minutes; its words go to {log}")
    here = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": here}
    with log.open("wb") as out:
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=out, stderr=out, check=False)
    if done.returncode:
        raise GtpError(f"the bench ended with code {done.returncode}; {log} says why")
    table = [sys.executable, "-m", "bench.table", str(file)]
    shown = subprocess.run(table, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return {
        "item": item.name,
        "title": item.title,
        "kind": item.kind,
        "reach": "Times of this machine, each with its ratio to the paper's machine; no score is in them.",
        "table": shown.strip(),
        "rows": [],
        "notes": ["TD3+BC and IQL are in the table where the bench times them; the paper does not."],
        "exit_code": 0,
    }
