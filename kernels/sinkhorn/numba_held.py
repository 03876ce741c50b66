"""CPU kernel of the swapped prediction for small batches, whose scores and exponentials stay in cache together.

A score is computed once. Exponents are bounded by the lengths of embeddings and prototypes, so that exponentials
need no shift (see ``numba_stored.py``); each view costs three of them an entry. Work is cut into tiles of 64 rows,
and into chunks of prototypes where the tiles are few, by the shape alone: results do not depend on the number of
threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lanes import padded
from fastdc.kernels._parallel import n_workers, run_blocks
from fastdc.kernels._rows import empty
from fastdc.kernels._vectors import LANES
from fastdc.kernels._workspace import workspace
from fastdc.kernels.sinkhorn import numba_held_tiles as tiles
from fastdc.kernels.sinkhorn.iterate import LEAST, Marginals, Passes
from fastdc.kernels.sinkhorn.numba_scaling import find_scaling
from fastdc.kernels.sinkhorn.numba_stored import RANGE, find_factors, middle_of
from fastdc.kernels.sinkhorn.numba_swapped_tiles import Prototypes

HELD_BYTES = 1 << 25  # scores and exponentials of both views together
MOST_ROWS = 2048  # of a view: beyond, gradients of prototypes would want sums in parts
PIECE = 1 << 20  # multiplications that are worth a thread
MOST_PIECES = 16  # that a pass is cut into
SERIAL = 1 << 19  # scores of a view up to which one thread makes all of its iterations


def may_hold(n: int, k: int, itemsize: int) -> bool:
    """Whether both views' scores and exponentials are few enough."""
    return n <= MOST_ROWS and 4 * n * k * itemsize <= HELD_BYTES


def is_bounded(x: NDArray, prototypes: NDArray, scale: float) -> bool:
    """Whether no exponent z . c * scale leaves the range, by the lengths of rows."""
    sq_lengths = (np.einsum("...d,...d->...", rows, rows).max(initial=0.0) for rows in (x, prototypes))
    return bool(math.prod(map(float, sq_lengths)) * scale**2 <= (RANGE / 2) ** 2)


def may_hold_tiles(n: int, k: int, itemsize: int) -> bool:
    """Whether the exponentials between n rows and k centers are few enough."""
    return -(-n // LANES) * LANES * k * itemsize <= HELD_BYTES


def present_rows(weight: NDArray) -> NDArray:
    """Weights (n,) as (n_tiles, 64), zero where there is no row."""
    lanes = np.zeros((-(-weight.size // LANES), LANES))
    lanes.ravel()[: weight.size] = weight
    return lanes


class HeldViews:
    """Scores and exponentials (2, n_tiles, k, 64) of both views (2, n, d)."""

    def __init__(self, x: NDArray, prototypes: Prototypes, scales: tuple[np.floating, ...]) -> None:
        self.x, self.prototypes, self.scales = x, prototypes, scales
        _, self.n, self.d = x.shape
        self.k, self.dtype = prototypes.rows.shape[0], prototypes.rows.dtype
        self.n_tiles = -(-self.n // LANES)
        self.pieces = max(1, min(MOST_PIECES, self.n * self.k * self.d // PIECE))
        shape = (2, self.n_tiles, self.k, LANES)
        self.scores, self.kernel = workspace("sinkhorn scores", (2, *shape), self.dtype)
        self.column_sums, self.present = np.empty(shape[:3]), present_rows(np.ones(self.n))
        workers = n_workers(3 * self.pieces) if self.pieces > 1 else 1  # three kinds of gradients, each in pieces
        self.scratch = [tiles.make_scratch(self.d, self.dtype) for _ in range(workers)]
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
            tiles.step_tiles(self.kernel[view], scaling, self.present, units, scratch.lanes, totals, sums)

        self._spread(work, self.n_tiles)
        return totals.ravel()[: self.n], sums.sum(axis=0)

    def solve(self, n_iters: int) -> list[NDArray] | None:
        """Scalings of the prototypes in the last iteration, up to a factor, a view on a thread.

        None where the scores are too many for that, or a number has left the range of float32.
        """
        if self.n * self.k > SERIAL:
            return None
        scalings, found = np.empty((2, self.k), self.dtype), np.zeros(2, np.bool_)
        lanes, totals = np.empty((2, LANES), self.dtype), np.empty((2, LANES))
        columns = np.full(self.k, self.n / self.k)

        def work(worker: int, start: int, stop: int) -> None:
            for view in range(start, stop):
                given = self.kernel[view], self.present, self.column_sums[view].copy(), columns, n_iters, LEAST
                found[view] = tiles.solve_view(*given, lanes[view], totals[view], scalings[view])

        run_blocks(2, 1 if self.pieces > 1 else 2, work)
        return list(scalings) if found.all() else None

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
            tiles.swap_tiles(*sides, self.scales[1], weight, any(needs), units, scratch.lanes, losses)

        self._spread(swap, used)
        return float(losses.sum()) / factor, self._gradients(n_own, needs)

    def _side(self, view: int, scaling: NDArray, used: int) -> tiles.Side:
        code, said, log_said = (tiles.Factor(*np.empty((2, used, LANES), self.dtype)) for _ in range(3))
        sums = self.predicted[view], np.empty((used, LANES))
        return tiles.Side(self.scores[view], self.kernel[view], scaling, *sums, code, said, log_said)

    def _gradients(self, n: int, needs: list[bool]) -> list[Tensor]:
        """Of both views' first n rows and of the prototypes, from the gradients of the scores."""
        shapes = (n, self.d), (n, self.d), (self.k, self.d)
        found = [empty(shape if need else (0,), self.dtype) for shape, need in zip(shapes, needs)]
        out = [gradient.numpy() for gradient in found]
        tasks: list[tuple[int, slice]] = []  # what, and which of its tiles or prototypes
        for what, (count, piece) in enumerate([(-(-n // LANES), 1)] * 2 + [(self.k, LANES)]):
            length = max(piece, -(-count // max(1, self.pieces // 2)))
            tasks += [(what, slice(i, min(i + length, count))) for i in range(0, count, length) if needs[what]]
        partial = workspace("sinkhorn prototypes", (self.k if needs[2] else 0, padded(self.d)), self.dtype)
        total = np.empty((len(partial) if n > tiles.TILES_A_SUM * LANES else 0, self.d))

        def work(worker: int, start: int, stop: int) -> None:
            scratch = self.scratch[worker]
            for what, part in tasks[start:stop]:
                if what == 2:
                    tiles.prototype_gradients(self.x, n, self.scores, part, scratch, partial, total, out[2])
                else:
                    tiles.row_gradients(self.scores[what], self.prototypes.columns, part, scratch, out[what])

        run_blocks(len(tasks), 1 if self.pieces > 1 else max(1, len(tasks)), work)
        return found


class HeldTiles:
    """Exponentials (n_tiles, k, 64) of a job that are held between iterations."""

    def __init__(self, job: Any, marginals: Marginals) -> None:
        self.job = job
        self.weight = present_rows(marginals.weight.numpy())
        self.n_tiles = len(self.weight)
        self.kernel = workspace("sinkhorn tiles", (self.n_tiles, job.k, LANES), job.dtype)
        self.column_sums = np.empty((self.n_tiles, job.k))
        ranges = np.empty((self.n_tiles, 2))

        def load(worker: int, start: int, stop: int) -> None:
            own = slice(start // LANES, -(-stop // LANES))
            rows = job.all_rows[0][start:stop]
            tiles.load_tiles(rows, job.prototypes, job.scratch[worker], self.kernel[own], ranges[own])

        run_blocks(job.n_all, job.block, load)
        lowest, largest = sorted(float(x) * float(job.scale) for x in (ranges[:, 0].min(), ranges[:, 1].max()))
        self.shift = middle_of(lowest, largest)

    def solve(self, marginals: Marginals, n_iters: int, tol: float | None) -> NDArray | None:
        """Scaling (k,) of the columns, up to a factor; None where exponents are too far apart, or it is lost."""
        if self.shift is None or marginals.group is not None:
            return None
        return find_scaling(self, marginals, n_iters, tol, self.job.dtype)

    def sums(self) -> NDArray:
        """As ``numba_scaling.py`` wants it; makes exponentials of what was loaded, so to be called once."""
        scale, whole = self.job.scale, self.job.dtype.type(-(self.shift or 0.0))
        ones = present_rows(np.ones(self.job.n_all))

        def work(lanes: NDArray, units: slice) -> None:
            tiles.exponentiate_tiles(self.kernel, scale, whole, ones, units, lanes, self.column_sums)

        self._spread(work)
        return self.column_sums.sum(axis=0)

    def scaled_sums(self, scaling: NDArray) -> NDArray:
        totals = np.empty((self.n_tiles, LANES))

        def work(lanes: NDArray, units: slice) -> None:
            tiles.step_tiles(self.kernel, scaling, self.weight, units, lanes, totals, self.column_sums)

        self._spread(work)
        return self.column_sums.sum(axis=0)

    def _spread(self, work: Callable[[NDArray, slice], None]) -> None:
        def run(worker: int, start: int, stop: int) -> None:
            work(self.job.scratch[worker].lanes[0], slice(start, stop))

        run_blocks(self.n_tiles, self.job.block // LANES, run)


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
