"""Compiled passes over tiles (n_prototypes, 64) of scores and of their exponentials, both held; see ``numba_held.py``.

Exponents need no shift. Sums over prototypes are float32 within 8 of them, float64 beyond.
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
from fastdc.kernels.sinkhorn.numba_scaling import LOST, next_scaling
from fastdc.kernels.sinkhorn.numba_swapped_tiles import CHUNK, FEW, add_and_clear, load_tile

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
    predicted: NDArray  # (n_tiles, 64) sums of the predictions' exponentials
    totals: NDArray  # (n_tiles, 64) sums of kernel * scaling, and what follows from both:
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
    for first in range(0, scores.shape[0], FEW):
        partial[:] = zero
        for j in range(first, min(first + FEW, scores.shape[0])):
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
    for first in range(0, kernel.shape[0], FEW):
        partial[:] = kernel.dtype.type(0)
        for j in range(first, min(first + FEW, kernel.shape[0])):
            row, factor = kernel[j], scaling[j]
            for lane in range(LANES):
                partial[lane] = multiply_add(row[lane], factor, partial[lane])
        for lane in range(LANES):
            totals[lane] += partial[lane]


@jit
def solve_view(kernel, present, column_sums, columns, n_iters, least, lanes, totals, scaling):
    """scaling (k,): of prototypes in the last iteration, up to a factor; whether float32 has it.

    column_sums (n_tiles, k): of the kernel over the rows that are present (n_tiles, 64); overwritten. columns (k,):
    wanted masses.
    """
    n_tiles, k = column_sums.shape
    sums = np.zeros(k)
    for iteration in range(n_iters):
        sums[:] = 0.0
        for tile in range(n_tiles):
            for j in range(k):
                sums[j] += column_sums[tile, j]
        if next_scaling(columns, sums, scaling, iteration == 0, -1.0, least) == LOST:
            return False
        if iteration + 1 < n_iters:
            for tile in range(n_tiles):
                _step_tile(kernel[tile], scaling, present[tile], lanes, totals, column_sums[tile])
    return True


@jit(inner=True)
def _step_tile(kernel, scaling, weight, lanes, totals, column_sums):
    _sum_tile(kernel, scaling, lanes, totals)
    for lane in range(LANES):
        lanes[lane] = weight[lane] / totals[lane]
    _weigh_rows(kernel, lanes, column_sums)


@jit
def step_tiles(kernel, scaling, weight, tiles, lanes, totals, column_sums):
    """totals (n_tiles, 64): sums over prototypes of kernel * scaling (k,); both results are float64.

    column_sums (n_tiles, k): of rows times weight (n_tiles, 64) over their totals.
    """
    for tile in range(tiles.start, tiles.stop):
        _step_tile(kernel[tile], scaling, weight[tile], lanes, totals[tile], column_sums[tile])


@jit
def load_tiles(x, source, scratch, tiles, ranges):
    """tiles (n_tiles, k, 64): scores or squared distances of rows x; ranges (n_tiles, 2): least and largest, or NaN."""
    lowest, largest = scratch.lanes
    for i in range(tiles.shape[0]):
        tile = tiles[i]
        load_tile(x[i * LANES : (i + 1) * LANES], source, scratch, tile)
        for lane in range(LANES):
            lowest[lane] = largest[lane] = tile[0, lane]
        for j in range(1, tile.shape[0]):
            row = tile[j]
            for lane in range(LANES):  # NaN is taken and stays
                lowest[lane] = lowest[lane] if not row[lane] < lowest[lane] and row[lane] == row[lane] else row[lane]
                largest[lane] = largest[lane] if not row[lane] > largest[lane] and row[lane] == row[lane] else row[lane]
        ranges[i, 0], ranges[i, 1] = np.min(lowest), np.max(largest)


@jit
def exponentiate_tiles(kernel, scale, whole, weight, tiles, lanes, column_sums):
    """kernel (n_tiles, k, 64) becomes 2^(kernel scale + whole); column_sums (n_tiles, k): of rows times weight."""
    zero = kernel.dtype.type(0)
    for tile in range(tiles.start, tiles.stop):
        for j in range(kernel.shape[1]):
            row = kernel[tile, j]
            for lane in range(LANES):
                row[lane] = exp2_affine(row[lane], scale, whole, zero)
        for lane in range(LANES):
            lanes[lane] = weight[tile, lane]
        _weigh_rows(kernel[tile], lanes, column_sums[tile])


@jit
def swap_tiles(first, second, scale, weight, needed, tiles, lanes, losses):
    """Scores of both sides become their gradients, if needed; losses (n_tiles,): of the rows, in bits.

    weight (n_tiles, 64): of rows, zero where there is none.
    """
    k = first.scores.shape[1]
    for tile in range(tiles.start, tiles.stop):
        losses[tile] = 0.0
        _find_factors(first, tile, lanes)
        _find_factors(second, tile, lanes)
        for start in range(0, k, CHUNK):
            chunk = slice(start, min(start + CHUNK, k))
            losses[tile] += _cross_entropy(first, second, tile, chunk, scale, weight[tile])
            losses[tile] += _cross_entropy(second, first, tile, chunk, scale, weight[tile])
            if needed:
                _score_gradients(first, second, tile, chunk, scale, weight[tile])
                _score_gradients(second, first, tile, chunk, scale, weight[tile])


@jit(inner=True)
def _find_factors(side, tile, lanes):
    _sum_tile(side.kernel[tile], side.scaling, lanes, side.totals[tile])
    for lane in range(LANES):
        log_said = np.log2(side.predicted[tile, lane])
        _split(1.0 / side.totals[tile, lane], side.code, tile, lane)
        _split(1.0 / side.predicted[tile, lane], side.said, tile, lane)
        side.log_said.upper[tile, lane] = np.rint(log_said)
        side.log_said.lower[tile, lane] = log_said - np.rint(log_said)


@jit(inner=True)
def _split(number, factor, tile, lane):
    factor.upper[tile, lane] = number
    factor.lower[tile, lane] = number - np.float64(factor.upper[tile, lane])


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
def prototype_gradients(x, n, weights, chunk, scratch, partial, total, out):
    """out (k, d): of a chunk of prototypes, from the n first rows x (2, ..., d) of both views.

    partial (k, padded) is scratch, and so is total (k, d) float64, of length 0 for few rows.
    """
    out, partial, total = out[chunk], partial[chunk], total[chunk]
    n_tiles = -(-n // LANES)
    total[:] = 0.0
    partial[:] = 0
    for tile in range(n_tiles):
        for view in range(2):
            for lane in range(LANES):
                row = tile * LANES + lane
                for e in range(x.shape[2]):
                    scratch.rows[lane, e] = x[view, row, e] if row < n else partial.dtype.type(0)
            gemm(weights[view, tile, chunk], scratch.rows, partial, True)
        if total.shape[0] > 0 and (tile + 1) % TILES_A_SUM == 0:
            add_and_clear(partial, total)
    for j in range(out.shape[0]):
        for e in range(out.shape[1]):
            out[j, e] = partial[j, e] + total[j, e] if total.shape[0] > 0 else partial[j, e]
