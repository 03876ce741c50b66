"""Compiled passes over tiles (n_prototypes, 64) of scores and of their exponentials, both held; see ``numba_held.py``.

Exponents need no shift. Sums over prototypes are float32 within 256 of them, float64 beyond.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded, store_columns
from fastdc.kernels._math import exp2_affine, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._vectors import LANES
from fastdc.kernels.sinkhorn.numba_swapped_tiles import CHUNK, add_and_clear

TILES_A_SUM = 16  # whose gradients of prototypes are summed in the working dtype


class Scratch(NamedTuple):
    """What one worker owns."""

    columns: NDArray  # (padded, 64)
    rows: NDArray  # (64, padded)
    corner: NDArray  # as load_columns wants it
    no_shift: NDArray  # (padded,) zeros
    lanes: NDArray  # (64,)


class Factor(NamedTuple):
    """A number a row, in two parts: one rounding less where p and q nearly cancel."""

    upper: NDArray  # (n_tiles, 64)
    lower: NDArray


class Side(NamedTuple):
    """One view: its scores, and the factors of its codes and predictions."""

    scores: NDArray  # (n_tiles, k, 64)
    kernel: NDArray  # (n_tiles, k, 64)
    scaling: NDArray  # (k,) of prototypes
    code: Factor  # 1 / sums of rows, so that kernel * scaling * code are codes
    said: Factor  # 1 / sums of the predictions' exponentials
    log_said: Factor  # log2 of those sums, the first part an integer


def make_scratch(d: int, dtype: np.dtype) -> Scratch:
    width = padded(d)
    return Scratch(
        columns=np.empty((width, LANES), dtype),
        rows=np.zeros((LANES, width), dtype),
        corner=make_corner(dtype),
        no_shift=np.zeros(width, dtype),
        lanes=np.empty(LANES, dtype),
    )


@jit
def score_tiles(x, prototypes, scales, chunk, units, scratch, scores, kernel, column_sums, predicted):
    """Scores and their exponentials, of 64 rows and ``chunk`` prototypes a unit; units count tiles first.

    x (2, n, d) both views; scales: of the codes and of the predictions; scores, kernel (2, tiles, k, 64);
    column_sums (2, tiles, k): of the codes' exponentials over rows; predicted (chunks, 2, tiles, 64): of the
    predictions' over the prototypes of a chunk. Sums are float64.
    """
    n_tiles, k = scores.shape[1], scores.shape[2]
    for unit in range(units.start, units.stop):
        part, rest = divmod(unit, 2 * n_tiles)
        view, tile = divmod(rest, n_tiles)
        first, last = part * chunk, min((part + 1) * chunk, k)
        rows = x[view, tile * LANES : (tile + 1) * LANES]
        out, powers = scores[view, tile, first:last], kernel[view, tile, first:last]
        load_columns(rows, scratch.no_shift, scratch.columns, scratch.corner)
        gemm(prototypes[first:last], scratch.columns[: x.shape[2]], out, False)
        _exponentials(out, scales, powers, scratch.lanes, predicted[part, view, tile])
        for lane in range(LANES):
            scratch.lanes[lane] = lane < rows.shape[0]
        _weigh_rows(powers, scratch.lanes, column_sums[view, tile, first:last])


@jit(inner=True)
def _exponentials(scores, scales, kernel, partial, predicted):
    zero = scores.dtype.type(0)
    predicted[:] = 0.0
    for first in range(0, scores.shape[0], CHUNK):
        partial[:] = zero
        for j in range(first, min(first + CHUNK, scores.shape[0])):
            row, out = scores[j], kernel[j]
            for lane in range(LANES):
                out[lane] = exp2_affine(row[lane], scales[0], zero, zero)
                partial[lane] += exp2_affine(row[lane], scales[1], zero, zero)
        for lane in range(LANES):
            predicted[lane] += partial[lane]


@jit(inner=True, reassociate=True)
def _weigh_rows(kernel, weight, sums):
    """sums (chunk,) float64: of each prototype's row times the weights (64,)."""
    for j in range(kernel.shape[0]):
        row = kernel[j]
        total = kernel.dtype.type(0)
        for lane in range(LANES):
            total += row[lane] * weight[lane]
        sums[j] = total


@jit(inner=True)
def _sum_tile(kernel, scaling, partial, totals):
    """totals (64,) float64: sums over prototypes of kernel * scaling."""
    totals[:] = 0.0
    for first in range(0, kernel.shape[0], CHUNK):
        partial[:] = kernel.dtype.type(0)
        for j in range(first, min(first + CHUNK, kernel.shape[0])):
            row, factor = kernel[j], scaling[j]
            for lane in range(LANES):
                partial[lane] = multiply_add(row[lane], factor, partial[lane])
        for lane in range(LANES):
            totals[lane] += partial[lane]


@jit
def sum_tiles(kernel, scaling, tiles, scratch, totals):
    """totals (n_tiles, 64) float64: sums over prototypes of kernel * scaling (k,)."""
    for tile in range(tiles.start, tiles.stop):
        _sum_tile(kernel[tile], scaling, scratch.lanes, totals[tile])


@jit
def step_tiles(kernel, scaling, n, tiles, scratch, totals, column_sums):
    """As :func:`sum_tiles`; column_sums (n_tiles, k) float64: of the n rows over their totals."""
    for tile in range(tiles.start, tiles.stop):
        _sum_tile(kernel[tile], scaling, scratch.lanes, totals[tile])
        for lane in range(LANES):
            scratch.lanes[lane] = 1.0 / totals[tile, lane] if tile * LANES + lane < n else 0.0
        _weigh_rows(kernel[tile], scratch.lanes, column_sums[tile])


@jit
def swap_tiles(first, second, scale, weight, needed, tiles, losses):
    """Scores of both sides become their gradients, if needed; losses (n_tiles,): of the rows, in bits.

    weight (n_tiles, 64): of rows, zero where there is none.
    """
    k = first.scores.shape[1]
    for tile in range(tiles.start, tiles.stop):
        losses[tile] = 0.0
        for start in range(0, k, CHUNK):
            chunk = slice(start, min(start + CHUNK, k))
            losses[tile] += _cross_entropy(first, second, tile, chunk, scale, weight[tile])
            losses[tile] += _cross_entropy(second, first, tile, chunk, scale, weight[tile])
            if needed:
                _score_gradients(first, second, tile, chunk, scale, weight[tile])
                _score_gradients(second, first, tile, chunk, scale, weight[tile])


@jit(inner=True, reassociate=True)
def _cross_entropy(said, code, tile, chunk, scale, weight):
    whole, part, reciprocal = said.log_said.upper[tile], said.log_said.lower[tile], code.code.upper[tile]
    total = 0.0
    for j in range(chunk.start, chunk.stop):
        row, kernel, scaling = said.scores[tile, j], code.kernel[tile, j], code.scaling[j]
        partial = row.dtype.type(0)
        for lane in range(LANES):
            log_p = multiply_add(row[lane], scale, -whole[lane]) - part[lane]
            partial -= kernel[lane] * scaling * (reciprocal[lane] * weight[lane]) * log_p
        total += partial
    return total


@jit(inner=True)
def _score_gradients(said, code, tile, chunk, scale, weight):
    code_upper, code_lower = code.code.upper[tile], code.code.lower[tile]
    said_upper, said_lower = said.said.upper[tile], said.said.lower[tile]
    zero = weight.dtype.type(0)
    for j in range(chunk.start, chunk.stop):
        row, kernel, scaling = said.scores[tile, j], code.kernel[tile, j], code.scaling[j]
        for lane in range(LANES):
            # the same exponentials as in the sums: their errors cancel where p or q is near one
            power, other = exp2_affine(row[lane], scale, zero, zero), -kernel[lane] * scaling
            rest = multiply_add(other, code_lower[lane], power * said_lower[lane])
            difference = multiply_add(other, code_upper[lane], multiply_add(power, said_upper[lane], rest))
            row[lane] = difference * weight[lane]


@jit
def row_gradients(weights, columns, tiles, scratch, out):
    """out (n, d): of rows, from the gradients (n_tiles, k, 64) of their scores; columns (d, k) of prototypes."""
    for tile in range(tiles.start, tiles.stop):
        rows = out[tile * LANES : min(out.shape[0], (tile + 1) * LANES)]
        gemm(columns, weights[tile], scratch.columns[: columns.shape[0]], False)
        store_columns(scratch.columns, rows.shape[0], rows, scratch.corner)


@jit
def prototype_gradients(x, n, weights, chunk, scratch, partial, out):
    """out (k, d) float64: of a chunk of prototypes, from the n first rows x (2, ..., d) of both views."""
    out, partial = out[chunk], partial[chunk]
    n_tiles = -(-n // LANES)
    for tile in range(n_tiles):
        for view in range(2):
            for lane in range(LANES):
                row = tile * LANES + lane
                for e in range(x.shape[2]):
                    scratch.rows[lane, e] = x[view, row, e] if row < n else partial.dtype.type(0)
            gemm(weights[view, tile, chunk], scratch.rows, partial, True)
        if tile + 1 == n_tiles or (tile + 1) % TILES_A_SUM == 0:
            add_and_clear(partial, out)
