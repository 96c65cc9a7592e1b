"""Triton's interpreter without its search of `triton.language` at every call inside a kernel, and true to NaN.

For each of the some thousand calls of a step it lists all members of the language's modules, to replace the builtins
among them: 40 % of an interpreted step. Which names are builtins does not change, so they are listed once.

`tl.minimum`, `tl.maximum` and `tl.clamp` keep NaN in the interpreter. A GPU drops it unless they are told to keep it.
"""

from __future__ import annotations

import inspect
from functools import cache

import numpy as np


def install() -> None:
    """Change the interpreter in this process."""
    _search_once()
    _drop_nan()


def _search_once() -> None:
    """Replace the search; where Triton is another than the one known here, nothing happens."""
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


def _drop_nan() -> None:
    """Let NaN go where the hardware lets it go: of x and NaN the smaller and the larger are x."""
    try:
        from triton.language import PropagateNan
        from triton.runtime.interpreter import InterpreterBuilder as Builder
    except ImportError:
        return

    def clamp(self, x, low, high, propagate_nan):
        if propagate_nan == PropagateNan.ALL:
            return self.ternary_op(x, low, high, np.clip)
        return self.ternary_op(x, low, high, lambda x, low, high: np.fmin(np.fmax(x, low), high))

    Builder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)
    Builder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    Builder.create_clampf = clamp
