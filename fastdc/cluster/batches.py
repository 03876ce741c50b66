"""Batches of distinct rows, in another order each pass: of a tensor, of a row source, of rows that processes share.

Rows that can be seen where they lie, as those of a tensor or a mapped file, are taken in an order of all of them.
Others are read by windows (``fastdc.data.windows``), and so are those that processes share, whatever holds them: the
order is one of row numbers in the whole, the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdc._input import as_tensor, require_finite
from fastdc.cluster.exact import ExactSum, exponent_of, fixed_sum, sum_over_ranks
from fastdc.cluster.sharded import ShardedRows
from fastdc.cluster.sharded_lloyd import farthest
from fastdc.cluster.streaming import StreamedRows
from fastdc.data.windows import Windows
from fastdc.kernels.kmeans import nearest_center


class Batch(NamedTuple):
    """Rows of a step.

    ``numbers`` (b,) are those of all its rows; ``x`` (m, n_features) are such as this process works on, and ``own``
    (m,) their numbers among all rows that it works on.
    """

    epoch: int  # from 1
    numbers: Tensor
    own: Tensor
    x: Tensor


class BatchSums(NamedTuple):
    """Weighted sums of the rows of each cluster, their weights, and the inertia; float64."""

    sums: Tensor
    counts: Tensor
    inertia: float


def batches(
    x: Tensor | StreamedRows, batch_size: int, n_epochs: int, random: np.random.Generator
) -> Generator[Batch, None, None]:
    """Batches of at most ``batch_size`` rows, which hold every row once an epoch."""
    held = seen_whole(x)
    if held is not None:
        for epoch in range(1, n_epochs + 1):
            order = torch.from_numpy(random.permutation(len(x))).to(held.device)
            for begin in range(0, len(x), batch_size):
                numbers = order[begin : begin + batch_size].clone()  # a view would keep the order when it is over
                yield Batch(epoch, numbers, numbers, _taken(x, held, numbers))
            del order  # before the next one
        return
    assert isinstance(x, StreamedRows), "a tensor is seen"
    is_shared = isinstance(x, ShardedRows)  # these were checked when they were surveyed
    windows = Windows(x.source, x.first, len(x), check_finite=x.check_finite and not is_shared)
    for epoch in range(1, n_epochs + 1):
        generator = torch.Generator().manual_seed(int(random.integers(2**63 - 1)))
        for window in windows.shuffled(generator):
            rows, begin = as_tensor(window.x), 0
            for numbers in window.numbers.tensor_split(-(-len(window.numbers) // batch_size)):
                own = numbers - x.first
                own = own[(own >= 0) & (own < len(x.source))]
                places = window.places[begin : begin + len(own)]
                begin += len(own)
                yield Batch(epoch, numbers, own, rows[places].to(x.device))


def seen_whole(x: Tensor | StreamedRows) -> Tensor | None:
    """All rows where they lie; None where rows must be read, and of those that processes share."""
    if isinstance(x, Tensor):
        return x
    view = None if isinstance(x, ShardedRows) else x.source.view(0, len(x))
    return as_tensor(view) if isinstance(view, np.ndarray) else view


def _taken(x: Tensor | StreamedRows, held: Tensor, numbers: Tensor) -> Tensor:
    """Some rows on the device; those of a source are checked."""
    rows = held[numbers].to(x.device)
    if isinstance(x, StreamedRows) and x.check_finite and not bool(torch.isfinite(rows.sum())):
        for row in (~rows.isfinite().all(dim=1)).nonzero()[:1, 0].tolist():
            require_finite(rows[row : row + 1], first_row=int(numbers[row]))
    return rows


def shared_sums(
    x: ShardedRows,
    coming: Iterator[Batch],
    weight: Tensor | None,
    heaviest: float,
    centers: Tensor,
    backend: str | None,
) -> tuple[Batch, BatchSums] | None:
    """The next batch and its sums over all ranks, each row added as whole numbers: one all_reduce.

    None where there are no more. ``weight`` is that of the rows worked on, ``heaviest`` the largest of all ranks.
    """
    k, d = centers.shape
    batch, rows, places, error = None, torch.empty(0, d + 2), torch.empty(0), None
    try:
        batch = next(coming, None)
        if batch is None:
            return None
        rows, places = _rows_to_add(batch, weight, centers, backend)
    except Exception as caught:  # noqa: BLE001 - raised on all ranks
        error = caught
    of_rows = exponent_of(heaviest) + exponent_of(1 if batch is None else len(batch.numbers))
    of_inertia = exponent_of(farthest(x.largest(), centers)) + 1
    bounds = np.concatenate([exponent_of(x.largest()), [exponent_of(1), of_inertia]]) + of_rows
    total = ExactSum((k, d + 2), bounds, x.device)
    if len(rows):
        total.add_rows(rows, places)
    (found,) = sum_over_ranks([total], x.ranks, error)
    assert batch is not None, "an error is raised on all ranks"
    return batch, BatchSums(found[:, :d], found[:, d], float(fixed_sum(found[:, d + 1])))


def _rows_to_add(batch: Batch, weight: Tensor | None, centers: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    """Weighted features, weight and weighted squared distance of each row that has a center (m, d + 2); its label."""
    if len(batch.x) == 0:
        return centers.new_empty(0, centers.shape[1] + 2), batch.own
    found = nearest_center(batch.x, centers, backend=backend)
    rows = torch.cat([batch.x, torch.ones_like(batch.x[:, :1]), found.sq_dists[:, None].to(batch.x)], dim=1).double()
    if weight is not None:
        rows *= weight[batch.own.to(weight.device)].double()[:, None]
    labels = found.labels.long()
    return rows[labels >= 0], labels[labels >= 0]
