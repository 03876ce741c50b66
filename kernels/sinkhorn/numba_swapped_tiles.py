"""Compiled passes over scores that exist only as tiles (n_prototypes, 64): 64 rows in lanes, their last ones unused.

``columns_block`` and ``step_block`` serve squared distances too, with a scale below zero.

Exponents are split as in ``numba_tiles.py``. Sums over prototypes are float32 within 8 of them, float64 beyond.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, store_columns
from fastdc.kernels._math import exp2, exp2_affine, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._tile import Centers, load_rows, sq_distance_tile
from fastdc.kernels._vectors import LANES, Vectors, index, intrinsic
from fastdc.kernels.sinkhorn.numba_tiles import LEAST_SUM, LOWEST, Potential

CHUNK = 256  # prototypes between two visits to a sum over rows in float64
FEW = 8  # between two visits to a sum over prototypes: a number near 1 would swallow the small ones, 1 - p in all


class Prototypes(NamedTuple):
    rows: NDArray  # (k, d)
    columns: NDArray  # (d, k)
    no_potential: Potential  # zeros


class Softmax(NamedTuple):
    """Of each lane: 2^(exponent - shift) / total."""

    shift: NDArray  # (64,) integers
    total: NDArray  # (64,) float64
    log_total: NDArray  # (64,)
    reciprocal: NDArray  # (64,)


class View(NamedTuple):
    """One view's tile and what its lanes keep."""

    tile: NDArray  # (k, 64) scores, then their gradient
    rows: NDArray  # (64, padded)
    code: Softmax
    prediction: Softmax


class Scratch(NamedTuple):
    """What one worker owns."""

    views: tuple[View, View]
    columns: NDArray  # (padded, 64)
    corner: NDArray  # as load_columns wants it
    no_shift: NDArray  # (padded,) zeros
    lanes: tuple[NDArray, NDArray]  # (64,) each
    sums: NDArray  # (64,) float64


@intrinsic
def _largest_exponent(typingctx, row, factor, addend):
    """Largest of row[l] * factor + addend[l] over the lanes; NaN is passed over."""

    def codegen(context, builder, signature, args):
        v = Vectors(context, builder, signature.args[0].dtype)
        first, more = (v.data(signature.args[i], args[i], index(0)) for i in (0, 2))
        scale = v.broadcast(args[1])
        largest = None
        for lane in range(0, LANES, v.size):
            exponent = v.fma(v.load(v.at(first, index(lane))), scale, v.load(v.at(more, index(lane))))
            if largest is not None:
                exponent = builder.select(builder.fcmp_ordered(">", exponent, largest), exponent, largest)
            largest = exponent
        return v.largest(largest)

    return row.dtype(row, factor, addend), codegen


def load_tile(x, source, scratch, tile):
    """Inside kernels, tile (k, 64): scores of 64 rows to Prototypes, or their squared distances to Centers."""
    raise RuntimeError("only for use inside kernels")


@overload(load_tile, inline="never")
def _load_tile(x, source, scratch, tile):
    if source.instance_class is Centers:

        def distances(x, source, scratch, tile):
            load_rows(x, source, scratch.rows)
            sq_distance_tile(x, source, scratch.rows, tile)

        return distances

    def scores(x, source, scratch, tile):
        load_columns(x, scratch.no_shift, scratch.columns, scratch.corner)
        gemm(source.rows, scratch.columns[: x.shape[1]], tile, False)

    return scores


@jit
def columns_block(x, prototypes, scratch, potential, scale, shifts, sums):
    """As ``columns_block`` of ``numba_tiles.py`` for scores x @ prototypes.T."""
    tile = scratch.views[0].tile
    whole, part = scratch.lanes
    shifts[:] = x.dtype.type(LOWEST)
    sums[:] = 0.0
    for start in range(0, x.shape[0], LANES):
        rows = x[start : start + LANES]
        load_tile(rows, prototypes, scratch, tile)
        whole[:] = x.dtype.type(LOWEST)
        part[:] = x.dtype.type(0)
        for lane in range(rows.shape[0]):
            whole[lane] = potential.whole[start + lane]
            part[lane] = potential.part[start + lane]
        for j in range(tile.shape[0]):
            largest = np.rint(_largest_exponent(tile[j], scale, whole))
            shift = largest if largest > shifts[j] else shifts[j]
            sums[j] = sums[j] * exp2(shifts[j] - shift) + _lane_sum(tile[j], scale, whole, shift, part)
            shifts[j] = shift


@jit(inner=True, reassociate=True)
def _lane_sum(row, scale, whole, shift, part):
    total = row.dtype.type(0)
    for lane in range(LANES):
        total += exp2_affine(row[lane], scale, whole[lane] - shift, part[lane])
    return total


@jit
def step_block(x, prototypes, scratch, potential, scale, bounds, weight, row_logs, mass):
    """As ``step_block`` of ``numba_tiles.py`` for scores x @ prototypes.T."""
    view = scratch.views[0]
    code, factor = view.code, scratch.lanes[0]
    mass[:] = 0.0
    for start in range(0, x.shape[0], LANES):
        rows = x[start : start + LANES]
        for attempt in range(2):
            load_tile(rows, prototypes, scratch, view.tile)
            if attempt == 0:
                set_shifts(bounds[start : start + LANES], code.shift)
            else:
                find_shifts(view.tile, potential, scale, code.shift)
            exponentials(view.tile, potential, scale, code, scratch.lanes[1])
            if not some_are_small(code.total):
                break
        factor[:] = x.dtype.type(0)
        for lane in range(rows.shape[0]):
            row_logs[start + lane] = code.shift[lane] + np.log2(code.total[lane])
            factor[lane] = weight[start + lane] / code.total[lane]
        _add_mass(view.tile, factor, mass)


@jit(inner=True)
def set_shifts(bounds, shift):
    for lane in range(LANES):
        shift[lane] = bounds[min(lane, bounds.size - 1)]


@jit(inner=True)
def some_are_small(total):
    small = False
    for lane in range(LANES):
        small |= not total[lane] >= LEAST_SUM
    return small


@jit(inner=True)
def find_shifts(tile, potential, scale, shift):
    """Largest exponent of each lane, the integers of the potential alone, rounded to an integer."""
    for lane in range(LANES):
        shift[lane] = tile.dtype.type(LOWEST)
    for j in range(tile.shape[0]):
        row, whole = tile[j], potential.whole[j]
        for lane in range(LANES):
            exponent = multiply_add(row[lane], scale, whole)
            shift[lane] = exponent if exponent > shift[lane] else shift[lane]
    for lane in range(LANES):
        shift[lane] = np.rint(shift[lane])


@jit(inner=True)
def exponentials(tile, potential, scale, softmax, partial):
    """Scores become 2^(exponent - shift); their sums over prototypes."""
    softmax.total[:] = 0.0
    for first in range(0, tile.shape[0], FEW):
        partial[:] = tile.dtype.type(0)
        for j in range(first, min(first + FEW, tile.shape[0])):
            row, whole, part = tile[j], potential.whole[j], potential.part[j]
            for lane in range(LANES):
                value = exp2_affine(row[lane], scale, whole - softmax.shift[lane], part)
                row[lane] = value
                partial[lane] += value
        for lane in range(LANES):
            softmax.total[lane] += partial[lane]


@jit(inner=True, reassociate=True)
def _add_mass(tile, factor, mass):
    for j in range(tile.shape[0]):
        row = tile[j]
        total = tile.dtype.type(0)
        for lane in range(LANES):
            total += row[lane] * factor[lane]
        mass[j] += total


@jit(inner=True)
def _find_totals(tile, potential, scale, softmax, partial):
    """Sums of 2^(exponent - shift) over prototypes, and what follows from them; the tile stays."""
    softmax.total[:] = 0.0
    for first in range(0, tile.shape[0], FEW):
        partial[:] = tile.dtype.type(0)
        for j in range(first, min(first + FEW, tile.shape[0])):
            row, whole, part = tile[j], potential.whole[j], potential.part[j]
            for lane in range(LANES):
                partial[lane] += exp2_affine(row[lane], scale, whole - softmax.shift[lane], part)
        for lane in range(LANES):
            softmax.total[lane] += partial[lane]
    for lane in range(LANES):
        softmax.log_total[lane] = np.log2(softmax.total[lane])
        softmax.reciprocal[lane] = 1.0 / softmax.total[lane]


@jit
def loss_block(views, prototypes, scratch, potentials, scales, bounds, factor, grads, grad_prototypes):
    """Sum over rows of -log2 of the predictions of both views under the codes of the other.

    views, potentials, bounds, grads: one of each view; scales: of the codes and of the predictions. ``factor``
    times the differences p - q are the gradients of the scores; gradients of no rows are not wanted.
    grad_prototypes (k, padded) is added to.
    """
    needed = grads[0].shape[0] + grads[1].shape[0] + grad_prototypes.shape[0] > 0
    loss = 0.0
    for start in range(0, views[0].shape[0], LANES):
        used = min(LANES, views[0].shape[0] - start)
        part = slice(start, start + used)
        for v in range(2):
            _load_view(views[v][part], prototypes, scratch, scratch.views[v], potentials[v], scales, bounds[v][part])
        loss += _swap(scratch, potentials, scales, views[0].dtype.type(factor), used)
        if needed:
            for v in range(2):
                _gradients(views[v][part], prototypes, scratch, scratch.views[v], grads[v][start:], grad_prototypes)
    return loss


@jit(inner=True)
def _load_view(x, prototypes, scratch, view, potential, scales, bounds):
    code, prediction, partial = view.code, view.prediction, scratch.lanes[0]
    load_tile(x, prototypes, scratch, view.tile)
    find_shifts(view.tile, prototypes.no_potential, scales[1], prediction.shift)
    _find_totals(view.tile, prototypes.no_potential, scales[1], prediction, partial)
    for attempt in range(2):
        if attempt == 0:
            set_shifts(bounds, code.shift)
        else:
            find_shifts(view.tile, potential, scales[0], code.shift)
        _find_totals(view.tile, potential, scales[0], code, partial)
        if not some_are_small(code.total):
            break


@jit(inner=True)
def _swap(scratch, potentials, scales, factor, used):
    """Scores of both tiles become their gradients; the loss."""
    first, second = scratch.views
    sums, partial, weight = scratch.sums, scratch.lanes[0], scratch.lanes[1]
    sums[:] = 0.0
    for lane in range(LANES):
        weight[lane] = factor if lane < used else 0
    code1, code2, said1, said2 = first.code, second.code, first.prediction, second.prediction
    n_prototypes = first.tile.shape[0]
    for start in range(0, n_prototypes, FEW):
        partial[:] = 0
        for j in range(start, min(start + FEW, n_prototypes)):
            row1, row2 = first.tile[j], second.tile[j]
            whole1, whole2 = potentials[0].whole[j], potentials[1].whole[j]
            part1, part2 = potentials[0].part[j], potentials[1].part[j]
            for lane in range(LANES):
                q = exp2_affine(row2[lane], scales[0], whole2 - code2.shift[lane], part2)
                q *= code2.reciprocal[lane]
                log_p = multiply_add(row1[lane], scales[1], -said1.shift[lane]) - said1.log_total[lane]
                partial[lane] -= q * log_p
                other = exp2_affine(row1[lane], scales[0], whole1 - code1.shift[lane], part1)
                other *= code1.reciprocal[lane]
                row1[lane] = (exp2(log_p) - q) * weight[lane]
                log_p = multiply_add(row2[lane], scales[1], -said2.shift[lane]) - said2.log_total[lane]
                partial[lane] -= other * log_p
                row2[lane] = (exp2(log_p) - other) * weight[lane]
        for lane in range(LANES):
            sums[lane] += partial[lane]
    total = 0.0
    for lane in range(used):
        total += sums[lane]
    return total


@jit(inner=True)
def _gradients(x, prototypes, scratch, view, grad_x, grad_prototypes):
    m, n_features = x.shape
    if grad_x.shape[0] > 0:
        gemm(prototypes.columns, view.tile, scratch.columns[:n_features], False)
        store_columns(scratch.columns, m, grad_x, scratch.corner)
    if grad_prototypes.shape[0] > 0:
        for lane in range(m):
            for d in range(n_features):
                view.rows[lane, d] = x[lane, d]
        gemm(view.tile, view.rows, grad_prototypes, True)


@jit
def add_and_clear(partial, total):
    """total (k, d) float64 += partial (k, padded), which becomes zero."""
    for j in range(total.shape[0]):
        for d in range(total.shape[1]):
            total[j, d] += partial[j, d]
            partial[j, d] = partial.dtype.type(0)
