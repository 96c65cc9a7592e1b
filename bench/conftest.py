"""What every benchmark shares: one thread, and the machine written beside each figure."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gtp_fast.device import keep_freed_memory


@pytest.fixture(autouse=True)
def one_thread():
    """Time one core: ratios between machines and codes need no account of scaling."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if sys.platform == "linux":
        keep_freed_memory()  # as in training
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine() -> dict[str, str]:
    """Device, versions and commit, for `extra_info`."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": _processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
