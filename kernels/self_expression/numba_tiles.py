"""Compiled blocks of orthogonal matching pursuit: 64 rows, one a lane, against tiles of candidates."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._vectors import LANES
from fastdc.kernels.self_expression.reference import DEPENDENT, EXPLAINED

CANDIDATES = 256  # of a tile
_DEPENDENT, _EXPLAINED = float(DEPENDENT), float(EXPLAINED)


class Scratch(NamedTuple):
    """What one worker owns."""

    rows: NDArray  # (64, d) residuals
    columns: NDArray  # (padded, 64) the same, a feature a row
    tile: NDArray  # (CANDIDATES, 64) correlations
    best: NDArray  # (64,) largest so far
    place: NDArray  # (64,) int64, where
    residual: NDArray  # (64, d) float64
    basis: NDArray  # (64, k, d) float64, orthonormal, of each row's support
    triangle: NDArray  # (64, k, k) float64: point l of the support is the sum of triangle[:, l] times the basis
    rest: NDArray  # (d,) float64
    zeros: NDArray  # (padded,)
    corner: NDArray


def make_scratch(n_features: int, n_nonzero: int, dtype: np.dtype) -> Scratch:
    wide = padded(n_features)
    return Scratch(
        np.empty((LANES, n_features), dtype),
        np.empty((wide, LANES), dtype),
        np.empty((CANDIDATES, LANES), dtype),
        np.empty(LANES, dtype),
        np.empty(LANES, np.int64),
        np.empty((LANES, n_features)),
        np.empty((LANES, n_nonzero, n_features)),
        np.empty((LANES, n_nonzero, n_nonzero)),
        np.empty(n_features),
        np.zeros(wide, dtype),
        make_corner(dtype),
    )


@jit
def pursue_block(x, first, tol, scratch, chosen, values):
    """Columns and coefficients (m, k) of rows first, ... of x (n, d); columns are -1 where there is none."""
    n_nonzero = chosen.shape[1]
    for start in range(0, chosen.shape[0], LANES):
        m = min(LANES, chosen.shape[0] - start)
        support, some = chosen[start : start + m], values[start : start + m]
        going, limit = np.zeros(LANES, np.bool_), np.empty(LANES)
        support[:] = -1
        for lane in range(m):
            row = x[first + start + lane]
            for d in range(row.size):
                scratch.residual[lane, d] = row[d]
            length = _length(scratch.residual[lane])
            limit[lane] = max(tol, _EXPLAINED * length)
            going[lane] = length > limit[lane]
        for step in range(n_nonzero):
            if not going.any():
                break
            _find_best(x, first + start, support, step, scratch)
            for lane in range(m):
                if going[lane]:
                    added = _add_point(x, lane, step, scratch, support)
                    going[lane] = added and _length(scratch.residual[lane]) > limit[lane]
        for lane in range(m):
            _solve(x[first + start + lane], support[lane], scratch.basis[lane], scratch.triangle[lane], some[lane])


@jit(inner=True)
def _find_best(x, first, support, step, scratch):
    """Of each lane the candidate that correlates most with its residual: neither itself nor in its support."""
    m, n = support.shape[0], x.shape[0]
    for lane in range(m):
        for d in range(x.shape[1]):
            scratch.rows[lane, d] = scratch.residual[lane, d]
    load_columns(scratch.rows[:m], scratch.zeros, scratch.columns, scratch.corner)
    scratch.best[:] = x.dtype.type(0)
    scratch.place[:] = -1
    for begin in range(0, n, CANDIDATES):
        end = min(begin + CANDIDATES, n)
        tile = scratch.tile[: end - begin]
        gemm(x[begin:end], scratch.columns[: x.shape[1]], tile, False)
        for lane in range(m):
            if begin <= first + lane < end:
                tile[first + lane - begin, lane] = 0
            for s in range(step):
                column = support[lane, s]
                if begin <= column < end:
                    tile[column - begin, lane] = 0
        _keep_larger(tile, begin, scratch.best, scratch.place)


@jit(inner=True)
def _keep_larger(tile, begin, best, place):
    """Largest magnitudes first, then who has them: few tiles hold a new one."""
    larger = best.copy()
    for j in range(tile.shape[0]):
        row = tile[j]
        for lane in range(LANES):
            value = abs(row[lane])
            larger[lane] = value if value > larger[lane] else larger[lane]
    for lane in range(LANES):
        if larger[lane] > best[lane]:
            best[lane] = larger[lane]
            j = 0
            while abs(tile[j, lane]) != larger[lane]:
                j += 1
            place[lane] = begin + j


@jit(inner=True, reassociate=True)
def _dot(a, b):
    total = 0.0
    for d in range(a.size):
        total += a[d] * b[d]
    return total


@jit(inner=True)
def _length(a):
    return math.sqrt(_dot(a, a))


@jit(inner=True)
def _subtract(a, factor, b):
    for d in range(a.size):
        a[d] -= factor * b[d]


@jit(inner=True)
def _add_point(x, lane, step, scratch, support):
    """The best candidate joins the support, unless there is none or it depends on the others: whether it did."""
    column = scratch.place[lane]
    if column < 0:
        return False
    rest, basis, triangle = scratch.rest, scratch.basis[lane], scratch.triangle[lane]
    row = x[column]
    for d in range(row.size):
        rest[d] = row[d]
    whole = _length(rest)
    for s in range(step):
        triangle[s, step] = 0.0
    for _ in range(2):  # once more takes off what rounding left
        for s in range(step):
            share = _dot(basis[s], rest)
            triangle[s, step] += share
            _subtract(rest, share, basis[s])
    height = _length(rest)
    if not height > _DEPENDENT * whole:
        return False
    triangle[step, step] = height
    for d in range(rest.size):
        basis[step, d] = rest[d] / height
    residual = scratch.residual[lane]
    _subtract(residual, _dot(basis[step], residual), basis[step])
    support[lane, step] = column
    return True


@jit(inner=True)
def _solve(row, support, basis, triangle, values):
    """Coefficients of a row: the triangle's solution for its shares of the basis."""
    size = 0
    while size < support.size and support[size] >= 0:
        size += 1
    solution = np.zeros(support.size)
    for s in range(size - 1, -1, -1):
        share = 0.0
        for d in range(row.size):
            share += basis[s, d] * row[d]
        for later in range(s + 1, size):
            share -= triangle[s, later] * solution[later]
        solution[s] = share / triangle[s, s]
    for s in range(support.size):
        values[s] = solution[s]
