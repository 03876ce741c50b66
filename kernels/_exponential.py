"""exp inside CPU kernels, in a form that LLVM vectorises."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from fastdc.kernels._math import _float_of

_njit: Any = numba.njit  # its annotations lack the wrappers' options
# products and sums fuse, which loses nothing and is twice as fast; no other liberty is taken
_inline = _njit(
    nogil=True,
    error_model="numpy",
    fastmath={"contract"},
    forceinline=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)
_f = np.float32
_LOWEST, _HIGHEST = _f(-87.0), _f(88.0)
_PER_LN2 = _f(1.0 / math.log(2.0))
# ln 2 in two parts: whole multiples of the first, whose last bits are zero, are exact
_LN2_UPPER = _f(0.693359375)
_LN2_LOWER = _f(math.log(2.0) - 0.693359375)
_C2, _C3, _C4, _C5, _C6, _C7 = (_f(1.0 / math.factorial(n)) for n in range(2, 8))


@_inline
def _exp_float32(x):
    inside = x if x > _LOWEST else _LOWEST  # also for NaN, which has no integer
    inside = inside if inside < _HIGHEST else _HIGHEST
    whole = _f(np.floor(inside * _PER_LN2 + _f(0.5)))
    r = (x - whole * _LN2_UPPER) - whole * _LN2_LOWER
    tail = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    scale = _float_of((np.int32(whole) + np.int32(127)) << np.int32(23))
    value = scale * (_f(1.0) + (r + r * r * tail))
    return _f(0.0) if x < _LOWEST else value


def exp(x: Any) -> Any:
    """e to the x inside kernels, x <= 88. float32: vectorises, within 2 ulp; zero below -87, NaN of NaN."""
    raise RuntimeError("only for use inside kernels")


@overload(exp, inline="never")
def _exp(x):
    if x == types.float32:
        return lambda x: _exp_float32(x)
    return lambda x: math.exp(x)


def exp_beyond_line(x: Any) -> Any:
    """e^x - 1 - x inside kernels, x <= 88: to its last digits where x is small. float32: vectorises."""
    raise RuntimeError("only for use inside kernels")


_D3, _D4, _D5, _D6, _D7, _D8, _D9, _D10 = (_f(2.0 / math.factorial(n)) for n in range(3, 11))
_LAST_TERM = 19  # of the series in float64; below its rounding for |x| < 1


@_inline
def _exp_beyond_line_float32(x):
    low = _f(1.0) + x * (_D3 + x * (_D4 + x * _D5))
    high = _D6 + x * (_D7 + x * (_D8 + x * (_D9 + x * _D10)))
    square = x * x
    series = _f(0.5) * square * (low + square * square * high)
    return series if abs(x) < _f(1.0) else exp(x) - _f(1.0) - x


@_inline
def _exp_beyond_line_float64(x):
    if not abs(x) < 1.0:
        return math.exp(x) - 1.0 - x
    nested = 1.0
    for n in range(_LAST_TERM, 2, -1):
        nested = 1.0 + nested * x / n
    return 0.5 * x * x * nested


@overload(exp_beyond_line, inline="never")
def _exp_beyond_line(x):
    if x == types.float32:
        return lambda x: _exp_beyond_line_float32(x)
    return lambda x: _exp_beyond_line_float64(x)
