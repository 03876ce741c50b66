"""Compiled passes over products of anchors and keys that exist only as square tiles, one block of anchors a call.

Exponents are products times scale, to base 2. Where all of them are known to lie within ``SAFE_EXPONENT`` of zero they
need no shift, so that one exponential serves both directions; else each row and each column has its own.

With ``ring`` the keys are the anchors and the matrix is symmetric: of each two tiles across the diagonal one is made.
Tile i meets the tiles up to half way round, so that all blocks have the same work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import transpose
from fastdc.kernels._math import exp2, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm
from fastdc.kernels._vectors import VECTOR_BYTES


class Sides(NamedTuple):
    """What is multiplied. Rows are padded to whole tiles, features to whole vectors, both with zeros."""

    anchors: NDArray  # (whole tiles, padded)
    keys: NDArray  # (whole tiles, padded)
    anchor_columns: NDArray  # (tiles, padded, side): the same rows, each tile transposed; of length 0 where not needed
    key_columns: NDArray  # (tiles, padded, side)
    positives: NDArray  # (n_anchors,) int64 key of each anchor, or of length 0; in a ring they come in pairs
    scale: float  # of the arrays' dtype
    n_anchors: int
    n_keys: int
    n_columns: int  # the first so many keys have sums of their own, over anchors
    self_offset: int  # anchor i is key i + self_offset, which does not count; below 0 where none is
    ring: bool


@jit(inner=True)
def n_steps(sides, first, last, side):
    """How many tiles of keys a block of the anchor tiles first to last - 1 meets."""
    n_tiles = sides.keys.shape[0] // side
    return last - first + n_tiles // 2 if sides.ring else n_tiles


@jit(inner=True)
def _key_tile(sides, first, step, side):
    return (first + step) % (sides.keys.shape[0] // side) if sides.ring else step


@jit(inner=True)
def _meet(sides, first, step, i, side):
    """Whether anchor tile i is multiplied with the key tile of this step."""
    if not sides.ring:
        return True
    n_tiles = sides.keys.shape[0] // side
    distance = first + step - i
    return 0 <= distance <= n_tiles // 2 and (2 * distance != n_tiles or i < distance)


@jit
def transpose_tiles(rows, columns):
    """columns (tiles, padded, side) become the rows (tiles * side, padded)."""
    n_tiles, width, side = columns.shape
    size = VECTOR_BYTES // rows.itemsize
    zeros = np.zeros(width, rows.dtype)
    for i in range(n_tiles):
        for row in range(0, side, size):
            for d in range(0, width, size):
                transpose(rows, (i * side + row) * width + d, width, zeros, 0, columns[i], d * side + row, side)


@jit(inner=True)
def _tile_of(sides, held, first, step, i, tile):
    """Where anchor tile i keeps what it has with the key tile of this step; ``tile`` where nothing is held."""
    if held.shape[0] == 0:
        return tile
    return held[i, first + step - i if sides.ring else step]


@jit(inner=True)
def _load_products(sides, i, j, tile):
    """The tile of anchor tile i and key tile j; minus infinity where a pair does not count."""
    side = tile.shape[0]
    gemm(sides.anchors[i * side : (i + 1) * side], sides.key_columns[j], tile, False)
    n_rows, n_columns = sides.n_anchors - i * side, sides.n_keys - j * side
    own = i * side + sides.self_offset - j * side  # the column of the first anchor itself
    if n_rows >= side and n_columns >= side and (sides.self_offset < 0 or abs(own) >= side):
        return
    for a in range(side):
        row = tile[a]
        if a >= n_rows:
            row[:] = -np.inf
        elif n_columns < side:
            row[n_columns:] = -np.inf
        if sides.self_offset >= 0 and 0 <= own + a < side:
            row[own + a] = -np.inf


@jit
def maxima_block(sides, first, last, tile, row_tops, column_tops):
    """Largest exponents: of the block's rows (n_anchors, all), of columns (steps, side)."""
    side = tile.shape[0]
    column_tops[:] = -np.inf
    for step in range(n_steps(sides, first, last, side)):
        j = _key_tile(sides, first, step, side)
        for i in range(first, last):
            if _meet(sides, first, step, i, side):
                _load_products(sides, i, j, tile)
                for a in range(min(side, sides.n_anchors - i * side)):
                    row, top = tile[a], row_tops[i * side + a]
                    for column in range(side):
                        x = row[column] * sides.scale
                        top = x if x > top else top
                    row_tops[i * side + a] = top
                    _raise(row, sides.scale, column_tops[step])


@jit(inner=True)
def _raise(row, scale, tops):
    for column in range(row.size):
        x = row[column] * scale
        tops[column] = x if x > tops[column] else tops[column]


@jit
def sums_block(sides, first, last, scratch, held, shifts, row_sums, exponents, column_sums):
    """Sums of 2^(exponent - shift) over all but the positives.

    ``held`` (anchor tiles, steps, side, side) keeps the exponentials without shifts, or is of length 0.

    ``shifts`` of rows and of columns, both of length 0 where none are needed. row_sums (n_anchors,) float64 are
    added to; column_sums (steps, side) start at zero. ``exponents`` (n_anchors,) float64 become those of the positives.
    """
    side = scratch.shape[0]
    row_shifts, column_shifts = shifts
    for step in range(n_steps(sides, first, last, side)):
        j = _key_tile(sides, first, step, side)
        for i in range(first, last):
            if not _meet(sides, first, step, i, side):
                continue
            tile = _tile_of(sides, held, first, step, i, scratch)
            _load_products(sides, i, j, tile)
            _take_positives(sides, i, j, tile, exponents)
            with_columns = i != j if sides.ring else j * side < sides.n_columns
            for a in range(side):
                row = tile[a]
                if row_shifts.size > 0:
                    if with_columns:
                        _add_shifted(row, sides.scale, column_shifts[j * side : (j + 1) * side], column_sums[step])
                    _exponentials_shifted(row, sides.scale, row_shifts[i * side + a])
                elif with_columns:
                    exponentials_and_sums(row, sides.scale, column_sums[step])
                else:
                    _exponentials(row, sides.scale)
                if i * side + a < sides.n_anchors:
                    row_sums[i * side + a] += _sum(row)


@jit(inner=True)
def _take_positives(sides, i, j, tile, exponents):
    """Note the exponents of positives and leave them out of sums: a loss near zero is what the others add up to."""
    if sides.positives.size == 0:
        return
    side = tile.shape[0]
    for a in range(i * side, min((i + 1) * side, sides.n_anchors)):
        place = sides.positives[a] - j * side
        if 0 <= place < side:
            exponents[a] = np.float64(tile[a - i * side, place]) * np.float64(sides.scale)
            if sides.ring and i != j:
                exponents[sides.positives[a]] = exponents[a]
            tile[a - i * side, place] = -np.inf


@jit(inner=True)
def _exponentials(row, scale):
    for column in range(row.size):
        row[column] = exp2(row[column] * scale)


@jit(inner=True)
def _exponentials_shifted(row, scale, shift):
    for column in range(row.size):
        row[column] = exp2(multiply_add(row[column], scale, -shift))


@jit(inner=True)
def _add_shifted(row, scale, shifts, sums):
    for column in range(row.size):
        sums[column] += exp2(multiply_add(row[column], scale, -shifts[column]))


@jit(inner=True)
def exponentials_and_sums(row, scale, sums):
    for column in range(row.size):
        power = exp2(row[column] * scale)
        row[column] = power
        sums[column] += power


@jit(inner=True, reassociate=True)
def _sum(row):
    total = row.dtype.type(0)
    for column in range(row.size):
        total += row[column]
    return total


@jit
def gradients_block(sides, first, last, tile, shifts, factors, missing, row_gradients, column_gradients):
    """Gradients by anchors, row_gradients (as anchors), and by keys, column_gradients (steps, padded, side).

    Both are added to; of length 0 they are not wanted. The weight of a pair is 2^(exponent - shift) times the factor,
    of its row and of its column added up; of a positive it is minus what is ``missing`` (n_anchors,), (n_columns,) to
    the cotangents, in which nothing cancels. With ``ring`` rows and columns are the same, and the gradient is the sum
    of both results.
    """
    side = tile.shape[0]
    row_shifts, column_shifts = shifts
    row_factors, column_factors = factors
    by_columns = column_gradients.shape[0] > 0
    for step in range(n_steps(sides, first, last, side)):
        j = _key_tile(sides, first, step, side)
        columns = slice(j * side, (j + 1) * side)
        for i in range(first, last):
            if not _meet(sides, first, step, i, side):
                continue
            _load_products(sides, i, j, tile)
            for a in range(side):
                row, factor = tile[a], row_factors[i * side + a]
                if row_shifts.size > 0:
                    shift = row_shifts[i * side + a]
                    _weights_shifted(row, sides.scale, shift, column_shifts[columns], factor, column_factors[columns])
                else:
                    _weights(row, sides.scale, factor, column_factors[columns])
            _put_positives(sides, i, j, tile, missing)
            if row_gradients.shape[0] > 0:
                gemm(tile, sides.keys[columns], row_gradients[i * side : (i + 1) * side], True)
            if by_columns and not (sides.ring and i == j):
                gemm(sides.anchor_columns[i], tile, column_gradients[step], True)


@jit(inner=True)
def _weights(row, scale, factor, factors):
    for column in range(row.size):
        row[column] = exp2(row[column] * scale) * (factor + factors[column])


@jit(inner=True)
def _weights_shifted(row, scale, shift, shifts, factor, factors):
    for column in range(row.size):
        of_row = exp2(multiply_add(row[column], scale, -shift)) * factor
        of_column = exp2(multiply_add(row[column], scale, -shifts[column])) * factors[column]
        row[column] = of_row + of_column


@jit(inner=True)
def _put_positives(sides, i, j, tile, missing):
    if sides.positives.size == 0:
        return
    side = tile.shape[0]
    of_rows, of_columns = missing
    for a in range(i * side, min((i + 1) * side, sides.n_anchors)):
        key = sides.positives[a]
        if 0 <= key - j * side < side:
            weight = of_rows[a]
            if key < of_columns.size:
                weight += of_columns[key]
            tile[a - i * side, key - j * side] = -weight


@jit
def add_steps(sides, first, last, side, partial, total):
    """total (tiles, padded, side) += what a block left for each of its steps, which becomes zero."""
    for step in range(n_steps(sides, first, last, side)):
        target = total[_key_tile(sides, first, step, side)]
        source = partial[step]
        for d in range(target.shape[0]):
            for column in range(side):
                target[d, column] += source[d, column]
                source[d, column] = source.dtype.type(0)


@jit
def held_gradients_block(sides, first, last, scratch, held, factors, missing, by_keys, gradients):
    """As :func:`gradients_block`, from the exponentials that :func:`sums_block` has held, which stay as they are.

    gradients (as anchors, or as keys ``by_keys``) of the tiles first to last - 1 are added to: of rows and columns
    together in a ring. ``scratch`` are two tiles.
    """
    side = held.shape[2]
    others = sides.anchors if by_keys else sides.keys
    n_tiles = others.shape[0] // side
    for own in range(first, last):
        for other in range(n_tiles):
            i, j, place = (other, own, own) if by_keys else (own, other, other)
            if sides.ring:
                place = (j - i) % n_tiles
                if not _meet(sides, i, place, i, side):
                    i, j, place = j, i, n_tiles - place
            _weigh_held(sides, held[i, place], i, j, factors, missing, scratch[0])
            weights = scratch[0]
            if i != own or by_keys:
                _turn(scratch[0], scratch[1])
                weights = scratch[1]
            rows = gradients[own * side : (own + 1) * side]
            gemm(weights, others[other * side : (other + 1) * side], rows, True)


@jit(inner=True)
def _weigh_held(sides, powers, i, j, factors, missing, tile):
    side = tile.shape[0]
    of_columns = factors[1][j * side : (j + 1) * side]
    for a in range(side):
        row, source, factor = tile[a], powers[a], factors[0][i * side + a]
        for column in range(side):
            row[column] = source[column] * (factor + of_columns[column])
    _put_positives(sides, i, j, tile, missing)


@jit(inner=True)
def _turn(tile, turned):
    side, size = tile.shape[0], VECTOR_BYTES // tile.itemsize
    zeros = np.zeros(side, tile.dtype)
    for row in range(0, side, size):
        for column in range(0, side, size):
            transpose(tile, row * side + column, side, zeros, 0, turned, column * side + row, side)


@jit
def add_sums(sides, first, last, partial, total):
    """total (keys,) float64 += what a block left for the columns of each of its steps, which becomes zero."""
    side = partial.shape[1]
    for step in range(n_steps(sides, first, last, side)):
        start = _key_tile(sides, first, step, side) * side
        for column in range(side):
            total[start + column] += partial[step, column]
            partial[step, column] = 0


@jit
def add_transposed(columns, rows):
    """rows (whole tiles, padded) += columns (tiles, padded, side)."""
    n_tiles, width, side = columns.shape
    for i in range(n_tiles):
        for row in range(side):
            for d in range(width):
                rows[i * side + row, d] += columns[i, d, row]
