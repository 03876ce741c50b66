"""CPU kernels: blocks of rows on threads around the compiled functions of ``numba_tiles.py``.

Sums over rows are float64 within a block and across blocks, committed in the order of the blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, as_array, numpy_dtype
from fastdc.kernels.kmeans import numba_tiles as tiles


def nearest_center(x: Tensor, centers: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """labels (n,) and squared distances (n,) in the working dtype."""
    job = _Job(x, centers)
    labels = torch.empty(job.n, dtype=torch.int64)
    sq_dists = torch.empty(job.n, dtype=job.torch_dtype)
    label_rows, sq_dist_rows = labels.numpy(), sq_dists.numpy()

    def work(worker: int, start: int, stop: int) -> None:
        with np.errstate(over="ignore"):  # what is beyond the dtype's range is infinite
            sq_dist_rows[start:stop] = job.assign(worker, job.rows[start:stop], label_rows[start:stop])

    run_blocks(job.n, job.block, work)
    return labels, sq_dists


def kmeans_step(
    x: Tensor, centers: Tensor, sample_weight: Tensor | None, previous_labels: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """labels, sums, counts, inertia and n_changed."""
    job = _Job(x, centers)
    labels = torch.empty(job.n, dtype=torch.int64)
    label_rows = labels.numpy()
    weights = _vector(sample_weight, np.dtype(np.float64))
    previous = np.empty(0, np.int64) if previous_labels is None else previous_labels.contiguous().numpy()
    total = tiles.make_totals(job.k, job.d)
    parts = [tiles.make_totals(job.k, job.d) for _ in job.scratch]

    def work(worker: int, start: int, stop: int) -> None:
        x_block, block_labels = job.rows[start:stop], label_rows[start:stop]
        sq_dists = job.assign(worker, x_block, block_labels)
        tiles.add_rows(x_block, block_labels, sq_dists, weights[start:stop], previous[start:stop], parts[worker])

    def commit(worker: int) -> None:
        tiles.add_and_clear(parts[worker], total)

    run_blocks(job.n, job.block, work, commit)
    tensors = [torch.from_numpy(array) for array in (total.sums, total.counts, total.inertia, total.n_changed)]
    return labels, tensors[0], tensors[1], tensors[2][0], tensors[3][0]


class Seeding:
    """k-means++ over the rows of x: see ``seeding.Seeding`` for what each method means."""

    block = tiles.SEEDING_ROWS

    def __init__(self, x: Tensor, weights: Tensor | None) -> None:
        self.n, self.d = x.shape
        self.dtype = numpy_dtype(working_dtype(x))
        self.rows = Rows(x, self.dtype)
        self.rows_a_call = block_rows(self.n, multiple=self.block, row_ns=distances_ns(self.d, 1))
        self.weights = _vector(weights, np.dtype(np.float64))
        self.closest = np.full(self.n, LARGEST[self.dtype.itemsize], self.dtype)
        workers = n_workers(-(-self.n // self.rows_a_call))
        self.scratch = [tiles.make_scratch(self.d, self.dtype) for _ in range(workers)]

    def masses(self, winner: int | None, candidates: list[int]) -> NDArray:
        added, wanted = self._centers([] if winner is None else [winner]), self._centers(candidates)
        masses = np.empty((-(-self.n // self.block), len(candidates)))

        def work(worker: int, start: int, stop: int) -> None:
            of_blocks = masses[start // self.block : -(-stop // self.block)]
            self._call(worker, slice(start, stop), added, wanted, of_blocks)

        run_blocks(self.n, self.rows_a_call, work)
        return masses

    def mass_of_block(self, block: int, winner: int) -> NDArray:
        here = slice(block * self.block, min((block + 1) * self.block, self.n))
        self._call(0, here, self._centers([winner]), self._centers([]), np.empty((1, 0)))
        mass = self.closest[here].astype(np.float64)
        return mass * self.weights[here] if self.weights.size else mass

    def _call(self, worker: int, here: slice, winner: NDArray, candidates: NDArray, masses: NDArray) -> None:
        tiles.seeding_block(
            self.rows[here],
            self.weights[here],
            winner,
            candidates,
            self.scratch[worker],
            self.closest[here],
            masses,
        )

    def _centers(self, indices: list[int]) -> NDArray:
        rows = [self.rows[i : i + 1] for i in indices]
        return np.concatenate(rows) if rows else np.empty((0, self.d), self.dtype)


LARGEST = {4: 3e38, 8: 1e290}  # the distance before there is any center: sums of it stay finite in float64


def _vector(v: Tensor | None, dtype: np.dtype) -> NDArray:
    """A vector as an array, empty for None."""
    return np.empty(0, dtype) if v is None else as_array(v.to(torch.float64), dtype)


class _Job:
    """One call's inputs as the tiles want them, and each worker's scratch."""

    def __init__(self, x: Tensor, centers: Tensor, shift: NDArray | None = None) -> None:
        self.torch_dtype = working_dtype(x, centers)
        dtype = numpy_dtype(self.torch_dtype)
        self.n, self.d = x.shape
        self.k = centers.shape[0]
        self.rows = Rows(x, dtype)
        self.centers = tiles.prepare_centers(as_array(centers, dtype), shift)
        self.block = block_rows(self.n, row_ns=distances_ns(self.d, self.k))
        workers = n_workers(-(-self.n // self.block))
        self.scratch = [tiles.make_scratch(self.d, dtype) for _ in range(workers)]
        self.sq_dists = [np.empty(self.block) for _ in range(workers)]

    def assign(self, worker: int, x_block: NDArray, labels: NDArray) -> NDArray:
        """Labels of a block into ``labels``; squared distances (float64), valid until the worker's next block."""
        sq_dists = self.sq_dists[worker][: len(x_block)]
        tiles.nearest_block(x_block, self.centers, self.scratch[worker], labels, sq_dists)
        return sq_dists
