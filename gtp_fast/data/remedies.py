"""Faults of data, and those with a usual cause: each with two lines of Python that mend the file in place.

In: columns under D4RL's names. Out: a fault, or None. `rules` says when a column is wrong; here stands why:
images with channels first, final observations among the others, a missing axis, unmarked time limits.

Legend: N rows; an image is (H, W, C).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gtp_fast.errors import DataError

ENDS = ("terminals", "timeouts")
FINAL_OBS = "infos/final_observations"
MIN_IMAGE_SIDE = 8  # pixels: the encoder halves each side three times
MOST_CHANNELS = 32  # of stacked frames; as a last axis, more are the width of an image whose channels stand first

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a column: what was seen and expected, the remedy, the first bad rows and values, the count."""

    key: str
    seen: str
    remedy: str
    rows: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    count: int = 0
    separator: str = ": "  # between the file's name and what was seen
    clippable: bool = False  # --clip-actions repairs it
    lines: tuple[str, ...] = ()  # of Python that repair the file, with FILE for its path

    def message(self, where: str) -> str:
        """Return one line about the fault in the file `where`, and below it the lines that repair it."""
        return f"{where}{self.separator}{self.seen}; {self.remedy_of(where)}"

    def remedy_of(self, where: str) -> str:
        """Return the remedy, and below it the lines that repair the file."""
        lines = (line.replace("FILE", repr(where)) for line in self.lines)
        return "\n".join((self.remedy + ":" * bool(self.lines), *lines))

    def error(self, where: str) -> DataError:
        """Return the error with which training stops."""
        return DataError(self.message(where))


def repair(*statements: str) -> tuple[str, str]:
    """Return two lines of Python that change a file in place by the statements, in which it is `file`."""
    return "import h5py, numpy as np", f"with h5py.File(FILE, 'r+') as file: {'; '.join(statements)}"


def _rewritten(key: str, expression: str) -> str:
    """Return the statements that replace a column by an expression in `old`."""
    return f"old = file[{key!r}][:]; del file[{key!r}]; file[{key!r}] = {expression}"


def elsewhere(key: str, seen: str) -> Fault:
    """Return the fault of a column whose values lie in another file, with the lines that copy them into this one."""
    said = f"{key} is {seen}, and only what lies in this one file is read"
    return Fault(key, said, "if you trust what it names, copy it in", lines=repair(_rewritten(key, "old")))


def wrong_rank(key: str, array: np.ndarray, rank: int) -> Fault:
    form, lines = "(N, size)" if rank == 2 else "(N,)", ()
    if rank == 2 and array.ndim == 1:  # of one number each
        form, lines = "(N, 1)", repair(_rewritten(key, "old[:, None]"))
    return Fault(key, f"{key} has shape {array.shape}, expected {rank} axes", f"write it as {form}", lines=lines)


def image_form(array: np.ndarray, columns: Columns) -> str | None:
    """Return the expression in `old` that gives uint8 images (N, H, W, C): "old" if they are; None for no images."""
    rows = len(columns["actions"]) if "actions" in columns and columns["actions"].ndim == 2 else None
    if array.ndim == 3 and min(array.shape[1:]) >= MIN_IMAGE_SIDE and (array.dtype == np.uint8 or len(array) == rows):
        moved = "old[..., None]"
    elif array.ndim == 4:
        first, second, last = array.shape[1:]
        # Read as channels last, such an image is too small for the encoder, or has more channels than stacks have.
        implausible = first < MIN_IMAGE_SIDE or second == last or last > MOST_CHANNELS
        moved = "np.moveaxis(old, 1, -1)" if 0 < first < min(second, last) and implausible else "old"
    else:
        return None
    if array.dtype == np.uint8 or not array.size:
        return moved
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 1:
        return f"({moved} * 255).round().astype(np.uint8)"
    if low >= 0 and high <= 255:
        return f"{moved}.astype(np.uint8)"
    return f"np.interp({moved}, ({low:g}, {high:g}), (0, 255)).astype(np.uint8)"


def misformed_images(array: np.ndarray, columns: Columns, form: str) -> Fault:
    """Return the fault of images with channels first or without channels, or of another type, or both."""
    needed = []
    if "moveaxis" in form:
        needed.append("transpose them (their channels seem to stand first)")
    if "None" in form:
        needed.append("add an axis of channels")
    if "astype" in form:
        needed.append(f"cast them to uint8 (they hold other numbers, from {array.min():g} to {array.max():g})")
    seen = f"observations has shape {array.shape}, expected 2 axes, or images of uint8 (N, H, W, C)"
    keys = [key for key in ("observations", FINAL_OBS) if key in columns and columns[key].ndim == array.ndim]
    finite = "nan" not in form and "inf" not in form
    lines = repair(*(_rewritten(key, form) for key in keys)) if finite else ()
    return Fault("observations", seen, ", and ".join(needed), lines=lines)


def final_observations_inside(right: Columns) -> Fault | None:
    """Return the fault of observations that alone have more rows: usually each episode's final one is among them."""
    obs, others = right.get("observations"), [key for key in right if key not in ("observations", "next_observations")]
    lengths = {len(right[key]) for key in others}
    if obs is None or len(others) < 2 or len(lengths) > 1 or len(obs) in lengths:
        return None
    rows = lengths.pop()
    named = f"{', '.join(others[:-1])} and {others[-1]}"
    seen = f"observations has {len(obs):,} rows but {named} have {rows:,}"
    extra = len(obs) - rows
    ends = np.flatnonzero(right["terminals"] | right["timeouts"]) if set(ENDS) <= set(right) else np.array([], int)
    unfinished = rows > 0 and (not len(ends) or ends[-1] != rows - 1)
    if extra not in (len(ends), len(ends) + unfinished) or not extra:
        return Fault("observations", seen, "every array needs one row per transition", count=abs(extra))
    found = (
        "np.flatnonzero(np.ravel(file['terminals']) + np.ravel(file['timeouts']))" if len(ends) else "np.array([], int)"
    )
    if extra > len(ends):
        found = f"np.append({found}, {rows - 1})"
    put = "" if "next_observations" in right else f"file['{FINAL_OBS}'] = old[last]; "
    lines = repair(
        f"ends = {found}; last = ends + np.arange(1, len(ends) + 1); old = file['observations'][:]; {put}"
        "del file['observations']; file['observations'] = np.delete(old, last, 0)"
    )
    remedy = "every array needs one row per transition: move each episode's final observation out"
    return Fault("observations", seen, remedy, count=extra, lines=lines)


def wrong_length(key: str, array: np.ndarray, first: str, expected: np.ndarray) -> Fault:
    """Return the fault of one column of another length. Successors may be left out, or begin a row too early."""
    seen, rows = f"{key} has {len(array):,} rows but {first} has {len(expected):,}", len(expected)
    remedy, lines = "every array needs one row per transition", ()
    if key == "next_observations":
        early = len(array) == rows + 1 and np.array_equal(array[:-1], expected)
        statement = _rewritten(key, "old[1:]") if early else f"del file[{key!r}]"
        done = (
            "drop its first row, the first observation" if early else "or leave the key out: the next row then follows"
        )
        remedy, lines = f"{remedy}{',' * (not early)} {done}" if not early else f"{remedy}: {done}", repair(statement)
    return Fault(key, seen, remedy, count=abs(len(array) - rows), lines=lines)


def missing_timeouts(columns: Columns) -> Fault | None:
    """Return the fault of a file without timeouts; None where terminals end every episode, and so nothing is missing.

    They do where the last row is terminal and, if the file has next_observations, those of every other row that is not
    terminal are the next row's observations.
    """
    terminals, obs, after = (columns.get(key) for key in ("terminals", "observations", "next_observations"))
    if terminals is None or terminals.ndim != 1 or not len(terminals):
        return None  # which the rules refuse
    seen = "has no timeouts, and its last row is not terminal"
    if obs is not None and after is not None and obs.shape == after.shape and len(obs) == len(terminals):
        hidden = np.flatnonzero(apart(obs, after) & ~terminals[:-1])
        if 0 < len(hidden) < len(terminals) / 2:  # else successors are not comparable, being noisy or scaled
            seen = (
                f"has no timeouts, and next_observations differ from the next row's observations in {len(hidden):,} "
                f"row{'s' * (len(hidden) > 1)} not marked as terminal, first row {hidden[0]:,}"
            )
            statement = (
                "obs, after = file['observations'][:], file['next_observations'][:]; file['timeouts'] = "
                "np.append((after[:-1] != obs[1:]).reshape(len(obs) - 1, -1).any(1), True) > np.ravel("
                "file['terminals'])"
            )
            remedy = "mark these rows, and the last, as ends by time limit"
            return Fault("timeouts", seen, remedy, separator=" ", lines=repair(statement))
        if len(hidden):
            seen = "has no timeouts, and its next_observations are not the next row's observations"
    if terminals[-1] and "next_observations" not in seen:
        return None
    rows = len(terminals)
    if not terminals.any():
        length = f"{min(1000, rows)}"
        remedy = f"mark each episode's last row (in place of {length} put the rows of your episodes)"
        lines = repair(f"file['timeouts'] = np.arange(1, {rows} + 1) % {length} == 0")
    else:
        remedy = "mark the last row of each episode that a time limit ended (in lengths put the rows of all episodes)"
        imported, change = repair(
            f"file['timeouts'] = np.isin(np.arange({rows}), np.cumsum(lengths) - 1) > np.ravel(file['terminals'])"
        )
        lines = (f"{imported}; lengths = [{rows // 2}, {rows - rows // 2}]", change)
    return Fault("timeouts", seen, remedy, separator=" ", lines=lines)


def apart(obs: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return which rows but the last have a successor other than the next row, bool (N - 1,)."""
    return (after[:-1] != obs[1:]).reshape(len(obs) - 1, -1).any(axis=1)
