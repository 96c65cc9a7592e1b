"""`gtp-fast data`: list, describe, fetch and check data sets, in words or as one JSON object."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gtp_fast.data import catalog
from gtp_fast.data.spec import DataSpec, Units
from gtp_fast.errors import DataError, UsageError


def data_command(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Run `data list|info|download|check`; return a description that is still to be printed, or None.

    Raises: DataError, once the report is printed, when `check` finds data that are not ready.
    """
    if arguments.action == "list":
        rows = catalog.listing()
        table = [catalog.HEAD, *map(catalog.line, rows)]
        print(json.dumps({"datasets": rows}) if arguments.json else "\n".join(table))
        return None
    if not arguments.name:
        raise UsageError(f"gtp-fast data {arguments.action} needs a name; gtp-fast data list shows them")
    if arguments.action == "check":
        _check(arguments.name, _scorer(arguments), arguments.action_units, arguments.json)
        return None
    from gtp_fast.cli.screen import download_bar
    from gtp_fast.data import dataset, download

    if Path(arguments.name).exists():
        path = Path(arguments.name)
        spec = _scorer(arguments) or DataSpec(path.name, "file")
        return dataset.info(dataset.load(spec, path, action_units=arguments.action_units))
    spec = catalog.resolve(arguments.name, arguments.env_kwargs)
    with download_bar(sys.stderr) as progress:
        if arguments.action == "download" and spec.source in download.PLACES:
            return {"name": spec.name, "path": str(download.fetch(spec, progress))}
        return dataset.info(dataset.load(spec, progress=progress))


def _scorer(arguments: argparse.Namespace) -> DataSpec | None:
    """Return the entry of --env and --env-kwargs, None without --env.

    It has the bounds of its actions where it can be built here; otherwise a note says why not.
    """
    from gtp_fast.evaluation.environments import with_bounds

    if arguments.env_kwargs is not None and not arguments.env:
        raise UsageError("--env-kwargs are the arguments of --env; name the environment with --env")
    if not arguments.env:
        return None
    spec = catalog.resolve(arguments.env, arguments.env_kwargs)
    try:
        return with_bounds(spec, needed=True)
    except UsageError as error:
        print(f"note: {error}", file=sys.stderr)
        return spec


def _check(name: str, spec: DataSpec | None, action_units: Units | None, as_json: bool) -> None:
    from gtp_fast.data import check

    found = check.check(name, spec, action_units)
    if found["ready"] and spec is not None and spec.eval_env is not None:
        found = _held_to_environment(found, spec)
    print(json.dumps(found) if as_json else "\n".join(_report(found)))
    if found["faults"]:
        more = len(found["faults"]) - 1
        also = f" (and {more} more fault{'s' * (more > 1)}, listed above)" if more else ""
        said, newline, lines = found["faults"][0]["message"].partition("\n")
        raise DataError(said + also + newline + lines)


def _held_to_environment(found: dict[str, Any], spec: DataSpec) -> dict[str, Any]:
    """Return what was found, with a fault more if the environment has other shapes than the data."""
    from gtp_fast.data import check
    from gtp_fast.evaluation.environments import check_environment

    obs = found["obs_dim"]
    try:
        check_environment(spec, obs if isinstance(obs, int) else tuple(obs), found["action_dim"])
    except DataError as error:
        return check.with_fault(found, error)
    except UsageError:  # it cannot be built, as a note has said
        pass
    return found


def _report(found: dict[str, Any]) -> list[str]:
    """Return the lines of what `check` found: what is there, faults, warnings, the verdict."""
    lines = [f"data      {found['source']}"]
    if "rows" in found:
        sizes = f"observations of {found.get('obs_dim', '?')}, actions of {found.get('action_dim', '?')} numbers"
        lines.append(f"rows      {found['rows']:,}; {sizes}")
    for name in ("observation", "action", "reward"):
        if f"{name}_range" in found:
            low, high = found[f"{name}_range"]
            lines.append(f"{name:12}from {low:.6g} to {high:.6g}")
    if "episode_length" in found:
        length = found["episode_length"]
        spread = f"{length['min']:,} / {length['median']:,.0f} / {length['max']:,} rows (least, median, most)"
        lines.append(f"episodes  {found['episodes']:,}: {spread}; {found['terminals']:,} terminal")
    if "return_mean" in found:
        lines.append(f"returns   {found['return_mean']:,.1f} (std {found['return_std']:,.1f})")
    lines += [f"acting    {found['acting']}"] if found.get("acting") else []
    lines += [f"note      {note}" for note in found.get("notes", [])]
    for title in ("faults", "warnings"):
        lines += [f"{title}:"] if found[title] else []
        for number, fault in enumerate(found[title], start=1):
            lines += [f"  {number}. {fault['file']}: {fault['seen']}", *_where(fault), f"     -> {fault['remedy']}"]
    return [*lines, found["verdict"]]


def _where(fault: dict[str, Any]) -> list[str]:
    """Return the line of first rows and values, where a fault has rows."""
    if not fault["rows"]:
        return []
    rows = fault["rows"]
    values = [f" ({value:.6g})" if isinstance(value, float) else f" ({value})" for value in fault["values"]]
    shown = [f"{row:,}{value}" for row, value in zip(rows, values or [""] * len(rows), strict=True)]
    more = ", ..." if fault["count"] > len(rows) else ""
    return [f"     row{'s' * (len(rows) > 1)} {', '.join(shown)}{more}; {fault['count']:,} in all"]
