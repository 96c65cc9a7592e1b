"""Fast training of Generative Trajectory Policies for offline reinforcement learning.

>>> import gtp_fast
>>> callable(gtp_fast.train) and callable(gtp_fast.load_policy)
True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gtp_fast.version import __version__

if TYPE_CHECKING:
    from gtp_fast.policy.policy import load_policy
    from gtp_fast.training.train import Result

__all__ = ["__version__", "load_policy", "train"]


def train(*, allow_import: Sequence[str] = (), **settings: Any) -> Result:
    """Train as `gtp-fast train` does, and return what its `--json` prints.

    Args: the fields of `gtp_fast.config.TrainConfig`, for example env="hopper-demo-v0", steps=20_000, seeds=4;
    allow_import, modules that the environment of a run which `resume` names may import.
    Raises: GtpError (gtp_fast.errors) with a message that says what to do.
    """
    from gtp_fast.data.catalog import run_settings
    from gtp_fast.training.train import train as run

    return run(run_settings(settings, allowed=allow_import))


def __getattr__(name: str) -> Any:
    # `import gtp_fast` does not import torch: the first use of load_policy does.
    if name == "load_policy":
        from gtp_fast.policy.policy import load_policy

        return load_policy
    raise AttributeError(f"module 'gtp_fast' has no attribute {name!r}")
