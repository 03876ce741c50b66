"""CPU kernels of the k-means loss: one pass over the rows for the loss and both gradients.

The hard loss needs the differences to one center a row; the soft loss a tile of squared distances of 64 rows to all
centers, which becomes the weights of its gradient. Gradients of centers are summed in float32 within a block (hard:
float64) and in float64 across blocks, committed in order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels import _tile
from fastdc.kernels._lanes import padded
from fastdc.kernels._lengths import sq_length
from fastdc.kernels._math import add_compensated, exp2
from fastdc.kernels._numba import jit
from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, as_array, empty, numpy_dtype
from fastdc.kernels._tile import gradient_tile, load_rows, prepare_centers, sq_distance_tile
from fastdc.kernels._vectors import LANES
from fastdc.kernels.kmeans.numba_kernel import nearest_center
from fastdc.kernels.student_t.numba_tiles import subtract_and_clear

LOG2_E = 1.0 / math.log(2.0)


def kmeans_loss(
    x: Tensor,
    centers: Tensor,
    labels: Tensor | None,
    temperature: float | None,
    precision: str,
    need_x: bool,
    need_centers: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over rows, and its gradients in the working dtype, of length 0 where not needed."""
    job = _Job(x, centers, need_x, need_centers)
    if temperature is None:
        return job.run(_Hard(job, x, centers, labels))
    return job.run(_Soft(job, temperature))


class _Job:
    """One call's inputs, and its results as they come."""

    def __init__(self, x: Tensor, centers: Tensor, need_x: bool, need_centers: bool) -> None:
        self.torch_dtype = working_dtype(x, centers)
        self.dtype = numpy_dtype(self.torch_dtype)
        (self.n, self.d), self.k = x.shape, centers.shape[0]
        self.rows = Rows(x, self.dtype)
        self.centers = as_array(centers, self.dtype)
        self.block = block_rows(self.n, row_ns=distances_ns(self.d, self.k))
        self.workers = n_workers(-(-self.n // self.block))
        self.need_x, self.need_centers = need_x, need_centers
        self.grad_x = empty((self.n, self.d) if need_x else (0, self.d), self.dtype)
        self.grad_centers = np.zeros((self.k if need_centers else 0, self.d))

    def run(self, kernel: Any) -> tuple[Tensor, Tensor, Tensor]:
        """``kernel.block`` is the loss of rows start … stop; ``kernel.partial`` their gradients of the centers."""
        losses, total = np.zeros(self.workers), np.zeros(1)
        grad_rows = self.grad_x.numpy()

        def work(worker: int, start: int, stop: int) -> None:
            losses[worker] = kernel.block(worker, slice(start, stop), grad_rows[start:stop])

        def commit(worker: int) -> None:
            total[0] += losses[worker]
            subtract_and_clear(kernel.partial[worker], self.grad_centers)

        run_blocks(self.n, self.block, work, commit)
        loss = torch.from_numpy(total / self.n).to(self.torch_dtype)[0]
        grad_centers = torch.from_numpy(self.grad_centers).to(self.torch_dtype)
        none = torch.empty(0, dtype=self.torch_dtype)
        return loss, self.grad_x if self.need_x else none, grad_centers if self.need_centers else none


class _Hard:
    """Differences to the own center."""

    def __init__(self, job: _Job, x: Tensor, centers: Tensor, labels: Tensor | None) -> None:
        if labels is None:
            labels = nearest_center(x, centers, "ieee")[0].clamp(min=0)  # rows without a center make the loss NaN
        elif int(labels.max()) >= job.k:
            raise ValueError(f"labels holds {int(labels.max())}, but there are {job.k} centers, numbered from 0")
        self.job, self.labels = job, labels.contiguous().numpy()
        self.partial = [np.zeros(job.grad_centers.shape) for _ in range(job.workers)]

    def block(self, worker: int, rows: slice, grad_x: NDArray) -> float:
        job = self.job
        with np.errstate(over="ignore"):
            return hard_block(job.rows[rows], job.centers, self.labels[rows], 2.0 / job.n, grad_x, self.partial[worker])


class _Soft:
    """Distances to all centers, weighed by a softmax."""

    def __init__(self, job: _Job, temperature: float) -> None:
        self.job, self.temperature = job, temperature
        self.centers = prepare_centers(job.centers)
        self.scratch = [self._scratch() for _ in range(job.workers)]
        shape = (len(job.grad_centers), padded(job.d))
        self.partial = [np.zeros(shape, job.dtype) for _ in range(job.workers)]

    def _scratch(self) -> Scratch:
        dtype, k, d = self.job.dtype, self.job.k, self.job.d
        lanes = tuple(np.empty(LANES, dtype) for _ in range(3))
        gradient = np.empty((padded(d), LANES), dtype)
        return Scratch(_tile.make_scratch(k, d, dtype), np.empty((k, LANES), dtype), gradient, *lanes)

    def block(self, worker: int, rows: slice, grad_x: NDArray) -> float:
        job = self.job
        return soft_block(
            job.rows[rows],
            self.centers,
            self.scratch[worker],
            1.0 / self.temperature,
            2.0 / job.n,
            grad_x,
            self.partial[worker],
        )


class Scratch(NamedTuple):
    """What one worker of the soft loss owns."""

    rows: _tile.Scratch
    tile: NDArray  # (n_clusters, 64) squared distances, then weights of the gradient
    gradient: NDArray  # (padded, 64)
    smallest: NDArray  # (64,) squared distance
    mass: NDArray  # (64,) sum of exp((smallest - sq_dist) / temperature)
    excess: NDArray  # (64,) weighted mean of sq_dist - smallest


@jit
def hard_block(x, centers, labels, scale, grad_x, grad_centers):
    """Sum of squared distances of rows x (m, d) to the centers of their labels; -1 adds nothing.

    grad_x (m, d) is written, grad_centers (k, d) added to with the opposite sign; none of no rows.
    """
    total = 0.0
    factor = x.dtype.type(scale)
    difference = np.empty(x.shape[1], x.dtype)
    for i in range(x.shape[0]):
        label = labels[i]
        if label < 0:
            if grad_x.shape[0] > 0:
                grad_x[i] = x.dtype.type(0)
            continue
        center = centers[label]
        for d in range(x.shape[1]):
            difference[d] = x[i, d] - center[d]
        total += sq_length(difference)
        if grad_x.shape[0] > 0:
            for d in range(x.shape[1]):
                grad_x[i, d] = factor * difference[d]
        if grad_centers.shape[0] > 0:
            for d in range(x.shape[1]):
                grad_centers[label, d] += scale * difference[d]
    return total


@jit
def soft_block(x, centers, scratch, inverse_temperature, scale, grad_x, grad_centers):
    """Sum over rows x (m, d) of the weighted mean of squared distances; gradients as of ``hard_block``.

    grad_centers is (k, padded).
    """
    total = 0.0
    for start in range(0, x.shape[0], LANES):
        part = x[start:]
        load_rows(part, centers, scratch.rows)
        sq_distance_tile(part, centers, scratch.rows, scratch.tile)
        _weigh(scratch, inverse_temperature)
        used = min(LANES, part.shape[0])
        for lane in range(used):
            total += np.float64(scratch.smallest[lane]) + np.float64(scratch.excess[lane])
        if grad_x.shape[0] > 0 or grad_centers.shape[0] > 0:
            _gradient_weights(scratch, inverse_temperature, scale, used)
            gradient_tile(part, centers, scratch.rows, scratch.tile, scratch.gradient, grad_x[start:], grad_centers)
    return total


@jit(inner=True)
def _weigh(scratch, inverse_temperature):
    """smallest, mass and excess of each lane; the tile becomes what squared distances exceed the smallest by."""
    tile, smallest, mass, excess = scratch.tile, scratch.smallest, scratch.mass, scratch.excess
    one = tile.dtype.type(1)
    largest = tile.dtype.type(1e36) if tile.itemsize == 4 else tile.dtype.type(1e300)
    factor = tile.dtype.type(-LOG2_E * inverse_temperature)
    lost_mass = np.zeros(LANES, tile.dtype)
    lost_excess = np.zeros(LANES, tile.dtype)
    for lane in range(LANES):
        smallest[lane] = tile[0, lane]
        mass[lane] = tile.dtype.type(0)
        excess[lane] = tile.dtype.type(0)
    for j in range(1, tile.shape[0]):
        for lane in range(LANES):
            value = tile[j, lane]
            smallest[lane] = value if value < smallest[lane] else smallest[lane]
    for j in range(tile.shape[0]):
        row = tile[j]
        for lane in range(LANES):
            value = row[lane] - smallest[lane]
            value = largest if value > largest else value
            row[lane] = value
            weight = exp2(value * factor)
            add_compensated(mass, lost_mass, lane, weight)
            add_compensated(excess, lost_excess, lane, weight * value)
    for lane in range(LANES):
        excess[lane] *= one / mass[lane]


@jit(inner=True)
def _gradient_weights(scratch, inverse_temperature, scale, used):
    """The tile becomes scale dL/d(sq_dist): w (1 - (value - excess) / T); zero in lanes without a row."""
    tile, mass, excess = scratch.tile, scratch.mass, scratch.excess
    zero, one = tile.dtype.type(0), tile.dtype.type(1)
    inverse = tile.dtype.type(inverse_temperature)
    factor = tile.dtype.type(-LOG2_E * inverse_temperature)
    share = np.empty(LANES, tile.dtype)
    for lane in range(LANES):
        share[lane] = tile.dtype.type(scale) / mass[lane] if lane < used else zero
    for j in range(tile.shape[0]):
        row = tile[j]
        for lane in range(LANES):
            value = row[lane]
            row[lane] = exp2(value * factor) * share[lane] * (one - (value - excess[lane]) * inverse)
