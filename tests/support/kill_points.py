"""Named points of a run's writing at which a child kills itself, and a writer that keeps nothing safe.

Every system call that changes the run's directory is a point: it is named by the call and the file, step numbers left
out, and comes just before the call; `half` comes when half of a file's bytes are written.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def place(run: Path, path: object, folder: int = -1) -> str | None:
    """Return the file within the run, without step and process numbers; None for files elsewhere."""
    if not isinstance(path, str | os.PathLike):
        return None
    whole = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if folder >= 0 else os.fspath(path)
    if not whole.startswith(str(run)):
        return None
    name = whole.removeprefix(str(run)).lstrip("/") or "."
    return re.sub(r"step-\d+", "step-N", re.sub(r"partial-\d+-", "partial-", name))


def watch(run: Path, meet: Callable[[str], None]) -> None:
    """Have `meet` called with the name of every point, in this process, from now on."""
    fsync = os.fsync

    def at(what: str, path: object, folder: int = -1) -> None:
        if found := place(run, path, folder):
            meet(f"{what} {found}")

    def on_event(event: str, args: tuple[Any, ...]) -> None:
        match event:
            case "open" if isinstance(args[2], int) and args[2] & WRITING:
                at("open", args[0])
            case "os.rename":
                at("rename", args[1])
            case "os.mkdir":
                at("mkdir", args[0], args[2])
            case "os.remove" | "os.rmdir":
                at(event.removeprefix("os."), args[0], args[1])

    def named_fsync(descriptor: int) -> None:
        at("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def write_in_two(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            at("half", self)
            return file.write(data[len(data) // 2 :])

    os.fsync = named_fsync
    Path.write_bytes = write_in_two  # type: ignore[method-assign]
    Path.write_text = lambda self, text: write_in_two(self, text.encode())  # type: ignore[method-assign]
    sys.addaudithook(on_event)


def killed_at(run: Path, point: str, met: Path) -> None:
    """Kill this process at a point; leave a mark in the file `met`."""

    def meet(name: str) -> None:
        if name == point:
            met.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    watch(run, meet)


def recorded(run: Path, to: Path) -> None:
    """Write the name of every point to a file, one a line, in order."""
    lines = to.open("a", buffering=1)
    watch(run, lambda name: lines.write(name + "\n") and None)


def save_in_place(
    run: Any, step: int, tensors: Mapping[str, Tensor], policy: Mapping[str, Tensor], meta: Mapping[str, Any], _: Any
) -> Path:
    """Write a checkpoint where it will stand, after removing the one before: what a plain writer does."""
    from gtp_fast.runs import checkpoint

    for old in checkpoint.steps(run):
        shutil.rmtree(run.checkpoint(old))
    directory = run.checkpoint(step)
    directory.mkdir()
    (directory / checkpoint.STATE).write_bytes(checkpoint.save_bytes(dict(tensors)))
    checkpoint._write_policy(directory, policy, {**meta, "step": step})
    return directory


def prepare(faults: dict[str, Any], run: Path) -> None:
    """Set up the faults that a line of settings asks for."""
    if faults.get("in_place"):
        from gtp_fast.runs import checkpoint

        checkpoint.save = save_in_place
    if "record" in faults:
        recorded(run, Path(faults["record"]))
    if "point" in faults:
        killed_at(run, faults["point"], Path(faults["met"]))
