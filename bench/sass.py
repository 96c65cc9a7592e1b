"""What the loops of a compiled kernel do, read from its machine code: products, copies, waits, shared memory.

A kernel that `gtp_kernels.aot` compiled goes in as the text of cuobjdump; one plain row for each innermost loop with
products comes out, or one for the whole kernel where ptxas unrolled all. What a row counts stands in the code; what it
predicts comes from `bench.cycles`. Shared memory is taken to have no bank conflicts, and a guarded
branch forward to be not taken. `python -m bench.static --loops` prints the table.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bench import cycles
from bench.tables import Row, grid

if TYPE_CHECKING:
    from gtp_kernels.launch import Launch

# An instruction in cuobjdump's text: address, guard, name, operands; and behind it the lower half of its 128 bits. The
# upper half stands on the line below.
LINE = re.compile(r"^\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+)?\s*(?P<name>[A-Z][\w.]*)(?P<rest>[^;]*);")
UPPER = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")
REGISTER = re.compile(r"\bR(\d+)")
NEVER = "@!PT"  # ptxas leaves such instructions as padding
NONE = 7  # no barrier
THREADS = 32
SHARED = ("LDS", "STS", "LDSM", "STSM", "LDGSTS")
GLOBAL = ("LDG", "STG")
MEMORY = (*SHARED, *GLOBAL, "LDL", "STL")
NO_RESULT = ("STS", "STSM", "STG", "STL", "LDGSTS", "BAR", "BRA", "EXIT", "LDGDEPBAR", "DEPBAR", "NOP", "RED")
MMA = re.compile(r"(HMMA|IMMA|QMMA|OMMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA)$")


class Control(NamedTuple):
    """What ptxas wrote for the scheduler: cycles to the next issue, barriers to set and to wait for.

    `written` is cleared when the result is there, `read` when the operands were read. `awaited` is a set of bits.
    """

    stall: int = 1
    written: int = NONE
    read: int = NONE
    awaited: int = 0

    @classmethod
    def of(cls, upper: int) -> Control:
        """Read bits 105 to 121 of an instruction from the upper half of it."""
        bits = upper >> 41
        return cls(bits & 15, (bits >> 5) & 7, (bits >> 8) & 7, (bits >> 11) & 63)


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address, guard, full name, operands and control bits."""

    at: int
    name: str
    operands: tuple[str, ...] = ()
    guard: str = ""
    control: Control = field(default=Control())

    @property
    def base(self) -> str:
        """The name up to its first dot."""
        return self.name.partition(".")[0]

    @property
    def parts(self) -> list[str]:
        """The parts of the name."""
        return self.name.split(".")

    @property
    def is_product(self) -> bool:
        """Whether the tensor cores run it."""
        return bool(MMA.match(self.base))

    @property
    def bits(self) -> int:
        """Bits a thread that a load, store or copy moves; a matrix of LDSM gives each thread 32."""
        if self.base in ("LDSM", "STSM"):
            return 32 * (int(self.parts[-1]) if self.parts[-1].isdigit() else 1)
        return next((int(part) for part in self.parts[1:] if part in ("64", "128", "256")), 32)

    @property
    def passes(self) -> int:
        """Passes of 128 bytes through the load and store unit that a warp takes to issue it."""
        return self.bits // 32 if self.base in MEMORY else int(self.base == "SHFL")

    @property
    def from_l2(self) -> int:
        """Bytes that a warp asks of L2."""
        return self.bits // 8 * THREADS if self.base in ("LDGSTS", "LDG") else 0

    @property
    def kind(self) -> str:
        """The class under which it is counted: products by their full name, memory by its width."""
        if self.is_product:
            return self.name
        if self.base in ("LDSM", "STSM"):
            return f"{self.base}.x{self.passes}"
        if self.base in MEMORY:
            return f"{self.base}.{self.bits}"
        known = {"LDGDEPBAR": "commit", "DEPBAR": "wait", "MUFU": "MUFU", "BAR": "BAR", "SHFL": "SHFL"}
        return known.get(self.base, "other")

    @property
    def in_flight(self) -> int:
        """How many groups of copies may still be under way after this wait."""
        return int(self.operands[1], 0) if len(self.operands) > 1 else 0

    @property
    def target(self) -> int | None:
        """The address that a branch goes to."""
        return int(self.operands[-1], 16) if self.base == "BRA" and self.operands[-1:] else None

    @property
    def results(self) -> range:
        """The registers that it writes."""
        if self.base in NO_RESULT or not self.operands:
            return range(0)
        first = REGISTER.match(self.operands[0])
        return range(int(first[1]), int(first[1]) + self._width()) if first else range(0)

    def _width(self) -> int:
        if self.is_product:
            return 4 if "F32" in self.parts else 2
        if self.base in MEMORY:
            return self.passes
        return 2 if self.base == "CS2R" or {"WIDE", "64"} & set(self.parts) else 1


def parse(text: str) -> list[Instruction]:
    """Return the instructions of cuobjdump's text that can run, in their order, with the control bits that it has."""
    found: list[tuple[re.Match[str], int]] = []
    for line in text.splitlines():
        if match := LINE.match(line):
            found.append((match, 0))
        elif (upper := UPPER.match(line)) and found:
            found[-1] = (found[-1][0], int(upper[1], 16))
    return [_instruction(match, upper) for match, upper in found if match["guard"] != NEVER]


def _instruction(match: re.Match[str], upper: int) -> Instruction:
    operands = tuple(text.strip() for text in match["rest"].split(",") if text.strip())
    control = Control.of(upper) if upper else Control()
    return Instruction(int(match["at"], 16), match["name"], operands, match["guard"] or "", control)


class Loop(NamedTuple):
    """Places of a loop's first and last instruction; the last one is the branch back."""

    first: int
    last: int

    def holds(self, other: Loop) -> bool:
        """Say whether another loop lies inside this one."""
        return self != other and self.first <= other.first and other.last <= self.last


def loops(program: Sequence[Instruction]) -> list[Loop]:
    """Return all loops, by their branches back. The endless loop behind a kernel's end is none."""
    places = {x.at: i for i, x in enumerate(program)}
    found = []
    for i, x in enumerate(program):
        if x.target is not None and x.target < x.at:
            start = next(at for at in sorted(places) if at >= x.target)  # what never runs was left out
            found.append(Loop(places[start], i))
    return found


def innermost(program: Sequence[Instruction]) -> list[Loop]:
    """Return the loops that hold no other loop."""
    found = loops(program)
    return [loop for loop in found if not any(loop.holds(other) for other in found)]


def stream(program: Sequence[Instruction], turns: dict[Loop, int]) -> list[Instruction]:
    """Return what a warp runs from the first to the last instruction, each loop as often as `turns` says, or once.

    A branch forward is taken only if nothing guards it, and a kernel ends at an exit that nothing guards.
    """
    places, back = {x.at: i for i, x in enumerate(program)}, {loop.last: loop for loop in loops(program)}
    left, i, run = {loop: turns.get(loop, 1) for loop in back.values()}, 0, []
    while i < len(program):
        x = program[i]
        run.append(x)
        if x.base == "EXIT" and not x.guard:
            break
        i += 1
        if loop := back.get(i - 1):
            left[loop] -= 1
            if left[loop] > 0:
                i = loop.first
            else:
                left[loop] = turns.get(loop, 1)  # for the next turn of the loop around it
        elif x.target is not None and not x.guard:
            i = places.get(x.target, i)
    return run


def chains(body: Iterable[Instruction]) -> list[int]:
    """Return the lengths of the chains of products in which each adds to the sum of the one before.

    There are as many as a turn has independent accumulators; a sum that the turn before left begins a chain.
    """
    lengths: list[int] = []
    holder: dict[int, int] = {}  # register -> the chain whose sum it holds
    for x in body:
        if x.is_product:
            added = REGISTER.search(x.operands[3]) if len(x.operands) > 3 else None
            chain = holder.get(int(added[1])) if added else None
            if chain is None:
                chain = len(lengths)
                lengths.append(0)
            lengths[chain] += 1
            holder |= dict.fromkeys(x.results, chain)
        else:
            for register in x.results:
                holder.pop(register, None)
    return lengths


def depth(body: Iterable[Instruction]) -> int:
    """Return the most products of a turn of which each needs what the one before wrote, even through others.

    It follows the first register of each operand, and nothing that goes through memory.
    """
    levels, most = dict[int, int](), 0
    for x in body:
        loaded = x.base in MEMORY  # a register of a load is an address
        sources = [] if loaded else [int(r) for text in x.operands[1:] for r in REGISTER.findall(text)]
        level = max((levels.get(r, 0) for r in sources), default=0) + x.is_product
        most = max(most, level)
        levels |= dict.fromkeys(x.results, level)
    return most


@dataclass(frozen=True)
class Work:
    """What one turn of a loop does: a warp's instructions by class, and what they add up to in a block of `warps`.

    waits: for each wait, how many groups may still be under way. commits: groups that a turn begins. wavefronts: passes
    of 128 bytes through shared memory, by all warps. passes: those of every instruction through the load and store
    unit, and of the data that arrive from L2. l2_bytes: copied and loaded, by all warps.
    """

    warps: int
    instructions: int
    kinds: dict[str, int]
    products: int
    chains: list[int]
    depth: int
    waits: list[int]
    commits: int
    wavefronts: int
    passes: int
    l2_bytes: int

    @classmethod
    def of(cls, body: Sequence[Instruction], warps: int) -> Work:
        """Count the instructions of a turn."""
        return cls(
            warps,
            len(body),
            dict(Counter(x.kind for x in body)),
            sum(x.is_product for x in body),
            chains(body),
            depth(body),
            [x.in_flight for x in body if x.base == "DEPBAR"],
            sum(x.base == "LDGDEPBAR" for x in body),
            warps * sum(x.passes for x in body if x.base in SHARED),
            warps * sum(x.passes * (2 if x.from_l2 else 1) for x in body),
            warps * sum(x.from_l2 for x in body),
        )

    @property
    def exposed(self) -> bool:
        """Whether a turn waits until no copy is under way."""
        return 0 in self.waits

    def repeats(self, needed: int) -> float:
        """Return how often the block's warps compute the same product; needed: multiply-adds of a turn."""
        return self.multiply_adds / needed

    @property
    def multiply_adds(self) -> int:
        """What all warps together do in a turn."""
        return self.warps * sum(cycles.multiply_adds(name) * n for name, n in self.kinds.items() if "MMA" in name)


def rows_of(text: str, launch: Launch, capability: int, room: int = 1) -> list[Row]:
    """Return a row for each innermost loop with products of a launch, given the text of its machine code.

    Where ptxas left no such loop, because it unrolled all, the row is of all that a warp runs, as one turn. room: how
    many of the launch's blocks a multiprocessor has room for.
    """
    program, card = parse(text), cycles.CARDS[capability].with_blocks(math.prod(launch.grid))
    turns = turns_of(launch, program)
    run = stream(program, turns)
    bodies = [(_body(program, loop), turns[loop]) for loop in _with_products(program)]
    if not bodies and any(x.is_product for x in run):
        bodies = [(run, 1)]
    us = launch_us(text, launch, capability, room)
    return [_row(body, count, launch, card) | {"launch_us": us} for body, count in bodies]


def launch_us(text: str, launch: Launch, capability: int, room: int = 1) -> float | None:
    """Return the microseconds of a launch that is alone, without its start, None if it has no products.

    text: its machine code. room: how many of its blocks a multiprocessor has room for.
    """
    program, blocks = parse(text), math.prod(launch.grid)
    run = stream(program, turns_of(launch, program))
    if not any(x.is_product for x in run):
        return None
    card = cycles.CARDS[capability].with_blocks(blocks)
    return card.us(cycles.launched(run, launch.warps, blocks, room, card))


def _with_products(program: Sequence[Instruction]) -> list[Loop]:
    return [loop for loop in innermost(program) if any(x.is_product for x in _body(program, loop))]


def _body(program: Sequence[Instruction], loop: Loop) -> Sequence[Instruction]:
    return program[loop.first : loop.last + 1]


def _row(body: Sequence[Instruction], turns: int, launch: Launch, card: cycles.Card) -> Row:
    work = Work.of(body, launch.warps)
    if turns > 1:
        turn, spent = cycles.turn(body, launch.warps, card)
    else:
        run = cycles.simulated(body, launch.warps, card)
        turn, total = run.ends[-1], sum(run.spent.values())
        spent = {name: value / total for name, value in run.spent.items()}
    bounds, needed = cycles.bounds(work, card), needed_of(launch)
    return {
        "kernel": launch.name,
        "phase": launch.phase,
        "grid": launch.grid,
        "warps": launch.warps,
        "stages": launch.args.get("STAGES", launch.stages),
        "at": f"{body[0].at:#x}",
        "turns": turns,
        "instructions": work.instructions,
        "kinds": work.kinds,
        "products": work.products,
        "chains": work.chains,
        "depth": work.depth,
        "repeats": work.repeats(needed) if needed and turns > 1 else None,
        "waits": work.waits,
        "commits": work.commits,
        "exposed": work.exposed,
        "wavefronts": work.wavefronts,
        "passes": work.passes,
        "l2_bytes": work.l2_bytes,
        "bounds": bounds,
        "largest": cycles.largest(bounds),
        "bound_us": card.us(turns * cycles.bound(bounds)),
        "turn_cycles": turn,
        "spent": spent,
        "loop_us": card.us(turns * turn),
    }


def needed_of(launch: Launch) -> int | None:
    """Return the multiply-adds of a turn of the loop that the kernel's source names, None where it names none."""
    a = launch.args
    if "TILE" in a:
        return a["TILE"] ** 2 * a["BR"]
    return a["BM"] * a["H"] * a["BK"] if "BK" in a else None


def turns_of(launch: Launch, program: Sequence[Instruction]) -> dict[Loop, int]:
    """Return how often each loop runs: one with products as the source says, whose turns may be partly unrolled.

    A loop around it runs K times, and so does one that holds whole layers.
    """
    a, inner, needed = launch.args, _with_products(program), needed_of(launch)
    found = {x: a.get("K", 1) for x in loops(program) if any(x.holds(other) for other in inner)}
    layer = (-(-a["ROWS"] // a["BR"]) if "TILE" in a else a["H"] // a["BK"]) if needed else 1
    for loop in inner:
        # Warps that repeat a product do more than is needed, but less than twice as much.
        unrolled = Work.of(_body(program, loop), launch.warps).multiply_adds // needed if needed else 1
        found[loop] = a.get("K", 1) if unrolled > layer else layer // max(1, unrolled)
    return found


HEADS = (
    *("loop", "operands", "card", "warps x turns", "instructions a warp and turn", "chains of products", "repeats"),
    *("groups under way at waits", "wavefronts", "L2 KB", "cycles: tensor, shared, unit, L2, issue, chain, wait"),
    *("largest", "turn, cycles", "% of them: stalls, results, copies, units, barriers", "loop, us", "launch, us"),
)


def table(rows: Iterable[Row]) -> str:
    """Return a table of loops: cycles, wavefronts and bytes of a turn and block, us of all turns and of a launch."""
    return "\n".join(grid(HEADS, [_cells(row) for row in rows]))


def _counted(numbers: list[int]) -> str:
    """Return the numbers, largest first, each with how often it comes."""
    return ", ".join(f"{n} x {number}" for number, n in sorted(Counter(numbers).items(), reverse=True))


def _cells(row: Row) -> list[str]:
    kinds = ", ".join(f"{n} {name}" for name, n in sorted(row["kinds"].items(), key=lambda x: (x[0] == "other", x[0])))
    return [
        *(
            f"`{row['kernel']}` ({row['phase']}) {row['at']}",
            row["precision"],
            f"sm_{row['capability']}",
            f"{row['warps']} x {row['turns']}",
        ),
        *(kinds, _counted(row["chains"])),
        "-" if row["repeats"] is None else f"{row['repeats']:.2g}",
        f"{_counted(row['waits']) or 'no wait'} of {row['commits']} a turn",
        *(f"{row['wavefronts']:,}", f"{row['l2_bytes'] / 1024:.0f}"),
        ", ".join(f"{value:,.0f}" for value in row["bounds"].values()),
        *(row["largest"], f"{row['turn_cycles']:,.0f}"),
        ", ".join(f"{100 * value:.0f}" for value in row["spent"].values()),
        *(f"{row['loop_us']:.1f}", f"{row['launch_us']:.1f}"),
    ]
