"""CPU driver of the balanced assignment: auctions with smaller and smaller increments, until the gap is closed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import as_array, numpy_dtype
from fastdc.kernels._tile import prepare_centers
from fastdc.kernels.kmeans import numba_auction as auctions

LARGEST_INCREMENT = 0.25  # of the mean squared distance of rows and centers to the mean row
SHRINK = 4.0  # of the increment from one auction to the next
MOST_AUCTIONS = 24  # the last increment is then below the rounding of float64
TILES_A_CALL = 4096  # between two looks at whether the user interrupts


def balanced_assignment(
    x: Tensor, centers: Tensor, capacities: Tensor, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """labels (n,), cost, gap and prices (n_clusters,); the capacities suffice."""
    job = _Job(x, centers, capacities)
    increment = LARGEST_INCREMENT * job.spread()
    for _ in range(MOST_AUCTIONS):
        job.hold_auction(increment)
        cost, bound = job.cost_and_bound()
        gap = max(0.0, (cost - bound) / cost) if cost > 0 else 0.0
        if gap <= tol:
            break
        increment /= SHRINK
    labels = torch.from_numpy(job.used[job.auction.labels])
    prices = np.zeros(len(centers))
    prices[job.used] = job.auction.prices
    wide = torch.float64
    return labels, torch.tensor(cost, dtype=wide), torch.tensor(gap, dtype=wide), torch.from_numpy(prices)


class _Job:
    """One call's rows, the centers that have room, and the auction."""

    def __init__(self, x: Tensor, centers: Tensor, capacities: Tensor) -> None:
        dtype = numpy_dtype(working_dtype(x, centers))
        self.rows = as_array(x, dtype)
        room = np.minimum(capacities.numpy(), len(x))
        self.used = np.flatnonzero(room)
        self.centers = prepare_centers(as_array(centers, dtype)[self.used])
        largest = max(abs(float(edge)) for rows in (self.rows, self.centers.raw) for edge in (rows.min(), rows.max()))
        if not 8.0 * self.rows.shape[1] * largest**2 < float(np.finfo(dtype).max):
            raise ValueError(
                f"x and centers are so large that squared distances overflow {dtype}; "
                "scale the features or pass float64"
            )
        self.auction = auctions.make_auction(len(x), room[self.used])
        self.block = block_rows(len(x), row_ns=distances_ns(x.shape[1], len(self.used)))
        workers = n_workers(-(-len(x) // self.block))
        self.scratch = [auctions.make_scratch(len(self.used), x.shape[1], dtype) for _ in range(workers)]

    def spread(self) -> float:
        """Mean squared distance of rows and of centers to the mean row."""
        mean = self.rows.mean(axis=0, dtype=np.float64).astype(self.rows.dtype)[None]
        around = sum(
            auctions.cost_block(points, mean, np.zeros(len(points), np.int64)) / len(points)
            for points in (self.rows, self.centers.raw)
        )
        return around if around > 0 else 1.0

    def hold_auction(self, increment: float) -> None:
        """A place for every row; prices start from those of the auction before."""
        auctions.clear(self.auction)
        arguments = (self.rows, self.centers, self.scratch[0], self.auction, increment, TILES_A_CALL)
        while auctions.bid(*arguments) > 0:
            pass
        self.auction.prices[:] -= self.auction.prices.min()

    def cost_and_bound(self) -> tuple[float, float]:
        """Of the labels, and the dual value of the prices: no assignment costs less."""
        prices, labels = self.auction.prices, self.auction.labels
        totals = np.zeros(2)
        partial = np.zeros((len(self.scratch), 2))

        def work(worker: int, start: int, stop: int) -> None:
            rows: NDArray = self.rows[start:stop]
            partial[worker, 0] = auctions.cost_block(rows, self.centers.raw, labels[start:stop])
            partial[worker, 1] = auctions.least_block(rows, self.centers, self.scratch[worker], prices)

        def commit(worker: int) -> None:
            totals[:] += partial[worker]

        run_blocks(len(self.rows), self.block, work, commit)
        return float(totals[0]), float(totals[1] - self.auction.capacities @ prices)
