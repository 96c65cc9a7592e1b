"""Compile a launch for a GPU that this machine lacks, and read its registers, spills, shared memory and instructions.

Works on any machine with Triton, but not in a process with TRITON_INTERPRET set, which interprets every kernel.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from gtp_kernels.launch import INTERPRETED, Launch

# Largest shared memory of a block in bytes, by compute capability. Triton checks it only at launch.
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
VERSION: str = triton.__version__
_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}


def compile_for(launch: Launch, capability: int) -> Any:
    """Compile a launch for sm_<capability> as Triton would specialise it; return Triton's compiled kernel."""
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not compiled; unset it")
    names = launch.kernel.arg_names
    params, args = launch.kernel.params, launch.args
    constants = {p.name: args[p.name] for p in params if p.is_constexpr or args[p.name] is None}
    signature = {name: "constexpr" if name in constants else _type(args[name]) for name in names}
    specialised = {p.name for p in params if not p.do_not_specialize} - constants.keys()
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in specialised if _aligned(args[name])}
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _aligned(value: object) -> bool:
    if isinstance(value, float):
        return False
    if isinstance(value, Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def resources(compiled: Any, capability: int) -> dict[str, Any]:
    """Return what a compiled kernel takes of a multiprocessor; if it uses the stack, assemble it again for the spills.

    registers: per thread. stack: bytes per thread. spilled: bytes stored and loaded per thread. shared: bytes per
    block. products: tensor-core instructions in a warp's program. fits: a card of this compute capability has the
    block's shared memory. Raises: RuntimeError if the assembler refuses the kernel.
    """
    products = len(re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", compiled.asm["ptx"]))
    registers, stack = _usage(compiled)
    spilled, shared = _spilled(compiled, capability) if stack else 0, compiled.metadata.shared
    found = {"registers": registers, "stack": stack, "spilled": spilled, "shared": shared, "products": products}
    return found | {"fits": shared <= SHARED_MEMORY[capability]}


def _usage(compiled: Any) -> tuple[int, int]:
    """Return the registers and the bytes of stack of a thread."""
    said = _told([_BINARIES / "cuobjdump", "--dump-resource-usage"], compiled.asm["cubin"])
    used = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    if not used:
        raise RuntimeError(f"cuobjdump names no registers: {said.stdout[-500:]}{said.stderr[-500:]}")
    return int(used[1]), int(used[2])


def room(found: dict[str, Any], warps: int, capability: int) -> int:
    """Return how many blocks a multiprocessor has room for, given `resources`; a warp gets registers by eights."""
    registers = -(-found["registers"] // 8) * 8 * 32 * warps
    # The driver keeps 1 KB of shared memory for each block, and a multiprocessor has 1 KB more than a block may take.
    shared = (SHARED_MEMORY[capability] + 1024) // (found["shared"] + 1024)
    return max(1, min(65_536 // registers, shared))


def disassembled(compiled: Any) -> str:
    """Return the machine code of a compiled kernel as text, each instruction with its encoding.

    Raises: RuntimeError if the tool that comes with Triton cannot read it.
    """
    said = _told([_BINARIES / "cuobjdump", "-sass"], compiled.asm["cubin"])
    if said.returncode or "Function :" not in said.stdout:
        raise RuntimeError(f"cuobjdump found no machine code: {said.stdout[-500:]}{said.stderr[-500:]}")
    return said.stdout


def _spilled(compiled: Any, capability: int) -> int:
    """Return the bytes that a thread spills, stores plus loads."""
    assembler = Path(get_ptxas(capability).path)  # Triton brings two and picks one by version and architecture
    architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    # From 3.7 on Triton passes this flag itself.
    newer = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7)
    flags = ["-v", f"--gpu-name={architecture}", "-o", "kernel.cubin", *["--regAllocOptLevel=2"] * newer]
    said = _told([assembler, *flags], compiled.asm["ptx"].encode())
    account = said.stderr + said.stdout
    memory = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", account)
    if said.returncode or not memory:
        raise RuntimeError(f"{assembler.name} could not assemble the kernel for {architecture}: {account[-500:]}")
    return int(memory[1]) + int(memory[2])


def _told(command: list[Any], kernel: bytes) -> subprocess.CompletedProcess[str]:
    """Run one of Triton's tools on a kernel, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel").write_bytes(kernel)
        return subprocess.run([*command, "kernel"], cwd=folder, capture_output=True, text=True, check=False)


def drops_nan(compiled: Any) -> list[str]:
    """Return the instructions that turn NaN into a number: float minima, maxima and saturation without `.NaN`."""
    codes = set(re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.]*)", compiled.asm["ptx"], re.MULTILINE))
    parts = {code: set(code.split(".")) for code in codes}
    return sorted(
        code
        for code, own in parts.items()
        if own & {"min", "max", "sat"} and own & {"f16", "f16x2", "bf16", "bf16x2", "f32", "f64"} and "NaN" not in own
    )


def warps_of_products(compiled: Any) -> list[tuple[int, ...]]:
    """Return for each product how many of a block's warps Triton laid along its rows and along its columns."""
    return [
        tuple(int(n) for n in found.split(","))
        for found in re.findall(r"#ttg\.nvidia_mma<\{[^}]*warpsPerCTA = \[([\d, ]+)\]", compiled.asm["ttgir"])
    ]
