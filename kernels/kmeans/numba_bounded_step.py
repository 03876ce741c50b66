"""What is remembered between passes with bounds, and the pass over blocks of rows on threads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._copies import copy_space
from fastdc.kernels._parallel import run_blocks
from fastdc.kernels.kmeans import numba_bounds as bounds
from fastdc.kernels.kmeans import numba_tiles as tiles
from fastdc.kernels.kmeans.balanced import balanced_assignment
from fastdc.kernels.kmeans.numba_kernel import _Job, _vector
from fastdc.kernels.kmeans.op import kmeans_step
from fastdc.kernels.kmeans.restless import Forecast
from fastdc.kernels.kmeans.update import center_update_torch

SMALLEST_GROUP, MOST_GROUPS = 12, 64
LONG_ROW_GROUP = 6  # of long rows, whose products outweigh what is done for each group
GROUPING_STEPS = 5  # of k-means over the centers


class Memory:
    """Groups of centers, where the centers were, and each row's bounds.

    Each center has a group for good, its home. The last group is that of the restless centers, which all rows look
    at: one that moves far would take the bounds of its whole home with it. Who is restless may change with each
    pass; a center that comes home brings the bound of the restless group along.
    """

    def __init__(self, x: Any, centers: Tensor) -> None:
        self.n = len(x)
        self.home = _group(centers)
        self.n_homes = int(self.home.max()) + 1
        self.forecast = Forecast(x, self.home)
        self.restless = np.zeros(len(centers), np.bool_)
        self.shift: NDArray | None = None  # the same in all passes, so that norms hold
        self.sq_norms: NDArray | None = None
        self.lower: NDArray | None = None
        self.groups: bounds.Groups | None = None  # of a pass, from its first block on
        self.looks, self.looked_at = 0, 0  # pairs of a row and a group that the last pass looked at, and might have

    @property
    def n_bytes(self) -> int:
        """Of the bounds of all rows."""
        return self.n * (8 + 4 * (self.n_homes + 1))

    @property
    def share(self) -> float:
        """Of the pairs of a row and a group that the last pass looked at."""
        return self.looks / max(1, self.looked_at)

    def forget(self) -> None:
        """Bounds that a plain pass will make out of date."""
        self.lower = None

    def begin(self, centers: Tensor, before: Tensor, restless: NDArray) -> None:
        """A pass begins, from the centers ``before``; ``restless`` (n_clusters,) marks those that all rows look at."""
        if self.sq_norms is None:
            self.sq_norms = copy_space((self.n,), np.dtype(np.float64))
            self.sq_norms[:] = -1.0
        if self.lower is None:
            self.lower = copy_space((self.n, self.n_homes + 1), np.dtype(np.float32))
            self.lower[:] = 0.0
        self.groups, self.looks, self.looked_at = None, 0, 0
        self.moves = np.linalg.norm((centers.double() - before.double()).numpy(), axis=1) * (1.0 + 1e-12)
        self.returns = np.zeros(self.n_homes + 1, np.bool_)
        self.returns[self.home[self.restless & ~restless]] = True
        self.restless = restless

    def step(
        self, first: int, x: Tensor, centers: Tensor, sample_weight: Tensor | None, previous_labels: Tensor
    ) -> tuple[Tensor, ...]:
        """labels, sums, counts, inertia and n_changed of rows x (m, d) from row ``first`` on."""
        assert self.lower is not None, "a pass has begun"
        assert self.sq_norms is not None, "a pass has begun"
        own = slice(first, first + len(x))
        lower, sq_norms = self.lower[own], self.sq_norms[own]
        job = _Job(x, centers, self.shift)
        self.shift = job.centers.shift
        if self.groups is None:
            self.groups = self._groups(job.centers)
        groups, weights = self.groups, _vector(sample_weight, np.dtype(np.float64))
        previous = previous_labels.contiguous().numpy()
        labels = torch.empty(job.n, dtype=torch.int64)
        label_rows = labels.numpy()
        total = tiles.make_totals(job.k, job.d)
        parts = [tiles.make_totals(job.k, job.d) for _ in job.scratch]
        scratch = [bounds.make_scratch(job.d, groups, job.rows.dtype) for _ in job.scratch]
        looks = np.zeros(len(job.scratch), np.int64)

        def work(worker: int, start: int, stop: int) -> None:
            here = slice(start, stop)
            label_rows[here] = previous[here]
            with np.errstate(over="ignore"):
                looks[worker] += bounds.bounded_block(
                    job.rows[here],
                    job.centers,
                    groups,
                    scratch[worker],
                    label_rows[here],
                    lower[here],
                    sq_norms[here],
                    job.sq_dists[worker][: stop - start],
                    weights[here],
                    previous[here],
                    parts[worker],
                )

        def commit(worker: int) -> None:
            tiles.add_and_clear(parts[worker], total)

        run_blocks(job.n, job.block, work, commit)
        tensors = [torch.from_numpy(array) for array in (total.sums, total.counts, total.inertia, total.n_changed)]
        self.looks += int(looks.sum())
        self.looked_at += lower.size
        return labels, tensors[0], tensors[1], tensors[2][0], tensors[3][0]

    def _groups(self, prepared: tiles.Centers) -> bounds.Groups:
        n_groups = self.n_homes + 1
        group_of = np.where(self.restless, self.n_homes, self.home)
        order = np.argsort(group_of, kind="stable")
        norms = np.linalg.norm(prepared.factors.astype(np.float64), axis=1)
        moves = _largest(self.moves, group_of, n_groups)
        moves[-1] = np.inf
        return bounds.Groups(
            order=order,
            starts=np.searchsorted(group_of[order], np.arange(n_groups + 1)),
            group_of=group_of,
            factors=np.ascontiguousarray(prepared.factors[order]),
            offsets=prepared.offsets[order],
            norms=_largest(norms, group_of, n_groups),
            moves=moves,
            returns=self.returns,
        )


def _largest(values: NDArray, group_of: NDArray, n_groups: int) -> NDArray:
    largest = np.zeros(n_groups)
    np.maximum.at(largest, group_of, values)
    return largest


def group_size(n_clusters: int, n_features: int) -> int:
    """Most centers of a group."""
    if n_features >= bounds.LONG_ROW:
        return max(LONG_ROW_GROUP, -(-n_clusters // MOST_GROUPS))
    return max(SMALLEST_GROUP, 6 * math.ceil(math.sqrt(n_clusters) / 6), -(-n_clusters // MOST_GROUPS))


def _group(centers: Tensor) -> NDArray:
    """Groups of centers near each other, all of about sqrt(n_clusters) of them: int64 numbers without gaps."""
    k = centers.shape[0]
    size = group_size(*centers.shape)
    n_groups = -(-k // size)
    middles = centers[torch.linspace(0, k - 1, n_groups, dtype=torch.float64).long()]
    for _ in range(GROUPING_STEPS):
        step = kmeans_step(centers, middles, backend="numba")
        middles = center_update_torch(step.sums, step.counts, middles)
    labels = balanced_assignment(centers, middles, size, tol=0.1).labels
    return np.unique(labels.numpy(), return_inverse=True)[1].astype(np.int64)
