"""What runs where: the device and the backend that `auto` stands for, and why. torch is imported when asked."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Literal

from gtp_fast.config import TrainConfig, not_fused
from gtp_fast.errors import UsageError

# A cold compilation costs about 40 s and saves about 8 ms a step on one core (Zen 5, 2026-11-21): it pays from 5,000
# steps on; at 20,000 the whole run is a quarter faster.
COMPILE_FROM_STEPS = 20_000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's mallopt
FLOAT32_PRODUCT = 1e-6  # largest error of a float32 product, as a share of its terms; bfloat16's is 4e-3
PICTURES = "observations of numbers: its kernels have no image encoder"  # what the fused step lacks for frames
SMALLEST_HIDDEN, LARGEST_HIDDEN, LARGEST_K = 32, 512, 16  # what the fused kernels take
# Bytes of shared memory that a block of the largest kernel takes for each hidden unit, by the size of an operand
# (compiled for sm_90 by Triton 3.6: 88,064 at width 256 and 169,984 at 512 in TF32, 86,016 at 512 in bf16).
SHARED_BYTES = {"fp32": 344, "tf32": 344, "bf16": 172}


def check(cfg: TrainConfig, pictures: bool = False) -> None:
    """Refuse a device or a backend that is not there, or cannot run these settings.

    Args: pictures says that observations are, which the fused step cannot see.
    Raises: UsageError naming what it needs.
    """
    device = available(cfg)
    lacking = _lacking(cfg, device, pictures).get(cfg.backend)
    if lacking:
        raise UsageError(f"--backend {cfg.backend} needs {lacking}; or pass --backend eager")
    if cfg.backend != "auto":
        _precision(cfg, device, cfg.backend)


def resolve(cfg: TrainConfig, pictures: bool = False) -> tuple[TrainConfig, str]:
    """Replace `auto` by a device and a backend; return the settings and a sentence that says why.

    Args and Raises: as `check`.
    """
    check(cfg, pictures)
    device = available(cfg)
    backend, why = cfg.backend, "as asked"
    if backend == "auto":
        backend, why = _choose_backend(cfg, device, _lacking(cfg, device, pictures))
    resolved = replace(
        cfg,
        device=device,
        backend=backend,
        precision=_precision(cfg, device, backend),
        threads=cfg.threads or os.cpu_count() or 1,
        graph=cfg.graph and device == "cuda",
    )
    return resolved, f"{device}, backend {backend} ({why})"


def available(cfg: TrainConfig) -> Literal["cpu", "cuda"]:
    """Return the device that cfg.device stands for. Raises: UsageError where it is not there."""
    import torch

    cuda = torch.cuda.is_available()
    if cfg.device == "cuda" and not cuda:
        raise UsageError(
            f"--device cuda: torch {torch.__version__} sees no NVIDIA GPU; run gtp-fast doctor to see why, or pass "
            "--device cpu"
        )
    return ("cuda" if cuda else "cpu") if cfg.device == "auto" else cfg.device


def _lacking(cfg: TrainConfig, device: str, pictures: bool) -> dict[str, str | None]:
    """Return what each backend lacks, in words, or None."""
    fused = PICTURES if pictures else missing_for_fused(cfg, device)
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
        return "fused", "the fastest that is there"
    if lacking["compiled"]:
        return "eager", f"compiled needs {lacking['compiled']}"
    if device == "cpu" and cfg.steps < COMPILE_FROM_STEPS:
        return "eager", f"compiling pays from {COMPILE_FROM_STEPS:,} steps on"
    return "compiled", f"fused needs {lacking['fused']}" if device == "cuda" else "the fastest that is there"


def missing_for_fused(cfg: TrainConfig, device: str) -> str | None:
    """Return what the fused step lacks on this machine or in these settings, in words, or None."""
    if cfg.algo != "gtp":
        return f"--algo gtp: the step of {cfg.algo} is not fused"
    if lacking := not_fused(cfg):
        return lacking
    if cfg.buffer == "host":
        return "--buffer device: its kernels read the rows where they lie on the GPU"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        return "a GPU (TRITON_INTERPRET=1 interprets its kernels on the CPU, slowly)"
    precision = "tf32" if cfg.precision == "auto" else cfg.precision
    return missing_for_kernels(cfg.hidden, cfg.sampling_steps, precision)


def missing_for_kernels(hidden: int, sampling_steps: int, precision: str) -> str | None:
    """Return what the kernels lack for a network of this width and a chain of so many steps, in words, or None."""
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
    if major < 8:
        return f"a GPU of compute capability 8.0 or newer, not {major}.{minor}"
    return missing_shared_memory(hidden, precision, torch.cuda.get_device_properties(0).shared_memory_per_block_optin)


def missing_shared_memory(hidden: int, precision: str, there: int) -> str | None:
    """Return what a width lacks on a GPU whose blocks may take `there` bytes of shared memory, in words, or None."""
    needed = SHARED_BYTES[precision] * hidden
    if needed <= there:
        return None
    smaller = " (--precision bf16 needs half)" if precision != "bf16" else ""
    return (
        f"a GPU with {needed:,} bytes of shared memory a block for --hidden {hidden} in {precision}{smaller}, "
        f"not {there:,}"
    )


def missing_for_compile(device: str) -> str | None:
    """Return what torch.compile lacks on this machine, in words, or None."""
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    if not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        return "a C++ compiler (g++)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's header files (python3-dev)"
    return None


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(cfg: TrainConfig) -> None:
    """Set what is global in a training process: threads, matrix precision, and what makes a CPU quick."""
    import torch

    torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision("high" if cfg.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.precision == "tf32"  # of convolutions
    if cfg.device == "cpu" and cfg.precision == "fp32":
        quicken_cpu()


def quicken_cpu() -> None:
    """Make torch on this processor as fast as it can be with the same numbers to rounding; does nothing elsewhere."""
    if sys.platform == "linux":
        keep_freed_memory()
    if processor().startswith("AMD"):
        make_products_by_onednn()


def make_products_by_onednn() -> bool:
    """Let oneDNN make float32 products in place of MKL, which keeps to a slow path on AMD's processors.

    torch offers that way as "medium" precision, which allows bfloat16 and does not demand it: without matrix tiles
    (AMX) oneDNN makes them in float32, 256^3 in 0.16 ms where MKL takes 0.34 (Zen 5, 2026-11-21). So it is taken only
    where products of a step's shapes keep float32's accuracy; the answer is the same in every run on a machine, as a
    resumed run needs. Returns whether it was taken.
    """
    import torch

    has = [getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)() for feature in ("avx512", "amx_tile")]
    torch.set_float32_matmul_precision("medium")
    if has == [True, False] and _worst_product() < FLOAT32_PRODUCT:
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def _worst_product() -> float:
    """Return the largest error of products like those of a step, as a share of the sum of their terms' sizes."""
    import torch

    draw, worst = torch.Generator().manual_seed(0), 0.0
    for rows, inner, columns in ((256, 256, 256), (512, 55, 256), (512, 256, 6), (256, 512, 256), (256, 23, 1)):
        a, b = torch.randn(2, rows, inner, generator=draw), torch.randn(2, inner, columns, generator=draw)
        exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
        for left in (a, a.mT.contiguous().mT):  # each operand as it lies, and as a transpose
            for right in (b, b.mT.contiguous().mT):
                worst = max(worst, float(((torch.bmm(left, right) - exact).abs() / size).max()))
    return worst


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks of a megabyte instead of returning them to the kernel.

    Fresh pages made element-wise operations on 1 MB temporaries nine times slower (1.37 against 0.15 ms for Mish on
    2 x 512 x 256; Zen 5, 2026-11-21). Other C libraries have no such call, and nothing happens.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)


def processor() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
