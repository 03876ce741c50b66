"""CPU kernels: 64 rows against all centers at a time, in a tile that stays in cache.

Each op here is a Python loop over blocks of rows (``run_blocks``) around one compiled function of
``numba_tiles.py`` a block. Sums over rows are float32 within a block of at most 16,384 rows and float64 across
blocks, committed in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lanes import padded
from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, as_array, empty, numpy_dtype
from fastdc.kernels._tile import Centers, make_scratch, prepare_centers
from fastdc.kernels._vectors import LANES
from fastdc.kernels.student_t import numba_loss
from fastdc.kernels.student_t import numba_tiles as tiles


def student_t_assign(x: Tensor, centers: Tensor, alpha: float, precision: str) -> Tensor:
    """q (n, k) in the working dtype."""
    job = _Job(x, centers, alpha)
    q = empty((job.n, job.k), job.dtype)
    q_rows = q.numpy()

    def work(worker: int, start: int, stop: int) -> None:
        tiles.assign_block(*job.part(worker, start, stop), job.alpha, q_rows[start:stop])

    run_blocks(job.n, job.block, work)
    return q


def student_t_assign_backward(
    x: Tensor, centers: Tensor, grad_q: Tensor, alpha: float, precision: str, need_x: bool, need_centers: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(grad_q * q), each in its input's dtype; of length 0 where not needed."""
    job = _Job(x, centers, alpha)
    gradients = _Gradients(job, need_x, need_centers)
    grad_rows = Rows(grad_q, job.dtype)

    def work(worker: int, start: int, stop: int) -> None:
        tiles.assign_backward_block(
            *job.part(worker, start, stop),
            job.alpha,
            grad_rows[start:stop],
            gradients.of_rows(start, stop),
            gradients.partial[worker],
        )

    run_blocks(job.n, job.block, work, gradients.commit)
    grad_x, grad_centers = gradients.result()
    return grad_x.to(x.dtype), grad_centers.to(centers.dtype)


def student_t_statistics(
    x: Tensor, centers: Tensor, alpha: float, previous_labels: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """labels, confidence, frequency, n_changed, entropy."""
    job = _Job(x, centers, alpha)
    labels = torch.empty(job.n, dtype=torch.int64)
    confidence = torch.empty(job.n, dtype=job.torch_dtype)
    entropy = torch.empty(job.n, dtype=job.torch_dtype)
    arrays = labels.numpy(), confidence.numpy(), entropy.numpy()
    frequency = _Frequency(job)

    def work(worker: int, start: int, stop: int) -> None:
        tiles.statistics_block(
            *job.part(worker, start, stop),
            job.alpha,
            tuple(array[start:stop] for array in arrays),
            frequency.partial[worker],
        )

    run_blocks(job.n, job.block, work, frequency.commit)
    if previous_labels is None:
        n_changed = torch.full((), job.n, dtype=torch.int64)
    else:
        n_changed = (labels != previous_labels).sum()
    return labels, confidence, torch.from_numpy(frequency.total), n_changed, entropy


def target_distribution(q: Tensor, frequency: Tensor | None, power: float, frequency_power: float) -> Tensor:
    """p (n, k) in the dtype of q."""
    n, k = q.shape
    dtype = numpy_dtype(working_dtype(q))
    rows = Rows(q, dtype)
    p = empty((n, k), dtype)
    p_rows = p.numpy()
    block = block_rows(n, row_ns=4 * k)
    if frequency is None:
        mass = np.zeros(k)
        partial = [np.zeros(k) for _ in range(n_workers(-(-n // block)))]

        def sum_rows(worker: int, start: int, stop: int) -> None:
            tiles.column_sums(rows[start:stop], partial[worker])

        def commit(worker: int) -> None:
            mass[:] += partial[worker]

        run_blocks(n, block, sum_rows, commit)
    else:
        mass = as_array(frequency.double(), np.dtype(np.float64))
    gain, exponent = cluster_gain(mass, frequency_power, dtype), _exponent(power, dtype)

    def work(worker: int, start: int, stop: int) -> None:
        tiles.target_block(rows[start:stop], gain, exponent, p_rows[start:stop])

    run_blocks(n, block, work)
    return p.to(q.dtype)


def dec_loss(
    x: Tensor,
    centers: Tensor,
    target: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    scalars: list[float],
    precision: str,
    need_x: bool,
    need_centers: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over rows of KL(P||Q) / divisor, and its gradients in the working dtype (of length 0 where not needed).

    scalars: alpha, power, frequency_power, divisor.
    """
    p, target_x, target_centers, frequency = target
    alpha, power, frequency_power, divisor = scalars
    job = _Job(x, centers, alpha)
    gradients = _Gradients(job, need_x, need_centers)
    losses = np.zeros(len(job.scratch))
    total = np.zeros(1)
    mass = None if frequency is None else as_array(frequency.double(), np.dtype(np.float64))
    kernel: Any
    source: Callable[[int, int, int], tuple[Any, ...]]
    last: tuple[NDArray, ...] = ()
    if p is not None:
        p_rows = Rows(p, job.dtype)
        kernel, source = numba_loss.given_loss_block, lambda worker, start, stop: (p_rows[start:stop],)
    else:
        exponent = _exponent(power, job.dtype)
        mass = _frequency(job, exponent) if mass is None else mass
        sharpening = cluster_gain(mass, frequency_power, job.dtype), exponent
        if target_x is None:
            kernel, source = numba_loss.own_loss_block, lambda *_: (sharpening,)
            last = (np.empty(0),)  # no frequency: it is known by now
        else:
            refresh = _Job(target_x, target_centers, alpha, job.dtype)
            kernel, source = numba_loss.frozen_loss_block, lambda *part: (refresh.part(*part), sharpening)

    def work(worker: int, start: int, stop: int) -> None:
        losses[worker] = kernel(
            *job.part(worker, start, stop),
            job.alpha,
            *source(worker, start, stop),
            1.0 / divisor,
            gradients.of_rows(start, stop),
            gradients.partial[worker],
            *last,
        )

    def commit(worker: int) -> None:
        total[0] += losses[worker]
        gradients.commit(worker)

    run_blocks(job.n, job.block, work, commit)
    return torch.from_numpy(total / divisor).to(job.torch_dtype)[0], *gradients.result()


def cluster_gain(mass: NDArray, frequency_power: float, dtype: np.dtype) -> NDArray:
    """f^-frequency_power up to a common factor; 0 for a cluster without mass, so that its p is 0."""
    gain = np.zeros_like(mass)
    np.power(mass / mass.mean(), -frequency_power, out=gain, where=mass > 0)
    limit = float(np.finfo(dtype).max) ** 0.5
    return np.minimum(gain, limit).astype(dtype)


def _exponent(power: float, dtype: np.dtype) -> Any:
    """As the tiles take it: None is 2."""
    return None if power == 2.0 else dtype.type(power)


def _frequency(job: _Job, exponent: Any) -> NDArray:
    """f: the sum of q over all rows, float64."""
    frequency = _Frequency(job)
    sharpening = np.ones(job.k, job.dtype), exponent  # not looked at in this pass
    no_gradients = _Gradients(job, False, False)

    def work(worker: int, start: int, stop: int) -> None:
        numba_loss.own_loss_block(
            *job.part(worker, start, stop),
            job.alpha,
            sharpening,
            0.0,
            no_gradients.none,
            no_gradients.partial[worker],
            frequency.partial[worker],
        )

    run_blocks(job.n, job.block, work, frequency.commit)
    return frequency.total


class _Job:
    """One call's inputs as the tiles want them, and each worker's scratch."""

    def __init__(
        self,
        x: Tensor,
        centers: Tensor | None,
        alpha: float,
        dtype: np.dtype | None = None,
    ) -> None:
        assert centers is not None
        self.torch_dtype = working_dtype(x, centers)
        self.dtype = numpy_dtype(self.torch_dtype) if dtype is None else dtype
        self.n, self.d = x.shape
        self.k = centers.shape[0]
        self.rows = Rows(x, self.dtype)
        self.centers: Centers = prepare_centers(as_array(centers, self.dtype))
        self.alpha = None if alpha == 1.0 else alpha
        self.block = block_rows(self.n, row_ns=distances_ns(self.d, self.k))
        workers = n_workers(-(-self.n // self.block))
        self.scratch = [self._scratch() for _ in range(workers)]

    def part(self, worker: int, start: int, stop: int) -> tuple[Any, ...]:
        """(rows, centers, scratch) of a block."""
        return self.rows[start:stop], self.centers, self.scratch[worker]

    def _scratch(self) -> tiles.Scratch:
        general = self.alpha is not None
        return tiles.Scratch(
            rows=make_scratch(self.k, self.d, self.dtype),
            q=np.empty((self.k, LANES), self.dtype),
            slope=np.empty((self.k if general else 0, LANES), self.dtype),
            mass=np.empty(LANES, self.dtype),
            gradient=np.empty((padded(self.d), LANES), self.dtype),
        )


class _Frequency:
    """Sums of q over rows: float64, a partial a worker, committed in order."""

    def __init__(self, job: _Job) -> None:
        self.total = np.zeros(job.k)
        self.partial = [np.zeros(job.k) for _ in job.scratch]

    def commit(self, worker: int) -> None:
        self.total += self.partial[worker]


class _Gradients:
    """The two gradients: rows are written once, centers summed over blocks in float64."""

    def __init__(self, job: _Job, need_x: bool, need_centers: bool) -> None:
        self.need_x, self.need_centers = need_x, need_centers
        self.job = job
        self.grad_x = empty((job.n, job.d) if need_x else (0,), job.dtype)
        self.none: Any = np.empty((0, job.d), job.dtype)
        shape = (job.k, padded(job.d)) if need_centers else (0, padded(job.d))
        self.partial = [np.zeros(shape, job.dtype) for _ in job.scratch]
        self.total = np.zeros((shape[0], job.d))

    def of_rows(self, start: int, stop: int) -> NDArray:
        return self.grad_x.numpy()[start:stop] if self.need_x else self.none

    def commit(self, worker: int) -> None:
        if self.need_centers:
            tiles.subtract_and_clear(self.partial[worker], self.total)

    def result(self) -> tuple[Tensor, Tensor]:
        grad_centers = torch.from_numpy(self.total).to(self.job.torch_dtype) if self.need_centers else torch.empty(0)
        return self.grad_x, grad_centers.to(self.job.torch_dtype)
