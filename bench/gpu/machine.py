"""What the figures were measured on: device, driver, versions, and the packages that are absent."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy",
    "triton",
    "gymnasium",
    "mujoco",
    "minari",
    "nvtx",
    "h5py",
    "safetensors",
    "yaml",
    "pytest",
    "hypothesis",
)
GPU_FIELDS = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory", "ecc.mode.current")


def measure(row: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Describe this machine; nothing is installed or changed."""
    import torch

    cuda = torch.cuda.is_available() and not dry
    found = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
    }
    present = [name for name in PACKAGES if importlib.util.find_spec(name)]
    missing = [name for name in PACKAGES if name not in present]
    return found | (_nvidia_smi() if cuda else {}) | {"triton": _version("triton"), "missing": ", ".join(missing)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> dict[str, str]:
    """Return driver, power limit and clocks; nothing where the tool is absent."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader", "--id=0"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(GPU_FIELDS, (part.strip() for part in line.split(",")), strict=False))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
