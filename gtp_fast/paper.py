"""The paper's printed numbers, to stand beside ours. A cell that was not legible stays absent."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def tables() -> dict[str, Any]:
    """Return the carried tables: bc (Table 1), rl (2), sampling_steps (7), timing (9)."""
    return json.loads((files("gtp_fast") / "paper" / "tables.json").read_text())


def gtp_score(row: str | None, bc: bool, sampling_steps: int = 5) -> tuple[float, float | None] | None:
    """Return the paper's GTP score (mean, standard deviation) of a row such as "halfcheetah-m", None where absent.

    Behaviour cloning is Table 1, K = 2 Table 7, everything else Table 2.
    """
    table, column = ("bc", "GTP-BC (Ours)") if bc else ("rl", "GTP (Ours)")
    if not bc and sampling_steps == 2:
        table, column = "sampling_steps", "GTP (K=2)"
    cell = tables()[table].get(row, {}).get(column) if row else None
    return None if cell is None else (cell[0], cell[1])
