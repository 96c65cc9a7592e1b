"""The paper's printed numbers, to stand beside ours. A cell that was not legible stays absent."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from gtp_fast.data.spec import DataSpec

# The paper's columns for our algorithms, (name, behaviour cloning): the baselines' figures are those it prints.
COLUMNS = {
    ("gtp", False): "GTP (Ours)",
    ("gtp", True): "GTP-BC (Ours)",
    ("dql", False): "D-QL",
    ("dql", True): "D-BC",
    ("cac", False): "C-AC",
    ("cac", True): "C-BC",
    ("iql", False): "IQL",
    ("iql", True): "BC",  # a Gaussian's likelihood; td3bc's squares are printed nowhere
    ("td3bc", False): "TD3+BC",
}


def absent(spec: DataSpec, sha256: str | None, data: str) -> str | None:
    """Return why the paper's figures may not stand beside a run, None where they may.

    Args: the run's entry in the catalogue, the hash of its data, and how to name these.
    """
    if spec.paper_row is None:
        return "the data are not the paper's"
    if spec.sha256 is None:
        return f"no checksum of the published {spec.name} is known to compare the data with"
    return None if sha256 == spec.sha256 else f"trained on {data}, not D4RL's {spec.name}"


@cache
def tables() -> dict[str, Any]:
    """Return the carried tables: bc (Table 1), rl (2), ablation (3), recent (5), sampling_steps (7), schedule (8),
    timing (9), teacher_free (10), and hours of 3, 8 and 10. Of the linear Q, 0.01 is what the other rows leave.
    """
    return json.loads((files("gtp_fast") / "experiments" / "paper_tables.json").read_text())


def score(
    row: str | None, algo: str = "gtp", bc: bool = False, sampling_steps: int = 5
) -> tuple[float, float | None] | None:
    """Return the paper's score (mean, standard deviation) of a row such as "halfcheetah-m", None where absent.

    Behaviour cloning and TD3+BC are in Table 1, GTP with K = 2 in Table 7, everything else in Table 2.
    """
    table, column = ("bc" if bc or algo == "td3bc" else "rl"), COLUMNS.get((algo, bc))
    if algo == "gtp" and not bc and sampling_steps == 2:
        table, column = "sampling_steps", "GTP (K=2)"
    found = cell(table, row, column) if column else None
    return found if isinstance(found, tuple) else None


def cell(table: str, row: str | None, column: str) -> tuple[float, float | None] | str | None:
    """Return a cell of a carried table: (mean, standard deviation), a word as "diverged", or None where absent.

    The row "Gym average" of a table that prints none is absent.
    """
    found = tables()[table].get(row, {}).get(column) if row else None
    return (found[0], found[1]) if isinstance(found, list) else found


def hours(table: str, column: str) -> float | None:
    """Return the training time that the paper prints beside a score, in hours; None where it prints none."""
    return tables()["hours"].get(table, {}).get(column)
