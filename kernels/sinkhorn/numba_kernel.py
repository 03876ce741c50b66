"""CPU kernels: each iteration is one pass over the scores, a block of rows on a thread at a time.

A step takes a row twice, the second time in cache: its exponentials and their sum, and what the row, now divided
by its sum, adds to the columns' sums. These are what the next iteration needs, so that each of them costs one
exponential an entry and one read of the scores. Exponents are shifted by a bound that is known beforehand; a row
whose sum comes out small is done again under its largest exponent. Columns whose sum has become too small for the
range of float32 are summed again with a shift of their own. Sums over rows are float32 within 64 rows and float64
beyond, committed in order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, empty, numpy_dtype
from fastdc.kernels.sinkhorn import numba_tiles as tiles
from fastdc.kernels.sinkhorn.iterate import Marginals, find_potential
from fastdc.kernels.sinkhorn.numba_stored import StoredPasses, exponentials_block, middle_exponent

LARGEST_BLOCK = 1024  # rows


def sinkhorn_assign(
    scores: Tensor,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    row_marginal: Tensor | None,
    column_marginal: Tensor | None,
    group: Any = None,
) -> Tensor:
    """q (n, k) in the working dtype."""
    marginals = Marginals(row_marginal, column_marginal, scores.shape, scores.device, group)
    over_scores = ScorePasses(scores, epsilon, marginals)
    shift = middle_exponent(scores, float(over_scores.scale))
    if shift is not None:
        return StoredPasses(over_scores, shift).solve(marginals, n_iters, tol)
    return over_scores.assign(*find_potential(over_scores, marginals, n_iters, tol))


def make_scale(epsilon: float, dtype: np.dtype) -> Any:
    """log2(e) / epsilon; that it is rounded is a relative change of epsilon below 6e-8 for float32."""
    return dtype.type(1.0 / (math.log(2.0) * epsilon))


def make_potential(potential: Tensor | None, length: int, dtype: np.dtype) -> tiles.Potential:
    if potential is None:
        return tiles.Potential(np.zeros(length, dtype), np.zeros(length, dtype))
    exact = np.maximum(potential.numpy(), tiles.LOWEST)
    whole = np.rint(exact).astype(dtype)  # beyond 2^24 what float32 loses of it is in the part
    return tiles.Potential(whole, (exact - whole).astype(dtype))


def make_bound(bound: Tensor, dtype: np.dtype) -> NDArray:
    """Integers just above the largest exponents of rows."""
    return np.ceil(bound.numpy()).astype(dtype)


class ColumnSums:
    """(shift, sum) of columns, merged over blocks in order."""

    def __init__(self, k: int, dtype: np.dtype, workers: int) -> None:
        self.shift, self.sum = np.full(k, tiles.LOWEST), np.zeros(k)
        self.partial = [(np.empty(k, dtype), np.empty(k)) for _ in range(workers)]

    def commit(self, worker: int) -> None:
        shift, total = self.partial[worker]
        larger = np.maximum(self.shift, shift)
        with np.errstate(invalid="ignore"):  # infinite scores: NaN is what follows
            self.sum = self.sum * np.exp2(self.shift - larger) + total * np.exp2(shift - larger)
        self.shift = larger

    def result(self) -> tuple[Tensor, Tensor]:
        shift = np.where(self.shift > tiles.DEAD, self.shift, -np.inf)
        return torch.from_numpy(shift), torch.from_numpy(self.sum)


class ScorePasses:
    """The passes of ``iterate.py`` over a matrix of scores, and its codes."""

    def __init__(self, scores: Tensor, epsilon: float, marginals: Marginals) -> None:
        self.n, self.k = scores.shape
        self.dtype = numpy_dtype(working_dtype(scores))
        self.rows = Rows(scores, self.dtype)
        self.weight = marginals.weight.numpy()
        self.scale = make_scale(epsilon, self.dtype)
        self.block = block_rows(self.n, largest=LARGEST_BLOCK, row_ns=self.k)
        self.workers = n_workers(-(-self.n // self.block))

    def columns(self, row_potential: Tensor | None) -> tuple[Tensor, Tensor]:
        sums = ColumnSums(self.k, self.dtype, self.workers)
        whole, part = make_potential(row_potential, self.n, self.dtype)
        width = min(self.k, tiles.TILE // 16)
        scratch = [self._scratch(width, width) for _ in range(self.workers)]

        def work(worker: int, start: int, stop: int) -> None:
            potential = tiles.Potential(whole[start:stop], part[start:stop])
            tiles.columns_block(self.rows[start:stop], potential, self.scale, scratch[worker], *sums.partial[worker])

        run_blocks(self.n, self.block, work, sums.commit)
        return sums.result()

    def step(self, column_potential: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        potential, bounds = make_potential(column_potential, self.k, self.dtype), make_bound(bound, self.dtype)
        row_logs, mass = np.empty(self.n), np.zeros(self.k)
        partial = [np.empty(self.k) for _ in range(self.workers)]
        scratch = [self._scratch(self.k, self.k) for _ in range(self.workers)]

        def work(worker: int, start: int, stop: int) -> None:
            tiles.step_block(
                self.rows[start:stop],
                potential,
                self.scale,
                bounds[start:stop],
                self.weight[start:stop],
                row_logs[start:stop],
                scratch[worker],
                partial[worker],
            )

        def commit(worker: int) -> None:
            mass[:] += partial[worker]

        run_blocks(self.n, self.block, work, commit)
        return torch.from_numpy(row_logs), torch.from_numpy(mass)

    def fill(self, worker: int, block: slice, whole: np.floating, out: NDArray, sums: NDArray) -> None:
        """As ``StoredPasses`` wants it."""
        exponentials_block(self.rows[block], self.scale, whole, np.empty(self.k, self.dtype), out, sums)

    def assign(self, column_potential: Tensor, bound: Tensor) -> Tensor:
        potential, bounds = make_potential(column_potential, self.k, self.dtype), make_bound(bound, self.dtype)
        q = empty((self.n, self.k), self.dtype)
        q_rows = q.numpy()

        def work(worker: int, start: int, stop: int) -> None:
            tiles.assign_block(self.rows[start:stop], potential, self.scale, bounds[start:stop], q_rows[start:stop])

        run_blocks(self.n, self.block, work)
        return q

    def _scratch(self, *lengths: int) -> tuple[NDArray, ...]:
        return tuple(np.empty(length, self.dtype) for length in lengths)
