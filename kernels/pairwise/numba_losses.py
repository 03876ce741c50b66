"""CPU kernels of losses over all pairs of rows: launchers. Gradients come in the working dtype."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import as_array, empty, numpy_dtype
from fastdc.kernels.pairwise import numba_loss_tiles as tiles
from fastdc.kernels.pairwise.numba_chunks import Work, make_work, prepare_points
from fastdc.kernels.pairwise.numba_kernel import LARGEST_BLOCK, compact


def pairwise_bce(
    f: Tensor, labels: Tensor | None, chooser: Tensor | None, limits: list[float], need: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient (n, k), of no rows where not needed. limits: upper, lower, eps."""
    element = numpy_dtype(f.dtype)
    n, d = f.shape
    points = prepare_points(as_array(f, element), shifts=False)
    others = None if chooser is None else as_array(chooser, element)
    numbers = None if labels is None else _known(labels)
    grad = empty((n if need else 0, d), element)
    totals = np.zeros(2)
    block = block_rows(n, largest=LARGEST_BLOCK, row_ns=distances_ns(d, n))
    workers = range(n_workers(-(-n // block)))
    works = [(_without_distances(make_work(d, element)), np.zeros(2)) for _ in workers]
    choosers = [None if others is None else tiles.make_chooser(others) for _ in workers]
    bounds = np.array(limits, element)

    def work(worker: int, start: int, stop: int) -> None:
        own, partial = works[worker]
        tiles.bce_block(points, numbers, choosers[worker], bounds, own, start, stop, partial, grad.numpy())

    def commit(worker: int) -> None:
        totals[:] += works[worker][1]

    run_blocks(n, block, work, commit)
    count = max(totals[1], 1.0)
    loss = torch.tensor(totals[0] * math.log(2.0) / count, dtype=f.dtype)
    return loss, grad.mul_(2.0 / count)


def _without_distances(work: Work) -> Work:
    """Machine code for one of the two forms of distances is enough where there are none."""
    return work._replace(scratch=work.scratch._replace(product=None))


def _known(labels: Tensor) -> np.ndarray:
    """Labels as int32, numbered anew; those below zero are -1."""
    numbers = labels.unique(return_inverse=True)[1]
    return torch.where(labels < 0, -1, numbers).to(torch.int32).numpy()


def soft_nearest_neighbor_loss(x: Tensor, labels: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient (n, d), of no rows where not needed."""
    dtype = working_dtype(x)
    element = numpy_dtype(dtype)
    n, d = x.shape
    points, numbers = prepare_points(as_array(x, element)), compact(labels)
    scale = element.type(1.0 / (math.log(2.0) * temperature))
    rows = np.empty((n, 4))
    block = block_rows(n, largest=LARGEST_BLOCK, row_ns=distances_ns(d, n))
    works = [make_work(d, element) for _ in range(n_workers(-(-n // block)))]

    def measure(worker: int, start: int, stop: int) -> None:
        tiles.neighbor_rows_block(points, numbers, scale, works[worker], start, stop, rows)

    run_blocks(n, block, measure)
    found = torch.from_numpy(rows)
    alone = torch.from_numpy(np.bincount(numbers)[numbers] == 1)
    count = max(n - int(alone.sum()), 1)
    loss = (torch.where(alone, 0.0, found[:, 3]).sum() / count).to(dtype)
    grad = empty((n if need else 0, d), element)
    if need:
        found[:, 3] = 1.0
        rows_of = torch.where(alone[:, None], 0.0, found).T.to(dtype).contiguous().numpy()

        def differentiate(worker: int, start: int, stop: int) -> None:
            tiles.neighbor_gradient_block(points, numbers, scale, rows_of, works[worker], start, stop, grad.numpy())

        run_blocks(n, block, differentiate)
        grad.mul_(2.0 / (temperature * count))
    return loss, grad
