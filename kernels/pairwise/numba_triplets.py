"""CPU kernel of the loss of all triplets: 64 anchors stand in lanes and meet all rows; b log b steps an anchor.

A triplet of an anchor has a loss above zero where the distance of its negative lies below that of its positive plus
the margin. So the positives of an anchor are sorted, each negative finds its place among them, and one pass over the
places counts each row's triplets: how often its distance is added to the sum, or taken from it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels._lanes import padded
from fastdc.kernels._numba import jit
from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import as_array, empty, numpy_dtype
from fastdc.kernels._tile import gradient_tile, load_rows, make_scratch, prepare_centers, sq_distance_tile
from fastdc.kernels._vectors import LANES
from fastdc.kernels.pairwise.numba_kernel import LARGEST_BLOCK, compact
from fastdc.kernels.student_t.numba_tiles import subtract_and_clear


def triplet_loss_all(x: Tensor, labels: Tensor, margin: float, need: bool) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient (n, d) in the working dtype, of no rows where not needed."""
    dtype = working_dtype(x)
    element = numpy_dtype(dtype)
    n, d = x.shape
    points, numbers = prepare_centers(as_array(x, element)), compact(labels)
    most = int(np.bincount(numbers).max())  # positives of an anchor, and itself
    grad = empty((n if need else 0, d), element)
    block = block_rows(n, largest=LARGEST_BLOCK, row_ns=distances_ns(d, n))
    works = [
        (
            make_scratch(n, d, element),
            np.empty((n, LANES), element),
            np.empty((2, n)),
            np.empty((3, most + 1)),
            np.empty((padded(d), LANES), element),
            np.zeros((len(grad), padded(d)), element),
            np.zeros(2),
        )
        for _ in range(n_workers(-(-n // block)))
    ]
    totals, of_others = np.zeros(2), np.zeros((len(grad), d))

    def work(worker: int, start: int, stop: int) -> None:
        _anchors_block(points, numbers, margin, works[worker], start, stop, grad.numpy())

    def commit(worker: int) -> None:
        *_, partial, sums = works[worker]
        totals[:] += sums
        subtract_and_clear(partial, of_others)

    run_blocks(n, block, work, commit)
    count = max(totals[1], 1.0)
    if need:
        grad = ((grad.double() + torch.from_numpy(of_others)) / count).to(dtype)
    return torch.tensor(totals[0] / count, dtype=dtype), grad


@jit
def _anchors_block(points, labels, margin, work, start, stop, grad):
    """Sum and number of the losses above zero of anchors start … stop into the last of the work, their gradients.

    grad (n, d): of the anchors as such, of no rows if it is not wanted; what the other rows of their triplets get is
    added, negated, to the (n, padded) of the work.
    """
    scratch, tile, distances, places, gradient, as_others, totals = work
    totals[:] = 0.0
    for first in range(start, stop, LANES):
        rows = points.raw[first:stop]
        used = min(LANES, stop - first)
        load_rows(rows, points, scratch)
        sq_distance_tile(rows, points, scratch, tile)
        for lane in range(used):
            _weigh_anchor(labels, first + lane, margin, lane, tile, distances, places, totals)
        if grad.shape[0] > 0:
            for j in range(tile.shape[0]):
                for lane in range(used, LANES):
                    tile[j, lane] = tile.dtype.type(0)
            gradient_tile(rows, points, scratch, tile, gradient, grad[first:stop], as_others)


@jit(inner=True)
def _weigh_anchor(labels, anchor, margin, lane, tile, distances, places, totals):
    """Squared distances of a lane become weights of differences; its triplets are added to the totals."""
    n = labels.size
    reach = distances[1]
    limits, added, counts = places[0], places[1], places[2]
    n_positives = 0
    anything = 0.0
    for j in range(n):
        distance = np.sqrt(np.float64(tile[j, lane]))
        distances[0, j] = distance
        if labels[j] == labels[anchor]:
            reach[j] = distance + margin
            if j != anchor:
                limits[n_positives] = reach[j]
                n_positives += 1
        anything += distance
    if n_positives == 0 or n_positives == n - 1:
        for j in range(n):
            tile[j, lane] = tile.dtype.type(0)
        return
    sorted_limits = limits[:n_positives]
    sorted_limits.sort()
    added[: n_positives + 1] = 0.0
    counts[: n_positives + 1] = 0.0
    for j in range(n):
        if labels[j] != labels[anchor]:
            place = _place(sorted_limits, distances[0, j])
            added[place] += distances[0, j]
            counts[place] += 1.0
            _put_weight(tile, j, lane, place - n_positives, distances[0, j])
    total, number = 0.0, 0.0
    for place in range(n_positives):  # negatives nearer than this positive's limit
        if place > 0:
            added[place] += added[place - 1]
            counts[place] += counts[place - 1]
        if counts[place] > 0:
            total += counts[place] * sorted_limits[place] - added[place]
        number += counts[place]
    for j in range(n):
        if labels[j] == labels[anchor]:
            weight = 0.0
            if j != anchor:
                place = min(_place(sorted_limits, reach[j]), n_positives) - 1
                weight = counts[place]
            _put_weight(tile, j, lane, weight, distances[0, j])
    totals[0] += total if anything == anything else np.nan
    totals[1] += number


@jit(inner=True)
def _place(limits, value):
    """How many of the sorted limits are not above the value; all of them for NaN, among which nothing is sorted."""
    low, high = 0, limits.size
    while low < high:
        middle = (low + high) // 2
        if limits[middle] > value:
            high = middle
        else:
            low = middle + 1
    return low


@jit(inner=True)
def _put_weight(tile, j, lane, weight, distance):
    tile[j, lane] = weight / distance if distance > 0.0 else 0.0
