"""Lengths of rows; by the largest, exponents of products are bounded before these are made."""

from __future__ import annotations

import math

import numpy as np

from fastdc.kernels._numba import jit
from fastdc.kernels._parallel import block_rows, run_blocks
from fastdc.kernels._rows import Rows


def largest_sq_length(rows: Rows, n: int, d: int) -> float:
    """Of the n rows of d numbers; infinite where a number is NaN."""
    found: list[float] = []

    def work(worker: int, start: int, stop: int) -> None:
        found.append(float(_largest_of(rows[start:stop])))

    run_blocks(n, block_rows(n, row_ns=d / 8), work)
    return max(math.inf if x != x else x for x in found)


@jit
def _largest_of(x):
    largest = 0.0
    for i in range(x.shape[0]):
        total = sq_length(x[i])
        largest = largest if total <= largest else total  # NaN is taken
        if not largest == largest:
            break
    return largest


@jit(inner=True, reassociate=True)
def sq_length(row):
    """Squared length of one row, in float64."""
    total = 0.0
    for d in range(row.size):
        total += np.float64(row[d]) * np.float64(row[d])
    return total
