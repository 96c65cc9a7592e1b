"""What every test shares: one thread a process, a quicker interpreter of kernels, hypothesis without deadlines."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes share the cores
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes, each of which imports torch

import pytest
import quick_interpreter
import torch
from hypothesis import HealthCheck, settings

# Before the first import of Triton, which reads it once: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    quick_interpreter.install()

# Under nohup, or in the background of a script, this process ignores these signals, and what it starts does too: what
# tests send them to would go on for ever. A handler that does nothing keeps this process, and is not inherited.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# A fixture serves every example of its test: none keeps what an earlier example changed.
REUSED = [HealthCheck.function_scoped_fixture]
settings.register_profile("gtp-fast", deadline=None, max_examples=30, derandomize=True, suppress_health_check=REUSED)
settings.load_profile("gtp-fast")
# What `make crash` asks for: other examples each day, and the same again for the same --hypothesis-seed.
settings.register_profile("daily", settings.get_profile("gtp-fast"), max_examples=300, derandomize=False, database=None)

pytest_plugins = ["in_order"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def day(request: pytest.FixtureRequest) -> int:
    """The seed of what is drawn at random: 0, or of the day in `make crash`, which passes it to hypothesis too."""
    return int(request.config.getoption("hypothesis_seed") or 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # `keywords` would also hold a folder of that name
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; run make gpu on a machine with one"))
