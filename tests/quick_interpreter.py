"""Triton's interpreter without its search of `triton.language` at every call inside a kernel.

For each of the some thousand calls of a step it lists all members of the language's modules, to replace the builtins
among them: 40 % of an interpreted step. Which names are builtins does not change, so they are listed once.
"""

from __future__ import annotations

import inspect
from functools import cache


def install() -> None:
    """Replace the search in this process; where Triton is another than the one known here, nothing happens."""
    try:
        from triton.language import core
        from triton.runtime import interpreter

        search, patch = interpreter._patch_builtin, interpreter._patch_attr
    except (ImportError, AttributeError):
        return
    if list(inspect.signature(search).parameters) != ["pkg", "builder", "scope"]:
        return

    @cache
    def builtins(pkg: object) -> tuple[str, ...]:
        return tuple(name for name, member in inspect.getmembers(pkg) if core.is_builtin(member))

    def replace_builtins(pkg, builder, scope) -> None:
        for name in builtins(pkg):
            member = getattr(pkg, name)
            if core.is_builtin(member):  # in a call within a call they are replaced already
                patch(pkg, name, member, builder, scope)

    interpreter._patch_builtin = replace_builtins
