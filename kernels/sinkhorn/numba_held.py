"""CPU kernel of the swapped prediction for small batches, whose scores and exponentials stay in cache together.

A score is computed once. Exponents are bounded by the lengths of embeddings and prototypes, so that exponentials
need no shift (see ``numba_stored.py``); each view costs three of them an entry. Work is cut into tiles of 64 rows,
and into chunks of prototypes where the tiles are few, by the shape alone: results do not depend on the number of
threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lanes import padded
from fastdc.kernels._parallel import n_workers, run_blocks
from fastdc.kernels._rows import empty
from fastdc.kernels._vectors import LANES
from fastdc.kernels.sinkhorn import numba_held_tiles as tiles
from fastdc.kernels.sinkhorn.iterate import Passes
from fastdc.kernels.sinkhorn.numba_stored import RANGE, find_factors
from fastdc.kernels.sinkhorn.numba_swapped_tiles import Prototypes

HELD_BYTES = 1 << 25  # scores and exponentials of both views together
MOST_ROWS = 2048  # of a view: beyond, gradients of prototypes would want sums in parts
PIECE = 1 << 16  # scores that are worth a thread
MOST_PIECES = 16  # that a pass is cut into


def may_hold(n: int, k: int, itemsize: int) -> bool:
    """Whether both views' scores and exponentials are few enough."""
    return n <= MOST_ROWS and 4 * n * k * itemsize <= HELD_BYTES


def is_bounded(x: NDArray, prototypes: NDArray, scale: float) -> bool:
    """Whether no exponent z . c * scale leaves the range, by the lengths of rows."""
    sq_lengths = (np.einsum("...d,...d->...", rows, rows).max(initial=0.0) for rows in (x, prototypes))
    return bool(math.prod(map(float, sq_lengths)) * scale**2 <= (RANGE / 2) ** 2)


class HeldViews:
    """Scores and exponentials (2, n_tiles, k, 64) of both views (2, n, d)."""

    def __init__(self, x: NDArray, prototypes: Prototypes, scales: tuple[np.floating, ...]) -> None:
        self.x, self.prototypes, self.scales = x, prototypes, scales
        _, self.n, self.d = x.shape
        self.k, self.dtype = prototypes.rows.shape[0], prototypes.rows.dtype
        self.n_tiles = -(-self.n // LANES)
        self.pieces = max(1, min(MOST_PIECES, self.n * self.k // PIECE))
        shape = (2, self.n_tiles, self.k, LANES)
        self.scores, self.kernel = np.empty(shape, self.dtype), np.empty(shape, self.dtype)
        self.column_sums = np.empty(shape[:3])
        self.scratch = [tiles.make_scratch(self.d, self.dtype) for _ in range(n_workers(self.pieces))]
        n_chunks = max(1, min(self.k // LANES, self.pieces // (2 * self.n_tiles)))
        chunk = -(-self.k // n_chunks)
        n_chunks = -(-self.k // chunk)
        predicted = np.empty((n_chunks, 2, self.n_tiles, LANES))

        def load(scratch: tiles.Scratch, units: slice) -> None:
            sums = self.column_sums, predicted
            out = self.scores, self.kernel
            tiles.score_tiles(x, prototypes.rows, scales, chunk, units, scratch, *out, *sums)

        self._spread(load, n_chunks * 2 * self.n_tiles)
        self.predicted = predicted.sum(axis=0)

    def _spread(self, work: Callable[[tiles.Scratch, slice], None], count: int) -> None:
        """``work(scratch, units)`` for pieces of the units below the count."""

        def run(worker: int, start: int, stop: int) -> None:
            work(self.scratch[worker], slice(start, stop))

        run_blocks(count, max(1, -(-count // self.pieces)), run)

    def step(self, view: int, scaling: NDArray) -> tuple[NDArray, NDArray]:
        """Sums of rows (n,) under the scaling, and of columns (k,) under the reciprocals of those."""
        totals, sums = np.empty((self.n_tiles, LANES)), self.column_sums[view]

        def work(scratch: tiles.Scratch, units: slice) -> None:
            tiles.step_tiles(self.kernel[view], scaling, self.n, units, scratch, totals, sums)

        self._spread(work, self.n_tiles)
        return totals.ravel()[: self.n], sums.sum(axis=0)

    def loss_and_gradients(
        self, scalings: list[NDArray], factor: float, n_own: int, needs: list[bool]
    ) -> tuple[float, list[Tensor]]:
        """Sum of the loss over the first rows, in bits, and its gradients times the factor, empty where not needed.

        scalings: of prototypes, for the codes of each view, up to a factor. To be called once.
        """
        used = -(-n_own // LANES)
        sides = [self._side(view, scalings[view], used) for view in range(2)]
        weight, losses = np.zeros((used, LANES), self.dtype), np.empty(used)
        weight.ravel()[:n_own] = factor

        def swap(scratch: tiles.Scratch, units: slice) -> None:
            tiles.swap_tiles(*sides, self.scales[1], weight, any(needs), units, losses)

        self._spread(swap, used)
        grads = [self._row_gradient(view, n_own if needs[view] else 0) for view in range(2)]
        return float(losses.sum()) / factor, [*grads, self._prototype_gradient(n_own if needs[2] else 0)]

    def _side(self, view: int, scaling: NDArray, used: int) -> tiles.Side:
        totals, predicted = np.empty((used, LANES)), self.predicted[view, :used]

        def work(scratch: tiles.Scratch, units: slice) -> None:
            tiles.sum_tiles(self.kernel[view], scaling, units, scratch, totals)

        self._spread(work, used)
        logs = np.log2(predicted)
        code, said = (self._factor(number, number) for number in (1.0 / totals, 1.0 / predicted))
        log_said = self._factor(np.rint(logs), logs)
        return tiles.Side(self.scores[view], self.kernel[view], scaling, code, said, log_said)

    def _factor(self, first: NDArray, number: NDArray) -> tiles.Factor:
        upper = first.astype(self.dtype)
        return tiles.Factor(upper, (number - upper).astype(self.dtype))

    def _row_gradient(self, view: int, n: int) -> Tensor:
        gradient = empty((n, self.d) if n else (0,), self.dtype)
        out = gradient.numpy()

        def work(scratch: tiles.Scratch, units: slice) -> None:
            tiles.row_gradients(self.scores[view], self.prototypes.columns, units, scratch, out)

        self._spread(work, -(-n // LANES))
        return gradient

    def _prototype_gradient(self, n: int) -> Tensor:
        if n == 0:
            return empty((0,), self.dtype)
        total, partial = np.zeros((self.k, self.d)), np.zeros((self.k, padded(self.d)), self.dtype)

        def work(scratch: tiles.Scratch, chunk: slice) -> None:
            tiles.prototype_gradients(self.x, n, self.scores, chunk, scratch, partial, total)

        self._spread(work, self.k)
        return torch.from_numpy(total.astype(self.dtype))


class HeldPasses:
    """The passes of ``iterate.py`` over one view; ``others`` has those for potentials that float32 has not."""

    def __init__(self, held: HeldViews, view: int, others: Passes) -> None:
        self.held, self.view, self.others = held, view, others

    def columns(self, row_potential: Tensor | None) -> tuple[Tensor, Tensor]:
        if row_potential is not None:
            return self.others.columns(row_potential)
        total = torch.from_numpy(self.held.column_sums[self.view].sum(axis=0))
        return torch.zeros_like(total), total

    def step(self, column_potential: Tensor, bound: Tensor) -> tuple[Tensor, Tensor | None]:
        factors = find_factors(column_potential, self.held.dtype)
        if factors is None:
            return self.others.step(column_potential, bound)
        scaling, exponent = factors
        totals, sums = self.held.step(self.view, scaling)
        return torch.from_numpy(np.log2(totals) + exponent), torch.from_numpy(sums * scaling)
