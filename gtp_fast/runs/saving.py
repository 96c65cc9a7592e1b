"""A checkpoint is written by a thread while training goes on: the loop waits for the copy to the host alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from gtp_fast.runs.disk import Disk


class Saving:
    """At most one checkpoint under way; what the disk refused is told, and counted, when it is settled."""

    def __init__(self, disk: Disk):
        self._disk, self._pool = disk, ThreadPoolExecutor(1, "checkpoint")
        self._under_way: tuple[str, Future[None]] | None = None

    def start(self, what: str, commit: Callable[[], None]) -> None:
        """Have `commit` called by the thread, once the one before it is settled."""
        self.settle()
        self._under_way = what, self._pool.submit(commit)

    def settle(self) -> None:
        """Wait for the checkpoint under way.

        Raises: DiskError at the third refusal in a row; whatever else `commit` raised.
        """
        if self._under_way is not None:
            (what, future), self._under_way = self._under_way, None
            self._disk.write("checkpoints", what, future.result)

    def close(self) -> None:
        """Wait for the thread, whatever comes of its work."""
        self._pool.shutdown()
