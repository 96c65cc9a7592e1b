"""Runs of training that can be killed at named points of their writing, forked from a process that imported everything.

Read lines of JSON (settings, and perhaps "faults") on standard input; for each, fork a child that trains and leaves
with the command line's exit code; answer with the child's pid, and with its exit code when it ends.

Every system call that changes the run's directory is a point: it is named by the call and the file, step numbers left
out, and comes just before the call; `half` comes when half of a file's bytes are written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from run_cases import tiny
from torch import Tensor

from gtp_fast import files
from gtp_fast.data.catalog import run_settings
from gtp_fast.errors import GtpError
from gtp_fast.runs import checkpoint
from gtp_fast.training.train import train

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def place(run: Path, path: object, folder: int = -1) -> str | None:
    """Return the file within the run, without step and process numbers; None for files elsewhere."""
    if not isinstance(path, str | os.PathLike):
        return None
    whole = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if folder >= 0 else os.fspath(path)
    if not whole.startswith(str(run)):
        return None
    name = whole.removeprefix(str(run)).lstrip("/") or "."
    return re.sub(r"(step|eval)-\d+", r"\1-N", re.sub(r"partial-\d+-", "partial-", name))


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

    def write_in_two(path: Path, parts: bytes | Iterable[bytes]) -> None:
        data = parts if isinstance(parts, bytes) else b"".join(parts)
        with files.open_file(path, "xb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            at("half", path)
            file.write(data[len(data) // 2 :])

    os.fsync = named_fsync
    files.write_file = checkpoint.write_file = write_in_two
    sys.addaudithook(on_event)


def killed_at(run: Path, point: str, met: Path, passage: int = 1) -> None:
    """Kill this process as it passes a point, the first time or a later one; leave a mark in the file `met`."""
    passages = count(1)

    def meet(name: str) -> None:
        if name == point and next(passages) == passage:
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
    for old in checkpoint.steps(run):
        shutil.rmtree(run.checkpoint(old))
    directory = run.checkpoint(step)
    directory.mkdir()
    checkpoint.write_file(directory / checkpoint.STATE, checkpoint.save_bytes(dict(tensors)))
    checkpoint._write_policy(directory, policy, {**meta, "step": step})
    return directory


def prepare(faults: dict[str, Any], run: Path) -> None:
    """Set up the faults that a line of settings asks for."""
    if faults.get("in_place"):
        checkpoint.save = save_in_place
    if "record" in faults:
        recorded(run, Path(faults["record"]))
    if "point" in faults:
        killed_at(run, faults["point"], Path(faults["met"]), faults.get("passage", 1))


def child(settings: dict) -> int:
    prepare(settings.pop("faults", {}), Path(settings["run_dir"]))
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


def serve(child: Callable[[dict[str, Any]], int]) -> None:
    """Fork a child for each line of JSON on standard input; answer with its pid, and with its exit code at its end."""
    answer(ready=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(child(json.loads(line)))
        answer(started=pid)
        threading.Thread(target=reap, args=(pid,), daemon=True).start()


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # what is compiled or loaded late is so before the forks
        train(tiny(Path(folder), steps=2))
    serve(child)


if __name__ == "__main__":
    main()
