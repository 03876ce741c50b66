"""Passes over the lines of a tile with what they add up in registers, which LLVM would keep in memory.

A tile of few columns holds 64 rows as lanes (n_columns, 64); a tile of one row holds its columns (1, padded columns),
and a sum over them ends with one over the lanes (``share_sum``, ``share_largest``). A sweep goes down one vector of
lanes; what is given to it and what it leaves are numbers a lane, in the slots of an array (n_slots, 64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, padded, store_columns
from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import LANES, VECTOR_BYTES, Vectors, index, intrinsic, loop

MANY = 256  # columns; a tile of more holds one row, so that it stays in the nearest cache

Body = Callable[[Any, list[Any], list[Any], list[Any]], tuple[dict[int, Any], list[Any]]]


def make_sweep(
    body: Body, given: Sequence[int] = (), carried: Mapping[int, float] | None = None, numbers: bool = False
) -> Any:
    """A pass ``sweep(a, b, c, lanes, n_lines)`` over a line after the other of up to three tiles.

    ``body(v, lines, constants, sums)`` emits the code of a line: it gets the three lines, what the slots ``given``
    hold and the sums so far, and returns what is to be stored, by the number of the tile, and the new sums, which
    start as ``carried`` says and end in those slots. With ``numbers`` there are two numbers more a line, the same in
    all lanes: those at ``first``, ``first + step``, ... of two arrays, and
    ``sweep(a, b, c, lanes, n_lines, p, q, first, step)`` is for tiles of 64 rows alone.
    """
    slots = {} if carried is None else dict(carried)

    @intrinsic
    def sweep(typingctx, a, b, c, lanes, lane, stride, count, p, q, first, step):
        signature = types.void(a, b, c, lanes, types.intp, types.intp, types.intp, p, q, types.intp, types.intp)

        def codegen(context, builder, sig, args):
            *arrays, lanes, lane, stride, count, p, q, first, step = args
            v = Vectors(context, builder, sig.args[0].dtype)
            pointers = [v.data(kind, array, lane) for kind, array in zip(sig.args, arrays)]
            places = {slot: v.at(v.data(sig.args[3], lanes, lane), index(slot * LANES)) for slot in (*given, *slots)}
            constants = [v.load(places[slot]) for slot in given]
            listed = [v.data(sig.args[7], p, first), v.data(sig.args[8], q, first)] if numbers else []

            def visit(i, sums):
                line = [v.at(pointer, builder.mul(i, stride)) for pointer in pointers]
                places = [v.at(number, builder.mul(i, step)) for number in listed]
                more = [v.broadcast(builder.load(place, typ=v.scalar)) for place in places]
                stored, sums = body(v, [v.load(place) for place in line] + more, constants, sums)
                for tile, value in stored.items():
                    v.store(value, line[tile])
                return sums

            sums = loop(builder, count, [v.constant(start) for start in slots.values()], visit)
            for slot, value in zip(slots, sums):
                v.store(value, places[slot])
            return context.get_dummy_value()

        return signature, codegen

    @jit(inline=True)
    def sweep_tile(a, b, c, lanes, n_lines):
        size = VECTOR_BYTES // a.itemsize
        if a.shape[1] != LANES:
            sweep(a, b, c, lanes, 0, size, (n_lines + size - 1) // size, a, a, 0, 0)
        else:
            for lane in range(0, LANES, size):
                sweep(a, b, c, lanes, lane, LANES, n_lines, a, a, 0, 0)

    @jit(inline=True)
    def sweep_with_numbers(a, b, c, lanes, n_lines, p, q, first, step):
        for lane in range(0, LANES, VECTOR_BYTES // a.itemsize):
            sweep(a, b, c, lanes, lane, LANES, n_lines, p, q, first, step)

    return sweep_with_numbers if numbers else sweep_tile


def make_tile(n_columns: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    shape = (1, padded(n_columns)) if n_columns > MANY else (padded(n_columns), LANES)
    return np.zeros(shape, dtype)


@jit(inline=True)
def rows_a_tile(n_columns):
    return 1 if n_columns > MANY else LANES


@jit(inner=True)
def load_tile(x, fill, tile, zeros, corner):
    """The first rows of x (m, n_columns), as many as a tile holds; beyond the columns of a single row the fill."""
    if x.shape[1] > MANY:
        tile[0, : x.shape[1]] = x[0]
        tile[0, x.shape[1] :] = fill
    else:
        load_columns(x, zeros, tile, corner)


@jit(inner=True)
def store_tile(tile, m, out, corner):
    """The first m rows of the tile as those of ``out`` (>= m, n_columns), whose other rows may be overwritten."""
    if out.shape[1] > MANY:
        out[0] = tile[0, : out.shape[1]]
    else:
        store_columns(tile, m, out, corner)


@jit(inner=True)
def fill_tile(of_columns, tile):
    """A number a column (n_columns,), the same in all rows."""
    if of_columns.size > MANY:
        tile[0, : of_columns.size] = of_columns
        tile[0, of_columns.size :] = 0
    else:
        for j in range(of_columns.size):
            tile[j] = of_columns[j]


@jit(inner=True)
def add_mass(weights, factor, mass):
    """Sums over rows of a tile of weights times the factor (64,), added to mass (n_columns,) float64."""
    if mass.size > MANY:
        row, of_row = weights[0], factor[0]
        for j in range(mass.size):
            mass[j] += np.float64(row[j] * of_row)
    else:
        add_sums_of_lanes(weights, factor, mass)


@jit(inner=True, reassociate=True)
def add_sums_of_lanes(weights, factor, mass):
    """The same of weights (n_columns, 64), however many columns there are."""
    for j in range(mass.size):
        row, total = weights[j], weights.dtype.type(0)
        for lane in range(LANES):
            total += row[lane] * factor[lane]
        mass[j] += total


@jit(inner=True)
def share_sum(n_columns, totals):
    """Sums that a sweep left become those over all columns, in every lane."""
    if n_columns > MANY:
        total = totals.dtype.type(0)
        for lane in range(VECTOR_BYTES // totals.itemsize):
            total += totals[lane]
        totals[:] = total


@jit(inner=True)
def share_largest(n_columns, largest):
    """The same of the largest."""
    if n_columns > MANY:
        found = largest[0]
        for lane in range(1, VECTOR_BYTES // largest.itemsize):
            found = largest[lane] if largest[lane] > found else found
        largest[:] = found


def larger(v: Vectors, a: Any, b: Any) -> Any:
    """The larger of two vectors; b where one is NaN."""
    return v.builder.select(v.builder.fcmp_ordered(">", a, b), a, b)


def emit_largest(v: Any, lines: list[Any], constants: list[Any], sums: list[Any]) -> tuple[dict[int, Any], list[Any]]:
    return {}, [larger(v, lines[0], sums[0])]


def emit_exp(v: Vectors, x: Any) -> Any:
    """e to the x, as :func:`fastdc.kernels._math.exp` makes it."""
    from fastdc.kernels import _math

    builder = v.builder
    if v.bits == 64:
        return v.call("llvm.exp", x)
    constant = lambda name: v.constant(float(getattr(_math, name)))  # noqa: E731
    rounder = v.fma(x, constant("_PER_LN2"), constant("_ROUNDER"))
    whole = builder.fsub(constant("_ROUNDER"), rounder)
    r = v.fma(whole, constant("_LN2_LOWER"), v.fma(whole, constant("_LN2_UPPER"), x))
    tail = constant("_C7")
    for name in ("_C6", "_C5", "_C4", "_C3", "_C2"):
        tail = v.fma(r, tail, constant(name))
    value = builder.fadd(v.constant(1.0), v.fma(builder.fmul(r, r), tail, r))
    shift = ir.Constant(v.integers, [23] * v.size)
    power = builder.bitcast(builder.shl(builder.bitcast(rounder, v.integers), shift), v.type)
    return builder.select(builder.fcmp_ordered("<", x, constant("_LOWEST")), v.zeros(), builder.fmul(value, power))


def emit_exp_beyond_line(v: Vectors, x: Any, near_zero: bool) -> Any:
    """e^x - 1 - x to its last digits where abs(x) < 1; ``near_zero`` says that this is so everywhere."""
    from fastdc.kernels import _math

    builder, one = v.builder, v.constant(1.0)
    n_terms = 10 if v.bits == 32 else _math._LAST_TERM
    nested = v.constant(2.0 / math.factorial(n_terms))
    for n in range(n_terms - 1, 1, -1):
        nested = v.fma(x, nested, v.constant(2.0 / math.factorial(n)))
    series = builder.fmul(builder.fmul(v.constant(0.5), builder.fmul(x, x)), nested)
    if near_zero:
        return series
    direct = builder.fsub(builder.fsub(emit_exp(v, x), one), x)
    return builder.select(builder.fcmp_ordered("<", v.call("llvm.fabs", x), one), series, direct)
