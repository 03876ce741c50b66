"""log2, exp2, exp, power and compensated sums inside CPU kernels, as LLVM vectorises them; the lowest bit of a mask."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload

from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import intrinsic


@intrinsic
def lowest_bit(typingctx, mask):
    """Position of the lowest bit set in a uint64 other than zero."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), codegen


@intrinsic
def _bits_of(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def _float_of(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


_f = np.float32
_SQRT_HALF_BITS = np.int32(0x3F3504F3)  # sqrt(1/2)
_MANTISSA = np.int32(0x007FFFFF)
_TWO_OVER_LN2 = 2.0 / math.log(2.0)
_A1, _A3, _A5, _A7, _A9 = (_f(_TWO_OVER_LN2 / odd) for odd in (1, 3, 5, 7, 9))
_E1, _E2, _E3, _E4, _E5, _E6, _E7 = (_f(math.log(2.0) ** n / math.factorial(n)) for n in range(1, 8))


_UPPER_HALF = np.int32(-4096)  # mask of a float32's sign, exponent and first 11 fraction bits


@jit(inline=True)
def _split_log2(x):
    """log2(x) as an integer and a remainder in [-1/2, 1/2]; x = 2**e * m with m in [sqrt(1/2), sqrt(2))."""
    shifted = _bits_of(x) - _SQRT_HALF_BITS
    e = _f(shifted >> np.int32(23))
    m = _float_of((shifted & _MANTISSA) + _SQRT_HALF_BITS)
    s = (m - _f(1.0)) / (m + _f(1.0))  # log2(m) = 2/ln2 atanh(s)
    s2 = s * s
    return e, s * (_A1 + s2 * (_A3 + s2 * (_A5 + s2 * (_A7 + s2 * _A9))))


@jit(inline=True)
def _log2_float32(x):
    e, remainder = _split_log2(x)
    return e + remainder


@jit(inline=True)
def _power_float32(x, y):
    e, remainder = _split_log2(x)
    # y e must lose nothing where it is large: the upper half of y times e is exact
    upper = _float_of(_bits_of(y) & _UPPER_HALF)
    exact = upper * e
    rest = (y - upper) * e + y * remainder
    whole = _f(np.floor(min(max(exact + rest, _f(-126.0)), _f(127.0)) + _f(0.5)))
    r = min(max((exact - whole) + rest, _f(-1.0)), _f(1.0))
    scale = _float_of((np.int32(whole) + np.int32(127)) << np.int32(23))
    polynomial = _E1 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * (_E6 + r * _E7)))))
    return scale * (_f(1.0) + r * polynomial) if x > _f(0.0) else x * _f(0.0)


def log2(x: Any) -> Any:
    """Logarithm to base 2 inside kernels. float32: vectorises, within 3 ulp for normal x > 0; finite for x = 0."""
    raise RuntimeError("only for use inside kernels")


def power(x: Any, y: Any) -> Any:
    """x to the y inside kernels, x >= 0. float32: vectorises, within 4 ulp; results lie in [2^-127, 2^128)."""
    raise RuntimeError("only for use inside kernels")


@overload(log2, inline="never")
def _log2(x):
    if x == types.float32:
        return lambda x: _log2_float32(x)
    return lambda x: math.log2(max(x, 5e-324)) if x == x else x


@overload(power, inline="never")
def _power(x, y):
    if x == types.float32:
        return lambda x, y: _power_float32(x, y)
    return lambda x, y: x**y


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a * b + c, rounded once where the processor can."""
    if not (a == b == c and a in (types.float32, types.float64)):
        return None

    def codegen(context, builder, signature, args):
        number = args[0].type
        name = f"llvm.fmuladd.f{signature.return_type.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number] * 3), name)
        return builder.call(function, args)

    return a(a, a, a), codegen


# (2^r - 1) / r for |r| <= 1/2, of degree 5 and least relative error in 2^r: 3e-9, so that sums of many have no bias
_Q0, _Q1, _Q2 = _f(0.69314718246), _f(0.24022647738), _f(0.05550359935)
_Q3, _Q4, _Q5 = _f(0.00961850584), _f(0.00133908063), _f(0.00015326471)
_ROUNDER = _f(1.5 * 2**23 + 127)  # added to x, it leaves round(x) + 127 in the last bits
_SMALLEST_EXPONENT = _f(-125.0)


@jit(inline=True)
def _times_two_to(r, rounder):
    """2**r times two to the integer in the last bits of ``rounder``, |r| <= 1/2."""
    q = multiply_add(r, _Q5, _Q4)
    q = multiply_add(r, q, _Q3)
    q = multiply_add(r, q, _Q2)
    q = multiply_add(r, q, _Q1)
    q = multiply_add(r, q, _Q0)
    return multiply_add(r, q, _f(1.0)) * _float_of(_bits_of(rounder) << np.int32(23))


@jit(inline=True)
def _exp2_float32(x):
    rounder = x + _ROUNDER
    value = _times_two_to(x - (rounder - _ROUNDER), rounder)
    value = _f(np.inf) if x > _f(127.5) else value
    return _f(0.0) if x < _SMALLEST_EXPONENT else value


@jit(inline=True)
def _exp2_affine_float32(x, scale, whole, part):
    rounder = (multiply_add(x, scale, whole) + part) + _ROUNDER
    # whole less the exponent's integer is exact, so that only what is left, at most 1/2, is rounded
    value = _times_two_to(multiply_add(x, scale, whole - (rounder - _ROUNDER)) + part, rounder)
    return _f(0.0) if rounder < _ROUNDER + _SMALLEST_EXPONENT else value


def exp2(x: Any) -> Any:
    """Two to the x inside kernels. float32: vectorises, within 2 ulp; 0 for x < -125, infinite for x > 127.5."""
    raise RuntimeError("only for use inside kernels")


def exp2_affine(x: Any, scale: Any, whole: Any, part: Any) -> Any:
    """Two to the x scale + whole + part inside kernels, for an integer ``whole`` and a result below 2**127.

    float32: vectorises; as accurate as :func:`exp2` of the exact exponent while |x scale| and |whole| stay below
    2**24, however much of them cancels.
    """
    raise RuntimeError("only for use inside kernels")


@overload(exp2, inline="never")
def _exp2(x):
    if x == types.float32:
        return lambda x: _exp2_float32(x)
    return lambda x: 2.0**x


@overload(exp2_affine, inline="never")
def _exp2_affine(x, scale, whole, part):
    if x == types.float32:
        return lambda x, scale, whole, part: _exp2_affine_float32(x, scale, whole, part)
    return lambda x, scale, whole, part: 2.0 ** (x * scale + whole + part)


# ln 2 in two parts: whole multiples of the first, whose last bits are zero, are exact
_LN2_UPPER = _f(0.693359375)
_LN2_LOWER = _f(math.log(2.0) - 0.693359375)
_PER_LN2 = _f(1.0 / math.log(2.0))
_LOWEST = _f(-87.0)
_C2, _C3, _C4, _C5, _C6, _C7 = (_f(1.0 / math.factorial(n)) for n in range(2, 8))


@jit(inline=True)
def _exp_float32(x):
    rounder = multiply_add(x, _PER_LN2, _ROUNDER)
    whole = rounder - _ROUNDER
    r = multiply_add(-whole, _LN2_LOWER, multiply_add(-whole, _LN2_UPPER, x))
    tail = multiply_add(r, multiply_add(r, _C7, _C6), _C5)
    tail = multiply_add(r, multiply_add(r, multiply_add(r, tail, _C4), _C3), _C2)
    value = (_f(1.0) + multiply_add(r * r, tail, r)) * _float_of(_bits_of(rounder) << np.int32(23))
    return _f(0.0) if x < _LOWEST else value


# 2 / n!: e^x - 1 - x = x^2 / 2 (1 + x (_D3 + x (_D4 + ...)))
_D3, _D4, _D5, _D6, _D7, _D8, _D9, _D10 = (_f(2.0 / math.factorial(n)) for n in range(3, 11))
_LAST_TERM = 19  # of the series in float64; below its rounding for |x| < 1


@jit(inline=True)
def _exp_beyond_line_float32(x):
    low = multiply_add(x, multiply_add(x, multiply_add(x, _D5, _D4), _D3), _f(1.0))
    high = multiply_add(x, multiply_add(x, multiply_add(x, multiply_add(x, _D10, _D9), _D8), _D7), _D6)
    square = x * x
    series = _f(0.5) * square * multiply_add(square * square, high, low)
    return series if abs(x) < _f(1.0) else exp(x) - _f(1.0) - x


@jit(inline=True)
def _exp_beyond_line_float64(x):
    if not abs(x) < 1.0:
        return math.exp(x) - 1.0 - x
    nested = 1.0
    for n in range(_LAST_TERM, 2, -1):
        nested = 1.0 + nested * x / n
    return 0.5 * x * x * nested


def exp(x: Any) -> Any:
    """e to the x inside kernels, x <= 88. float32: vectorises, within 2 ulp; zero below -87, NaN of NaN."""
    raise RuntimeError("only for use inside kernels")


def exp_beyond_line(x: Any) -> Any:
    """e^x - 1 - x inside kernels, x <= 88: to its last digits where x is small. float32: vectorises."""
    raise RuntimeError("only for use inside kernels")


@overload(exp, inline="never")
def _exp(x):
    if x == types.float32:
        return lambda x: _exp_float32(x)
    return lambda x: math.exp(x)


@overload(exp_beyond_line, inline="never")
def _exp_beyond_line(x):
    if x == types.float32:
        return lambda x: _exp_beyond_line_float32(x)
    return lambda x: _exp_beyond_line_float64(x)


@jit(inline=True)
def add_compensated(total, lost, lane, value):
    """total[lane] += value; what the rounding loses is kept in lost[lane], whichever of the two is the larger."""
    before, corrected = total[lane], value + lost[lane]
    after = before + corrected
    taken = after - before
    lost[lane] = (before - (after - taken)) + (corrected - taken)
    total[lane] = after
