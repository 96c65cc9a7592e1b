"""What a change of the code's shape must leave bitwise equal: a digest of the state and metrics of short runs.

    python tools/digest.py before.json            # on the commit before
    python tools/digest.py after.json before.json # on the one after, on the same machine; names what differs

Each algorithm and variant trains 200 steps in `eager` and in `compiled`, and GTP five in `fused`, interpreted where
there is no GPU: the digests are of state.safetensors, metrics.jsonl and the evaluation of its last step.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

import gtp_fast

ONE_ACTION = {"sampling_steps": 1}
CASES = {
    "gtp": {},
    "paper": {"preset": "paper"},
    "bc": {"bc": True},
    "candidates": {"candidates": 4, "select": "argmax"},
    "max-q-backup": {"max_q_backup": True, "value_samples": 3},
    "etas": {"etas": "0.5,4", "lrs": "1e-3,1e-4", "lr_schedule": "cosine"},
    "solver": {"actor_loss": "solver"},
    "euler": {"actor_loss": "solver", "solver": "euler", "solver_steps": 2},
    "consistency": {"actor_loss": "consistency"},
    "denoiser": {"actor_loss": "denoiser"},
    "shortcut": {"actor_loss": "shortcut", "value": "behaviour"},
    "linear-q": {"actor_loss": "linear-q", "compare_at_zero": True},
    "meanflow": {"actor_loss": "meanflow", "times": "lognormal", "value": "expectile", "weight_norm": True},
    "flow": {"process": "flow", "steps_schedule": "fixed:40"},
    "cac": {"algo": "cac"},
    "dql": {"algo": "dql"},
    "dql-bc": {"algo": "dql", "bc": True},
    "fql": {"algo": "fql", "layers": 2},
    "iql": {"algo": "iql", **ONE_ACTION},
    "td3bc": {"algo": "td3bc", **ONE_ACTION},
}
EAGER = {
    "normalised": {"normalise_obs": True},
    "host": {"buffer": "host"},
    "multigoal": {"env": "multigoal-v0"},
}
FUSED = {
    "gtp": {},
    "bf16": {"precision": "bf16"},
    "bc": {"bc": True},
    "max-q-backup": {"max_q_backup": True, "value_samples": 3},
}


def digest(**settings: object) -> dict[str, str]:
    """Train in a fresh folder and return the SHA-256 of each file that holds a result."""
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        small = {"env": "hopper-demo-v0", "hidden": 32, "batch_size": 32, "seeds": 2, "threads": 1, "device": "cpu"}
        small |= {"save_every": 0, "eval_episodes": 1, "eval_workers": 1, "ema_start": 20}
        gtp_fast.train(run_dir=str(run), **(small | settings))
        files = [*run.glob("ckpt/step-*/state.safetensors"), run / "metrics.jsonl", *run.glob("eval/*.json")]
        return {file.name: hashlib.sha256(_content(file)).hexdigest() for file in files}


def _content(file: Path) -> bytes:
    """Return a file's bytes; of an evaluation, without the seconds it took and the environment's address."""
    if file.suffix != ".json":
        return file.read_bytes()
    values = {name: value for name, value in json.loads(file.read_text()).items() if name not in ("seconds", "env_id")}
    return json.dumps(values, sort_keys=True).encode()


def main(out: Path, before: Path | None) -> int:
    """Write all digests to `out`; with `before`, say which differ and return how many."""
    found: dict[str, dict[str, str]] = {}
    backends = {"eager": (CASES | EAGER, 200), "fused": (FUSED, 5), "compiled": (CASES, 200)}
    for backend, (cases, steps) in backends.items():
        for name, settings in cases.items():
            evaluated = {"eval_every": steps if backend == "eager" else 0}
            common = {"backend": backend, "steps": steps, "log_every": steps // 5} | evaluated
            found[f"{backend} {name}"] = digest(**(common | settings))
            print(f"{backend} {name}", *(value[:12] for value in found[f"{backend} {name}"].values()), flush=True)
    out.write_text(json.dumps(found, indent=2) + "\n")
    expected = found if before is None else json.loads(before.read_text())
    apart = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    print(f"{len(found)} digests; apart: {', '.join(apart) or 'none'}")
    return len(apart)


if __name__ == "__main__":
    named = [Path(name) for name in sys.argv[1:]]
    sys.exit(main(named[0], named[1] if len(named) > 1 else None))
