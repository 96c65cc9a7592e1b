"""Every kernel, compiled without a GPU for each architecture: it compiles, fits, spills little and keeps NaN."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gtp_kernels import aot
from gtp_kernels.launch import INTERPRETED
from places import ROOT

from bench.static import OLDEST, measured_apart

NETWORKS = {"gtp_teacher", "gtp_actor", "gtp_chain", "gtp_heads", "gtp_critic_forward", "gtp_critic_backward"}
KERNELS = NETWORKS | {"gtp_gradients", "gtp_advantage", "gtp_update", "gtp_record", "gtp_choose"}
ORDERED = {"minimum", "maximum", "clamp", "min", "max", "argmin", "argmax", "sort", "topk"}
TOLD = "propagate_nan=tl.PropagateNan.ALL"
EVERY = tuple(aot.SHARED_MEMORY)  # architecture
LAID = pytest.mark.skipif(not OLDEST.is_dir(), reason=f"no {OLDEST.name}; make lays it there")
INSTALLED, OLD = pytest.param(None, id="installed"), pytest.param(OLDEST, id="oldest", marks=LAID)
# Triton, operands and architectures. The first is quick enough for `make test`.
COMPILED = [
    pytest.param(None, "tf32", (90,), id="tf32-sm90", marks=pytest.mark.slow),
    pytest.param(None, "tf32", EVERY, id="tf32", marks=pytest.mark.long),
    pytest.param(None, "bf16", EVERY, id="bf16", marks=pytest.mark.long),
    pytest.param(OLDEST, "tf32", EVERY, id="oldest-tf32", marks=[pytest.mark.long, LAID]),
    pytest.param(OLDEST, "bf16", EVERY, id="oldest-bf16", marks=[pytest.mark.long, LAID]),
]
# Spilled bytes a thread, stores and loads together, by Triton, operands, kernel and architecture: of a step, of 8 seeds
# and of the launches that act. Everything else in TF32 and bf16 spills nothing.
SPILLS = {
    ("3.6", "tf32"): {("gtp_chain", 100): 8},
    ("3.6", "fp32"): {("gtp_chain", 90): 32},
    ("3.7", "tf32"): {("gtp_act", 90): 16, ("gtp_chain", 100): 16}
    | {("gtp_heads", 80): 8, ("gtp_heads", 86): 8, ("gtp_heads", 89): 8},
    ("3.7", "bf16"): {("gtp_chain", 90): 8, ("gtp_critic_forward", 90): 8},
    ("3.7", "fp32"): {("gtp_act", 90): 16},
}
# argmax compares floats and has no option for NaN; `gtp_choose` gives it none. The other minimum is of integers.
COMPARES = {("chain.py", "argmax"), ("draws.py", "minimum")}


@cache
def default(triton: Path | None, precision: str, capabilities: tuple[int, ...]) -> list[dict[str, Any]]:
    """Compile the default configuration."""
    rows = measured_apart([precision], capabilities, triton=triton)
    found = {(row["kernel"], row["capability"]) for row in rows}
    assert found == {(kernel, capability) for kernel in KERNELS for capability in capabilities}
    return rows


compiled = pytest.mark.parametrize(("triton", "precision", "capabilities"), COMPILED)


def beyond(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that spill more than SPILLS allows."""

    def bound(row: dict[str, Any]) -> int:
        known = SPILLS.get((row["triton"][:3], row["precision"]), {})
        return known.get((row["kernel"], row["capability"]), 0)

    return [row for row in rows if row["spilled"] > bound(row) or (row["stack"] and not bound(row))]


@compiled
def test_every_kernel_compiles_and_spills_no_more_than_is_known(triton, precision, capabilities):
    assert beyond(default(triton, precision, capabilities)) == []


# Exact float32 has no tensor cores and keeps more in registers, so three kernels spill, and to assemble them takes a
# minute.
@pytest.mark.long
def test_every_kernel_compiles_in_exact_float32():
    rows = default(None, "fp32", (80,))
    assert {row["kernel"] for row in beyond(rows)} == {"gtp_teacher", "gtp_actor", "gtp_gradients"}
    assert [row for row in rows if row["drops_nan"] or not row["fits"]] == []


@pytest.mark.long
@pytest.mark.parametrize("triton", [INSTALLED, OLD])
def test_every_launch_that_acts_compiles(triton):
    rows = measured_apart(["tf32", "bf16", "fp32"], [90], 2, "acting", triton=triton)
    assert {row["kernel"] for row in rows} == {"gtp_act", "gtp_chain", "gtp_heads", "gtp_choose"}
    assert beyond(rows) == [] and [row for row in rows if row["drops_nan"] or not row["fits"]] == []


@compiled
def test_no_instruction_makes_a_number_of_nan(triton, precision, capabilities):
    rows = default(triton, precision, capabilities)
    assert {(row["kernel"], *row["drops_nan"]) for row in rows if row["drops_nan"]} == set()


def test_every_minimum_and_maximum_is_told_to_pass_nan_on():
    # Reads the source, because the default configuration does not compile every branch.
    found = [(path.name, call) for path in (ROOT / "kernels" / "gtp_kernels").glob("*.py") for call in _compiled(path)]
    plain = [(file, call) for file, call in found if TOLD not in map(ast.unparse, call.keywords)]
    called = {(file, ast.unparse(call.func).split(".")[-1]) for file, call in plain}
    assert {(file, name) for file, name in called if name in ORDERED} == COMPARES


def _compiled(path: Path) -> list[ast.Call]:
    """Return every call in a file's kernels."""
    tree = ast.parse(path.read_text())
    kernels = [
        f for f in tree.body
        if isinstance(f, ast.FunctionDef) and any("triton.jit" in ast.unparse(mark) for mark in f.decorator_list)
    ]  # fmt: skip
    return [call for kernel in kernels for call in ast.walk(kernel) if isinstance(call, ast.Call)]


@compiled
def test_every_block_finds_its_shared_memory_and_registers(triton, precision, capabilities):
    rows = default(triton, precision, capabilities)
    assert [row for row in rows if row["shared"] > aot.SHARED_MEMORY[row["capability"]]] == []
    assert [row for row in rows if row["registers"] * 32 * row["warps"] > 65_536] == []


@compiled
def test_no_warp_repeats_the_work_of_another(triton, precision, capabilities):
    # A block has 16 rows. Warps laid along the rows would all compute the same product.
    rows = default(triton, precision, capabilities)
    networks = [row for row in rows if row["kernel"] in NETWORKS]
    assert networks and all(row["products"] > 0 for row in networks)
    assert [row for row in networks if row["warps_of_products"] != [[1, row["warps"]]]] == []


@pytest.mark.long
def test_tiles_of_twice_as_many_rows_keep_the_order_of_a_rows_sums():
    # With 8 seeds a block of the critic has 32 rows. A warp has the same columns of them as of 16, so the same bits.
    rows = measured_apart(["tf32"], [90], 2, "seeds")
    critic = [row for row in rows if row["kernel"] in ("gtp_heads", "gtp_critic_forward", "gtp_critic_backward")]
    assert [row["grid"] for row in critic] == [[8, 2, 8]] * 3 + [[16, 2, 8]]
    assert all(row["warps_of_products"] == [[1, row["warps"]]] for row in critic) and beyond(rows) == []


@pytest.mark.long
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("triton", [INSTALLED, OLD])
def test_every_kernel_of_eight_seeds_compiles_for_every_architecture(triton, precision):
    rows = measured_apart([precision], EVERY, 2, "seeds", triton=triton)
    assert beyond(rows) == [] and [row for row in rows if not row["fits"]] == []


@pytest.mark.long
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp32"])
@pytest.mark.parametrize("triton", [INSTALLED, OLD])
def test_the_largest_width_finds_its_shared_memory_on_every_card(triton, precision):
    rows = measured_apart([precision], EVERY, 2, "wide", triton=triton)
    assert rows and [row for row in rows if not row["fits"]] == []


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_an_interpreted_process_is_told_that_it_cannot_compile():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        aot.compile_for(None, 90)  # pyright: ignore[reportArgumentType]
