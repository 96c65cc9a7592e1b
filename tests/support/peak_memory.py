"""What a step takes at its peak, as a share of the estimate; each case in a fork of a process that has trained nothing.

`python peak_memory.py CASES` reads JSON [["numbers" or "images", settings], ...] and prints a share a line.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any


def shares(cases: list[tuple[str, dict[str, Any]]]) -> list[float]:
    """Return the shares, measured in a fresh process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, __file__, json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.splitlines()]


def taken(small: Callable[[], None], large: Callable[[], None]) -> int:
    """Return the bytes that `large` takes at its peak; `small` takes before what libraries keep."""
    small()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    large()
    lines = Path("/proc/self/status").read_text().splitlines()  # not ru_maxrss, which a child inherits
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 - before


def numbers(changes: dict[str, Any]) -> float:
    from learn_cases import buffer_of, fresh, small_config

    from gtp_fast import algorithms
    from gtp_fast.training import memory

    cfg = replace(small_config(), seeds=1, batch_size=4096, hidden=128, **changes)
    module, state = algorithms.of(cfg), fresh(cfg)
    small = module.make_step(replace(cfg, batch_size=8), state, buffer_of(cfg))
    found = taken(small, lambda: module.make_step(cfg, state, buffer_of(cfg))())
    return found / (memory.widths_a_row(cfg) * cfg.batch_size * cfg.hidden * 4)


def images(changes: dict[str, Any]) -> float:
    from frame_cases import arrays, frame_config, frame_transitions

    from gtp_fast import algorithms
    from gtp_fast.data.frames import FrameBuffer
    from gtp_fast.training import memory

    data = frame_transitions(arrays([60, 60], shape=(64, 64, 3)))
    cfg, few = frame_config(batch_size=96, frame_stack=3, **changes), frame_config(frame_stack=3, **changes)
    module, buffer = algorithms.of(cfg), FrameBuffer.from_transitions(data, few, "cpu")
    state = algorithms.init_state(cfg, buffer.obs_shape, 2, "cpu")
    whole = FrameBuffer.from_transitions(data, cfg, "cpu")
    found = taken(module.make_step(few, state, buffer), lambda: module.make_step(cfg, state, whole)())
    return found / (memory.encoder_floats(cfg, buffer.obs_shape) * cfg.batch_size * 4)


KINDS = {"numbers": numbers, "images": images}


def main() -> None:
    import frame_cases  # noqa: F401  # here, so that no fork imports it and torch again
    import learn_cases  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for kind, changes in json.loads(sys.argv[1]):
        pid = os.fork()
        if pid == 0:
            sys.stdout.write(f"{KINDS[kind](changes)}\n")
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0, changes


if __name__ == "__main__":
    main()
