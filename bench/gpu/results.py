"""The file of results: read, merged part by part, written whole after every row, with a table of it in Markdown.

A part that is measured again replaces the former one, and carries its own commit, date and versions; a row that was not
reached this time keeps its former figures and their commit. Beside the file lies the log of each part that had
something to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.supervise import NO_TIME, REASON, Row
from bench.gpu.tables import markdown

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "bench" / "results"  # what earlier calls left, where it was committed
VERSIONS = ("torch", "triton", "cuda", "python", "driver_version")


class Results:
    """What is known of one device, in <folder>/<device>.json and .md."""

    def __init__(self, folder: Path, machine: Row, commit: str):
        """Read what an earlier call left for this device, here or among the committed results, or start anew."""
        self.machine = machine
        stem = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower()).strip("-")
        self.path = folder / f"{stem}.json"
        self._run = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit or "unknown",
            "source": source_sha()[:12],
            **{name: machine.get(name) for name in VERSIONS},
        }
        known = [path for path in (self.path, KEPT / self.path.name) if path.exists()]
        self._former: list[Row] = []  # of the part that has begun
        self.parts: dict[str, Any] = json.loads(known[0].read_text()).get("parts", {}) if known else {}

    def begin(self, part: str) -> Path:
        """Take the place of the part's former rows; return where its log belongs."""
        former = self.parts.get(part, {})
        self._former = [{"commit": former["commit"], **row} for row in former.get("rows", []) if REASON not in row]
        self.parts[part] = {**self._run, "seconds": 0.0, "rows": []}
        log = self.path.with_name(f"{self.path.stem}-{part}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        return log

    def add(self, part: str, row: Row, seconds: float) -> None:
        """Keep a row and write the files; of one that was not reached keep what an earlier call had of it."""
        asked = {name: value for name, value in rounded(row).items() if name != REASON}
        reached = row.get(REASON) != NO_TIME
        known = [] if reached else [old for old in self._former if all(old.get(k) == v for k, v in asked.items())]
        self.parts[part]["rows"].append(known[0] if known else rounded(row))
        self.parts[part]["seconds"] = round(seconds, 1)
        self.write()

    def skip(self, part: str, rows: list[Row], why: str) -> list[Row]:
        """Return the rows with the reason why they were not begun; keep them unless an earlier call has figures."""
        rows = [row | {REASON: why} for row in rows]
        if part not in self.parts:
            self.begin(part)
            self.parts[part]["rows"] = rows
            self.write()
        return rows

    def write(self) -> None:
        """Write JSON and Markdown, each whole or not at all."""
        known = {"machine": rounded(self.machine), "parts": self.parts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, _one_row_a_line(known))
        replace_file(self.path.with_suffix(".md"), markdown(known))


def replace_file(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _one_row_a_line(known: dict[str, Any]) -> str:
    """Return JSON that a person can read and compare line by line."""
    parts = []
    for name, part in known["parts"].items():
        rows = ",\n".join(f"   {json.dumps(row)}" for row in part["rows"])
        head = json.dumps({key: value for key, value in part.items() if key != "rows"})
        parts.append(f'  {json.dumps(name)}: {head[:-1]}, "rows": [\n{rows}\n  ]}}')
    return f' {{"machine": {json.dumps(known["machine"])},\n "parts": {{\n'.lstrip() + ",\n".join(parts) + "\n }}\n"


def rounded(value: Any) -> Any:
    """Round floats to five digits: no timing here has more."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def commit() -> str:
    """Return the checkout's commit, marked where files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def source_sha() -> str:
    """Return the SHA-256 of the product's sources, which names what ran where there is no checkout."""
    sha = hashlib.sha256()
    for path in sorted([*ROOT.glob("gtp_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")]):
        sha.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return sha.hexdigest()
