"""What a name in an HDF5 file leads to: only what lies in this one file is opened, and nothing that it names is loaded.

HDF5 keeps data elsewhere in three ways: an external link names an object of another file, external storage keeps an
array's bytes in other files, and a virtual data set is put together from those of other files. They would make a file
from a stranger read any file of its user, and the data's SHA-256 would not cover them. A fourth way leads to code: of a
filter that it does not know, HDF5 loads a library from the folders of its plugins. Here those folders are taken from
its search while a file is open.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from h5py import h5d, h5g, h5l, h5o, h5pl, h5z  # pyright: ignore[reportAttributeAccessIssue]  # compiled modules

MOST_LINKS = 16  # soft links between a name and its array; more are a circle
MOST_NAMES = 1_000  # of a group that are looked at to guess what a missing key is called
MOST_SHOWN = 100  # characters of a name from a file
# The largest ratio of zlib; that of h5py's LZF, 264 bytes for 3, is smaller.
MOST_INFLATED = 1_032
BLOCK = 1 << 20  # bytes inflated at a time
_COMPRESSIONS = {h5z.FILTER_DEFLATE, h5z.FILTER_SZIP, h5z.FILTER_LZF}


@dataclass(frozen=True)
class Refused:
    """What a name leads to and is not read: seen completes "observations is ...". Of an external link its two names."""

    seen: str
    file: bytes = b""
    path: bytes = b""


class Group(Mapping[str, Any]):
    """A group of an open file. An entry is a Group, an h5py.Dataset, or Refused; None of another type."""

    def __init__(self, group: Any):
        self.id = group

    @property
    def attrs(self) -> h5py.AttributeManager:
        """The group's attributes."""
        return h5py.AttributeManager(self)

    def __getitem__(self, name: str) -> Any:
        found = find(self.id, name)
        if found is None:
            raise KeyError(name)
        if isinstance(found, h5g.GroupID):
            return Group(found)
        return h5py.Dataset(found) if isinstance(found, h5d.DatasetID) else found

    def __iter__(self) -> Iterator[str]:
        names: list[str] = []

        def note(name: bytes) -> bool | None:
            names.append(name.decode(errors="replace"))
            return True if len(names) == MOST_NAMES else None

        self.id.links.iterate(note)
        return iter(names)

    def __len__(self) -> int:
        return min(self.id.get_num_objs(), MOST_NAMES)


@contextmanager
def opened(path: Path) -> Iterator[Group]:
    """Open a file to read it. Raises: OSError and other errors of h5py where it is no HDF5 file."""
    folders = [h5pl.get(i) for i in range(h5pl.size())]
    for _ in folders:
        h5pl.remove(0)
    try:
        with h5py.File(path, "r", rdcc_nbytes=0) as file:  # no chunk cache: every chunk is read once
            yield Group(h5g.open(file.id, b"/"))
    finally:  # this process may read files of its own
        for folder in folders:
            h5pl.append(folder)


def find(group: Any, name: str) -> Any:
    """Return the GroupID or DatasetID that a path leads to, Refused if it leads elsewhere, None if to nothing."""
    return _walk(group, name.encode(), [MOST_LINKS])


def _walk(node: Any, path: bytes, left: list[int]) -> Any:
    """Follow a path name by name. Args: left, how many soft links may still be followed."""
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        if not isinstance(node, h5g.GroupID):
            return node if isinstance(node, Refused) else None
        node = _entry(node, name, left)
    return node


def _entry(group: Any, name: bytes, left: list[int]) -> Any:
    try:
        kind = group.links.get_info(name).type
    except (KeyError, RuntimeError):  # there is none
        return None
    if kind == h5l.TYPE_EXTERNAL:
        file, path = group.links.get_val(name)
        return Refused(f"an external link to {_shown(path)} in the file {_shown(file)}", file, path)
    if kind == h5l.TYPE_SOFT:
        left[0] -= 1
        target = group.links.get_val(name)
        if left[0] < 0:
            return Refused(f"a soft link to {_shown(target)}, behind which more than {MOST_LINKS} others stand")
        return _walk(h5g.open(group, b"/") if target.startswith(b"/") else group, target, left)
    if kind != h5l.TYPE_HARD:
        return Refused(f"a link of a kind that is not known (class {kind})")
    node = h5o.open(group, name)
    if isinstance(node, h5d.DatasetID):
        return elsewhere(node) or node
    return node if isinstance(node, h5g.GroupID) else None


def elsewhere(data: Any) -> Refused | None:
    """Return why an array is not read: its values lie in other files, or need code that no file may load."""
    made = data.get_create_plist()
    if made.get_layout() == h5d.VIRTUAL:
        source = f" in {_shown(made.get_virtual_filename(0))}" if made.get_virtual_count() else ""
        return Refused(f"a virtual data set, whose values lie{source or ' in other data sets'}")
    if made.get_external_count():
        return Refused(f"stored outside the file, in {_shown(made.get_external(0)[0])}")
    found = [made.get_filter(i) for i in range(made.get_nfilters())]
    for code, _, _, name in found:
        if not h5z.filter_avail(code):
            return Refused(f"packed by the filter {code} ({_shown(name)}), whose plugin no file may load")
    if sum(code in _COMPRESSIONS for code, *_ in found) > 1:
        return Refused("compressed more than once")
    return None


def chunk_bytes(data: Any) -> int:
    """Return the bytes of an unpacked chunk that reading an array holds beside it, 0 for one that is not packed."""
    made = data.get_create_plist()
    if made.get_layout() != h5d.CHUNKED or not made.get_nfilters():
        return 0
    size = data.dtype.itemsize
    for side in made.get_chunk():
        size *= side
    return size


def inflates_beyond(data: Any, memory: int) -> int | None:
    """Return the bytes that the array's largest chunk declares if one unpacks to more than it and than fits in memory.

    HDF5 unpacks a chunk to its end, whatever its size. Chunks that cannot exceed the memory are not looked into.
    """
    declared, suspects = chunk_bytes(data), []
    if not declared:
        return None

    def note(stored: Any) -> None:
        if stored.size * MOST_INFLATED > memory:
            suspects.append(stored.chunk_offset)

    data.chunk_iter(note)
    zlib_packs = any(data.get_create_plist().get_filter(i)[0] == h5z.FILTER_DEFLATE for i in range(_filters(data)))
    for place in suspects:
        mask, packed = data.read_direct_chunk(place)
        if not mask and (not zlib_packs or _inflated(packed, declared) > declared):
            return declared
    return None


def _filters(data: Any) -> int:
    return data.get_create_plist().get_nfilters()


def _inflated(packed: bytes, most: int) -> int:
    """Return the size of what zlib's bytes unpack to, in little memory; it stops once that exceeds `most`."""
    unpacking, size = zlib.decompressobj(), 0
    while packed and size <= most:
        size += len(unpacking.decompress(packed, BLOCK))
        packed = unpacking.unconsumed_tail
    return size


def _shown(name: bytes | str) -> str:
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    return repr(text[:MOST_SHOWN])
