"""Checkpoints: written as safetensors and JSON, published whole, and verified by size and SHA-256. No pickle.

A checkpoint directory holds state.safetensors (every tensor of the train state), policy.safetensors (what acting
needs), pending-eval-<step>.safetensors (policies whose evaluation was still running), state.json and MANIFEST.json.
`Saving` writes a checkpoint in a thread while training goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from gtp_fast.errors import CheckpointError
from gtp_fast.files import (
    JSON_BYTES,
    linked,
    own_folder,
    parse_json,
    publish_directory,
    read_bytes,
    read_json,
    remove,
    sha256_of,
    write_file,
)
from gtp_fast.runs.directory import RunDir, step_of
from gtp_fast.runs.disk import Disk

FORMAT = 1
STATE, POLICY, PENDING = "state.safetensors", "policy.safetensors", "pending-eval-"
META, MANIFEST = "state.json", "MANIFEST.json"
BEST = "best"
Read = TypeVar("Read")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, the train state, its description, and the policies still to be evaluated."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    pending_evals: dict[int, dict[str, Tensor]]


def save(
    run: RunDir,
    step: int,
    tensors: Mapping[str, Tensor],
    policy: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    pending_evals: Mapping[int, Mapping[str, Tensor]],
) -> Path:
    """Publish the checkpoint of a step.

    Raises: CheckpointError when a tensor is not finite, before it writes anything; OSError from the file system: then
    nothing is left behind and earlier checkpoints stay valid; BusyError where another process has the run.
    """
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # NumPy, because torch would start a second pool of threads for the saving thread. Two pools on the same cores slow
    # every train step down (Zen 5, two cores: 31 steps/s instead of 75).
    floats = {name: tensor.numpy() for name, tensor in host.items() if tensor.is_floating_point()}
    bad = [name for name, array in floats.items() if not np.isfinite(array).all()]
    if bad:
        raise CheckpointError(
            f"{', '.join(bad)} held values that are not finite at step {step:,}; no checkpoint was written. Resume "
            "from an earlier one with a smaller --lr or --eta"
        )

    def fill(directory: Path) -> None:
        write_file(directory / STATE, save_bytes(host))
        earlier = [run.checkpoint(older) for older in steps(run) if older < step][-1:]
        # Up to 50 policies wait for a slow environment: written each time, a save after a signal would take seconds.
        for pending, snapshot in pending_evals.items():
            name, content = f"{PENDING}{pending:08d}.safetensors", save_bytes(dict(snapshot))
            if not any(linked(before / name, directory / name, content) for before in earlier):
                write_file(directory / name, content)
        _write_policy(directory, policy, {**meta, "step": step})

    run.check_claim()
    path = run.checkpoint(step)
    publish_directory(path, fill)
    return path


def save_best(run: RunDir, policy: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Publish each member's policy with the best score so far as ckpt/best."""
    run.check_claim()
    path = run.checkpoints / BEST
    publish_directory(path, lambda directory: _write_policy(directory, policy, meta))
    return path


def _write_policy(directory: Path, policy: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.items()}
    write_file(directory / POLICY, save_bytes(host))
    write_file(directory / META, (json.dumps({"format": FORMAT, **meta}, indent=2, sort_keys=True) + "\n").encode())
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(directory.iterdir())
    }
    write_file(directory / MANIFEST, (json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n").encode())


def load(path: Path, files: dict[str, bytes] | None = None) -> Checkpoint:
    """Read and verify a checkpoint.

    Args: files, the result of `verified` if it was called before.
    Raises: CheckpointError naming the file and its fault.
    """
    files = verified(path) if files is None else files
    meta = _meta(path, files)
    snapshots = [name for name in files if name.startswith(PENDING)]
    pending = {_pending_step(path, name): _tensors(path / name, files[name]) for name in snapshots}
    if STATE not in files:
        raise CheckpointError(f"{path} holds a policy but no train state; resume from one of {path.parent}/step-*")
    return Checkpoint(path, int(meta["step"]), _tensors(path / STATE, files[STATE]), meta, pending)


def _pending_step(path: Path, name: str) -> int:
    step = step_of(f"step-{name.removeprefix(PENDING).removesuffix('.safetensors')}")
    if step is None:
        raise CheckpointError(f"{path / name} has no step in its name; use another checkpoint")
    return step


def load_policy(path: Path, files: dict[str, bytes] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify what acting needs: the policy's tensors and the checkpoint's description. Args: as of `load`."""
    files = verified(path) if files is None else files
    if POLICY not in files:
        raise CheckpointError(f"{path} has no {POLICY}; name a checkpoint or a run directory")
    return _tensors(path / POLICY, files[POLICY]), _meta(path, files)


def verified(path: Path) -> dict[str, bytes]:
    """Return the content of the files that the manifest lists, after checking each one's size and SHA-256."""
    try:
        manifest = read_json(own_folder(path) / MANIFEST)
        listed = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read ({error}); use another checkpoint") from None
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}, this version reads {FORMAT}; use the version that wrote it"
        )
    _check_size(path, sum(size for size, _ in listed.values()))
    files = {}
    for name, (size, sha256) in listed.items():
        if Path(name).name != name:
            raise CheckpointError(
                f"{path / MANIFEST} lists {name!r}, which is outside the checkpoint; use another checkpoint"
            )
        try:
            found = (path / name).lstat().st_size
            content = read_bytes(path / name, size) if found == size else b""
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read ({error}); use another checkpoint") from None
        if found != size:
            raise CheckpointError(f"{path / name} has {found:,} bytes, expected {size:,}; use another checkpoint")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CheckpointError(
                f"{path / name} was altered: its SHA-256 differs from the manifest's; use another checkpoint"
            )
        files[name] = content
    return files


def _check_size(path: Path, size: int) -> None:
    """Refuse files that this machine cannot hold: reading them would end it, or the process."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise CheckpointError(
            f"{path} has {size / 1e9:,.1f} GB, more than this machine's memory of {memory / 1e9:,.1f} GB; use another "
            "checkpoint, or a larger machine"
        )


def read_meta(path: Path) -> dict[str, Any]:
    """Return a checkpoint's description without its tensors. Raises: CheckpointError where it cannot be read."""
    try:
        return _meta(path, {META: read_bytes(own_folder(path) / META, JSON_BYTES)})
    except OSError as error:
        raise CheckpointError(f"{path / META} cannot be read ({error}); use another checkpoint") from None


def _meta(path: Path, files: dict[str, bytes]) -> dict[str, Any]:
    try:
        meta = parse_json(files[META])
        if not isinstance(meta["step"], int):
            raise TypeError(f"step is {meta['step']!r}")
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path / META} is not a checkpoint's description ({error!r}); use another checkpoint"
        ) from None
    return meta


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return load_bytes(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); use another checkpoint") from None


def steps(run: RunDir) -> list[int]:
    """Return the steps that have a checkpoint directory, ascending, without verifying them."""
    found = (step_of(path.name) for path in run.checkpoints.glob("step-*") if path.is_dir())
    return sorted(step for step in found if step is not None)


def load_newest(run: RunDir, read: Callable[[Path], Read] = load) -> tuple[Read | None, list[str]]:
    """Return the newest valid checkpoint, and the faults of newer ones. It is None where no checkpoint exists.

    Args: read loads one, and raises CheckpointError where it is not valid.
    Raises: CheckpointError when all checkpoints are damaged: a run never restarts from zero in silence.
    """
    refused = []
    for step in reversed(steps(run)):
        try:
            return read(run.checkpoint(step)), refused
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError(
            f"none of the {len(refused)} checkpoints in {run.checkpoints} is usable: {'; '.join(refused)}; "
            "pass --resume never and another --run-dir to start again"
        )
    return None, refused


def prune(run: RunDir, keep: int, newest: int) -> None:
    """Remove all but the last `keep` checkpoints up to step `newest`, the one just saved; ckpt/best stays.

    Checkpoints after `newest` do not count: a resume skipped them as damaged, and they must not push out good ones.
    """
    for step in [step for step in steps(run) if step <= newest][: -max(keep, 1)]:
        with suppress(OSError):
            remove(run.checkpoint(step))


def drop_after(run: RunDir, step: int) -> None:
    """Remove the checkpoints after `step`, where a resume goes back to: the run repeats those steps.

    The newest goes first: a run killed in between still has every metric line before its newest checkpoint.
    """
    for later in reversed([later for later in steps(run) if later > step]):
        remove(run.checkpoint(later))


class Saving:
    """Writes checkpoints in a thread, one at a time. `settle` reports and counts what the disk refused."""

    def __init__(self, disk: Disk):
        self._disk, self._pool = disk, ThreadPoolExecutor(1, "checkpoint")
        self._current: tuple[str, Future[None]] | None = None

    def start(self, what: str, commit: Callable[[], None]) -> None:
        """Wait for the checkpoint before, then call `commit` in the thread; `what` names it in warnings."""
        self.settle()
        self._current = what, self._pool.submit(commit)

    def settle(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises: DiskError at the third refusal in a row; any other error that `commit` raised.
        """
        if self._current is not None:
            (what, future), self._current = self._current, None
            self._disk.write("checkpoints", what, future.result)

    def close(self) -> None:
        """Wait for the thread to end; errors of its work are not raised."""
        self._pool.shutdown()
