"""Bytes that each launch of a fused step asks for, counted load by load: `TRITON_INTERPRET=1 python -m bench.traffic`.

The interpreter executes every load and store of every block, so that the count is of the kernel itself, with the shapes
that a GPU would run. It is what the multiprocessors ask of the caches, not what reaches memory.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from gtp_kernels.launch import INTERPRETED, Launch, Tuning
from triton.runtime import interpreter

from bench.training import config, fused_step


class _Count:
    """Bytes loaded and stored since the last reading."""

    def __init__(self) -> None:
        self.loaded = self.stored = 0

    def watch(self) -> None:
        """Count in the interpreter's two primitives, through which every access goes."""
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def counted_load(this: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            found = load(this, pointers, mask, *rest)
            self.loaded += int(mask.data.sum()) * found.data.itemsize
            return found

        def counted_store(this: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.stored += int(mask.data.sum()) * value.data.itemsize
            return store(this, pointers, value, mask, *rest)

        for name, counted in (("create_masked_load", counted_load), ("create_masked_store", counted_store)):
            setattr(builder, name, counted)

    def of(self, launch: Launch) -> dict[str, Any]:
        """Run a launch; return its bytes."""
        self.loaded = self.stored = 0
        launch()
        return {"phase": launch.phase, "kernel": launch.name, "loaded": self.loaded, "stored": self.stored}


def measure(precision: str, sampling_steps: int) -> list[dict[str, Any]]:
    """Return the bytes of each launch of one step: obs 17, action 6, batch 256, width 256."""
    step = fused_step(config(precision=precision, sampling_steps=sampling_steps, backend="fused"), Tuning())
    count = _Count()
    count.watch()
    return [count.of(launch) for launch in step.launches]


if __name__ == "__main__":
    if not INTERPRETED:
        sys.exit("bench.traffic counts in Triton's interpreter; run it with TRITON_INTERPRET=1")
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
