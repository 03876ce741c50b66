"""Compiled passes over rows of scores, one exponential an entry.

A potential comes in two parts, the nearest integer (``whole``) and what is left (``part``): the exponent of an
entry is then exact up to the last bit of its own fraction, however large scores / epsilon is. Shifts are integers
too. A potential of minus infinity is ``LOWEST``. ``scale`` is log2(e) / epsilon.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.core import cgutils
from numpy.typing import NDArray

from fastdc.kernels._math import exp2, exp2_affine, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._vectors import VECTOR_BYTES, Vectors, index, intrinsic, loop

LOWEST = -1e36  # exponents
DEAD = -1e35  # an exponent at or below it is that of minus infinity
LINE_BYTES = 64
CHAINS = 4  # maxima that run beside each other
STRIP = 64  # rows between two visits to a sum in float64
WIDTH = 1024  # columns between two such visits
TILE = 1 << 17  # entries that stay in cache
LEAST_SUM = 2.0**-40  # of a row's exponentials under its bound: below it they are computed anew


class Potential(NamedTuple):
    """Of columns or rows, in the dtype of the scores."""

    whole: NDArray
    part: NDArray


@jit(inner=True)
def _row_shift(row, potential, scale):
    """Largest exponent of a row, its potential's integer alone, rounded to an integer; LOWEST where there is none."""
    largest = row.dtype.type(LOWEST)
    if row.size * row.itemsize >= VECTOR_BYTES:
        largest = _row_maximum(row, potential.whole, scale, largest)
    else:
        for j in range(row.size):
            exponent = multiply_add(row[j], scale, potential.whole[j])
            largest = exponent if exponent > largest else largest
    return row.dtype.type(np.rint(largest))


@intrinsic
def _row_maximum(typingctx, row, addend, factor, lowest):
    """Largest of row * factor + addend and lowest, of at least a vector; NaN is passed over."""

    def codegen(context, builder, signature, args):
        v = Vectors(context, builder, signature.args[0].dtype)
        first, more = (v.data(signature.args[i], args[i], index(0)) for i in (0, 1))
        factor, lowest = (v.broadcast(value) for value in args[2:])
        array = context.make_array(signature.args[0])(context, builder, args[0])
        (n,) = cgutils.unpack_tuple(builder, array.shape)
        last = builder.sub(n, index(v.size))
        step = CHAINS * v.size

        def body(i, largest):
            start = builder.mul(i, index(step))
            updated = []
            for chain, before in enumerate(largest):
                place = builder.add(start, index(chain * v.size))
                place = builder.select(builder.icmp_signed("<", place, last), place, last)  # the end is taken twice
                score = v.load(v.at(first, place))
                exponent = v.fma(score, factor, v.load(v.at(more, place)))
                updated.append(builder.select(builder.fcmp_ordered(">", exponent, before), exponent, before))
            return updated

        count = builder.sdiv(builder.add(n, index(step - 1)), index(step))
        largest = loop(builder, count, [lowest] * CHAINS, body)
        while len(largest) > 1:
            a, b = largest.pop(), largest.pop()
            largest.insert(0, builder.select(builder.fcmp_ordered(">", a, b), a, b))
        return v.largest(largest[0])

    return row.dtype(row, addend, factor, lowest), codegen


@jit(inner=True)
def _exponentials(row, potential, scale, shift, out):
    """out: 2^(exponent - shift) of one row; their sum."""
    total = 0.0
    for first in range(0, row.size, WIDTH):
        part = slice(first, first + WIDTH)
        total += _exponentials_of(row[part], potential.whole[part], potential.part[part], scale, shift, out[part])
    return total


@jit(inner=True, reassociate=True)
def _exponentials_of(row, whole, part, scale, shift, out):
    for j in range(row.size):
        out[j] = exp2_affine(row[j], scale, whole[j] - shift, part[j])
    total = row.dtype.type(0)
    for j in range(row.size):  # a loop that stores nothing: see jit
        total += out[j]
    return total


@jit(inner=True)
def _softmax_row(row, potential, scale, bound, out):
    """out: 2^(exponent - shift) of one row; the shift, and the sum of out, NaN where the row has no finite score."""
    total = _exponentials(row, potential, scale, bound, out)
    if total >= LEAST_SUM:
        return bound, total
    shift = _row_shift(row, potential, scale)
    total = _exponentials(row, potential, scale, shift, out)
    return shift, total if not shift <= row.dtype.type(DEAD) else np.nan


@jit(inner=True)
def _call_into_cache(scores, start, stop):
    """Read a number of each cache line; a sum that nobody needs, so that the reads stay.

    A plain loop keeps many reads under way; the loop of the exponentials would wait for each.
    """
    line = LINE_BYTES // scores.itemsize
    total = 0.0
    for i in range(start, stop):
        row = scores[i]
        for j in range(0, row.size, line):
            total += row[j]
    return total


@jit(inner=True)
def strip_rows(width):
    """Rows of this many entries that stay in cache together."""
    return max(1, min(STRIP, TILE // width))


@jit
def step_block(scores, potential, scale, bounds, weight, row_logs, scratch, mass):
    """row_logs (m,): log2 of each row's sum; mass (k,): sums of weight times row over its sum. Both float64."""
    row_values, partial = scratch
    m, k = scores.shape
    strip, called = strip_rows(k), 0.0
    mass[:] = 0.0
    for start in range(0, m, strip):
        stop = min(start + strip, m)
        called += _call_into_cache(scores, start, stop)
        partial[:] = scores.dtype.type(0)
        for i in range(start, stop):
            shift, total = _softmax_row(scores[i], potential, scale, bounds[i], row_values)
            row_logs[i] = shift + np.log2(total)
            factor = scores.dtype.type(weight[i] / total)
            for j in range(k):
                partial[j] = multiply_add(row_values[j], factor, partial[j])
        for j in range(k):
            mass[j] += partial[j]
    return called


@jit
def assign_block(scores, potential, scale, bounds, q):
    """q (m, k): the softmax of each row."""
    m, k = scores.shape
    strip, called = strip_rows(k), 0.0
    for start in range(0, m, strip):
        stop = min(start + strip, m)
        called += _call_into_cache(scores, start, stop)
        for i in range(start, stop):
            _, total = _softmax_row(scores[i], potential, scale, bounds[i], q[i])
            factor = scores.dtype.type(1.0 / total)
            for j in range(k):
                q[i, j] *= factor
    return called


@jit
def columns_block(scores, potential, scale, scratch, shifts, sums):
    """Of each column: an integer near its largest exponent, and the sum of 2^(exponent - shift), float64."""
    m, k = scores.shape
    shifts[:] = scores.dtype.type(LOWEST)
    sums[:] = 0.0
    width = scratch[0].size
    strip = strip_rows(width)
    for first in range(0, k, width):
        part = slice(first, min(first + width, k))
        for start in range(0, m, strip):
            rows = range(start, min(start + strip, m))
            _add_strip(scores, part, rows, potential, scale, scratch, shifts[part], sums[part])


@jit(inner=True)
def _add_strip(scores, columns, rows, potential, scale, scratch, shifts, sums):
    width = shifts.size
    largest, partial = scratch[0][:width], scratch[1][:width]
    largest[:] = scores.dtype.type(LOWEST)
    for i in rows:
        _raise_columns(scores[i, columns], potential.whole[i], scale, largest)
    for j in range(width):
        shift = max(shifts[j], np.rint(largest[j]))
        sums[j] *= exp2(shifts[j] - shift)
        shifts[j] = shift
    partial[:] = scores.dtype.type(0)
    for i in rows:
        _add_exponentials(scores[i, columns], potential.whole[i], potential.part[i], scale, shifts, partial)
    for j in range(width):
        sums[j] += partial[j] if shifts[j] > scores.dtype.type(DEAD) else scores.dtype.type(0)


@jit(inner=True)
def _raise_columns(row, whole, scale, largest):
    for j in range(row.size):
        exponent = multiply_add(row[j], scale, whole)
        largest[j] = exponent if exponent > largest[j] else largest[j]


@jit(inner=True)
def _add_exponentials(row, whole, part, scale, shifts, partial):
    for j in range(row.size):
        partial[j] += exp2_affine(row[j], scale, whole - shifts[j], part)
