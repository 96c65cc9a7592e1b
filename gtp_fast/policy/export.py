"""`gtp-fast export`: from one member of a run to one file, ONNX or torch.export, compared with the policy first.

The file takes raw observations and noise. It holds everything else: parameters, normalisation, K, candidates. It draws
no noise, so that the same numbers give the actions of `Policy.act`. docs/export.md lists its inputs and its output.
Legend: B observations (any number), A action.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gtp_fast.algorithms.policy_config import PolicyConfig
from gtp_fast.data.replay import scaled_tensor
from gtp_fast.errors import GtpError, UsageError
from gtp_fast.files import publish
from gtp_fast.policy.policy import Policy, load_policy
from gtp_fast.runs.disk import writing
from gtp_fast.version import __version__

OPSET = 18  # the ONNX opset that torch's exporter writes without conversion
FORMATS = {"onnx": (".onnx", ("onnx", "onnxruntime", "onnxscript")), "pt2": (".pt2", ())}
CHECKED = 1_000  # observations on which file and policy are compared
TIES = 200  # one observation in so many may differ: rounding may turn a tie between candidates
TOLERANCE = 1e-4  # in units of the action: K steps of float32 products, summed in another order
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class ExportConfig:
    """Options of an export. None stands for the run's own setting; for `seed`, for the run's first seed."""

    format: str = "onnx"
    out: Path | None = None  # None: policy.onnx or policy.pt2 in the run
    seed: int | None = None
    sampling_steps: int | None = None
    candidates: int | None = None
    select: str | None = None
    best: bool = False


class Acting(nn.Module):
    """A policy of one member as a torch module: tensors in, tensors out."""

    def __init__(self, policy: Policy):
        """Take a loaded policy on the CPU."""
        super().__init__()
        self._act, self._config = policy.formulas.act, policy.config

    def forward(self, obs: Tensor, noise: Tensor | None = None, gumbel: Tensor | None = None) -> Tensor:
        """Return actions (B, A)."""
        noise, config = torch.zeros(obs.shape[0], 0) if noise is None else noise, self._config
        if config.obs_mean is not None and config.obs_std is not None:
            obs = scaled_tensor(obs, config.obs_mean, config.obs_std)
        return self._act(obs[None], noise[None], None if gumbel is None else gumbel[None])[0]


def export_run(path: Path, options: ExportConfig) -> dict[str, Any]:
    """Export a run's newest valid checkpoint, its best, or a named one; return the file's path and its check.

    Raises: UsageError for options that do not fit; CheckpointError without a usable checkpoint; GtpError where the
    file's actions differ from the policy's: then nothing is written.
    """
    if options.format not in FORMATS:
        raise UsageError(f"--format {options.format} is none of {', '.join(FORMATS)}; choose one of them")
    suffix, _ = FORMATS[options.format]
    if missing := lacking(options.format):
        raise UsageError(f"--format {options.format} needs {', '.join(missing)}; pip install 'gtp-fast[export]'")
    wanted = {"sampling_steps": options.sampling_steps, "candidates": options.candidates, "select": options.select}
    policy = load_policy(path, options.seed, options.best, "cpu", **wanted)
    policy = policy.member(policy.config.seeds[0])
    out = options.out or path / f"policy{suffix}"
    if out.suffix != suffix or not out.parent.is_dir():
        raise UsageError(f"--out {out}: name a file that ends in {suffix}, in a folder that exists")
    described = {
        "gtp_fast": __version__,
        "policy": policy.config.to_json(),
        "inputs": {name: list(value.shape[1:]) for name, value in drawn(policy, 1).items()},
    }
    data = (onnx_bytes if options.format == "onnx" else _pt2_bytes)(policy, described)
    difference = parity(policy, reader(options.format, data))
    with writing(out, "name another file with --out"):
        publish(out, data)
    return {
        "path": str(out),
        "format": options.format,
        "opset": OPSET if options.format == "onnx" else None,
        "megabytes": len(data) / 1e6,
        "observations_checked": CHECKED,
        "largest_difference": difference,
        **described,
    }


def lacking(format: str) -> list[str]:
    """Return the packages that a format needs and this installation lacks."""
    return [name for name in FORMATS[format][1] if not importlib.util.find_spec(name)]


def drawn(policy: Policy, observations: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random inputs of the file for so many observations."""
    rng, config, rows = np.random.default_rng(seed), policy.config, observations * policy.config.candidates
    inputs = {"obs": drawn_observations(config, observations, rng)}
    if policy.noise_columns:
        inputs["noise"] = rng.normal(size=(rows, policy.noise_columns)).astype(np.float32)
    if config.select == "softmax":
        inputs["gumbel"] = rng.gumbel(size=rows).astype(np.float32)
    return inputs


def drawn_observations(config: PolicyConfig, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return random observations of a policy, float32 (count, D) or uint8 (count, H, W, C)."""
    if config.frame_shape:
        return rng.integers(0, 256, size=(count, *config.frame_shape), dtype=np.uint8)
    return rng.normal(size=(count, config.obs_dim)).astype(np.float32)


def _program(policy: Policy) -> torch.export.ExportedProgram:
    """Trace the policy with a free number of observations."""
    inputs = {name: torch.from_numpy(value) for name, value in drawn(policy, 3).items()}
    batch = torch.export.Dim("batch", min=1)
    rows = policy.config.candidates * batch if policy.config.candidates > 1 else batch
    shapes: dict[str, Any] = {name: {0: batch if name == "obs" else rows} for name in inputs}
    with torch.no_grad(), _quiet():
        return torch.export.export(Acting(policy).eval(), (), inputs, dynamic_shapes=shapes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and notes off the terminal."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def onnx_bytes(policy: Policy, described: dict[str, Any]) -> bytes:
    """Return the ONNX file of a policy, with its description as metadata gtp_fast.*"""
    with _quiet():
        program = torch.onnx.export(_program(policy), dynamo=True, opset_version=OPSET, optimize=True)
    assert program is not None
    program.model.graph.outputs[0].name = "action"
    model = program.model_proto
    for name, value in described.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"gtp_fast.{name}", json.dumps(value)
    return model.SerializeToString()


def _pt2_bytes(policy: Policy, described: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(_program(policy), buffer, extra_files={"gtp_fast.json": json.dumps(described)})
    return buffer.getvalue()


def reader(format: str, data: bytes) -> Run:
    """Return a function that runs an exported file on a CPU, with one thread."""
    if format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda inputs: np.asarray(session.run(None, inputs)[0])
    with _quiet():
        module = torch.export.load(io.BytesIO(data)).module()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return module(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()

    return run


def parity(policy: Policy, run: Run) -> float:
    """Return the largest difference between a file and its policy on CHECKED observations, batched and alone.

    With several candidates, one observation in TIES is left out: rounding may turn a tie between its candidates.
    Raises: GtpError for a difference above TOLERANCE.
    """
    found = []
    for observations, seed in ((CHECKED - 8, 0), *((1, i) for i in range(1, 9))):
        inputs = drawn(policy, observations, seed)
        found.append(np.abs(run(inputs) - policy.act(**inputs)).max(axis=1))
    differences = np.sort(np.concatenate(found))
    worst = float(differences[-1 - (CHECKED // TIES if policy.config.candidates > 1 else 0)])
    if not worst <= TOLERANCE:
        raise GtpError(
            f"the exported policy differs from policy.act by {worst:.2g} (allowed {TOLERANCE:g}); nothing was written. "
            "Please report the run's settings and the versions of torch and onnx"
        )
    return worst
