"""When launches that wait for each other run on a card whose multiprocessors they share: a list scheduler.

A launch is ready a gap after the last of those that it waits for has ended. Whenever something changes, each ready
launch in turn, the earliest issued first, puts its remaining blocks where there is room. Blocks of several launches
share a multiprocessor if its registers, shared memory and threads suffice. A block is never interrupted, and runs as
long as when its launch is alone, with as many blocks of that launch beside it as then share a multiprocessor. Other
neighbours make it neither slower nor faster, and neither do caches and memory that have more or less to do. ORDERS are
the orders of a step's launches that are predicted, and measured on a card.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """steps: of one graph. slots: of what steps hand on. ema_every: steps between moves of the EMA actor.

    behind: what a launch waits for: "data" of the launches before, the whole "step" before too, or the "launch" before.
    """

    steps: int = 100
    slots: int = 3
    ema_every: int = 5
    behind: str = "data"


CAPTURED = "three slots"
ORDERS = {
    "each launch behind the one before": Order(behind="launch"),
    "a graph a step": Order(steps=1),
    "each step behind the one before": Order(behind="step"),
    "one slot": Order(slots=1),
    "two slots": Order(slots=2),
    CAPTURED: Order(),
    "three slots, graphs of 20 steps": Order(steps=20),
    "five slots": Order(slots=5),
    "three slots, the EMA moves every step": Order(ema_every=1),
}

# What a block takes, or a multiprocessor has: registers, bytes of shared memory, threads.
Resources = tuple[int, int, int]


@dataclass(frozen=True)
class Card:
    """Multiprocessors, what each has (of an H100 or H200), and the gap in front of a launch that has waited."""

    places: int = 132
    room: Resources = (65_536, 228 * 1024, 2_048)
    gap_us: float = 0.0

    def fit(self, needs: Resources) -> int:
        """Return how many blocks an empty multiprocessor has room for. Raises: ValueError when it has none for one."""
        fit = min(room // need for room, need in zip(self.room, needs, strict=True) if need)
        if not fit:
            raise ValueError(f"a block takes {needs} of a multiprocessor, which has {self.room}")
        return fit

    def waves(self, needs: Resources, blocks: int) -> int:
        """Return how many times in a row a launch that is alone fills the card. Raises as `fit`."""
        return -(-blocks // (self.places * self.fit(needs)))


@dataclass(frozen=True)
class Task:
    """A launch: microseconds that a block runs, how many there are, what each takes, which earlier tasks it awaits."""

    us: float
    blocks: int
    needs: Resources
    waits: Sequence[int] = ()


@dataclass(frozen=True)
class Schedule:
    """When each task's first block begins and its last one ends, and the share of multiprocessors that have a block."""

    begin: list[float]
    end: list[float]
    busy: float

    @property
    def us(self) -> float:
        """When all have ended."""
        return max(self.end)


def schedule(tasks: Sequence[Task], card: Card) -> Schedule:
    """Return when each task runs. Raises: ValueError when an empty multiprocessor has no room for a block."""
    running = _Running(tasks, card)
    busy_us = before = 0.0
    while running.events:
        now = running.events[0][0]
        busy_us += (now - before) * np.count_nonzero(running.blocks_on)
        before = now
        running.meet(now)
        running.fill(now)
    return Schedule(running.begin, running.end, busy_us / max(before * card.places, 1e-9))


class _Running:
    """What runs and what waits. An event is (us, number, task, blocks that end on each place; None: it is ready)."""

    def __init__(self, tasks: Sequence[Task], card: Card):
        self.tasks, self.card = tasks, card
        self.free = np.tile(card.room, (card.places, 1))
        self.blocks_on = np.zeros(card.places, dtype=int)
        self.begin, self.end = [0.0] * len(tasks), [0.0] * len(tasks)
        self.unplaced, self.unfinished = [x.blocks for x in tasks], [x.blocks for x in tasks]
        self.awaited = [len(x.waits) for x in tasks]
        self.users: list[list[int]] = [[] for _ in tasks]
        self.events: list[tuple[float, int, int, np.ndarray | None]] = []
        self.ready: list[int] = []
        self.pushed = 0
        for i, task in enumerate(tasks):
            card.waves(task.needs, task.blocks)
            for j in task.waits:
                self.users[j].append(i)
            if not task.waits:
                self._push(0.0, i)

    def _push(self, us: float, task: int, ending: np.ndarray | None = None) -> None:
        heapq.heappush(self.events, (us, self.pushed, task, ending))
        self.pushed += 1  # decides between events of the same time, so that no arrays are compared

    def meet(self, now: float) -> None:
        """Take the events of this time: tasks become ready, blocks end, and who waited for the last of them goes on."""
        while self.events and self.events[0][0] == now:
            _, _, i, ending = heapq.heappop(self.events)
            if ending is None:
                self.ready.append(i)
                continue
            self.free += ending[:, None] * np.array(self.tasks[i].needs)
            self.blocks_on -= ending
            self.unfinished[i] -= int(ending.sum())
            if not self.unfinished[i]:
                self._end(i, now)

    def _end(self, task: int, now: float) -> None:
        self.end[task] = now
        for user in self.users[task]:
            self.awaited[user] -= 1
            if not self.awaited[user]:
                self._push(now + self.card.gap_us, user)

    def fill(self, now: float) -> None:
        """Put down the blocks of ready tasks while there is room."""
        self.ready.sort()
        for i in self.ready:
            put = self._put(self.tasks[i].needs, self.unplaced[i])
            if put.any():
                if self.unplaced[i] == self.tasks[i].blocks:
                    self.begin[i] = now
                self.unplaced[i] -= int(put.sum())
                self._push(now + self.tasks[i].us, i, put)
        self.ready = [i for i in self.ready if self.unplaced[i]]

    def _put(self, needs: Resources, count: int) -> np.ndarray:
        """Put down up to `count` blocks, in each round one on every place with room, the emptiest first."""
        put = np.zeros(self.card.places, dtype=int)
        while count and len(fits := np.flatnonzero((self.free >= needs).all(axis=1))):
            left = (self.free[fits] / self.card.room).min(axis=1)
            chosen = fits[np.argsort(-left, kind="stable")][:count]
            self.free[chosen] -= needs
            put[chosen] += 1
            count -= len(chosen)
        self.blocks_on += put
        return put


def longest_path(tasks: Sequence[Task], card: Card) -> tuple[list[int], float]:
    """Return the tasks, each waiting for the one before, that take longest if each is alone, and how long they take."""
    until: list[float] = []
    for task in tasks:
        begin = max((until[j] + card.gap_us for j in task.waits), default=0.0)
        until.append(begin + task.us * card.waves(task.needs, task.blocks))
    path = [int(np.argmax(until))]
    while tasks[path[-1]].waits:
        path.append(max(tasks[path[-1]].waits, key=until.__getitem__))
    return path[::-1], max(until)
