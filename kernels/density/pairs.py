"""The search by ``radius_neighbors`` on a GPU: pairs of a block of rows at a time, joined on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels.density.numba_forest import join_pairs, number_sets
from fastdc.kernels.neighbors import RadiusNeighbors, radius_neighbors

MOST_PAIRS = 1 << 26  # of a block


class PairSearch:
    """Finite rows x (n, d) on any device."""

    def __init__(self, x: Tensor, radius: float, metric: str, backend: str | None = None) -> None:
        self.x, self.radius, self.metric, self.backend = x, radius, metric, backend

    def counts(self, weights: Tensor | None) -> Tensor:
        """Rows within the radius of each, itself among them: int64; with weights (n,) their float64 sums."""
        parts = []
        for _, near in self._blocks():
            if weights is None:
                parts.append(near.indptr.diff())
            else:
                found = weights.double()[near.indices]
                parts.append(torch.segment_reduce(found, "sum", offsets=near.indptr, initial=0.0))
        return torch.cat(parts)

    def clusters(self, is_core: Tensor) -> Tensor:
        """The number of each row's set of cores, -1 for a row within the radius of none."""
        n = len(self.x)
        parents, numbers, core = np.arange(n), np.empty(n, np.int64), is_core.cpu().numpy()
        for start, near in self._blocks():
            rows = start + torch.repeat_interleave(near.indptr.diff())
            joined = is_core[rows] & is_core[near.indices] & (rows < near.indices)
            join_pairs(parents, rows[joined].cpu().numpy(), near.indices[joined].cpu().numpy())
        number_sets(parents, core, np.arange(n), numbers)
        own = torch.from_numpy(numbers).to(self.x.device)
        of_core = torch.where(is_core, own, n)
        found = torch.cat([_least(of_core[near.indices], near.indptr, n) for _, near in self._blocks()])
        return torch.where(is_core, own, torch.where(found < n, found, -1))

    def _blocks(self) -> Iterator[tuple[int, RadiusNeighbors]]:
        """(first row, who is near) of block after block."""
        n = len(self.x)
        block = max(1, MOST_PAIRS // n)
        for start in range(0, n, block):
            queries = self.x[start : start + block]
            yield start, radius_neighbors(self.x, self.radius, queries, self.metric, backend=self.backend)


def _least(values: Tensor, indptr: Tensor, most: int) -> Tensor:
    """The least value of each row of a CSR list, ``most`` where there is none."""
    rows = torch.repeat_interleave(indptr.diff())
    return torch.full_like(indptr[1:], most).scatter_reduce(0, rows, values, "amin")
