"""How long a loop of machine code takes on a multiprocessor: bounds from its counts, and a run of its warps in order.

Each bound says how long one part of a multiprocessor is busy in a turn. The run issues every instruction with the
stalls and barriers that ptxas wrote into it, so that the delays of arithmetic and products are ptxas' own. Only memory
and special functions need published latencies. Warps share one load and store unit, one path to L2, and four schedulers
with a tensor core each. Taken for granted: no bank conflicts, hits in L2, and nothing else on the card.

Data that arrive from L2 pass through the load and store unit as the addresses did: an assumption that the figures below
support. gtp_chain on an H200 by Triton 3.6, microseconds predicted, without arrivals' passes, and measured (2026-11-27;
a launch's start takes about 2 of them). TF32, K = 5: 68, 58, 67; at K = 2: 30, 26, 31; of 2 stages and 8 warps, K = 5:
91, 91, 92. In bf16 45, 40, 49, and of 2 stages and 8 warps 64, 64, 70. No constant was fitted to them.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bench.sass import Instruction, Work

SCHEDULERS = 4
TURNS = 12  # simulated turns of a loop; the second half is counted, when copies run as far ahead as they will
# Cycles from issue to result: about what Luo et al. measured on A100 and H100, "Benchmarking and Dissecting the Nvidia
# Hopper GPU Architecture" (arXiv 2402.13499), an L2 hit on the near side without load. Each further pass adds one.
SHARED_LATENCY, L2_LATENCY = 29, 262
# Guesses of the order that microbenchmarks of Volta and Ampere give: a special function, any other result of unknown
# delay, and how long after the last warp's arrival a barrier lets warps go.
MUFU_LATENCY, OTHER_LATENCY, BARRIER_LATENCY = 23, 23, 20
MUFU_CYCLES = 8  # 16 results a cycle and multiprocessor (CUDA C++ Programming Guide), for 32 threads of a scheduler
# Bytes a cycle from L2: what one multiprocessor can read while most others are idle, and the whole card, which is the
# Ampere white paper's figure of an A100; the other cards are taken to be alike.
L2_BYTES, L2_BYTES_OF_CARD = 64.0, 5120.0
WARP_PRODUCT, GROUP_PRODUCT = re.compile(r"HMMA\.(\d+)\."), re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)\.")
GROUP = 4  # warps that run one HGMMA together


@dataclass(frozen=True)
class Card:
    """Rates and latencies of a card.

    processors: multiprocessors. multiply_adds, l2_bytes: a cycle and multiprocessor. product_latency: cycles
    between products that add to each other, by shape and operand type; so many does ptxas itself leave between a
    product and the first use of its sum.
    """

    clock_ghz: float
    processors: int
    multiply_adds: dict[str, float]
    l2_latency: float = L2_LATENCY
    l2_bytes: float = L2_BYTES
    l2_bytes_of_card: float = L2_BYTES_OF_CARD
    product_latency: dict[str, float] = field(default_factory=lambda: {"1688.TF32": 24.0, "16816.BF16": 24.0})

    def us(self, cycles: float) -> float:
        """Return the microseconds of some cycles."""
        return cycles / self.clock_ghz / 1e3

    def with_blocks(self, count: int) -> Card:
        """Return the card as each of `count` blocks finds it: those that run together share L2."""
        return replace(self, l2_bytes=min(self.l2_bytes, self.l2_bytes_of_card / min(count, self.processors)))

    def product_cycles(self, name: str) -> float:
        """Return how long a product keeps a scheduler's tensor core busy."""
        return multiply_adds(name) / (self.multiply_adds[name.split(".")[-1]] / SCHEDULERS)

    def latency(self, name: str) -> float:
        """Return the cycles from one product to the next that adds to its sum."""
        parts = name.split(".")
        return self.product_latency.get(f"{parts[1]}.{parts[-1]}", 24.0)


def _rates(tf32: float) -> dict[str, float]:
    return {"TF32": tf32, "BF16": 2 * tf32, "F16": 2 * tf32, "F32": 2 * tf32}


# Dense multiply-adds from NVIDIA's data sheets: products / multiprocessors / boost clock. Hopper's `mma.sync`, which
# Triton takes for 16 rows, reaches 63 % of what its `wgmma` does (Luo et al.); Blackwell's is taken to be alike.
CARDS = {
    80: Card(1.41, 108, _rates(512)),
    86: Card(1.74, 84, _rates(256)),
    89: Card(2.52, 142, _rates(256)),
    90: Card(1.98, 132, _rates(0.63 * 1024)),
    100: Card(1.96, 148, _rates(0.63 * 1024)),
}


def multiply_adds(name: str) -> int:
    """Return the multiply-adds of a warp's product: 1688 is 16 x 8 x 8, 16816 is 16 x 8 x 16.

    0 for a product whose name has no shape: tcgen05 (UTCHMMA) has it in a register.
    """
    if shape := WARP_PRODUCT.match(name):
        return 16 * 8 * int(shape[1][3:])
    if shape := GROUP_PRODUCT.match(name):
        return math.prod(map(int, shape.groups())) // GROUP
    return 0


def bounds(work: Work, card: Card) -> dict[str, float]:
    """Return the cycles of a turn that each part is busy, and what a wait with nothing under way adds to them.

    tensor: products on a scheduler's tensor core. shared: wavefronts. unit: passes through the load and store unit. l2:
    bytes. issue: instructions of a scheduler. chain: the longest chain of products that need each other. exposed:
    latency of L2 and the copy itself.
    """
    names = [name for name in work.kinds if multiply_adds(name)]
    own = -(-work.warps // SCHEDULERS)  # warps of a scheduler
    return {
        "tensor": own * sum(work.kinds[name] * card.product_cycles(name) for name in names),
        "shared": float(work.wavefronts),
        "unit": float(work.passes),
        "l2": work.l2_bytes / card.l2_bytes,
        "issue": float(own * work.instructions),
        "chain": work.depth * max(map(card.latency, names), default=0.0),
        "exposed": card.l2_latency + work.l2_bytes / card.l2_bytes if work.exposed else 0.0,
    }


def largest(found: dict[str, float]) -> str:
    """Return the part that is busy longest; an exposed wait is none, it adds to every part."""
    return max((name for name in found if name != "exposed"), key=lambda name: found[name])


def bound(found: dict[str, float]) -> float:
    """Return the largest of the bounds, plus the exposed wait."""
    return found[largest(found)] + found["exposed"]


class Run(NamedTuple):
    """When the last warp had issued each part of a program, and what all warps together spent their cycles on.

    spent, in cycles: stalls that ptxas wrote (issue, arithmetic, products), results of memory and special functions,
    copies at a wait, units that were busy with other warps, and other warps at a barrier.
    """

    ends: list[float]
    spent: dict[str, float]


def turn(body: Sequence[Instruction], warps: int, card: Card) -> tuple[float, dict[str, float]]:
    """Return the cycles of a turn once a loop runs evenly, and the share of each thing that a warp spends them on."""
    ends, spent = simulated(list(body) * TURNS, warps, card, every=len(body))
    half, total = len(ends) // 2, sum(spent.values())
    return (ends[-1] - ends[half - 1]) / (len(ends) - half), {name: value / total for name, value in spent.items()}


@dataclass
class _Warp:
    """A warp: its scheduler, where it stands, when it may issue next, and when what it began is done."""

    scheduler: int
    place: int = 0
    barriers: list[float] = field(default_factory=lambda: [0.0] * 8)
    groups: list[float] = field(default_factory=list)  # when the copies of each committed group are there
    copied: float = 0.0  # when the latest copy is there

    def ready(self, now: float, x: Instruction) -> float:
        """Return when the barriers and the copies that an instruction waits for are done."""
        awaited = [self.barriers[i] for i in range(6) if x.control.awaited >> i & 1]
        if x.base == "DEPBAR":
            awaited += self.groups[: len(self.groups) - x.in_flight] if x.in_flight else self.groups
        return max([now, *awaited])


@dataclass
class _Multiprocessor:
    """When each part that warps share is free."""

    card: Card
    issue: list[float] = field(default_factory=lambda: [0.0] * SCHEDULERS)
    tensor: list[float] = field(default_factory=lambda: [0.0] * SCHEDULERS)
    mufu: list[float] = field(default_factory=lambda: [0.0] * SCHEDULERS)
    memory: float = 0.0
    l2: float = 0.0
    arriving: list[tuple[float, int]] = field(default_factory=list)  # when data come from L2, and in how many passes

    def free(self, scheduler: int, x: Instruction) -> float:
        """Return when a scheduler can issue an instruction."""
        pipe = self.tensor if x.is_product else self.mufu if x.base == "MUFU" else self.issue
        return max(self.issue[scheduler], pipe[scheduler])

    def run(self, now: float, warp: _Warp, x: Instruction) -> None:
        """Issue an instruction: keep its parts busy and set its barriers."""
        self.issue[warp.scheduler] = now + 1
        read, done = now + 1, now + OTHER_LATENCY
        if x.is_product:
            self.tensor[warp.scheduler] = now + self.card.product_cycles(x.name)
            done = now + self.card.latency(x.name)
        elif x.base == "MUFU":
            self.mufu[warp.scheduler], done = now + MUFU_CYCLES, now + MUFU_LATENCY
        elif x.passes:
            self.memory = read = self._unit_free(now) + x.passes
            done = read - 1 + SHARED_LATENCY
            if x.from_l2:
                self.l2 = max(self.l2, read) + x.from_l2 / self.card.l2_bytes
                done = self.l2 + self.card.l2_latency
                heapq.heappush(self.arriving, (done, x.passes))
        if x.base == "LDGSTS":  # no barrier: LDGDEPBAR counts it
            warp.copied = max(warp.copied, done)
        elif x.base == "LDGDEPBAR":
            warp.groups.append(warp.copied)
        elif x.base != "DEPBAR":
            for barrier, at in ((x.control.written, done), (x.control.read, read)):
                warp.barriers[barrier] = max(warp.barriers[barrier], at)

    def _unit_free(self, now: float) -> float:
        """Return when the load and store unit takes the next instruction: data that arrived before it go first."""
        while self.arriving and self.arriving[0][0] <= max(now, self.memory):
            arrived, passes = heapq.heappop(self.arriving)
            self.memory = max(self.memory, arrived) + passes
        return max(now, self.memory)


def simulated(program: Sequence[Instruction], warps: int, card: Card, blocks: int = 1, every: int = 0) -> Run:
    """Run the same instructions in each warp of the blocks that share a multiprocessor.

    A warp issues in order, and of a scheduler's warps the one that may issue first. A warp waits at a barrier for the
    others of its block. every: how many instructions are a part of the program; 0 for all.
    """
    every = every or len(program)
    chip, running = _Multiprocessor(card), [_Warp(i % SCHEDULERS) for i in range(warps * blocks)]
    queue = [(0.0, i) for i in range(len(running))]
    met: dict[tuple[int, int], list[tuple[float, int]]] = {}  # arrivals at a barrier, by block and place
    run = Run([0.0] * (len(program) // every), dict.fromkeys(("stalls", "results", "copies", "units", "barriers"), 0.0))
    while queue:
        now, i = heapq.heappop(queue)
        warp, x = running[i], program[running[i].place]
        ready, free = warp.ready(now, x), chip.free(warp.scheduler, x)
        if max(ready, free) > now:  # other warps may issue before
            run.spent["units" if free > ready else "copies" if x.base == "DEPBAR" else "results"] += (
                max(ready, free) - now
            )
            heapq.heappush(queue, (max(ready, free), i))
            continue
        chip.run(now, warp, x)
        warp.place += 1
        if warp.place % every == 0:
            run.ends[warp.place // every - 1] = max(run.ends[warp.place // every - 1], now)
        kind, next_ones, then = "stalls", [(now, i)], now + max(x.control.stall, 1)
        if x.base == "BAR":
            arrived = met.setdefault((i // warps, warp.place), [])
            arrived.append((now, i))
            kind, next_ones, then = "barriers", arrived if len(arrived) == warps else [], now + BARRIER_LATENCY
        for since, other in next_ones:
            run.spent[kind] += then - since
            if running[other].place < len(program):
                heapq.heappush(queue, (then, other))
    return run


def launched(program: Sequence[Instruction], warps: int, blocks: int, room: int, card: Card) -> float:
    """Return the cycles of a launch, without its start: of the fullest multiprocessor, with `room` blocks at a time."""
    own = -(-blocks // card.processors)
    together = min(own, room)
    return -(-own // together) * simulated(program, warps, card, together).ends[-1]
