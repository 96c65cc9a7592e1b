"""Seeded damage to every kind of file that the project reads; a process of its own, as a library in C may die of it.

`python fuzz.py KIND FIRST COUNT FOLDER` makes inputs FIRST .. FIRST + COUNT - 1 and prints one JSON object: how many
were refused by a typed error, how many read in spite of it, and every other outcome.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data_cases import HALFCHEETAH, columns, write
from run_cases import tiny

from gtp_fast import algorithms, checkpoint, dataset, load_policy, metrics, results
from gtp_fast.catalog import resolve
from gtp_fast.config_files import merge
from gtp_fast.errors import GtpError
from gtp_fast.loop import train
from gtp_fast.rundir import RunDir

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


def hdf5(folder: Path) -> tuple[list[Path], Callable[[], Any]]:
    """A data set, read and validated."""
    file = write(folder / "data.hdf5", columns(episodes=2, length=10))
    return [file], lambda: dataset.load(resolve("HalfCheetah-v5"), file)


def _run(folder: Path) -> RunDir:
    cfg = tiny(folder, eval_every=30)
    train(cfg)
    return RunDir(Path(str(cfg.run_dir)))


def altered(folder: Path) -> tuple[list[Path], Callable[[], Any]]:
    """A checkpoint whose manifest knows nothing of the damage: any file of it."""
    run = _run(folder)
    place = run.checkpoint(checkpoint.steps(run)[-1])
    return sorted(place.iterdir()), lambda: checkpoint.load(place)


def foreign(folder: Path) -> tuple[list[Path], Callable[[], Any]]:
    """A checkpoint whose manifest vouches for the damage: loaded as a state, and as a policy that acts."""
    run = _run(folder)
    place = run.checkpoint(checkpoint.steps(run)[-1])
    cfg = tiny(folder, eval_every=30)
    state = algorithms.of(cfg.algo).init_state(cfg, *HALFCHEETAH, "cpu")
    manifest = place / checkpoint.MANIFEST

    def read() -> None:
        files = [path for path in place.iterdir() if path != manifest]
        entries = {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in files
        }
        manifest.write_text(json.dumps({"format": checkpoint.FORMAT, "files": entries}))
        policy = load_policy(place)
        policy.act_members(np.zeros((policy.members, 1, policy.config.obs_dim), np.float32))
        state.load_(checkpoint.load(place).tensors)

    return sorted(set(place.iterdir()) - {manifest}), read


def settings(folder: Path) -> tuple[list[Path], Callable[[], Any]]:
    """A file of settings."""
    file = folder / "settings.yaml"
    file.write_text("env: hopper-demo-v0\nsteps: 2000\neta: 5.0\nlr: 3e-4\nbc: false\nseeds: 2\nrun_dir: runs/a\n")
    return [file], lambda: merge({}, file)


def described(folder: Path) -> tuple[list[Path], Callable[[], Any]]:
    """What a run says of itself, read before it is continued."""
    run = _run(folder)
    cfg = tiny(folder, eval_every=30)
    names = [run.path / "environment.json", run.path / "config.yaml", run.metrics, run.log, *run.evaluations.iterdir()]

    def read() -> None:
        metrics.truncate_after(run.metrics, 10)
        metrics.truncate_log_after(run.log, 10)
        list(results.read_evaluations(run))
        train(cfg)

    return names, read


def unsafe(folder: Path) -> tuple[list[Path], Callable[[], Any]]:
    """A reader as none may be: what it reads it runs, and its errors say nothing."""
    file = folder / "numbers.py"
    file.write_text("[1, 2, 3]")
    return [file], lambda: eval(file.read_text())  # noqa: S307 (it is there to be caught)


KINDS = {kind.__name__: kind for kind in (hdf5, altered, foreign, settings, described, unsafe)}


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
    read()  # what is imported late is imported now
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
        file.write_bytes(damage(whole[file], chance))
        (folder / "now").write_text(f"{kind} {number} {file.name}")
        signal.alarm(SECONDS)
        try:
            read()
            counts["read"] += 1
        except GtpError:
            counts["refused"] += 1
        except BaseException as error:
            other.append(f"{kind} {number} {file.name}: {type(error).__name__}: {error}"[:300])
        signal.alarm(0)
        for damaged, content in whole.items():
            damaged.write_bytes(content)
    sys.stdout.write(json.dumps({**counts, "other": other, "ran": ran}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
