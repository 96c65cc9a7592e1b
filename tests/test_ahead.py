"""Every kernel compiled for GPUs that are not here, within what their multiprocessors have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gtp_kernels import ahead
from gtp_kernels.launch import INTERPRETED

ROOT = Path(__file__).parent.parent
NETWORKS = {"gtp_actor", "gtp_chain", "gtp_heads", "gtp_critic"}
KERNELS = NETWORKS | {"gtp_gradients", "gtp_advantage", "gtp_update"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Compile the default configuration for every architecture, in a process where kernels are compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.resources", "--json", "--precision", "tf32"],
        cwd=ROOT, env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_kernel_compiles_for_every_architecture_without_spills(rows):
    found = {(row["kernel"], row["capability"]) for row in rows}
    assert found == {(kernel, capability) for kernel in KERNELS for capability in ahead.SHARED_MEMORY}
    assert [row for row in rows if row["spilled"] or row["stack"]] == []


@pytest.mark.slow
def test_every_block_finds_its_shared_memory_and_registers(rows):
    assert [row for row in rows if row["shared"] > ahead.SHARED_MEMORY[row["capability"]]] == []
    assert [row for row in rows if row["registers"] * 32 * row["warps"] > 65_536] == []


@pytest.mark.slow
def test_no_warp_repeats_the_work_of_another(rows):
    # Rows of a block are 16: warps that lie along them would all multiply the same.
    networks = [row for row in rows if row["kernel"] in NETWORKS]
    assert networks and all(row["products"] > 0 for row in networks)
    assert [row for row in networks if row["warps_of_products"] != [[1, row["warps"]]]] == []


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_an_interpreted_process_is_told_that_it_cannot_compile():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        ahead.compile_for(None, 90)  # pyright: ignore[reportArgumentType]
