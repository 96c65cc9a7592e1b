"""`gtp-fast doctor`: what this machine has, and which backends a run will use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from gtp_fast.config import TrainConfig
from gtp_fast.data import download
from gtp_fast.device import (
    COMPILE_FROM_STEPS,
    free_memory,
    limits,
    memory_bytes,
    missing_for_compile,
    missing_for_fused,
    resolve,
)
from gtp_fast.version import __version__

EXTRAS = {
    "sweep": ("ray",),
    "export": ("onnx", "onnxruntime"),
    "track": ("tensorboard", "wandb"),
    "maze": ("gymnasium-robotics",),
    "ogbench": ("ogbench",),
}


def examine() -> dict[str, Any]:
    """Return findings by name, in the order to read them."""
    import torch

    cuda = torch.cuda.is_available()
    resolved, why = resolve(TrainConfig(env="any"))
    missing, unfused = missing_for_compile(resolved.device), missing_for_fused(resolved, resolved.device)
    return {
        "gtp-fast": __version__,
        "python": f"{platform.python_version()} ({platform.platform()})",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}",
        "triton": _version("triton") or "absent (the reference path needs none)",
        "gpu": f"{torch.cuda.get_device_name()}, {_driver()}" if cuda else f"none that torch can use ({_driver()})",
        "cuda graphs": "used" if cuda else "no: they need a GPU",
        "long runs use": why,
        "eager": "works",
        "compiled": f"no: needs {missing}" if missing else f"works; taken from {COMPILE_FROM_STEPS:,} steps on",
        "fused": f"no: needs {unfused}" if unfused else "works",
        "threads": f"{resolved.threads} of {os.cpu_count()} cores; torch {torch.get_num_threads()}",
        "memory": f"{(free_memory() or 0) / 1e9:.1f} of {memory_bytes() / 1e9:.1f} GB free",
        "limits": "; ".join(limits()) or "none but the machine's",
        "D4RL files": str(download.folder("d4rl")),
        "OGBench files": str(download.folder("ogbench")),
        "Minari data": os.environ.get("MINARI_DATASETS_PATH") or str(Path.home() / ".minari" / "datasets"),
        "free disk here": f"{shutil.disk_usage('.').free / 1e9:.1f} GB",
        "extras": ", ".join(f"{name} {'yes' if all(map(_version, needs)) else 'no'}" for name, needs in EXTRAS.items()),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0] if version.exists() else "no NVIDIA driver"
