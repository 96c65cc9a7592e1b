"""Watch a process and every one that it forks: sockets, unpickled classes, commands, files that are written.

Its import sets the hook; a file named by the variable TOLD gets a line of JSON for each thing, with the process. An
environment is defined here too, so that the worker which evaluates it imports this file as it imports a user's.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

FORBIDDEN = ("socket.bind", "socket.connect", "socket.sendto", "pickle.find_class", "os.system")
FORBIDDEN += ("os.exec", "os.posix_spawn")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_file = os.open(os.environ["TOLD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def tell(what: str, detail: object) -> None:
    """Add a line, at once: the process may be killed."""
    os.write(_file, (json.dumps([os.getpid(), what, str(detail)[:200]]) + "\n").encode())


def on_event(event: str, args: tuple[Any, ...]) -> None:
    if event in FORBIDDEN:
        tell(event, args)
    if event == "open" and not isinstance(args[0], int) and (args[2] or 0) & WRITING:
        tell("wrote", os.path.abspath(os.fsdecode(args[0])))


class Misbehaving(HopperEnv):
    """A hopper that listens, unpickles and writes as it is made: what this file must tell."""

    def __init__(self) -> None:
        super().__init__()
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
        pickle.loads(pickle.dumps(OrderedDict()))  # noqa: S301 (it is there to be told)
        Path(os.environ["TOLD"] + ".written").write_text("x")


sys.addaudithook(on_event)
tell("began", Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode())
for _descriptor in os.listdir("/proc/self/fd"):  # what was opened before
    if os.path.islink(_link := f"/proc/self/fd/{_descriptor}") and os.readlink(_link).startswith("socket:"):
        tell("socket before", _descriptor)
gymnasium.register("Watched-v0", HopperEnv, max_episode_steps=1_000)
gymnasium.register("Misbehaving-v0", "watched:Misbehaving", max_episode_steps=1_000)
