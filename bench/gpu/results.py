"""Read, merge and write the file of results after every row, with its tables in Markdown.

A part that is measured again replaces the former one, and carries its own commit, date and versions; a row that was not
reached this time keeps its former figures and their commit. Beside the file lies the log of each part that had
something to say.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu.supervise import NO_TIME, REASON, Row
from bench.gpu.tables import markdown
from bench.tables import RESULTS, ROOT, json_rows, rounded, slug
from gtp_fast.files import publish

VERSIONS = ("torch", "triton", "cuda", "python", "driver_version")


class Results:
    """What is known of one device, in <folder>/<device>.json and .md."""

    def __init__(self, folder: Path, machine: Row, commit: str):
        """Read what an earlier call left for this device, here or among the committed results, or start anew."""
        self.machine = machine
        self.path = folder / f"{slug({'machine': machine})}.json"
        self._run = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit or "unknown",
            "source": source_sha()[:12],
            **{name: machine.get(name) for name in VERSIONS},
        }
        known = [path for path in (self.path, RESULTS / self.path.name) if path.exists()]
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
        parts, machine = [], rounded(self.machine)
        for name, part in self.parts.items():
            head = json.dumps({key: value for key, value in part.items() if key != "rows"})
            parts.append(f'  {json.dumps(name)}: {head[:-1]}, "rows": {json_rows(part["rows"], 3)}}}')
        text = f'{{"machine": {json.dumps(machine)},\n "parts": {{\n' + ",\n".join(parts) + "\n }}\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        publish(self.path, text.encode())
        publish(self.path.with_suffix(".md"), markdown({"machine": machine, "parts": self.parts}).encode())


def source_sha() -> str:
    """Return the SHA-256 of the product's sources, which names what ran where there is no checkout."""
    sha = hashlib.sha256()
    for path in sorted([*ROOT.glob("gtp_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")]):
        sha.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return sha.hexdigest()
