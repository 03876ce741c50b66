"""Approximate neighbours of all points among themselves: points are cut into lists, and near lists meet.

A list holds the points of one center. It meets those whose means are nearest to its own, by the tiles of the exact
search, which keep the nearest points of both sides: so what is found gets better with every list that is met, up to
the exact neighbours once all have met. Rows lie in the order of their lists.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels._copies import copy_rows
from fastdc.kernels._precision import working_dtype
from fastdc.kernels.kmeans import center_update, kmeans_step, nearest_center
from fastdc.kernels.neighbors import numba_tiles as tiles
from fastdc.kernels.neighbors.numba_kernel import Job, finish, join_pairs, knn, open_best
from fastdc.kernels.neighbors.points import distances_of, metric_rows

LIST_ROWS, MOST_LISTS = 64, 4  # rows of a list, about; and at most so many lists times the root of n
LONGEST_LIST = 1024  # rows; longer ones are cut
TRAINING_ROWS, TRAINING_STEPS = 24, 4  # of each list, and passes over them, that place its center
WIDTH = 32  # lists that a list meets where nothing else is said, itself among them


def knn_lists(x: Tensor, n_neighbors: int, metric: str) -> tuple[Tensor, Tensor]:
    """distances (n, n_neighbors) in the working dtype and indices, nearest first."""
    lists = NearLists(x, n_neighbors, metric)
    lists.look_at(min(WIDTH, lists.widest))
    return lists.neighbors()


class NearLists:
    """The nearest points of each point, as far as the lists that met tell.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features), on the CPU
    n_neighbors : int
    metric : {"euclidean", "cosine"}
        In which what is near to the same point is near to each other.
    n_lists : int, optional
        About; None is :func:`list_count`.
    """

    algorithm = "lists"

    def __init__(self, x: Tensor, n_neighbors: int, metric: str, n_lists: int | None = None) -> None:
        rows = metric_rows(x, metric, working_dtype(x))
        self.order, self._lists = _lists_of(rows, list_count(len(rows)) if n_lists is None else n_lists)
        self._places = torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(rows)))
        self._job = Job(copy_rows(x, self.order), None, metric)
        self._best = open_best(self._job, n_neighbors)
        self._near: list[list[int]] = []
        self._met: set[tuple[int, int]] = set()
        self.metric, self.widest, self._dtype = metric, len(self._lists), rows.dtype

    def look_at(self, width: int) -> None:
        """Have each list meet the ``width`` nearest ones, itself among them, as far as it has not yet."""
        if width > 1 and (not self._near or len(self._near[0]) < width - 1):
            self._near = self._nearest_lists(min(2 * width, self.widest) - 1)
        pairs = [(i, i) for i in range(self.widest)]
        ranks = ((i, row[rank]) for rank in range(width - 1) for i, row in enumerate(self._near))
        pairs += ((min(pair), max(pair)) for pair in ranks)
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._met]
        self._met.update(new)
        join_pairs(self._job, self._best, self._lists, new)

    def _nearest_lists(self, count: int) -> list[list[int]]:
        means = [self._job.points.factors[start:stop].mean(axis=0) for start, stop in self._lists]
        return knn(torch.from_numpy(np.stack(means)), None, count, "euclidean", "ieee")[1].tolist()

    def distances(self, rows: Tensor) -> Tensor:
        """Distances of some rows (m,) to their neighbours (m, n_neighbors), nearest first."""
        keys = torch.from_numpy(self._best.keys)[self._places[rows]].sort(dim=1).values
        return distances_of(keys, self.metric, self._dtype)

    def neighbors(self) -> tuple[Tensor, Tensor]:
        """distances (n, n_neighbors) and indices, nearest first. It ends the work: nothing can be met after it."""
        indices = torch.from_numpy(self._best.indices)
        known = indices != tiles.NO_INDEX
        indices[known] = self.order[indices[known]]
        parts = finish(self._job, self._best)
        return tuple(part[self._places] for part in parts)  # type: ignore[return-value]


def list_count(n_samples: int) -> int:
    """Centers of lists: few enough that finding the nearest of them is no more work than meeting lists."""
    return max(1, min(n_samples // LIST_ROWS, int(MOST_LISTS * n_samples**0.5)))


def _lists_of(rows: Tensor, wanted: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """An order of all rows (n,), and where each list begins and ends in it. Rows that are not finite are in none."""
    n = len(rows)
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: wanted * TRAINING_ROWS]
    sample = rows[drawn.sort().values]
    sample = sample[sample.isfinite().all(dim=1)]
    centers = sample[:: -(-len(sample) // wanted)].clone() if len(sample) else torch.zeros_like(rows[:1])
    for _ in range(TRAINING_STEPS if len(sample) else 0):
        step = kmeans_step(sample, centers)
        centers = center_update(step.sums, step.counts, centers)
    labels = nearest_center(rows, centers).labels
    order = labels.argsort(stable=True)  # those of label -1 come first
    counts = torch.bincount(labels[labels >= 0])
    ends = (counts.cumsum(0) + (n - counts.sum())).tolist()
    lists = [
        (first, min(first + LONGEST_LIST, end))
        for end, count in zip(ends, counts.tolist())
        for first in range(end - count, end, LONGEST_LIST)
    ]
    return order, lists
