"""Compiled passes over all pairs for losses: 64 rows stand in lanes and meet all points, a chunk at a time.

Sums over points are in the dtype of the points within a chunk, float64 beyond.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, padded, store_columns
from fastdc.kernels._math import exp2, log2
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._tile import load_rows, row_gradient_tile, sq_distance_tile
from fastdc.kernels._vectors import LANES
from fastdc.kernels.pairwise.numba_chunks import CHUNK, chunk_of, name_lanes

FARTHEST = 1e38  # an exponent that no pair reaches: where nothing has been met yet


# --- pairwise_bce


class Chooser(NamedTuple):
    """Points whose products choose pairs, and what one worker needs to meet them."""

    raw: NDArray  # (n, d)
    columns: NDArray  # (padded, 64) those in lanes
    tile: NDArray  # (CHUNK, 64)


def make_chooser(raw: NDArray) -> Chooser:
    return Chooser(raw, np.empty((padded(raw.shape[1]), LANES), raw.dtype), np.empty((CHUNK, LANES), raw.dtype))


@jit
def bce_block(points, labels, chooser, limits, work, start, stop, totals, grad):
    """Sums of the losses of rows start … stop with all others, and of the number of selected pairs, into totals.

    chooser: a ``Chooser``, or None where the points themselves choose. limits: upper, lower, eps. grad: sums over
    points of the loss's derivative times the point; of no rows if it is not wanted.
    """
    d = points.raw.shape[1]
    losses, counted = work.sums[0], work.sums[1]
    totals[:] = 0.0
    for first in range(start, stop, LANES):
        used = min(LANES, stop - first)
        load_columns(points.raw[first:stop], points.shift, work.columns, work.scratch.corner)
        if chooser is not None:
            load_columns(chooser.raw[first:stop], points.shift, chooser.columns, work.scratch.corner)
        if labels is not None:
            name_lanes(labels, first, stop, work)
        else:
            _number_lanes(first, stop, work)
        losses[:] = 0.0
        counted[:] = 0.0
        gradient = work.gradient[:d]
        gradient[:] = points.raw.dtype.type(0)
        for at in range(0, points.raw.shape[0], CHUNK):
            chunk = chunk_of(points, at, min(CHUNK, points.raw.shape[0] - at))
            tile = work.tile[: chunk.raw.shape[0]]
            gemm(chunk.raw, work.columns[:d], tile, False)
            if chooser is not None:
                others = chooser.raw[at : at + tile.shape[0]]
                gemm(others, chooser.columns[:d], chooser.tile[: tile.shape[0]], False)
            _bce_terms(tile, labels, chooser, at, limits, work)
            for lane in range(LANES):
                losses[lane] += work.lanes[0, lane]
                counted[lane] += work.lanes[1, lane]
            if grad.shape[0] > 0:
                gemm(chunk.columns, tile, gradient, True)
        for lane in range(used):
            totals[0] += losses[lane]
            totals[1] += counted[lane]
        if grad.shape[0] > 0:
            store_columns(gradient, used, grad[first:stop], work.scratch.corner)


@jit(inner=True)
def _number_lanes(first, stop, work):
    for lane in range(LANES):
        work.which[lane] = min(first + lane, stop - 1)


@jit(inner=True)
def _bce_terms(tile, labels, chooser, at, limits, work):
    """Similarities become derivatives; their losses, to base 2, and number of selected pairs into two lanes."""
    total, counted = work.lanes[0], work.lanes[1]
    zero, one = tile.dtype.type(0), tile.dtype.type(1)
    upper, lower, eps = limits[0], limits[1], limits[2]
    total[:] = zero
    counted[:] = zero
    for j in range(tile.shape[0]):
        row, point = tile[j], np.int32(at + j)
        label = np.int32(0) if labels is None else np.int32(labels[at + j])
        for lane in range(LANES):
            g = row[lane]
            if labels is None:
                chosen = g if chooser is None else chooser.tile[j, lane]
                positive, negative = chosen >= upper, not (chosen >= lower)
            else:
                known = (label >= 0) & (work.label[lane] >= 0)
                positive, negative = known & (work.label[lane] == label), known & (work.label[lane] != label)
            selected = (positive | negative) & (work.which[lane] != point)
            inside = (g >= zero) & (g <= one)
            g = one if g > one else g
            g = zero if g < zero else g
            value = (g if positive else one - g) + eps
            slope = (-one if positive else one) / value
            row[lane] = slope if selected & inside else zero
            # the product is NaN where the value is, of which the logarithm knows nothing
            total[lane] -= log2(value) + zero * value if selected else zero
            counted[lane] += one if selected else zero


# --- soft nearest neighbours


@jit
def neighbor_rows_block(points, labels, scale, work, start, stop, rows_out):
    """Of rows start … stop: rows_out (n, 4) float64: log2 of the sums over all others and over those of the same
    label of 2^(-scale d^2), the share of other labels in the first, and the loss; NaN where no label is the same.
    """
    low_same, low_rest, met_same, met_rest = work.lanes[0], work.lanes[1], work.lanes[2], work.lanes[3]
    same, rest = work.sums[0], work.sums[1]
    for first in range(start, stop, LANES):
        rows = points.raw[first:stop]
        name_lanes(labels, first, stop, work)
        low_same[:] = FARTHEST
        low_rest[:] = FARTHEST
        same[:] = 0.0
        rest[:] = 0.0
        for at in range(0, labels.size, CHUNK):
            chunk = chunk_of(points, at, min(CHUNK, labels.size - at))
            if at == 0:
                load_rows(rows, chunk, work.scratch)
            tile = work.tile[: chunk.raw.shape[0]]
            sq_distance_tile(rows, chunk, work.scratch, tile)
            for lane in range(LANES):
                met_same[lane], met_rest[lane] = low_same[lane], low_rest[lane]
            _find_lowest(tile, labels, at, scale, work, met_same, met_rest)
            for lane in range(LANES):
                same[lane] *= exp2(met_same[lane] - low_same[lane])
                rest[lane] *= exp2(met_rest[lane] - low_rest[lane])
                low_same[lane], low_rest[lane] = met_same[lane], met_rest[lane]
            _add_powers(tile, labels, at, work, low_same, low_rest)
            for lane in range(LANES):
                same[lane] += work.lanes[4, lane]
                rest[lane] += work.lanes[5, lane]
        for lane in range(min(LANES, stop - first)):
            _finish_row(
                same[lane], rest[lane], np.float64(low_same[lane]), np.float64(low_rest[lane]), rows_out[first + lane]
            )


@jit(inner=True)
def _find_lowest(tile, labels, at, scale, work, low_same, low_rest):
    """Squared distances become exponents, infinite for a row and itself; the lowest of each kind."""
    infinite = tile.dtype.type(np.inf)
    for j in range(tile.shape[0]):
        row, point, label = tile[j], np.int32(at + j), np.int32(labels[at + j])
        for lane in range(LANES):
            exponent = infinite if work.which[lane] == point else row[lane] * scale
            row[lane] = exponent
            is_same = work.label[lane] == label
            low_same[lane] = exponent if is_same & (exponent < low_same[lane]) else low_same[lane]
            low_rest[lane] = exponent if (not is_same) & (exponent < low_rest[lane]) else low_rest[lane]


@jit(inner=True)
def _add_powers(tile, labels, at, work, low_same, low_rest):
    same, rest = work.lanes[4], work.lanes[5]
    zero = tile.dtype.type(0)
    same[:] = zero
    rest[:] = zero
    for j in range(tile.shape[0]):
        row, label = tile[j], np.int32(labels[at + j])
        for lane in range(LANES):
            is_same = work.label[lane] == label
            value = exp2((low_same[lane] if is_same else low_rest[lane]) - row[lane])
            same[lane] += value if is_same else zero
            rest[lane] += zero if is_same else value


@jit(inner=True)
def _finish_row(same, rest, low_same, low_rest, out):
    if same == 0.0:
        out[:] = np.nan
        return
    # log2 of the ratio of the two sums
    log_same = np.log2(same) - low_same
    ratio = -np.inf if rest == 0.0 else np.log2(rest) - low_rest - log_same
    if ratio > 60.0:
        extra, share = ratio, 1.0
    else:
        power = 2.0**ratio
        extra, share = np.log1p(power) / np.log(2.0), power / (1.0 + power)
    out[0], out[1], out[2], out[3] = log_same + extra, log_same, share, extra * np.log(2.0)


@jit
def neighbor_gradient_block(points, labels, scale, rows_of, work, start, stop, grad):
    """Sums over points of the loss's derivative by d^2 scale ln 2, of both rows of a pair, times their difference.

    rows_of (4, n): log2 of the sum over all others and over the same label, share of other labels, and weight: 0
    for rows that are left out.
    """
    for first in range(start, stop, LANES):
        used = min(LANES, stop - first)
        rows = points.raw[first:stop]
        name_lanes(labels, first, stop, work)
        for lane in range(LANES):
            for i in range(4):
                work.lanes[i, lane] = rows_of[i, work.which[lane]]
        total = work.columns[: points.raw.shape[1]]
        total[:] = points.raw.dtype.type(0)
        for at in range(0, labels.size, CHUNK):
            chunk = chunk_of(points, at, min(CHUNK, labels.size - at))
            if at == 0:
                load_rows(rows, chunk, work.scratch)
            tile = work.tile[: chunk.raw.shape[0]]
            sq_distance_tile(rows, chunk, work.scratch, tile)
            _neighbor_weights(tile, labels, at, scale, rows_of, work)
            row_gradient_tile(rows, chunk, work.scratch, tile, work.gradient)
            for d in range(total.shape[0]):
                for lane in range(LANES):
                    total[d, lane] += work.gradient[d, lane]
        store_columns(work.columns, used, grad[first:stop], work.scratch.corner)


@jit(inner=True)
def _neighbor_weights(tile, labels, at, scale, rows_of, work):
    log_all, log_same, share, weight = work.lanes[0], work.lanes[1], work.lanes[2], work.lanes[3]
    zero, one = tile.dtype.type(0), tile.dtype.type(1)
    for j in range(tile.shape[0]):
        row, point, label = tile[j], np.int32(at + j), np.int32(labels[at + j])
        all_j, same_j, share_j, weight_j = (
            rows_of[0, at + j],
            rows_of[1, at + j],
            rows_of[2, at + j],
            rows_of[3, at + j],
        )
        for lane in range(LANES):
            exponent = -row[lane] * scale
            same = work.label[lane] == label
            mine = exp2(exponent - (log_same[lane] if same else log_all[lane])) * weight[lane]
            other = exp2(exponent - (same_j if same else all_j)) * weight_j
            value = mine * (share[lane] if same else -one) + other * (share_j if same else -one)
            row[lane] = zero if work.which[lane] == point else value
