"""CPU kernels of optimal transport between rows and prototypes or centers, neither scores nor distances held.

Tiles of 64 rows are made again in each pass, as in ``numba_swapped.py``, whose passes these share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels import _tile
from fastdc.kernels._lanes import make_corner, padded
from fastdc.kernels._lengths import largest_sq_length
from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, as_array, empty, numpy_dtype
from fastdc.kernels._simd import prepare
from fastdc.kernels._vectors import LANES
from fastdc.kernels.sinkhorn import numba_transport_tiles as tiles
from fastdc.kernels.sinkhorn.iterate import Marginals, find_potential
from fastdc.kernels.sinkhorn.numba_held import HeldTiles, may_hold_tiles
from fastdc.kernels.sinkhorn.numba_kernel import LARGEST_BLOCK, make_bound, make_potential, make_scale
from fastdc.kernels.sinkhorn.numba_stored import RANGE, StoredPasses
from fastdc.kernels.sinkhorn.numba_swapped import TilePasses
from fastdc.kernels.sinkhorn.numba_swapped_tiles import Prototypes, Softmax, add_and_clear
from fastdc.kernels.sinkhorn.numba_tiles import Potential


def assign(x: Tensor, prototypes: Tensor, marginals: Marginals, epsilon: float, n_iters: int, tol: float) -> Tensor:
    """q (n, k) in the working dtype."""
    over_scores = FeaturePasses(_Scores(x, prototypes, epsilon), marginals)
    if over_scores.is_bounded():
        return StoredPasses(over_scores, 0.0).solve(marginals, n_iters, tol or None)
    return over_scores.assign(*find_potential(over_scores, marginals, n_iters, tol or None))


def label(
    x: Tensor, prototypes: Tensor, marginals: Marginals, epsilon: float, n_iters: int, tol: float
) -> tuple[Tensor, Tensor]:
    """labels (n,) int64, and confidence (n,) in the working dtype."""
    job = _Scores(x, prototypes, epsilon)
    potential = job.solve(marginals, n_iters, tol)
    labels, confidence = np.empty(job.n_all, np.int64), np.empty(job.n_all, job.dtype)

    def work(worker: int, start: int, stop: int) -> None:
        rows, scratch = job.all_rows[0][start:stop], job.scratch[worker]
        out = labels[start:stop], confidence[start:stop]
        tiles.label_block(rows, job.prototypes, scratch, potential, job.scale, *out)

    run_blocks(job.n_all, job.block, work)
    return torch.from_numpy(labels), torch.from_numpy(confidence)


def cost(
    x: Tensor, centers: Tensor, marginals: Marginals, epsilon: float, n_iters: int, tol: float, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """<P, C>, and the gradients of x and centers in the working dtype, of length 0 where not needed."""
    job = _Distances(x, centers, epsilon)
    potential = job.solve(marginals, n_iters, tol, hold=True)
    weight = (marginals.weight / marginals.total).numpy()
    grad_x = empty((job.n_all, job.d) if needs[0] else (0, job.d), job.dtype)
    shape = (job.k if needs[1] else 0, padded(job.d))
    partial = [np.zeros(shape, job.dtype) for _ in job.scratch]
    grad_centers, costs, total = np.zeros((shape[0], job.d)), np.zeros(len(job.scratch)), np.zeros(1)
    grad_rows = grad_x.numpy()

    def work(worker: int, start: int, stop: int) -> None:
        rows, scratch = job.all_rows[0][start:stop], job.scratch[worker]
        out = grad_rows[start:stop], partial[worker]
        plan = potential, job.scale, weight[start:stop]
        costs[worker] = tiles.cost_block(rows, job.prototypes, scratch, *plan, *out)

    def commit(worker: int) -> None:
        total[0] += costs[worker]
        add_and_clear(partial[worker], grad_centers)

    run_blocks(job.n_all, job.block, work, commit)
    loss = torch.from_numpy(total).to(job.torch_dtype)[0]
    found = grad_x, torch.from_numpy(-grad_centers).to(job.torch_dtype)
    first, second = (g if need else g.new_empty(0) for g, need in zip(found, needs))
    return loss, first, second


class _Job:
    """One call's inputs as the tiles want them, and each worker's scratch."""

    prototypes: Any
    scratch: list[Any]

    def __init__(self, x: Tensor, centers: Tensor) -> None:
        self.torch_dtype = working_dtype(x, centers)
        self.dtype = numpy_dtype(self.torch_dtype)
        prepare(self.dtype)
        (self.n_all, self.d), self.k = x.shape, centers.shape[0]
        self.all_rows = [Rows(x, self.dtype)]
        self.block = block_rows(self.n_all, largest=LARGEST_BLOCK)
        self.workers = n_workers(-(-self.n_all // self.block))

    def solve(self, marginals: Marginals, n_iters: int, tol: float, hold: bool = False) -> Potential:
        """The potential of the columns; a tol of zero makes all iterations."""
        if hold and may_hold_tiles(self.n_all, self.k, self.dtype.itemsize):
            scaling = HeldTiles(self, marginals).solve(marginals, n_iters, tol or None)
            if scaling is not None:
                with np.errstate(divide="ignore"):
                    return make_potential(torch.from_numpy(np.log2(scaling.astype(np.float64))), self.k, self.dtype)
        passes = TilePasses(self, 0, marginals)  # type: ignore[arg-type]
        potential, _ = find_potential(passes, marginals, n_iters, tol or None)
        return make_potential(potential, self.k, self.dtype)

    def lanes(self, dtype: Any = None) -> NDArray:
        return np.empty(LANES, self.dtype if dtype is None else dtype)

    def part(self) -> tiles.Part:
        code = Softmax(self.lanes(), self.lanes(np.float64), self.lanes(), self.lanes())
        return tiles.Part(np.empty((self.k, LANES), self.dtype), code)


class _Scores(_Job):
    def __init__(self, x: Tensor, prototypes: Tensor, epsilon: float) -> None:
        super().__init__(x, prototypes)
        rows = as_array(prototypes, self.dtype)
        self.prototypes = Prototypes(rows, np.empty((0, self.k), self.dtype), make_potential(None, 0, self.dtype))
        self.scale = make_scale(epsilon, self.dtype)
        width = padded(self.d)
        self.scratch = [
            tiles.ScoreScratch(
                views=(self.part(),),
                columns=np.empty((width, LANES), self.dtype),
                corner=make_corner(self.dtype),
                no_shift=np.zeros(width, self.dtype),
                lanes=(self.lanes(), self.lanes()),
                labels=self.lanes(np.int32),
            )
            for _ in range(self.workers)
        ]


class FeaturePasses(TilePasses):
    """The passes over tiles of scores, and codes; what ``StoredPasses`` wants to know of the scores."""

    def __init__(self, job: _Scores, marginals: Marginals) -> None:
        super().__init__(job, 0, marginals)  # type: ignore[arg-type]
        self.features = job
        self.n, self.k, self.dtype, self.scale = job.n_all, job.k, job.dtype, job.scale
        self.block, self.workers = job.block, job.workers
        self.panels = tiles.make_panels(job.prototypes.rows)
        self.tiles = [np.empty((LANES, LANES), job.dtype) for _ in range(job.workers)]

    def is_bounded(self) -> bool:
        """Whether no exponent leaves the range of what can be stored, by the lengths of rows."""
        job = self.features
        of_prototypes = largest_sq_length(Rows(torch.from_numpy(job.prototypes.rows), job.dtype), job.k, job.d)
        sq_largest = of_prototypes * largest_sq_length(self.rows, job.n_all, job.d)
        return bool(sq_largest * float(self.scale) ** 2 <= (RANGE / 2) ** 2)

    def fill(self, worker: int, block: slice, whole: np.floating, out: NDArray, sums: NDArray) -> None:
        """As ``StoredPasses`` wants it."""
        tiles.fill_block(self.rows[block], self.panels, self.scale, whole, self.tiles[worker], out, sums)

    def assign(self, column_potential: Tensor, bound: Tensor) -> Tensor:
        job, bounds = self.features, make_bound(bound, self.dtype)
        potential = make_potential(column_potential, self.k, self.dtype)
        q = empty((self.n, self.k), self.dtype)
        out = q.numpy()

        def work(worker: int, start: int, stop: int) -> None:
            rows, scratch = self.rows[start:stop], job.scratch[worker]
            tiles.assign_block(rows, job.prototypes, scratch, potential, job.scale, bounds[start:stop], out[start:stop])

        run_blocks(self.n, self.block, work)
        return q


class _Distances(_Job):
    def __init__(self, x: Tensor, centers: Tensor, epsilon: float) -> None:
        super().__init__(x, centers)
        self.prototypes = _tile.prepare_centers(as_array(centers, self.dtype))
        self.scale = -make_scale(epsilon, self.dtype)
        self.scratch = [
            tiles.DistanceScratch(
                views=(self.part(),),
                rows=_tile.make_scratch(self.k, self.d, self.dtype),
                lanes=(self.lanes(), self.lanes()),
                plan=np.empty((self.k, LANES), self.dtype),
                gradient=np.empty((padded(self.d), LANES), self.dtype),
            )
            for _ in range(self.workers)
        ]
