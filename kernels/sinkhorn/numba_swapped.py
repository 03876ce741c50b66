"""CPU kernel of the swapped prediction: scores are made again, 64 rows at a time, in each of the passes.

Small batches are held instead: ``numba_held.py``.

A view is read once for each iteration, and once more beside the other view for the loss and all gradients. Sums
over rows are float32 within a block of at most 1024 rows and float64 across blocks, committed in order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lanes import make_corner, padded
from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, as_array, empty, numpy_dtype
from fastdc.kernels._simd import prepare
from fastdc.kernels._vectors import LANES
from fastdc.kernels._workspace import workspace
from fastdc.kernels.sinkhorn import numba_swapped_tiles as tiles
from fastdc.kernels.sinkhorn.iterate import Marginals, find_potential
from fastdc.kernels.sinkhorn.numba_held import HeldPasses, HeldViews, is_bounded, may_hold
from fastdc.kernels.sinkhorn.numba_kernel import LARGEST_BLOCK, ColumnSums, make_bound, make_potential, make_scale
from fastdc.kernels.sinkhorn.numba_stored import find_factors
from fastdc.kernels.sinkhorn.numba_tiles import Potential


def swapped_prediction_loss(
    z1: Tensor,
    z2: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    scalars: list[float],
    needs: list[bool],
    group: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and the gradients of z1, z2 and prototypes in the working dtype, of length 0 where not needed.

    scalars: temperature, epsilon, n_iters, and what the sum over rows is multiplied by.
    """
    temperature, epsilon, n_iters, share = scalars
    job = _Job((z1, z2), prototypes, queue, epsilon)
    scales = job.scale, make_scale(temperature, job.dtype)
    held = None
    if may_hold(job.n_all, job.k, job.dtype.itemsize):
        x = np.stack([rows[0 : job.n_all] for rows in job.all_rows])
        if is_bounded(x, job.prototypes.rows, float(max(scales))):
            held = HeldViews(x, job.prototypes, scales)
    if held is not None and group is None:
        scalings = held.solve(int(n_iters))
        if scalings is not None:
            return _held_loss(job, held, scalings, temperature, share, needs)
    marginals = Marginals(None, None, (job.n_all, job.k), z1.device, group)
    found = []
    for view in range(2):
        passes: Any = TilePasses(job, view, marginals)
        if held is not None:
            passes = HeldPasses(held, view, passes)
        found.append(find_potential(passes, marginals, int(n_iters), None))
    if held is not None:
        factors = [find_factors(potential, job.dtype) for potential, _ in found]
        scalings = [f[0] for f in factors if f is not None]
        if len(scalings) == 2:
            return _held_loss(job, held, scalings, temperature, share, needs)
    potentials = tuple(make_potential(potential, job.k, job.dtype) for potential, _ in found)
    bounds = [make_bound(bound[: job.n], job.dtype) for _, bound in found]
    return _loss_and_gradients(job, potentials, bounds, scales, share, needs)


class _Job:
    """One call's inputs as the tiles want them, and each worker's scratch."""

    def __init__(self, views: tuple[Tensor, Tensor], prototypes: Tensor, queue: Tensor | None, epsilon: float) -> None:
        self.torch_dtype = working_dtype(*views, prototypes)
        self.dtype = numpy_dtype(self.torch_dtype)
        prepare(self.dtype)
        (self.n, self.d), self.k = views[0].shape, prototypes.shape[0]
        self.views = [Rows(z, self.dtype) for z in views]
        self.all_rows = self.views
        if queue is not None:
            self.all_rows = [Rows(torch.cat([z, more.to(z.dtype)]), self.dtype) for z, more in zip(views, queue)]
        self.n_all = self.n if queue is None else self.n + queue.shape[1]
        rows = as_array(prototypes, self.dtype)
        columns = workspace("sinkhorn columns", (self.d, self.k), self.dtype)
        torch.from_numpy(columns).copy_(torch.from_numpy(rows).T)
        self.prototypes = tiles.Prototypes(rows, columns, make_potential(None, self.k, self.dtype))
        self.scale = make_scale(epsilon, self.dtype)
        self.block = block_rows(self.n_all, largest=LARGEST_BLOCK, row_ns=distances_ns(self.d, self.k))
        self.scratch = [self._scratch() for _ in range(n_workers(-(-self.n_all // self.block)))]

    def _scratch(self) -> tiles.Scratch:
        width = padded(self.d)

        def lanes() -> NDArray:
            return np.empty(LANES, self.dtype)

        def softmax() -> tiles.Softmax:
            return tiles.Softmax(lanes(), np.empty(LANES), lanes(), lanes())

        def view() -> tiles.View:
            rows = np.zeros((LANES, width), self.dtype)
            return tiles.View(np.empty((self.k, LANES), self.dtype), rows, softmax(), softmax())

        return tiles.Scratch(
            views=(view(), view()),
            columns=np.empty((width, LANES), self.dtype),
            corner=make_corner(self.dtype),
            no_shift=np.zeros(width, self.dtype),
            lanes=(lanes(), lanes()),
            sums=np.empty(LANES),
        )


class TilePasses:
    """The passes of ``iterate.py`` over one view and its queue."""

    def __init__(self, job: _Job, view: int, marginals: Marginals) -> None:
        self.job, self.rows = job, job.all_rows[view]
        self.weight = marginals.weight.numpy()

    def columns(self, row_potential: Tensor | None) -> tuple[Tensor, Tensor]:
        job = self.job
        sums = ColumnSums(job.k, job.dtype, len(job.scratch))
        whole, part = make_potential(row_potential, job.n_all, job.dtype)

        def work(worker: int, start: int, stop: int) -> None:
            potential = Potential(whole[start:stop], part[start:stop])
            scratch, out = job.scratch[worker], sums.partial[worker]
            tiles.columns_block(self.rows[start:stop], job.prototypes, scratch, potential, job.scale, *out)

        run_blocks(job.n_all, job.block, work, sums.commit)
        return sums.result()

    def step(self, column_potential: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        job = self.job
        potential, bounds = make_potential(column_potential, job.k, job.dtype), make_bound(bound, job.dtype)
        row_logs, mass = np.empty(job.n_all), np.zeros(job.k)
        partial = [np.empty(job.k) for _ in job.scratch]

        def work(worker: int, start: int, stop: int) -> None:
            tiles.step_block(
                self.rows[start:stop],
                job.prototypes,
                job.scratch[worker],
                potential,
                job.scale,
                bounds[start:stop],
                self.weight[start:stop],
                row_logs[start:stop],
                partial[worker],
            )

        def commit(worker: int) -> None:
            mass[:] += partial[worker]

        run_blocks(job.n_all, job.block, work, commit)
        return torch.from_numpy(row_logs), torch.from_numpy(mass)


def _held_loss(
    job: _Job, held: HeldViews, scalings: list[NDArray], temperature: float, share: float, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bits, (grad1, grad2, grad3) = held.loss_and_gradients(scalings, 0.5 * share / temperature, job.n, needs)
    return torch.tensor(bits * (0.5 * share * math.log(2.0)), dtype=job.torch_dtype), grad1, grad2, grad3


def _loss_and_gradients(
    job: _Job,
    potentials: tuple[Potential, ...],
    bounds: list[NDArray],
    scales: tuple[Any, Any],
    share: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = [empty((job.n, job.d) if need else (0, job.d), job.dtype) for need in needs[:2]]
    shape = (job.k, padded(job.d)) if needs[2] else (0, padded(job.d))
    partial = [np.zeros(shape, job.dtype) for _ in job.scratch]
    grad_prototypes = np.zeros((shape[0], job.d))
    losses, total = np.zeros(len(job.scratch)), np.zeros(1)
    factor = 0.5 * share * float(scales[1]) * math.log(2.0)

    def work(worker: int, start: int, stop: int) -> None:
        losses[worker] = tiles.loss_block(
            (job.views[0][start:stop], job.views[1][start:stop]),
            job.prototypes,
            job.scratch[worker],
            potentials,
            scales,
            tuple(bound[start:stop] for bound in bounds),
            factor,
            tuple(g.numpy()[start:stop] for g in grads),
            partial[worker],
        )

    def commit(worker: int) -> None:
        total[0] += losses[worker]
        tiles.add_and_clear(partial[worker], grad_prototypes)

    run_blocks(job.n, job.block, work, commit)
    partial.clear()  # before the gradient in its own dtype needs memory
    job.scratch.clear()
    loss = torch.from_numpy(total * (0.5 * share * math.log(2.0))).to(job.torch_dtype)[0]
    found = (*grads, torch.from_numpy(grad_prototypes).to(job.torch_dtype))
    grad1, grad2, grad3 = (g if need else g.new_empty(0) for g, need in zip(found, needs))
    return loss, grad1, grad2, grad3
