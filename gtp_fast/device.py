"""Device and backend: which ones `auto` stands for on this machine, why, and what the others lack.

Settings enter; resolved settings and a sentence leave. `prepare` sets the process's threads and precision. `cores`,
`memory_bytes` and `free_memory` say what this process may use of the machine: a container's limits count, which the
machine's own figures do not show. Functions import torch when they need it, so that the command line starts quickly.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import resource
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from gtp_fast.config import TrainConfig, not_fused
from gtp_fast.errors import UsageError

# A cold compilation costs about 40 s and saves about 8 ms per step on one core (Zen 5, 2026-11-21): it pays from 5,000
# steps on; at 20,000 the whole run is a quarter faster.
COMPILE_FROM_STEPS = 20_000
# Steps of a graph with --unroll 0. At its end all launches of the fused step wait for the last: 20 steps 96.3 us each,
# 60 and 100 93.8 (H200, 2026-11-27). Graphs of the others hold some thousand kernels a step.
UNROLL = {"fused": 100, "compiled": 20, "eager": 20}
COMPILERS = 32  # processes of torch.compile, at most: its own figure
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
FLOAT32_PRODUCT = 1e-6  # bound on a float32 product's error relative to its terms; bfloat16's error is 4e-3
SMALLEST_HIDDEN, LARGEST_HIDDEN, LARGEST_K = 32, 512, 16  # limits of the fused kernels


def check(cfg: TrainConfig, images: bool = False) -> None:
    """Refuse a device or a backend that this machine lacks or that cannot run these settings.

    Args: images, whether observations are images: the fused step has no image encoder.
    Raises: UsageError naming what it needs.
    """
    device = available(cfg)
    lacking = _lacking(cfg, device, images).get(cfg.backend)
    if lacking:
        raise UsageError(f"--backend {cfg.backend} needs {lacking}; or pass --backend eager")
    if cfg.backend != "auto":
        _precision(cfg, device, cfg.backend)


def resolve(cfg: TrainConfig, images: bool = False) -> tuple[TrainConfig, str]:
    """Replace `auto` by a device and a backend; return the settings and the choice with its reason, in words.

    Args and Raises: as `check`.
    """
    check(cfg, images)
    device = available(cfg)
    backend, why = cfg.backend, "as set"
    if backend == "auto":
        backend, why = _choose_backend(cfg, device, _lacking(cfg, device, images))
    resolved = replace(
        cfg,
        device=device,
        backend=backend,
        precision=_precision(cfg, device, backend),
        threads=cfg.threads or cores(),
        graph=cfg.graph and device == "cuda",
        unroll=cfg.unroll or UNROLL[backend],
    )
    return resolved, f"{device}, backend {backend} ({why})"


def available(cfg: TrainConfig) -> Literal["cpu", "cuda"]:
    """Return the device that --device stands for. Raises: UsageError for cuda without a GPU."""
    import torch

    cuda = torch.cuda.is_available()
    if cfg.device == "cuda" and not cuda:
        raise UsageError(
            f"--device cuda: torch {torch.__version__} sees no NVIDIA GPU; run gtp-fast doctor to see why, or pass "
            "--device cpu"
        )
    return ("cuda" if cuda else "cpu") if cfg.device == "auto" else cfg.device


def _lacking(cfg: TrainConfig, device: str, images: bool) -> dict[str, str | None]:
    """Return what each backend needs and does not have, in words, or None."""
    no_encoder = "vector observations: its kernels have no image encoder"
    fused = no_encoder if images else missing_for_fused(cfg, device)
    return {"compiled": missing_for_compile(device), "fused": fused}


def _precision(cfg: TrainConfig, device: str, backend: str) -> Literal["fp32", "tf32", "bf16"]:
    if cfg.precision == "auto":
        return "tf32" if device == "cuda" else "fp32"
    if cfg.precision == "bf16" and backend != "fused":
        raise UsageError(f"--precision bf16 needs --backend fused, not {backend}; pass --precision tf32 or fp32")
    if cfg.precision == "tf32" and device == "cpu" and backend != "fused":
        raise UsageError("--precision tf32 needs a GPU; pass --precision fp32 on the CPU")
    return cfg.precision


def _choose_backend(
    cfg: TrainConfig, device: str, lacking: dict[str, str | None]
) -> tuple[Literal["eager", "compiled", "fused"], str]:
    if device == "cuda" and not lacking["fused"]:
        return "fused", "the fastest here"
    if lacking["compiled"]:
        return "eager", f"compiled needs {lacking['compiled']}"
    if device == "cpu" and cfg.steps < COMPILE_FROM_STEPS:
        return "eager", f"compiling pays from {COMPILE_FROM_STEPS:,} steps on"
    return "compiled", f"fused needs {lacking['fused']}" if device == "cuda" else "the fastest here"


def missing_for_fused(cfg: TrainConfig, device: str) -> str | None:
    """Return what the fused step needs and this machine or these settings lack, in words, or None."""
    if cfg.algo != "gtp":
        return f"--algo gtp: the step of {cfg.algo} is not fused"
    if lacking := not_fused(cfg):
        return lacking
    if cfg.buffer == "host":
        return "--buffer device: its kernels read the rows in the GPU's memory"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        return "a GPU (TRITON_INTERPRET=1 interprets its kernels on the CPU, slowly)"
    return missing_for_kernels(cfg.hidden, cfg.sampling_steps)


def missing_for_kernels(hidden: int, sampling_steps: int) -> str | None:
    """Return what the kernels lack for this width and number of sampling steps, in words, or None."""
    if not importlib.util.find_spec("triton"):
        return "the package triton (pip install 'gtp-fast[gpu]')"
    if hidden & (hidden - 1) or not SMALLEST_HIDDEN <= hidden <= LARGEST_HIDDEN:
        return f"--hidden a power of two from {SMALLEST_HIDDEN} to {LARGEST_HIDDEN}, not {hidden}"
    if sampling_steps > LARGEST_K:
        return f"--sampling-steps of at most {LARGEST_K}, not {sampling_steps}"
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"a GPU of compute capability 8.0 or newer, not {major}.{minor}"


def missing_for_compile(device: str) -> str | None:
    """Return what torch.compile lacks on this machine, in words, or None."""
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    if not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        return "a C++ compiler (g++)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's header files (python3-dev)"
    return None


PROC = Path("/proc")
UNLIMITED_BYTES = 1 << 60  # version 1 of control groups writes a number near 2^63 for no limit


def cores(proc: Path = PROC) -> int:
    """Return how many cores this process may use: those it may run on, at most its control groups' quota."""
    quotas = [math.ceil(quota) for quota, _ in _quotas(proc)]
    return max(1, min([affine_cores(), *quotas]))


def affine_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(proc: Path = PROC) -> int:
    """Return the bytes of memory that this process may have: the machine's, at most what its limits allow."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([whole, *(limit for limit, _, _ in _memory_limits(proc))])


def free_memory(proc: Path = PROC) -> int | None:
    """Return the bytes that this process may still take; None where the system does not tell them."""
    available = [int(line.split()[1]) * 1024 for line in _lines(proc / "meminfo") if line.startswith("MemAvailable")]
    found = [*available, *(max(0, limit - used) for limit, used, _ in _memory_limits(proc))]
    return min(found, default=None)


def limits(proc: Path = PROC) -> list[str]:
    """Return every limit of this process's cores and memory that is not the machine's own, in words."""
    found = [f"{quota:g} cores by {place}" for quota, place in _quotas(proc)]
    found += [f"{limit / 1e9:.1f} GB, {used / 1e9:.1f} used, by {place}" for limit, used, place in _memory_limits(proc)]
    own, there = affine_cores(), os.cpu_count() or 1
    return [f"{own} of {there} cores by affinity", *found] if own < there else found


def _quotas(proc: Path) -> Iterator[tuple[float, str]]:
    """Yield the quota of cores of each control group that has one, and where it is set."""
    for folder, newer in _groups("cpu", proc):
        names = ("cpu.max",) if newer else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = " ".join(line for name in names for line in _lines(folder / name)).split()
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):  # "max" and -1: no limit
            yield int(words[0]) / int(words[1]), str(folder)


def _memory_limits(proc: Path) -> Iterator[tuple[int, int, str]]:
    """Yield limit and use in bytes of each control group that limits memory, and of the address space; and where.

    Pages of files that were not used lately are free: the kernel drops them first.
    """
    for folder, newer in _groups("memory", proc):
        names = ("memory.max", "memory.high") if newer else ("memory.limit_in_bytes",)
        found = [number for name in names for number in _numbers(folder / name) if number < UNLIMITED_BYTES]
        if found:
            used = sum(_numbers(folder / ("memory.current" if newer else "memory.usage_in_bytes")))
            used -= sum(_numbers(folder / "memory.stat", "inactive_file" if newer else "total_inactive_file"))
            yield min(found), max(0, used), str(folder)
    space, taken = resource.getrlimit(resource.RLIMIT_AS)[0], _lines(proc / "self/statm")
    if space != resource.RLIM_INFINITY and taken:
        yield space, int(taken[0].split()[0]) * os.sysconf("SC_PAGE_SIZE"), "ulimit -v"


def _groups(controller: str, proc: Path) -> Iterator[tuple[Path, bool]]:
    """Yield this process's control groups, each with those around it, and whether they are of version 2.

    A container sees its own group, or all of the machine's, at the place where the group file system is mounted.
    """
    of = {
        name: path
        for line in _lines(proc / "self/cgroup")
        for _, names, path in [line.split(":", 2)]
        for name in names.split(",")
    }
    for line in _lines(proc / "self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        name = "" if kind == "cgroup2" else controller
        if name not in of or not (kind == "cgroup2" or (kind == "cgroup" and controller in options.split(","))):
            continue
        root, mount = before.split(" ")[3:5]
        inside = Path(of[name])
        steps = inside.relative_to(root).parts if inside.is_relative_to(root) and ".." not in inside.parts else ()
        for depth in range(len(steps), -1, -1):
            yield Path(mount, *steps[:depth]), kind == "cgroup2"


def _numbers(file: Path, key: str = "") -> list[int]:
    """Return the number in a file of the kernel, or in its line `key NUMBER`; nothing where there is none."""
    words = [line.split() for line in _lines(file)]
    return [int(row[-1]) for row in words if row[:-1] == ([key] if key else []) and row[-1].isdecimal()]


def _lines(file: Path) -> list[str]:
    """Return the lines of a file of the kernel; none where it is absent."""
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []


def prepare(cfg: TrainConfig) -> None:
    """Set the globals of a training process: threads, the precision of products, and what speeds up a CPU."""
    import torch

    # torch counts the cores that it may run on: in a container it would start as many compilers as the machine has.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(COMPILERS, cores())))
    torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision("high" if cfg.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.precision == "tf32"  # for convolutions
    if cfg.device == "cpu" and cfg.precision == "fp32":
        quicken_cpu()


def quicken_cpu() -> None:
    """Speed torch up on processors where it is slow by default; results change by rounding at most."""
    if sys.platform == "linux":
        keep_freed_memory()
    if processor().startswith("AMD"):
        make_products_by_onednn()


def make_products_by_onednn() -> bool:
    """Let oneDNN compute float32 products instead of MKL, which uses a slow path on AMD's processors.

    In torch this is "medium" precision, which allows bfloat16 but does not require it: without matrix tiles (AMX)
    oneDNN computes in float32, 256^3 in 0.16 ms where MKL takes 0.34 (Zen 5, 2026-11-21). It is chosen only where
    products of a step's shapes keep float32's accuracy. The choice is the same in every run on a machine, which a
    resumed run needs. Returns whether it was chosen.
    """
    import torch

    has = [getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)() for feature in ("avx512", "amx_tile")]
    torch.set_float32_matmul_precision("medium")
    if has == [True, False] and _worst_product() < FLOAT32_PRODUCT:
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def _worst_product() -> float:
    """Return the largest error of products with a step's shapes, relative to the sum of their terms' magnitudes."""
    import torch

    draw, worst = torch.Generator().manual_seed(0), 0.0
    for rows, inner, columns in ((256, 256, 256), (512, 55, 256), (512, 256, 6), (256, 512, 256), (256, 23, 1)):
        a, b = torch.randn(2, rows, inner, generator=draw), torch.randn(2, inner, columns, generator=draw)
        exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
        for left in (a, a.mT.contiguous().mT):  # each operand in row-major and in transposed layout
            for right in (b, b.mT.contiguous().mT):
                worst = max(worst, float(((torch.bmm(left, right) - exact).abs() / size).max()))
    return worst


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of a megabyte instead of returning them to the kernel.

    New pages made element-wise operations on 1 MB temporaries nine times slower (1.37 against 0.15 ms for Mish on
    2 x 512 x 256; Zen 5, 2026-11-21). Other C libraries have no such call, and this does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)


def processor() -> str:
    """Return the processor's name as the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
