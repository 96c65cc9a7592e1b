"""A recording file system: what could be left on the disk after a power cut at each moment of a write.

The model is weaker than any file system in use: names change in the order of the calls, and reach the disk whenever
they like until their directory is fsynced; the content of a file, and its name in a new directory, may be lost in part
or whole until they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from gtp_fast import files
from gtp_fast.runs import checkpoint

Tree = dict[str, tuple[int, bytes | None]]  # path -> inode, content; None for a directory
LOSSES: tuple[Callable[[bytes], bytes | None], ...] = (
    lambda content: content,
    lambda content: content[: len(content) // 2],
    lambda content: b"",
    lambda content: None,
)


@dataclass
class Recording:
    """The tree after every call, what had been fsynced by then, and the first tree that may still be found."""

    root: Path
    trees: list[Tree] = field(default_factory=list)
    synced: list[dict[int, bytes | None]] = field(default_factory=list)
    oldest: list[int] = field(default_factory=list)
    fsynced: list[Path | None] = field(default_factory=list)

    def note(self, fsynced: Path | None = None) -> None:
        """Take down the tree after a call."""
        self.fsynced.append(fsynced)
        self.trees.append({str(p.relative_to(self.root)): _entry(p) for p in sorted(self.root.rglob("*"))})
        synced = dict(self.synced[-1]) if self.synced else dict(self.trees[0].values())
        if fsynced is not None:
            ino, content = _entry(fsynced)
            synced[ino] = content
        self.synced.append(synced)
        settled = not self.oldest or fsynced == self.root
        self.oldest.append(len(self.trees) - 1 if settled else self.oldest[-1])

    def lost_folders(self) -> list[str]:
        """Return the new folders whose names may be lost: nobody fsynced the folder above after they were made."""
        lost = []
        for name, (_, content) in self.trees[-1].items():
            if content is None and name not in self.trees[0]:
                made = next(i for i, tree in enumerate(self.trees) if name in tree)
                if (self.root / name).parent not in self.fsynced[made:]:
                    lost.append(name)
        return lost

    def crashes(self, after: int = 0) -> Iterator[Callable[[Path], None]]:
        """Yield every state that may be found after a cut from call `after` on, as a function that makes it."""
        for now in range(after, len(self.trees)):
            for seen in range(self.oldest[now], now + 1):
                for loss in LOSSES:
                    yield partial(self._make, now, seen, loss)

    def _make(self, now: int, seen: int, loss: Callable[[bytes], bytes | None], place: Path) -> None:
        for name, (ino, content) in self.trees[seen].items():
            if content is None:
                (place / name).mkdir()
                continue
            left = content if self.synced[now].get(ino) == content else loss(content)
            if left is not None:
                (place / name).write_bytes(left)


def _entry(path: Path) -> tuple[int, bytes | None]:
    return path.stat().st_ino, path.read_bytes() if path.is_file() else None


def record(root: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[], object]) -> Recording:
    """Record every call of `write` that changes what is below `root`."""
    recording, fsync = Recording(root), os.fsync
    recording.note()

    def noted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            done = call(*args, **kwargs)
            recording.note()
            return done

        return wrapped

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        recording.note(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    with monkeypatch.context() as patch:
        writers = ((Path, "write_bytes"), (files, "write_file"), (checkpoint, "write_file"))
        for owner, name in ((os, "replace"), (shutil, "rmtree"), *writers):
            patch.setattr(owner, name, noted(getattr(owner, name)))
        patch.setattr(Path, "mkdir", noted(Path.mkdir))
        patch.setattr(os, "fsync", noted_fsync)
        write()
    recording.note()
    return recording
