"""Files that `--dataset` does not read: what they are by their content, and the lines that convert them.

In: a path. Out: the sentence with which it is refused. Only first bytes, an archive's list of names and a text's first
line are read; nothing is unpickled.
"""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

READ = (
    "--dataset reads HDF5 in D4RL's layout, a directory of such files, a Minari directory or id, and OGBench's own .npz"
)
RECIPES = "docs/data.md, 'Your own data', has the recipes"
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of HDF5
STATES = {"qpos.npy", "button_states.npy"}  # an OGBench file keeps the simulator's states; its rewards come from a task
ROWS_OF_TEXT = 4096  # bytes that must be text, so that a file counts as a table
SHOWN = 12  # names of an archive or a directory

_KINDS = (  # first bytes, what begins so, how it becomes a file that is read
    (b"PAR1", "a Parquet file", "pandas.read_parquet"),
    (b"ARROW1", "an Arrow file", "pandas.read_feather"),
    (b"\x93NUMPY", "one NumPy array (.npy)", None),
    (b"\x1f\x8b", "compressed by gzip", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unzstd"),
    (b"BZh", "compressed by bzip2", "bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "unxz"),
    (b"MATLAB 5.0", "a MATLAB file", "scipy.io.loadmat"),
    (b"SQLite format 3", "an SQLite database", "pandas.read_sql"),
    *((bytes([0x80, protocol]), "a Python pickle", None) for protocol in range(2, 6)),
)
_DECOMPRESS = ("gunzip", "unzstd", "bunzip2", "unxz")


def refusal(path: Path) -> str | None:
    """Return the error about a file of another format, by its content; None for one that is not known."""
    with path.open("rb") as file:
        head = file.read(ROWS_OF_TEXT)
    if head.startswith(SIGNATURE):
        return f"{path} is HDF5 by its content, whatever its name; rename it to {path.with_suffix('.hdf5').name}"
    if head.startswith(b"PK"):
        return _archive(path)
    for first, kind, way in _KINDS:
        if head.startswith(first):
            return _converted(path, kind, way)
    return _table(path, head)


_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special(path: Path) -> str | None:
    """Return the error about a pipe, a socket or a device, which is never opened: it may have no end, or never answer.

    None for a file, for a directory, and where nothing is. A link that the user typed is followed.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    kind = next((kind for is_one, kind in _SPECIAL if is_one(mode)), None)
    return kind and f"{path} is {kind}, expected a file; copy its content into one and name that"


def is_ogbench(path: Path) -> bool:
    """Return whether a file is a NumPy archive with simulator states and without rewards, as OGBench's are."""
    names = set(_names(path))
    return bool(names & STATES) and "rewards.npy" not in names


def _names(path: Path) -> list[str]:
    """Return the names in a zip archive, none of a file that is no whole archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):  # RuntimeError: of a later version of zip
        return []


def no_data(path: Path) -> str:
    """Return the error about a directory without data."""
    names = sorted(one.name + "/" * one.is_dir() for one in path.iterdir())
    holds = f"it holds {shown(names)}" if names else "it is empty"
    return (
        f"{path} is not a Minari data set (it has no data/metadata.json) and has no *.hdf5 file; {holds}; {READ}; "
        f"{RECIPES}"
    )


def _archive(path: Path) -> str | None:
    names = _names(path)
    if not names:
        return None
    if any(name.endswith("data.pkl") for name in names):
        return _converted(path, "a file of torch.save, which holds a pickle,", None)
    if not all(name.endswith(".npy") for name in names):
        return (
            f"{path} is a zip archive of {shown(names)}; {READ}: unpack it with `python -m zipfile -e {path} "
            f"{path.with_suffix('')}` and name what was in it"
        )
    if is_ogbench(path):
        return f"{path} is an OGBench file by its content; rename it to {path.with_suffix('.npz').name}"
    own = repr(str(path.with_suffix(".hdf5")))
    keys = shown(sorted(name.removesuffix(".npy") for name in names))
    return (
        f"{path} is a NumPy archive of {keys}, not one of OGBench's; {READ}; convert it:\n"
        f"import h5py, numpy as np\nwith h5py.File({own}, 'w') as file: file.update(np.load({str(path)!r}))"
    )


def _converted(path: Path, kind: str, way: str | None) -> str:
    if way in _DECOMPRESS:
        return f"{path} is {kind}; {READ}: uncompress it with `{way}` first"
    if "pickle" in kind:
        return (
            f"{path} is {kind} and loading it could run code, so it is never loaded here; {READ}; if you trust it, "
            f"load it yourself and write its arrays: {RECIPES}"
        )
    if way is None:
        return f"{path} is {kind}; {READ}; write it with the other columns into one file: {RECIPES}"
    return f"{path} is {kind}; {READ}; read it with {way} and write its columns: {RECIPES}"


def _table(path: Path, head: bytes) -> str | None:
    """Return the error about a text: a table with separators, or JSON."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else the block ends inside a character
            return None
        text = head[: error.start].decode()
    line = text.lstrip("\ufeff").splitlines()[0] if text.strip() else ""
    if line[:1] in ("{", "["):
        return f"{path} is JSON text; {READ}; write its columns: {RECIPES}"
    separators = [one for one in (",", "\t", ";") if one in line]
    if line.startswith("<") or not separators or (not line.isprintable() and "\t" not in line):
        return None
    columns = shown([name.strip().strip('"') for name in line.split(separators[0])])
    return (
        f"{path} is a table of text (CSV) with the columns {columns}; {READ}; read it with pandas.read_csv: {RECIPES}"
    )


def shown(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(plain, names[:SHOWN])) + more


def plain(text: str, most: int = 40) -> str:
    """Return a text from elsewhere as it may reach a terminal: short, and without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])
