"""The model of a multiprocessor: bounds and runs that were computed by hand."""

from __future__ import annotations

import pytest

from bench import cycles
from bench.sass import Control, Instruction, Work

CARD = cycles.Card(2.0, 10, {"TF32": 512.0, "BF16": 1024.0}, l2_latency=200)
HMMA = "HMMA.1688.F32.TF32"
COPY = Instruction(0, "LDGSTS.E.BYPASS.128")
COMMIT, BARRIER = Instruction(0, "LDGDEPBAR"), Instruction(0, "BAR.SYNC")
END = Instruction(0, "EXIT")


def wait(groups: int) -> Instruction:
    return Instruction(0, "DEPBAR.LE", ("SB0", hex(groups)))


def ended(*program: Instruction, warps: int = 1, blocks: int = 1) -> float:
    """Return when the last warp issues the program's last instruction."""
    return cycles.simulated(program, warps, CARD, blocks).ends[-1]


@pytest.mark.parametrize(
    ("name", "count"),
    [(HMMA, 1024), ("HMMA.16816.F32.BF16", 2048), ("HGMMA.64x32x8.F32.TF32", 4096), ("UTCHMMA", 0)],
)
def test_a_products_name_says_its_multiply_adds(name, count):
    assert cycles.multiply_adds(name) == count


def test_bounds_are_what_each_part_is_busy():
    work = Work(
        warps=8, instructions=100, kinds={HMMA: 24, "other": 76}, products=24, chains=[16, 8], depth=16, waits=[0],
        commits=1, wavefronts=700, passes=900, l2_bytes=6400,
    )  # fmt: skip
    found = cycles.bounds(work, CARD)
    # A scheduler has two warps and a quarter of 512 multiply-adds a cycle: 2 * 24 * 1024 / 128.
    names = ("tensor", "shared", "unit", "l2", "issue", "chain", "exposed")
    assert found == dict(zip(names, (384, 700, 900, 100, 200, 16 * 24, 300), strict=True))
    assert cycles.largest(found) == "unit" and cycles.bound(found) == 1200


def test_a_warp_keeps_to_the_stalls():
    add = Instruction(0, "FADD", control=Control(stall=4))
    assert ended(add, add, add, END) == 12


def test_a_warp_waits_for_a_load_by_its_barrier():
    load = Instruction(0, "LDS.128", control=Control(written=2))
    assert ended(load, Instruction(0, "FADD", control=Control(awaited=0b001)), END) == 2
    # Four passes, and 29 cycles from the last.
    assert ended(load, Instruction(0, "FADD", control=Control(awaited=0b100))) == 4 - 1 + cycles.SHARED_LATENCY


def test_loads_of_all_warps_pass_through_one_unit():
    load = Instruction(0, "LDS.128", control=Control(written=2))
    use = Instruction(0, "FADD", control=Control(awaited=0b100))
    assert ended(load, use, warps=4) == 4 * 4 - 1 + cycles.SHARED_LATENCY


def test_a_wait_with_nothing_under_way_takes_the_copy_and_the_latency():
    # Four passes of addresses, then 512 bytes at 64 a cycle, then L2.
    assert ended(COPY, COMMIT, wait(0)) == 4 + 512 / CARD.l2_bytes + 200


def test_a_wait_lets_the_newest_groups_be_under_way():
    load = Instruction(0, "FADD", control=Control(stall=300))
    assert ended(COPY, COMMIT, load, COPY, COMMIT, wait(1)) == 1 + 1 + 300 + 1 + 1
    assert ended(COPY, COMMIT, load, COPY, COMMIT, wait(0)) > 500


def test_a_scheduler_runs_one_product_at_a_time_and_others_their_own():
    product = Instruction(0, HMMA)
    assert ended(product, product, warps=4) == 1024 / 128
    assert ended(product, product, warps=8) == 3 * 1024 / 128


def test_a_barrier_lets_warps_go_when_the_last_of_their_block_has_come():
    slow = Instruction(0, "MUFU.EX2")  # a scheduler begins one in eight cycles
    assert ended(slow, BARRIER, END, warps=4) == 1 + cycles.BARRIER_LATENCY
    assert ended(slow, BARRIER, END, warps=8) == 8 + 1 + cycles.BARRIER_LATENCY + 1  # two warps a scheduler
    # Two blocks wait each for its own; the second block's warps are those that came later.
    ends = cycles.simulated([slow, BARRIER, END], 4, CARD, blocks=2)
    assert ends.ends == [8 + 1 + cycles.BARRIER_LATENCY] and ends.spent["barriers"] == 8 * cycles.BARRIER_LATENCY


def test_what_warps_spend_their_cycles_on_adds_up_to_the_run():
    load = Instruction(0, "LDS", control=Control(written=2))
    use = Instruction(0, "FADD", control=Control(stall=5, awaited=0b100))
    run = cycles.simulated([load, use, END], 1, CARD)
    assert run.spent == {"stalls": 1 + 5 + 1, "results": 28, "copies": 0, "units": 0, "barriers": 0}
    assert sum(run.spent.values()) == run.ends[-1] + 1


def test_a_card_full_of_blocks_shares_its_l2():
    card = cycles.Card(1.0, 100, {}, l2_bytes=64, l2_bytes_of_card=3200)
    assert [card.with_blocks(n).l2_bytes for n in (1, 50, 80, 500)] == [64, 64, 40, 32]


def test_a_turn_is_counted_once_the_loop_runs_evenly():
    add = Instruction(0, "FADD", control=Control(stall=7))
    turn, spent = cycles.turn([add, add], 4, CARD)
    assert turn == 14 and spent["stalls"] == 1.0


def test_blocks_beyond_a_multiprocessors_room_run_after_the_others():
    add = [Instruction(0, "FADD", control=Control(stall=10))] * 2
    assert cycles.launched(add, 4, blocks=10, room=2, card=CARD) == 10
    assert cycles.launched(add, 4, blocks=30, room=2, card=CARD) == 2 * (10 + 1)  # two blocks share four schedulers
    assert CARD.us(2000) == 1.0
