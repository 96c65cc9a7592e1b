"""Reading machine code: snippets whose counts are known by hand, and one compiled kernel."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from bench import sass
from bench.sass import Control, Work
from bench.static import measured_apart

HMMA = "HMMA.1688.F32.TF32"


def code(*lines: str) -> str:
    """Return lines as cuobjdump prints them, 16 bytes each from address 0."""
    return "\n".join(f"        /*{16 * i:04x}*/                   {line} ;" for i, line in enumerate(lines))


def body(*lines: str) -> list[sass.Instruction]:
    return sass.parse(code(*lines))


# Two loads of 32 and 128 bits, a matrix of four, a copy of 128 bits, and one that never runs.
MEMORY = body(
    "LDS R4, [R2+UR16]",
    "LDS.128 R8, [R2+0x40]",
    "LDSM.16.M88.4 R112, [R3+UR9+0x30000]",
    "LDGSTS.E.BYPASS.128 [R163], desc[UR12][R106.64+0x100], !P1",
    "@!PT LDS RZ, [RZ]",
    "STS.64 [R0+UR9], R74",
    "SHFL.BFLY PT, R9, R8, 0x10, 0x1f",
)
# A sum of three products, two sums that the turn before left, and a product that needs the first sum by an addition.
PRODUCTS = body(
    "CS2R R20, SRZ",
    f"{HMMA} R20, R0, R4, R20",
    f"{HMMA} R20, R0, R6, R20",
    f"{HMMA} R40, R0.reuse, R4, R40",
    f"{HMMA} R24, R0, R8, R20",
    f"{HMMA} R44, R0, R6, R44",
    "FADD R30, R24, 1",
    f"{HMMA} R44, R30, R6, R44",
)


def test_an_instruction_has_its_guard_name_operands_and_control_bits():
    text = """
        /*cb00*/               @!P1 LDS R125, [R118+UR16+0xa00] ;       /* 0x000a0010767d7984 */
                                                                        /* 0x000e5e0008000800 */
        /*e070*/                   LDGSTS.E.BYPASS.128 [R163], desc[UR12][R106.64+0x100], !P1 ; /* 0x000001006aa37fae */
                                                                        /* 0x0005e2000c901c4c */
        /*cb10*/                   HMMA.1688.F32.TF32 R120, R104, R74, R120 ;   /* 0x0000004a6878723c */
                                                                        /* 0x008fe20000081078 */
"""
    load, copy, product = sass.parse(text)
    assert (load.at, load.guard, load.name, load.operands) == (0xCB00, "@!P1", "LDS", ("R125", "[R118+UR16+0xa00]"))
    assert load.control == Control(stall=15, written=1)
    assert copy.control == Control(stall=1, read=2)
    assert product.control == Control(stall=1, awaited=0b1000)


def test_padding_that_never_runs_is_left_out():
    assert [x.base for x in MEMORY] == ["LDS", "LDS", "LDSM", "LDGSTS", "STS", "SHFL"]


@pytest.mark.parametrize(
    ("line", "kind", "passes"),
    [
        ("LDS R4, [R2]", "LDS.32", 1),
        ("LDS.64 R4, [R2]", "LDS.64", 2),
        ("LDSM.16.MT88.2 R4, [R2]", "LDSM.x2", 2),
        ("LDSM.16.M88 R4, [R2]", "LDSM.x1", 1),
        ("STSM.16.M88.4 [R2], R4", "STSM.x4", 4),
        ("LDGSTS.E.BYPASS.LTC128B.128 [R2], [R4.64]", "LDGSTS.128", 4),
        ("LDG.E.64 R4, desc[UR4][R2.64]", "LDG.64", 2),
        ("LDL R4, [R1]", "LDL.32", 1),
        ("MUFU.EX2 R4, R2", "MUFU", 0),
        ("LDGDEPBAR", "commit", 0),
        ("DEPBAR.LE SB0, 0x3", "wait", 0),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", "HMMA.16816.F32.BF16", 0),
        ("HGMMA.64x32x8.F32.TF32 R24, gdesc[UR4], R24", "HGMMA.64x32x8.F32.TF32", 0),
        ("UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], UP0", "UTCHMMA", 0),
        ("FADD R4, R5, R6", "other", 0),
    ],
)
def test_instructions_are_counted_by_class_and_width(line, kind, passes):
    (x,) = body(line)
    assert (x.kind, x.passes) == (kind, passes)


def test_only_loops_without_a_loop_in_them_are_innermost():
    program = body("NOP", "NOP", "FADD R1, R1, R1", "@!P0 BRA 0x20", "NOP", "@P1 BRA 0x10", "EXIT", "BRA 0x70")
    assert sass.loops(program) == [(2, 3), (1, 5)]
    assert sass.innermost(program) == [(2, 3)]


def test_a_warp_runs_a_loop_within_a_loop_as_often_as_is_said_and_takes_free_branches():
    program = body("BRA 0x20", "NOP", "FADD R1, R1, R1", "@!P0 BRA 0x20", "@P1 BRA 0x20", "@P2 EXIT", "EXIT", "NOP")
    inner, outer = sass.loops(program)
    run = sass.stream(program, {inner: 3, outer: 2})
    assert [x.at // 16 for x in run] == [0, *[2, 3] * 3, 4, *[2, 3] * 3, 4, 5, 6]


def test_each_sum_is_a_chain_of_products():
    assert sass.chains(PRODUCTS) == [3, 1, 2]


def test_the_longest_chain_follows_registers_through_other_instructions():
    assert sass.depth(PRODUCTS) == 4  # three products of the first sum, and one that takes it as an operand
    assert sass.depth(body(f"{HMMA} R20, R0, R4, R20", "LDS R4, [R20]", f"{HMMA} R40, R4, R6, R40")) == 1


def test_wavefronts_passes_and_bytes_of_a_turn():
    work = Work.of(MEMORY, 8)
    assert work.kinds == {"LDS.32": 1, "LDS.128": 1, "LDSM.x4": 1, "LDGSTS.128": 1, "STS.64": 1, "SHFL": 1}
    assert work.wavefronts == 8 * (1 + 4 + 4 + 4 + 2)
    assert work.passes == work.wavefronts + 8 * (4 + 1)  # the copy's data, and the shuffle
    assert work.l2_bytes == 8 * 32 * 16


@pytest.mark.parametrize(("wait", "exposed"), [("0x0", True), ("0x1", False)])
def test_a_wait_says_how_many_groups_are_still_under_way(wait, exposed):
    work = Work.of(body(f"DEPBAR.LE SB0, {wait}", "LDGDEPBAR", "LDGDEPBAR"), 4)
    assert (work.waits, work.commits, work.exposed) == ([int(wait, 16)], 2, exposed)


def test_warps_that_repeat_a_product_are_found():
    work = Work.of(PRODUCTS, 8)
    assert work.products == 6
    assert work.repeats(6 * 4 * 16 * 8 * 8) == 2.0  # needed: what four of the eight warps do


def test_a_row_names_the_loop_and_what_it_costs():
    program = code("LDGDEPBAR", *["NOP"] * 2, f"{HMMA} R20, R0, R4, R20", "@!P0 BRA 0x10", "EXIT")
    args = {"BM": 16, "H": 64, "BK": 32, "K": 2}
    launch = SimpleNamespace(name="gtp_chain", phase="chain", grid=(4,), warps=4, stages=2, args=args)
    (row,) = sass.rows_of(program, launch, 90)  # pyright: ignore[reportArgumentType]
    assert (row["at"], row["turns"], row["instructions"], row["chains"]) == ("0x10", 2, 4, [1])
    assert row["repeats"] == pytest.approx(4 * 1024 / (16 * 64 * 32))
    assert "`gtp_chain` (chain) 0x10" in sass.table([row | {"precision": "tf32", "capability": 90}])


def test_a_kernel_without_loops_has_a_row_of_all_that_it_runs():
    program = code("DEPBAR.LE SB0, 0x2", f"{HMMA} R20, R0, R4, R20", "DEPBAR.LE SB0, 0x2", "EXIT")
    args = {"BM": 16, "H": 64, "BK": 32}
    launch = SimpleNamespace(name="gtp_heads", phase="critic", grid=(4,), warps=8, stages=3, args=args)
    (row,) = sass.rows_of(program, launch, 90)  # pyright: ignore[reportArgumentType]
    assert (row["turns"], row["instructions"], row["waits"], row["repeats"]) == (1, 4, [2, 2], None)
    assert row["launch_us"] == row["loop_us"] > 0


@pytest.mark.parametrize(("blocks", "room", "begun"), [(132, 2, 1), (264, 2, 3), (264, 1, 1)])
def test_a_launch_takes_what_its_fullest_multiprocessor_takes(blocks, room, begun):
    product = f"{HMMA} R20, R0, R4, R20"
    launch = SimpleNamespace(name="gtp_heads", phase="critic", grid=(blocks,), warps=4, stages=3, args={"BM": 16})
    us = sass.launch_us(code(product, product, "EXIT"), launch, 90, room)  # pyright: ignore[reportArgumentType]
    # Before a scheduler's last product begins, `begun` others have, each of 1,024 multiply-adds; then the exit.
    alone = begun * 1024 / (0.63 * 1024 / 4) + 1
    assert us == pytest.approx((2 if room == 1 else 1) * alone / 1.98e3)


def test_a_launch_without_products_is_not_simulated():
    launch = SimpleNamespace(name="gtp_update", phase="critic", grid=(4,), warps=4, stages=3, args={})
    assert sass.launch_us(code("NOP", "EXIT"), launch, 90) is None  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def hidden_layer(request) -> dict[str, Any]:
    """Compile the heads for an architecture."""
    rows = measured_apart(["tf32"], [request.param], 1, ["gtp_heads"], by="measure_loops")
    (row,) = (row for row in rows if row["phase"] == "critic")
    return row


@pytest.mark.long
@pytest.mark.parametrize("hidden_layer", [80, 90], indirect=True)
def test_a_turn_of_a_hidden_layer_waits_with_the_next_turns_copies_under_way(hidden_layer):
    waits = Counter(hidden_layer["waits"])
    # A turn commits two groups, of its input and of its weight. Only behind a layer is nothing under way.
    assert waits[2] >= 2 and set(waits) <= {0, 2} and waits[0] <= 2


@pytest.mark.long
@pytest.mark.parametrize("hidden_layer", [90], indirect=True)
def test_eight_warps_add_up_four_products_side_by_side(hidden_layer):
    # Each has 32 of the 256 columns. Nothing is computed twice: two layers, and 48 rows of the first layer's input.
    needed = 16 * 256 * (2 * 256 + 2 * 32)
    assert hidden_layer["warps"] == 8
    assert hidden_layer["turns"] * hidden_layer["products"] * 8 * 16 * 8 * 8 == needed
