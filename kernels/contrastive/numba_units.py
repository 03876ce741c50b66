"""Rows of length one and their gradients, in the padded arrays of the tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lanes import padded
from fastdc.kernels._numba import jit
from fastdc.kernels._parallel import block_rows, run_blocks
from fastdc.kernels._rows import Rows, as_array, empty


class Units(NamedTuple):
    """Rows of tensors one below the other, divided by their lengths where that is asked for."""

    rows: NDArray  # (whole tiles, padded), the padding zeros
    lengths: NDArray  # (n,), of length 0 where rows are as they came
    n: int
    d: int


def make_units(tensors: Sequence[Tensor], normalize: bool, side: int, dtype: np.dtype) -> Units:
    """``side``: rows of a tile."""
    n, d = sum(x.shape[0] for x in tensors), tensors[0].shape[1]
    shape = -(-n // side) * side, padded(d)
    lengths = np.empty(n if normalize else 0, dtype)
    if len(tensors) == 1 and shape == (n, d) and not normalize:
        return Units(as_array(tensors[0], dtype), lengths, n, d)
    rows = np.zeros(shape, dtype)
    first = 0
    for x in tensors:
        own = slice(first, first + x.shape[0])
        _make_some(Rows(x, dtype), rows[own], lengths[own])
        first = own.stop
    return Units(rows, lengths, n, d)


def _make_some(x: Rows, rows: NDArray, lengths: NDArray) -> None:
    def work(worker: int, start: int, stop: int) -> None:
        unit_block(x[start:stop], rows[start:stop], lengths[start:stop])

    run_blocks(len(rows), block_rows(len(rows), row_ns=rows.shape[1] / 4), work)


def units_gradient(units: Units, part: slice, gradients: NDArray, factor: np.floating) -> Tensor:
    """Of the tensor whose rows are the ``part``: factor times what the gradients (whole tiles, padded) of units say."""
    found = empty((part.stop - part.start, units.d), units.rows.dtype)
    out, own = found.numpy(), (units.rows[part], units.lengths[part], gradients[part])

    def work(worker: int, start: int, stop: int) -> None:
        unit_gradients_block(*(array[start:stop] for array in own), factor, out[start:stop])

    run_blocks(len(out), block_rows(len(out), row_ns=units.d / 4), work)
    return found


@jit
def unit_block(x, rows, lengths):
    """rows (m, padded): x (m, d) divided by their lengths (m,), which are infinite for rows of zeros.

    Of lengths of length 0: x as they are.
    """
    for i in range(x.shape[0]):
        row, out = x[i], rows[i]
        if lengths.size == 0:
            for d in range(row.size):
                out[d] = row[d]
            continue
        length = x.dtype.type(np.sqrt(_dot(row, row)))
        if length == 0:
            length = x.dtype.type(math.inf)
        lengths[i] = length
        for d in range(row.size):
            out[d] = row[d] / length


@jit
def unit_gradients_block(rows, lengths, gradients, factor, out):
    """out (m, d): gradients of the rows before the division by their lengths, times the factor.

    rows, gradients (m, padded); lengths as in :func:`unit_block`.
    """
    for i in range(out.shape[0]):
        row, gradient, target = rows[i, : out.shape[1]], gradients[i, : out.shape[1]], out[i]
        along, share = rows.dtype.type(0), factor
        if lengths.size > 0:
            along, share = rows.dtype.type(_dot(row, gradient)), factor / lengths[i]
        for d in range(target.size):
            target[d] = (gradient[d] - along * row[d]) * share


@jit(inner=True, reassociate=True)
def _dot(a, b):
    total = 0.0
    for d in range(a.size):
        total += np.float64(a[d]) * np.float64(b[d])
    return total
