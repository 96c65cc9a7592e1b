"""Exceptions of code that is not ours, told in one line: the class, the message, and the user's own line of code.

An environment is the user's program: what it raises ends an evaluation, never a training run. The whole traceback goes
to the run's train.log.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import gtp_fast
from gtp_fast import errors
from gtp_fast.errors import GtpError
from gtp_fast.files import open_file

LONGEST = 400  # letters of a message in one line
# Folders whose frames are not the user's: this package's, and of what Python brings.
OURS = str(Path(gtp_fast.__file__).parent) + os.sep
BROUGHT = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))


class RolloutError(GtpError):
    """A rollout failed: the message is one line, `trace` the traceback of what was raised, "" where there is none."""

    def __init__(self, message: str, trace: str = ""):
        super().__init__(message)
        self.trace = trace


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Turn what an environment raises into a RolloutError that names it. SystemExit too: it would end us in silence."""
    try:
        yield
    except GtpError:
        raise
    except (Exception, SystemExit) as error:
        raise RolloutError(f"{name}: {told(error)}", traceback.format_exc()) from error


def answer_of(error: BaseException) -> dict[str, str]:
    """Return an exception as plain values, for a pipe between processes."""
    if isinstance(error, GtpError):
        return {"failed": str(error), "error": type(error).__name__, "trace": getattr(error, "trace", "")}
    return {"failed": told(error), "error": RolloutError.__name__, "trace": traceback.format_exc()}


def error_of(answer: Mapping[str, str]) -> GtpError:
    """Return the error that `answer_of` took apart: a class of gtp_fast.errors, else a RolloutError."""
    kind = getattr(errors, answer["error"], None)
    return RolloutError(answer["failed"], answer["trace"]) if kind is None else kind(answer["failed"])


def told(error: BaseException) -> str:
    """Return an exception in one line: `RuntimeError: no licence (my_env.py:73)`."""
    if isinstance(error, SyntaxError) and error.filename:  # no frame lies in a file that cannot be read
        words, place = error.msg, f"{Path(error.filename).name}:{error.lineno}"
    else:
        words, place = _words(error), _place(error)
    words = " ".join(words.split())
    short = words if len(words) <= LONGEST else words[:LONGEST] + "..."
    return type(error).__name__ + (f": {short}" if short else "") + (f" ({place})" if place else "")


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the user's own class of exception may fail at this too
        return ""


def _place(error: BaseException) -> str:
    """Return file and line of the innermost frame that is the user's own, else of an installed package.

    A line of Gymnasium or of Python says nothing to a user; one of ours is told where it raised.
    """
    at = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    at = [(file, line) for file, line in at if not file.startswith(("<", *BROUGHT)) or _installed(file)]
    users = [one for one in at if not one[0].startswith(OURS) and not _installed(one[0])]
    foreign = [one for one in at if _installed(one[0]) and "gymnasium" not in Path(one[0]).parts]
    ours = [one for one in at[-1:] if one[0].startswith(OURS)]
    return "".join(f"{Path(file).name}:{line}" for file, line in (users or foreign or ours)[-1:])


def _installed(file: str) -> bool:
    return any(name in Path(file).parts for name in ("site-packages", "dist-packages"))


def append(log: Path, error: RolloutError) -> str:
    """Append an error's traceback to a run's train.log, and return where it is in words; "" where it has none."""
    with suppress(OSError):
        if error.trace:
            with open_file(log, "a") as file:
                file.write(f"{error}\n{error.trace}")
            return f"; the traceback is in {log}"
    return ""
