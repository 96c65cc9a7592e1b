"""Which modules a run may import for its environment: those that the user typed, and none that a file names.

In: an environment and its arguments, as a file names them, and the modules that the user named. Out: a refusal that
says what to type, or nothing. Nothing is imported here: Gymnasium does that, when it builds `module:Name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gtp_fast.config import TrainConfig, environment_arguments, shown
from gtp_fast.errors import UsageError
from gtp_fast.presets import settings_file

WITH_MODULE = re.compile(r"(?!minari:)(?P<module>[A-Za-z_][\w.]*):(?:[\w-]+/)*[\w.-]+")  # a Gymnasium id
CATALOGUED = ("gymnasium_robotics", "ogbench")  # installed packages, which entries of the catalogue import
ARGUMENT = re.compile(r"(?P<module>[^\s:/\\]+):.*", re.DOTALL)  # one that may name a module
NO_MODULE = re.compile(r"(cpu|cuda|mps|xpu):\d+|[-+.\d]+:.*", re.DOTALL)  # a device, a time, a range


def module_of(env: str | None) -> tuple[str, ...]:
    """Return the module of an id `module:Name`, or nothing."""
    match = WITH_MODULE.fullmatch(env or "")
    return (match["module"],) if match else ()


def refuse_imports(env: str | None, env_kwargs: object, place: Path, allowed: Iterable[str]) -> None:
    """Refuse what a file names of an environment, if building it would import a module that is not allowed.

    Some environments make another one, whose id is an argument: an argument of the form `module:Name` counts too.
    Args: env and env_kwargs, what `place` gives; allowed, modules that the user typed, with all that is in them.
    Raises: UsageError with the flag that allows it.
    """
    trusted = (*CATALOGUED, *allowed)
    for module in module_of(env):
        if not _within(module, trusted):
            raise UsageError(f"{place} names the environment {env}, {_remedy(module)}")
    for text in _texts(environment_arguments(env_kwargs)):
        match = None if NO_MODULE.fullmatch(text) else ARGUMENT.fullmatch(text)
        if match and not _within(match["module"], trusted):
            raise UsageError(f"{place} gives an environment the argument {shown(text)}, {_remedy(match['module'])}")


def refuse_imports_of_files(
    cfg: TrainConfig, flags: Mapping[str, Any], of_file: Mapping[str, Any], file: Path | None, allowed: Iterable[str]
) -> None:
    """Refuse settings as `refuse_imports` does, where --config FILE or the run of --resume gave the environment.

    Args: cfg, the merged settings; flags, those that were typed; of_file, those of `file`.
    """
    saved = None if cfg.resume in ("auto", "never") else settings_file(Path(cfg.resume))
    allowed = (*allowed, *module_of(flags.get("env")))
    env_from, kwargs_from = (
        None if name in flags else file if name in of_file else saved for name in ("env", "env_kwargs")
    )
    if env_from is not None:
        refuse_imports(cfg.env, None, env_from, allowed)
    if kwargs_from is not None:
        refuse_imports(None, cfg.env_kwargs, kwargs_from, allowed)


def _remedy(module: str) -> str:
    # The text is the file's: what a shell would read as more than a word is not to be copied.
    typed = f"pass --allow-import {module}" if re.fullmatch(r"[\w.-]+", module) else "type it as --env-kwargs"
    return f"and a file may not decide what is imported; if you trust it, {typed}"


def _within(module: str, allowed: Iterable[str]) -> bool:
    """Return whether a module is one of these, or inside one that is a package. `module:Name` stands for its module."""
    return any(f"{module}.".startswith(f"{one.partition(':')[0]}.") for one in allowed)


def _texts(value: object) -> Iterator[str]:
    """Yield every text in nested values of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *_texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
