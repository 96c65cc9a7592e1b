"""Changes to Triton's interpreter: it does what it did in half the time, and it drops NaN as a GPU does.

At each of a step's thousand or so calls the interpreter lists all members of the language's modules to replace the
builtins among them, which takes 40 % of an interpreted step. Which names are builtins does not change. It checks each
sum and product of integers for overflow by ten operations of its own, which takes 14 % of the rest; NumPy's do. And it
describes and checks the type of each value anew, which makes a fifth of the calls that are left.

The interpreter's `tl.minimum`, `tl.maximum` and `tl.clamp` keep NaN. A GPU's drop it unless `propagate_nan` says not
to.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib.util import find_spec

import numpy as np


def install() -> None:
    """Change the interpreter in this process, where there is Triton."""
    if find_spec("triton"):
        _search_once()
        _check_overflow_at_once()
        _describe_types_once()
        _drop_nan()


def _search_once() -> None:
    """Replace the search, unless this Triton's interpreter is not the one known here."""
    from triton.language import core
    from triton.runtime import interpreter

    search, patch = (getattr(interpreter, name, None) for name in ("_patch_builtin", "_patch_attr"))
    if not (search and patch) or list(inspect.signature(search).parameters) != ["pkg", "builder", "scope"]:
        return

    @cache
    def builtins(pkg: object) -> tuple[str, ...]:
        return tuple(name for name, member in inspect.getmembers(pkg) if core.is_builtin(member))

    def replace_builtins(pkg, builder, scope) -> None:
        names = builtins(pkg)
        if names and core.is_builtin(getattr(pkg, names[0])):  # a nested call finds all of them replaced already
            for name in names:
                patch(pkg, name, getattr(pkg, name), builder, scope)

    interpreter._patch_builtin = replace_builtins


def _check_overflow_at_once() -> None:
    """Fail where a sum, difference or product of integers does not fit its type, as the interpreter itself does."""
    from triton.language.semantic import TritonSemantic
    from triton.runtime.interpreter import InterpreterBuilder

    slow = TritonSemantic.binary_op_sanitize_overflow_impl
    exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

    def check(self, lhs, rhs, binary_op) -> None:
        kind = lhs.type.scalar
        if not isinstance(self.builder, InterpreterBuilder) or kind.int_bitwidth >= 64:
            slow(self, lhs, rhs, binary_op)
            return
        wide = exact[binary_op.__name__](lhs.handle.data, rhs.handle.data, dtype=np.int64)
        fits = wide.min() >= kind.get_int_min_value() and wide.max() <= kind.get_int_max_value()
        assert fits, f"int{kind.int_bitwidth} overflow detected for operation {binary_op.__name__}"

    TritonSemantic.binary_op_sanitize_overflow_impl = check


def _describe_types_once() -> None:
    """Keep the description of each type of block, the shape of its values and its type in NumPy."""
    from triton.language import core
    from triton.runtime import interpreter

    described, shapes, numpy_types = {}, {}, {}
    describe, give_value, numpy_type = core.block_type.__init__, core.tensor.__init__, interpreter._get_np_dtype

    def describe_once(self, element_ty, shape) -> None:
        sizes = tuple(size.value if isinstance(size, core.constexpr) else size for size in shape)
        key = element_ty.name, sizes
        if key not in described:
            describe(self, element_ty, shape)
            described[key] = self.shape, self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = described[key]

    def give_value_once(self, handle, type) -> None:
        key = type.shape if type.is_block() else ()
        if key not in shapes:
            give_value(self, handle, type)
            shapes[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[key]

    def numpy_type_once(tt_dtype):
        name = tt_dtype.name
        if name not in numpy_types:
            numpy_types[name] = numpy_type(tt_dtype)
        return numpy_types[name]

    core.block_type.__init__, core.tensor.__init__ = describe_once, give_value_once
    interpreter._get_np_dtype = numpy_type_once


def _drop_nan() -> None:
    """Make minimum and maximum of x and NaN return x, as the hardware does."""
    from triton.language import PropagateNan
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    def clamp(self, x, low, high, propagate_nan):
        if propagate_nan == PropagateNan.ALL:
            return self.ternary_op(x, low, high, np.clip)
        return self.ternary_op(x, low, high, lambda x, low, high: np.fmin(np.fmax(x, low), high))

    Builder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)
    Builder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    Builder.create_clampf = clamp
