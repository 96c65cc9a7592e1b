"""Seeded damage to every kind of file that the project reads; a process of its own, as a library in C may die of it.

`python fuzz.py KIND FIRST COUNT FOLDER` makes inputs FIRST .. FIRST + COUNT - 1 and prints one JSON object: how many
were refused by a typed error, how many read in spite of it, and every other outcome.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from fuzz_kinds import KINDS

from gtp_fast.errors import GtpError

SECONDS = 20  # an input that takes longer hangs
MEMORY = 8 << 30  # bytes beyond those of an idle process
RUNNING = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pickle.find_class",
    "socket.connect",
)


def damage(content: bytes, chance: random.Random) -> bytes:
    """Flip, cut, grow, move, repeat or blank a part of a file, once to three times."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        size = len(data)
        at, length = chance.randrange(size + 1), chance.choice((1, 2, 4, 8, 64, 512))
        match chance.choice(("flip", "flip", "flip", "value", "cut", "grow", "move", "blank", "remove")):
            case "flip" if size:
                data[at % size] ^= 1 << chance.randrange(8)
            case "value":  # what a length, a type or a digit may turn into
                data[at : at + length] = chance.choice((b"\xff", b"\x00", b"\x7f", b"9", b'"', b"{", b"-")) * length
            case "cut":
                del data[at:]
            case "grow":
                data += chance.randbytes(length)
            case "move" if size:
                begin = chance.randrange(size)
                data[at : at + length] = data[begin : begin + length]
            case "blank":
                data[at : at + length] = bytes(len(data[at : at + length]))
            case "remove":
                del data[at : at + length]
    return bytes(data)


VALUES = (None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x", "1", [], [[]], [1.5, "x"], {}, {"x": [0]})


def misput(content: bytes, chance: random.Random) -> bytes:
    """Put something else in the place of a value of JSON or YAML, or leave it out: the file stays one of its format."""
    whole: Any = yaml.safe_load(content)
    inside, key = whole, chance.choice(list(whole))
    while isinstance(inside[key], (dict, list)) and inside[key] and chance.random() < 0.7:
        inside = inside[key]
        key = chance.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
    if chance.random() < 0.2:
        del inside[key]
    else:
        inside[key] = chance.choice(VALUES)
    return json.dumps(whole).encode()


def damaged(file: Path, content: bytes, chance: random.Random) -> bytes:
    """Damage the bytes of a file, or what it says where it is text of known form."""
    if file.suffix in (".json", ".yaml") and chance.random() < 0.5:
        return misput(content, chance)
    return damage(content, chance)


def _no_code(told: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in RUNNING or (event == "exec" and str(getattr(args[0], "co_filename", "<")).startswith("<")):
            told.append(f"{event} {str(args)[:80]}")

    return hook


def _hang(*_: object) -> None:
    raise TimeoutError(f"an input took more than {SECONDS} s")


def main(kind: str, first: int, count: int, folder: Path) -> None:
    """Damage, read, restore; print what came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    files, read = KINDS[kind](folder)
    for file in files:
        read(file)  # what is imported late is imported now
    whole = {file: file.read_bytes() for file in files}
    ran: list[str] = []
    sys.addaudithook(_no_code(ran))
    signal.signal(signal.SIGALRM, _hang)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    counts, other = {"refused": 0, "read": 0}, []
    for number in range(first, first + count):
        chance = random.Random(f"{kind} {number}")
        file = chance.choice(files)
        file.write_bytes(damaged(file, whole[file], chance))
        (folder / "now").write_text(f"{kind} {number} {file.name}")
        signal.alarm(SECONDS)
        try:
            read(file)
            counts["read"] += 1
        except GtpError:
            counts["refused"] += 1
        except BaseException as error:
            other.append(f"{kind} {number} {file.name}: {type(error).__name__}: {error}"[:300])
        signal.alarm(0)
        for other_file, content in whole.items():
            other_file.write_bytes(content)
    sys.stdout.write(json.dumps({**counts, "other": other, "ran": ran}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
