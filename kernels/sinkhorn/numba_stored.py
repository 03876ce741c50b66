"""CPU kernels for scores of a moderate range: their exponentials are made once and stored in the result.

Scores that are given are looked at for their range; those of features are bounded by lengths, and made on the way.

Codes are q = diag(u) K diag(v) with K = 2^(exponent - shift). Where all exponents lie within ``RANGE`` of each
other neither K nor the scalings leave float32, so that an iteration is two products with vectors on one read of K.
Whatever does not fit (other scores, minus infinity, marginals of extreme range) goes the way of ``ScorePasses``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._math import exp2_affine, multiply_add
from fastdc.kernels._numba import jit
from fastdc.kernels._parallel import run_blocks
from fastdc.kernels._rows import empty
from fastdc.kernels.sinkhorn.iterate import Marginals, Passes, find_potential
from fastdc.kernels.sinkhorn.numba_scaling import LEAST_SCALING, find_scaling
from fastdc.kernels.sinkhorn.numba_tiles import WIDTH, strip_rows

RANGE = 100.0  # of exponents to base 2: then sums over rows and over columns are above 2^-100 and below 2^127
TOGETHER = 4  # rows that share a visit to the sums over rows


def middle_exponent(scores: Tensor, scale: float) -> float | None:
    """An integer in the middle of all exponents; None where they are too far apart or not finite."""
    lowest, largest = (float(s) * scale for s in torch.aminmax(scores))
    return middle_of(lowest, largest)


def middle_of(lowest: float, largest: float) -> float | None:
    """The same of exponents of which these are the least and the largest."""
    if not largest - lowest <= RANGE or not max(-lowest, largest) < 2.0**24:
        return None
    return float(round((largest + lowest) / 2))


class Streamed(Passes, Protocol):
    """Passes for which nothing is stored, and what they know of the scores."""

    n: int
    k: int
    dtype: np.dtype
    block: int
    workers: int
    weight: NDArray
    scale: Any

    def assign(self, column_potential: Tensor, bound: Tensor) -> Tensor: ...

    def fill(self, worker: int, block: slice, whole: np.floating, out: NDArray, sums: NDArray) -> None:
        """``out`` (m, k) become 2^(scores scale + whole) of a block of rows, sums (k,) float64 their sums over rows."""


class StoredPasses:
    """The passes of ``iterate.py`` over exponentials that are stored in q; ``scores`` has those over the scores."""

    def __init__(self, scores: Streamed, shift: float) -> None:
        self.scores, self.shift = scores, shift
        self.q = empty((scores.n, scores.k), scores.dtype)
        self.kernel = self.q.numpy()

    def solve(self, marginals: Marginals, n_iters: int, tol: float | None) -> Tensor:
        """The codes."""
        if marginals.group is None:
            scaling = find_scaling(self, marginals, n_iters, tol, self.scores.dtype)
            if scaling is not None:
                return self._normalised(scaling)
        return self.assign(*find_potential(self, marginals, n_iters, tol))

    def sums(self) -> NDArray:
        """As ``numba_scaling.py`` wants it; makes the exponentials."""
        whole = self.scores.dtype.type(-self.shift)

        def work(worker: int, block: slice, sums: NDArray) -> None:
            self.scores.fill(worker, block, whole, self.kernel[block], sums)

        return self._sum_of_columns(work)

    def scaled_sums(self, scaling: NDArray) -> NDArray:
        return self._scaled(scaling)[1]

    def _scaled(self, scaling: NDArray) -> tuple[NDArray, NDArray]:
        """Sums of rows (n,), and of columns (k,) once rows are divided by theirs."""
        weight, totals = self.scores.weight, np.empty(self.scores.n)
        partial = [np.empty(self.scores.k, self.scores.dtype) for _ in range(self.scores.workers)]

        def work(worker: int, block: slice, sums: NDArray) -> None:
            scaled_block(self.kernel[block], scaling, weight[block], totals[block], partial[worker], sums)

        return totals, self._sum_of_columns(work)

    def columns(self, row_potential: Tensor | None) -> tuple[Tensor, Tensor]:
        if row_potential is not None:
            return self.scores.columns(row_potential)
        total = torch.from_numpy(self.sums())
        return torch.full_like(total, self.shift), total

    def step(self, column_potential: Tensor, bound: Tensor) -> tuple[Tensor, Tensor | None]:
        factors = find_factors(column_potential, self.scores.dtype)
        if factors is None:
            return self.scores.step(column_potential, bound)
        scaling, exponent = factors
        totals, sums = self._scaled(scaling)
        return torch.from_numpy(np.log2(totals) + (exponent + self.shift)), torch.from_numpy(sums * scaling)

    def assign(self, column_potential: Tensor, bound: Tensor) -> Tensor:
        factors = find_factors(column_potential, self.scores.dtype)
        if factors is None:
            return self.scores.assign(column_potential, bound)

        return self._normalised(factors[0])

    def _normalised(self, scaling: NDArray) -> Tensor:
        def work(worker: int, start: int, stop: int) -> None:
            normalise_block(self.kernel[start:stop], scaling)

        run_blocks(self.scores.n, self.scores.block, work)
        return self.q

    def _sum_of_columns(self, work: Callable[[int, slice, NDArray], None]) -> NDArray:
        """What ``work(worker, block, sums)`` leaves in its sums, added up in the order of the blocks."""
        scores = self.scores
        total = np.zeros(scores.k)
        sums = [np.empty(scores.k) for _ in range(scores.workers)]

        def on_block(worker: int, start: int, stop: int) -> None:
            work(worker, slice(start, stop), sums[worker])

        def commit(worker: int) -> None:
            total[:] += sums[worker]

        run_blocks(scores.n, scores.block, on_block, commit)
        return total


def find_factors(potential: Tensor, dtype: np.dtype) -> tuple[NDArray, float] | None:
    """2^(potential - largest) in a dtype, and the largest as an integer; None where float32 has them not."""
    largest = float(potential.max().round())
    exponents = potential.numpy() - largest
    if not np.all((exponents >= math.log2(LEAST_SCALING)) | (exponents == -np.inf)):
        return None
    return np.exp2(exponents).astype(dtype), largest


@jit
def exponentials_block(scores, scale, whole, partial, out, sums):
    """out (m, k): 2^(scores scale + whole); sums (k,) over rows, float64."""
    m, k = scores.shape
    zero = scores.dtype.type(0)
    strip = strip_rows(k)
    sums[:] = 0.0
    for start in range(0, m, strip):
        partial[:] = zero
        for i in range(start, min(start + strip, m)):
            for j in range(k):
                value = exp2_affine(scores[i, j], scale, whole, zero)
                out[i, j] = value
                partial[j] += value
        for j in range(k):
            sums[j] += partial[j]


@jit
def scaled_block(kernel, scaling, weight, totals, partial, sums):
    """totals (m,): sums over columns of kernel * scaling; sums (k,): of rows times weight / total. Both float64."""
    m, k = kernel.shape
    strip = strip_rows(k)
    sums[:] = 0.0
    for start in range(0, m, strip):
        stop = min(start + strip, m)
        partial[:] = kernel.dtype.type(0)
        for i in range(start, stop, TOGETHER):
            if i + TOGETHER <= stop:
                _four_rows(kernel[i : i + TOGETHER], scaling, weight[i:], totals[i:], partial)
            else:
                for row in range(i, stop):
                    totals[row] = _dot(kernel[row], scaling)
                    factor = kernel.dtype.type(weight[row] / totals[row])
                    for j in range(k):
                        partial[j] = multiply_add(kernel[row, j], factor, partial[j])
        for j in range(k):
            sums[j] += partial[j]


@jit(inner=True)
def _four_rows(rows, scaling, weight, totals, partial):
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    for i in range(TOGETHER):
        totals[i] = _dot(rows[i], scaling)
    number = rows.dtype.type
    fa, fb = number(weight[0] / totals[0]), number(weight[1] / totals[1])
    fc, fd = number(weight[2] / totals[2]), number(weight[3] / totals[3])
    for j in range(partial.size):
        first = multiply_add(a[j], fa, multiply_add(b[j], fb, partial[j]))
        partial[j] = multiply_add(c[j], fc, multiply_add(d[j], fd, first))


@jit(inner=True)
def _dot(row, scaling):
    total = 0.0
    for first in range(0, row.size, WIDTH):
        total += _dot_of(row[first : first + WIDTH], scaling[first : first + WIDTH])
    return total


@jit(inner=True, reassociate=True)
def _dot_of(row, scaling):
    total = row.dtype.type(0)
    for j in range(row.size):
        total += row[j] * scaling[j]
    return total


@jit
def normalise_block(q, scaling):
    """q (m, k): each row times the scaling, divided by its sum."""
    for i in range(q.shape[0]):
        factor = q.dtype.type(1.0 / _dot(q[i], scaling))
        for j in range(q.shape[1]):
            q[i, j] *= scaling[j] * factor
