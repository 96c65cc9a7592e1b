"""Compile a launch for a GPU that is not there, and read what it will take: registers, spills, shared memory, barriers.

Works on any machine with Triton, through the compiler's own front door; not in a process with TRITON_INTERPRET set,
where kernels are no longer compiled at all.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gtp_kernels.launch import INTERPRETED, Launch

# Shared memory that a block may take, bytes, by compute capability; Triton checks it only when it launches.
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes of a multiprocessor.

    registers a thread; stack bytes a thread; spilled bytes stored and loaded a thread; shared bytes a block; products:
    tensor-core instructions a warp issues in the program text.
    """

    registers: int
    stack: int
    spilled: int
    shared: int
    products: int

    def fits(self, capability: int) -> bool:
        """Say whether a block finds its shared memory on such a card."""
        return self.shared <= SHARED_MEMORY[capability]


def compile_for(launch: Launch, capability: int) -> Any:
    """Compile the exact specialisation of a launch for sm_<capability>; return Triton's compiled kernel."""
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it")
    names = launch.kernel.arg_names
    constants = {p.name: launch.args[p.name] for p in launch.kernel.params if p.is_constexpr}
    signature = {name: "constexpr" if name in constants else _type(launch.args[name]) for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]] for name in names if _aligned(name, launch.args, constants)
    }
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _aligned(name: str, args: dict[str, Any], constants: dict[str, Any]) -> bool:
    value = args[name]
    if name in constants or isinstance(value, float):
        return False
    if isinstance(value, Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return value % 16 == 0


def resources(compiled: Any, capability: int) -> Resources:
    """Assemble a compiled kernel once more, verbosely, and read the assembler's account.

    Raises: RuntimeError where the assembler refuses the kernel.
    """
    assembler = _BINARIES / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    # Triton passes this flag itself from 3.7 on.
    newer = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "kernel.ptx")
        text.write_text(compiled.asm["ptx"])
        command = [assembler, "-v", f"--gpu-name={architecture}", *["--regAllocOptLevel=2"] * newer]
        done = subprocess.run(
            [*command, text, "-o", Path(folder, "kernel.cubin")], capture_output=True, text=True, check=False
        )
    account = done.stderr + done.stdout
    used = re.search(r"Used (\d+) registers", account)
    memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", account)
    if done.returncode or not (used and memory):
        raise RuntimeError(f"{assembler.name} could not assemble the kernel for {architecture}: {account[-500:]}")
    products = len(re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", compiled.asm["ptx"]))
    stack, stored, loaded = (int(memory[i]) for i in (1, 2, 3))
    return Resources(int(used[1]), stack, stored + loaded, compiled.metadata.shared, products)


def warps_of_products(compiled: Any) -> list[tuple[int, ...]]:
    """Return how the warps of a block lie over each product's rows and columns, as Triton chose."""
    return [
        tuple(int(n) for n in found.split(","))
        for found in re.findall(r"#ttg\.nvidia_mma<\{[^}]*warpsPerCTA = \[([\d, ]+)\]", compiled.asm["ttgir"])
    ]
